"""Read models of metrics: nodes and sites, who has which node, names of clusters, operations."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.feed import FeedEntry, Projection
from dflare.kit.plan import FINAL_STATES
from dflare.services.baremetal.contract import NodeDeclared
from dflare.services.metrics.domain_times import Took, counted, finished_steps
from dflare.services.metrics.tables import (
    KIT,
    KnownCluster,
    KnownNode,
    KnownOperation,
    KnownSite,
    StepTime,
    Tenancy,
)
from dflare.services.orchestrator.contract import AllocationFacts

_ENDED = frozenset(str(state) for state in FINAL_STATES)


class SitesProjection:
    """Names of sites, and the makers of their node types' GPUs, from ``site.declared``."""

    name = "metrics.sites"
    kit = KIT
    types = frozenset({"site.declared"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest of each site."""
        for entry in entries:
            kinds: Sequence[dict[str, Any]] = entry.data["node_types"]
            values = {
                "name": entry.data["name"],
                "vendors": {kind["name"]: kind["vendor"] for kind in kinds},
                "version": entry.resource_version,
            }
            await _keep(session, KnownSite, "site_id", entry.data["site_id"], values)


class NodesProjection:
    """Which nodes there are and their parts, from ``node.declared``."""

    name = "metrics.nodes"
    kit = KIT
    types = frozenset({"node.declared"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest of each node."""
        for entry in entries:
            facts = NodeDeclared.model_validate(entry.data)
            values = {
                "site_id": facts.site_id,
                "name": facts.name,
                "node_type": facts.node_type,
                "gpus": facts.gpus,
                "ports": [port.name for port in (*facts.ethernet, *facts.infiniband)],
                "retired": facts.retired,
                "version": entry.resource_version,
            }
            await _keep(session, KnownNode, "node_id", facts.node_id, values)


class TenanciesProjection:
    """Who has a node from when to when, from ``allocation.changed``. Nodes that were never handed
    over were nobody's."""

    name = "metrics.tenancies"
    kit = KIT
    types = frozenset({"allocation.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest of each allocation."""
        for entry in entries:
            facts = AllocationFacts.model_validate(entry.data)
            if facts.usage_from is None:
                continue
            values = {
                "node_id": facts.node_id,
                "organization_id": facts.organization_id,
                "project_id": facts.project_id,
                "cluster_id": facts.cluster_id,
                "had_from": facts.usage_from,
                "had_to": facts.usage_to,
                "version": facts.version,
            }
            await _keep(session, Tenancy, "allocation_id", facts.allocation_id, values)


class ClustersProjection:
    """Names of clusters, from ``cluster.declared``."""

    name = "metrics.clusters"
    kit = KIT
    types = frozenset({"cluster.declared"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest of each cluster."""
        for entry in entries:
            values = {"name": entry.data["name"], "version": entry.resource_version}
            await _keep(session, KnownCluster, "cluster_id", entry.data["cluster_id"], values)


class OperationsProjection:
    """Operations under way, and how long their steps took, from ``operation.changed``."""

    name = "metrics.operations"
    kit = KIT
    types = frozenset({"operation.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Fold each newer version once; a step counts when it is first seen finished."""
        ids = sorted({entry.resource_id for entry in entries})
        query = select(KnownOperation).where(KnownOperation.operation_id.in_(ids))
        known = {row.operation_id: row for row in await session.scalars(query)}
        took: list[Took] = []
        for entry in entries:
            row = known.get(entry.resource_id)
            if row is not None and row.version >= entry.resource_version:
                continue
            if row is None:
                row = known[entry.resource_id] = _new_operation(entry)
                session.add(row)
            took += _note_operation(row, entry)
        await session.flush()
        await _count(session, took)


def _new_operation(entry: FeedEntry) -> KnownOperation:
    return KnownOperation(
        operation_id=entry.resource_id,
        kind=entry.data["kind"],
        organization_id=entry.organization_id,
        project_id=entry.project_id,
        site_id=entry.site_id,
        attempt=0,
        begun_at=entry.at,
        finished_at=None,
        timed_until=None,
    )


def _note_operation(row: KnownOperation, entry: FeedEntry) -> list[Took]:
    data = entry.data
    if data["attempt"] != row.attempt:
        row.attempt, row.begun_at = data["attempt"], entry.at
    row.state, row.reason, row.version = data["state"], data["reason"], entry.resource_version
    row.finished_at = _time(data["finished_at"]) if data["state"] in _ENDED else None
    took = list(finished_steps(data, row.timed_until))
    if took:
        row.timed_until = max(one.finished_at for one in took)
    return took


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


async def _count(session: AsyncSession, took: Sequence[Took]) -> None:
    """Add steps to the histograms; one process at a time, by the rows' locks."""
    by_key: dict[tuple[str, str, str], list[float]] = {}
    for one in took:
        by_key.setdefault((one.saga, one.step, one.outcome), []).append(one.seconds)
    for key in sorted(by_key):
        saga, step, outcome = key
        none = insert(StepTime).values(saga=saga, step=step, outcome=outcome, buckets=[], seconds=0)
        await session.execute(none.on_conflict_do_nothing())
        row = await session.get_one(StepTime, key, with_for_update=True)
        buckets: list[int] = row.buckets
        for seconds in by_key[key]:
            buckets = counted(buckets, seconds)
            row.seconds += seconds
        row.buckets = buckets


async def _keep(
    session: AsyncSession, kind: type[Any], key: str, value: str, values: dict[str, Any]
) -> None:
    await session.execute(
        insert(kind)
        .values(**{key: value}, **values)
        .on_conflict_do_update(
            index_elements=[key], set_=values, where=kind.version < values["version"]
        )
    )


def projections() -> list[Projection]:
    """All read models of this service."""
    return [
        SitesProjection(),
        NodesProjection(),
        TenanciesProjection(),
        ClustersProjection(),
        OperationsProjection(),
    ]
