"""Steps of a cluster's resizing, and the read model of its nodes' health.

They change only rows of this schema, so each does its work in the loading transaction, behind the
runner's fence. What a repeat finds done already is done: a resize is under way exactly as long as
the cluster is ``resizing`` for this very operation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.feed import FeedEntry
from dflare.kit.ids import new_id
from dflare.kit.operations import lock_operation
from dflare.kit.plan import Plan, StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.services.auth.contract import Scope
from dflare.services.baremetal.contract import NodeStateChanged
from dflare.services.clusters import repository, repository_life
from dflare.services.clusters.contract import SLURM, ClusterState
from dflare.services.clusters.domain import cluster_event
from dflare.services.clusters.domain_life import enter
from dflare.services.clusters.service_orders import Order, store_order
from dflare.services.clusters.tables import KIT, Cluster, Drain, KnownNode

_SCOPE = Scope.system("step of an operation on the cluster")

Outcomes = dict[str, Outcome]
Plans = Callable[[str], Plan]
"""The present plan of a saga by its name, as ``Orchestrator.plan`` gives it."""


class Verb(Protocol):
    """What a step does to the locked cluster of its operation, within one transaction."""

    async def __call__(
        self, session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime
    ) -> Outcome: ...


@dataclass(frozen=True)
class LifeStep:
    """A step whose whole work is one transaction of this schema."""

    name: str
    verb: Verb
    clock: Clock

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Outcomes:
        """Do the work."""
        cluster = await repository.lock_cluster(session, _SCOPE, call.resource_id)
        outcome = await self.verb(session, call, cluster, self.clock.now())
        return dict.fromkeys(targets, outcome)

    async def act(self, call: StepCall, loaded: Outcomes, targets: list[str]) -> Outcomes:
        """Nothing of the outside world is touched."""
        return loaded

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Outcomes, outcomes: Outcomes
    ) -> None:
        """All is recorded already."""


def steps(clock: Clock, plans: Plans) -> list[Step[Any]]:
    """The steps of resizing; ``plans`` is asked when a new node takes another's place."""
    verbs: dict[str, Verb] = {
        "clusters.begin_grow@1": begin,
        "clusters.begin_shrink@1": begin,
        "clusters.resize_undone@1": take_back,
        "clusters.grown@1": Grown(plans),
        "clusters.drain@1": drain,
        "clusters.undrain@1": undrain,
        "clusters.let_go@1": let_go,
        "clusters.shrunk@1": shrunk,
    }
    return [LifeStep(name, verb, clock) for name, verb in verbs.items()]


def _resizes(cluster: Cluster, call: StepCall) -> bool:
    """Whether the cluster is being resized by this very operation."""
    own = cluster.operation_id == call.operation_id
    return own and cluster.state == ClusterState.RESIZING


async def _emit(session: AsyncSession, cluster: Cluster, now: datetime) -> None:
    await session.flush()
    await outbox.emit(session, KIT, [cluster_event(cluster, now)])


async def begin(session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime) -> Outcome:
    """The order left the cluster resizing; a retry of one that was undone begins again."""
    if _resizes(cluster, call):
        return DONE
    if cluster.state != ClusterState.READY:
        return Outcome("failed", f"cluster {cluster.name} is {cluster.state}")
    cluster.operation_id = call.operation_id
    enter(cluster, ClusterState.RESIZING, now)
    await _emit(session, cluster, now)
    return DONE


async def take_back(
    session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime
) -> Outcome:
    """The cluster is ready as it was; its pools were not touched."""
    if _resizes(cluster, call):
        enter(cluster, ClusterState.READY, now)
        await _emit(session, cluster, now)
    return DONE


