"""Queries of the orders that wait for capacity, and of when those that hold nodes end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.auth.contract import Scope
from dflare.services.orchestrator.repository import LIVE
from dflare.services.orchestrator.tables import Allocation, KnownEnd, WaitingOrder

WAITING, PLACED = "waiting", "placed"
MOST_WAITING = 1_000
"""How many orders may wait at a site."""


@dataclass(frozen=True)
class Holding:
    """A node that an order has, and when that ends at the latest, where it is known."""

    node_id: str
    cluster_id: str
    organization_id: str
    project_id: str
    state: str
    ends_at: datetime | None


async def holdings(session: AsyncSession, scope: Scope, site_id: str) -> list[Holding]:
    """The live allocations of a site."""
    table = Allocation.__table__.c
    rows = await session.execute(
        select(
            Allocation.node_id,
            Allocation.cluster_id,
            Allocation.organization_id,
            Allocation.project_id,
            Allocation.state,
            KnownEnd.ends_at,
        )
        .outerjoin(KnownEnd, KnownEnd.cluster_id == Allocation.cluster_id)
        .where(
            scope.where(table.organization_id, table.project_id),
            Allocation.site_id == site_id,
            LIVE,
        )
    )
    return [Holding(*row) for row in rows]


async def waiting_at(session: AsyncSession, site_id: str) -> list[WaitingOrder]:
    """The orders that wait at a site and were not placed yet, as they came."""
    return list(
        await session.scalars(
            select(WaitingOrder)
            .where(WaitingOrder.site_id == site_id, WaitingOrder.state == WAITING)
            .order_by(WaitingOrder.arrived_at, WaitingOrder.operation_id)
            .limit(MOST_WAITING)
            .execution_options(populate_existing=True)
        )
    )


async def all_waiting(session: AsyncSession) -> list[WaitingOrder]:
    """Every order that waits, or whose placement its operation does not know of yet."""
    return list(await session.scalars(select(WaitingOrder).order_by(WaitingOrder.operation_id)))


async def waiting(session: AsyncSession, operation_id: str) -> WaitingOrder | None:
    """An order that waits."""
    return await session.get(WaitingOrder, operation_id, populate_existing=True)


async def mark(session: AsyncSession, operation_id: str, state: str) -> None:
    """Say whether nodes are held for an order that waits."""
    await session.execute(
        update(WaitingOrder).where(WaitingOrder.operation_id == operation_id).values(state=state)
    )


async def tell(session: AsyncSession, operation_id: str, told: str) -> None:
    """Remember what an order that waits was told."""
    await session.execute(
        update(WaitingOrder).where(WaitingOrder.operation_id == operation_id).values(told=told)
    )


async def forget(session: AsyncSession, operation_ids: Sequence[str]) -> None:
    """These wait no longer."""
    await session.execute(delete(WaitingOrder).where(WaitingOrder.operation_id.in_(operation_ids)))


async def keep_end(
    session: AsyncSession, cluster_id: str, ends_at: datetime | None, version: int
) -> None:
    """When a cluster ends at the latest; an older version changes nothing."""
    values = {"ends_at": ends_at, "version": version}
    await session.execute(
        insert(KnownEnd)
        .values(cluster_id=cluster_id, **values)
        .on_conflict_do_update(
            index_elements=["cluster_id"], set_=values, where=KnownEnd.version < version
        )
    )


async def end_of(session: AsyncSession, cluster_id: str) -> datetime | None:
    """When a cluster ends at the latest, if that is known."""
    return await session.scalar(select(KnownEnd.ends_at).where(KnownEnd.cluster_id == cluster_id))


async def drop_end(session: AsyncSession, cluster_id: str) -> None:
    """A cluster is gone."""
    await session.execute(delete(KnownEnd).where(KnownEnd.cluster_id == cluster_id))
