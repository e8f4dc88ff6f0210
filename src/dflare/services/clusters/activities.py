"""Steps of the clusters service and its read models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.errors import ConflictError
from dflare.kit.feed import FeedEntry, Projection
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.services.auth.contract import Scope
from dflare.services.baremetal.contract import SiteDeclared
from dflare.services.clusters import repository
from dflare.services.clusters.activities_life import NodesProjection
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.domain import ORDER_DEADLINE, check_transition, cluster_event
from dflare.services.clusters.projections import scheduler_projections
from dflare.services.clusters.tables import KIT, KnownSite, Member
from dflare.services.orchestrator.contract import AllocationFacts

_SCOPE = Scope.system("step of an operation on the cluster")
_BEYOND = frozenset({ClusterState.DELETING, ClusterState.DELETED})
"""A release came after the order: there is nothing of the cluster left to take back."""


@dataclass(frozen=True)
class SetState:
    """Moves the cluster of an operation to ``state``; nothing of the outside world is touched."""

    name: str
    state: ClusterState
    clock: Clock

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> ClusterState:
        """The cluster's present state."""
        cluster = await repository.lock_cluster(session, _SCOPE, call.resource_id)
        return ClusterState(cluster.state)

    async def act(
        self, call: StepCall, loaded: ClusterState, targets: list[str]
    ) -> dict[str, Outcome]:
        """A cluster of kind ``bare`` has no software of its own to act on; a step that comes too
        late for its cluster fails, since trying again would not help."""
        if call.undoing and loaded in _BEYOND:
            return dict.fromkeys(targets, DONE)
        try:
            check_transition(loaded, self.state)
        except ConflictError as error:
            return dict.fromkeys(targets, Outcome("failed", error.detail))
        return dict.fromkeys(targets, DONE)

    async def record(
        self,
        session: AsyncSession,
        call: StepCall,
        loaded: ClusterState,
        outcomes: dict[str, Outcome],
    ) -> None:
        """Change the state and emit ``cluster.changed``; repeating changes nothing."""
        if any(outcome.state == "failed" for outcome in outcomes.values()):
            return
        cluster = await repository.lock_cluster(session, _SCOPE, call.resource_id)
        old = ClusterState(cluster.state)
        if old is self.state or (call.undoing and old in _BEYOND):
            return
        check_transition(old, self.state)
        cluster.state, cluster.since = self.state, self.clock.now()
        cluster.reason = (
            f"operation {call.operation_id} was undone" if self.state is ClusterState.FAILED else ""
        )
        if self.state in {ClusterState.CREATING, ClusterState.DELETING}:
            cluster.deadline = cluster.deadline or self.clock.now() + ORDER_DEADLINE
        else:
            cluster.deadline = None
        # An order that waited learns only now which nodes it got, and why these.
        cluster.explanation = call.params.get("placement", cluster.explanation)
        cluster.version += 1
        await session.flush()
        await outbox.emit(session, KIT, [cluster_event(cluster, self.clock.now())])


def steps(clock: Clock) -> list[Step[Any]]:
    """All steps of this service."""
    return [
        SetState("clusters.begin@1", ClusterState.CREATING, clock),
        SetState("clusters.fail@1", ClusterState.FAILED, clock),
        SetState("clusters.ready@1", ClusterState.READY, clock),
        SetState("clusters.begin_delete@1", ClusterState.DELETING, clock),
        SetState("clusters.deleted@1", ClusterState.DELETED, clock),
    ]


class SitesProjection:
    """What can be ordered where, from ``site.declared``."""

    name = "clusters.sites"
    kit = KIT
    types = frozenset({"site.declared"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest declaration of each site."""
        for entry in entries:
            site = SiteDeclared.model_validate(entry.data)
            values = {
                "name": site.name,
                "currency": site.currency,
                "node_types": {t.name: t.price_per_node_hour for t in site.node_types},
                "images": list(site.images),
                "scheduler": bool(site.scheduler_hosts),
                "version": entry.resource_version,
            }
            await session.execute(
                insert(KnownSite)
                .values(site_id=site.site_id, **values)
                .on_conflict_do_update(
                    index_elements=["site_id"],
                    set_=values,
                    where=KnownSite.version < entry.resource_version,
                )
            )


class MembersProjection:
    """The nodes of each cluster, from ``allocation.changed``."""

    name = "clusters.members"
    kit = KIT
    types = frozenset({"allocation.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each allocation."""
        newest: dict[str, AllocationFacts] = {}
        for entry in entries:
            facts = AllocationFacts.model_validate(entry.data)
            known = newest.get(facts.allocation_id)
            if known is None or known.version < facts.version:
                newest[facts.allocation_id] = facts
        if not newest:
            return
        statement = insert(Member).values(
            [
                {
                    "allocation_id": facts.allocation_id,
                    "cluster_id": facts.cluster_id,
                    "node_id": facts.node_id,
                    "node_name": facts.node_name,
                    "node_type": facts.node_type,
                    "pool": facts.pool,
                    "slot": facts.slot,
                    "state": facts.state,
                    "version": facts.version,
                }
                for facts in newest.values()
            ]
        )
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=["allocation_id"],
                set_={"state": statement.excluded.state, "version": statement.excluded.version},
                where=Member.version < statement.excluded.version,
            )
        )


def projections() -> list[Projection]:
    """All read models of this service."""
    return [
        SitesProjection(),
        MembersProjection(),
        NodesProjection(),
        *scheduler_projections(),
    ]