@dataclass(frozen=True)
class Grown:
    """The pool has its new nodes. Where one of them takes the place of another (param
    ``replaces``), the cluster goes on with the release of that one."""

    plans: Plans

    async def __call__(
        self, session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime
    ) -> Outcome:
        """Count them, and order the release; a repeat finds the cluster no longer resizing for
        this operation."""
        if not _resizes(cluster, call):
            return DONE
        pool = await repository_life.lock_pool(session, cluster.id, call.params["pool"])
        pool.count += int(call.params["added"])
        if replaced := call.params.get("replaces"):
            await self._release(session, call, cluster, replaced, now)
        else:
            enter(cluster, ClusterState.READY, now)
        await _emit(session, cluster, now)
        return DONE

    async def _release(
        self, session: AsyncSession, call: StepCall, cluster: Cluster, replaced: str, now: datetime
    ) -> None:
        row = await lock_operation(session, KIT, call.operation_id)
        operation_id = new_id("op")
        enter(cluster, ClusterState.RESIZING, now, reason=f"replaces node {replaced}")
        cluster.operation_id = operation_id
        plan = shrink_plan(
            self.plans, cluster, call.params["pool"], 1, call.params.get("drain", "wait"), now
        )
        order = Order(
            operation_id=operation_id,
            kind="release_replaced_node",
            action="cluster:replace_node",
            plan=plan,
            targets=[replaced],
            created_by=row["created_by"],
            trace=dict(row["trace"]),
        )
        await store_order(session, cluster, order, None, now)


def shrink_plan(
    plans: Plans, cluster: Cluster, pool: str, removed: int, wait: str, now: datetime
) -> Plan:
    """The plan that releases ``removed`` nodes of a pool; ``wait`` is what is done about jobs that
    run on them."""
    if cluster.kind == SLURM:
        # A node is its tenant's, and billed, until the jobs on it have ended.
        plan = plans("shrink_slurm_cluster").with_params("clusters.await_idle@1", jobs=wait)
    else:
        plan = plans("shrink_cluster").with_params(
            "orchestrator.release@1", requested_at=now.isoformat()
        )
    return plan.with_params("clusters.shrunk@1", pool=pool, removed=str(removed))


async def drain(session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime) -> Outcome:
    """Note that the nodes take no new work; one that somebody drained before stays that one's."""
    rows = [
        {
            "cluster_id": cluster.id,
            "node_id": node_id,
            "owner": call.operation_id,
            "reason": "it leaves the cluster",
            "since": now,
        }
        for node_id in call.targets
    ]
    await session.execute(insert(Drain).on_conflict_do_nothing(), rows)
    return DONE


async def undrain(
    session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime
) -> Outcome:
    """The nodes stay: the drains of this operation end, those of others do not."""
    await session.execute(
        delete(Drain).where(
            Drain.cluster_id == cluster.id,
            Drain.node_id.in_(call.targets),
            Drain.owner == call.operation_id,
        )
    )
    return DONE


async def let_go(session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime) -> Outcome:
    """Nothing of the shrink is taken back from here on; its drained nodes are about to go."""
    if _resizes(cluster, call):
        return DONE
    return Outcome("failed", f"cluster {cluster.name} is {cluster.state}")


async def shrunk(session: AsyncSession, call: StepCall, cluster: Cluster, now: datetime) -> Outcome:
    """The pool has so many nodes less."""
    if not _resizes(cluster, call):
        return DONE
    pool = await repository_life.lock_pool(session, cluster.id, call.params["pool"])
    pool.count -= int(call.params["removed"])
    gone = await repository_life.targets_of(session, call.operation_id)
    await session.execute(
        delete(Drain).where(Drain.cluster_id == cluster.id, Drain.node_id.in_(gone))
    )
    enter(cluster, ClusterState.READY, now)
    await _emit(session, cluster, now)
    return DONE


class NodesProjection:
    """Whether nodes are well, from ``node.state_changed``."""

    name = "clusters.nodes"
    kit = KIT
    types = frozenset({"node.state_changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest state of each node."""
        newest: dict[str, FeedEntry] = {}
        for entry in entries:
            known = newest.get(entry.resource_id)
            if known is None or known.resource_version < entry.resource_version:
                newest[entry.resource_id] = entry
        if not newest:
            return
        statement = insert(KnownNode).values([_known_node(entry) for entry in newest.values()])
        columns = ("state", "reason", "since", "version")
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=["node_id"],
                set_={name: statement.excluded[name] for name in columns},
                where=KnownNode.version < statement.excluded.version,
            )
        )


def _known_node(entry: FeedEntry) -> dict[str, Any]:
    node = NodeStateChanged.model_validate(entry.data)
    return {
        "node_id": node.node_id,
        "state": node.state.value,
        "reason": node.reason,
        "since": entry.at,
        "version": entry.resource_version,
    }
