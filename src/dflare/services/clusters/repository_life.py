"""Queries about the life of clusters that the caller loaded within its scope, or, for reconcilers,
of all."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.errors import NotFoundError
from dflare.services.auth.contract import Scope
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.domain_life import NodeHealth
from dflare.services.clusters.tables import (
    KIT,
    Cluster,
    Drain,
    KnownNode,
    Member,
    NodePool,
    Scheduler,
)

_ENDING = (ClusterState.DELETING, ClusterState.DELETED)


async def lock_pool(session: AsyncSession, cluster_id: str, reference: str) -> NodePool:
    """A pool of a locked cluster by name or id, locked.

    Raises:
        NotFoundError: the cluster has none of that name.
    """
    query = (
        select(NodePool)
        .where(
            NodePool.cluster_id == cluster_id,
            (NodePool.name == reference) | (NodePool.id == reference),
        )
        .with_for_update()
    )
    found = (await session.scalars(query)).first()
    if found is None:
        raise NotFoundError(
            f"the cluster has no pool {reference}",
            next_step="See its pools by `dflare cluster show`.",
        )
    return found


async def targets_of(session: AsyncSession, operation_id: str) -> list[str]:
    """The nodes that an operation acts on."""
    query = select(KIT.operation.c.targets).where(KIT.operation.c.id == operation_id)
    return list(await session.scalar(query) or [])


async def drains_of(session: AsyncSession, cluster_ids: Sequence[str]) -> dict[str, list[Drain]]:
    """The drained nodes of clusters, by cluster."""
    rows = await session.scalars(
        select(Drain).where(Drain.cluster_id.in_(cluster_ids)).order_by(Drain.node_id)
    )
    found: defaultdict[str, list[Drain]] = defaultdict(list)
    for row in rows:
        found[row.cluster_id].append(row)
    return found


async def health_of(
    session: AsyncSession, cluster_ids: Sequence[str]
) -> dict[str, list[NodeHealth]]:
    """What is known of the nodes that clusters have and nobody releases, by cluster."""
    rows = await session.execute(
        select(Member.cluster_id, Member.node_name, KnownNode.state, KnownNode.reason)
        .outerjoin(KnownNode, KnownNode.node_id == Member.node_id)
        .where(Member.cluster_id.in_(cluster_ids), Member.state.in_(["held", "confirmed"]))
        .order_by(Member.node_name)
    )
    found: defaultdict[str, list[NodeHealth]] = defaultdict(list)
    for row in rows:
        found[row.cluster_id].append(NodeHealth(row.node_name, row.state, row.reason or ""))
    return found


async def schedulers_of(session: AsyncSession, cluster_ids: Sequence[str]) -> dict[str, Scheduler]:
    """The schedulers of those clusters that have one."""
    rows = await session.scalars(select(Scheduler).where(Scheduler.cluster_id.in_(cluster_ids)))
    return {row.cluster_id: row for row in rows}


async def living(session: AsyncSession, after: str, limit: int) -> list[Cluster]:
    """A page of the clusters that are not being released, in order of their ids."""
    query = select(Cluster).where(Cluster.state.not_in(_ENDING), Cluster.id > after)
    return list(await session.scalars(query.order_by(Cluster.id).limit(limit)))


async def expired(session: AsyncSession, now: datetime, limit: int) -> list[Cluster]:
    """Clusters whose time is over and that can be released."""
    query = (
        select(Cluster)
        .where(
            Cluster.expires_at <= now,
            ~Cluster.protected,
            Cluster.state.in_([ClusterState.READY, ClusterState.FAILED]),
        )
        .order_by(Cluster.expires_at)
        .limit(limit)
    )
    return list(await session.scalars(query))


async def lock_unless_busy(session: AsyncSession, scope: Scope, cluster_id: str) -> Cluster | None:
    """A cluster, locked; ``None`` where somebody else has it locked or it is not in the scope."""
    query = (
        select(Cluster)
        .where(
            Cluster.id == cluster_id,
            scope.where(
                Cluster.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
                Cluster.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
            ),
        )
        .with_for_update(skip_locked=True)
    )
    return (await session.scalars(query)).first()
