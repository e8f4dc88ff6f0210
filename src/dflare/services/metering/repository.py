"""Queries of schema ``metering``; each starts from the caller's scope."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.auth.contract import Scope
from dflare.services.metering.domain import PriceStep
from dflare.services.metering.tables import LedgerEntry, Price, Quota


async def ledger(
    session: AsyncSession,
    scope: Scope,
    project_id: str,
    start: datetime,
    end: datetime,
    *,
    after: str | None = None,
    limit: int | None = None,
) -> list[LedgerEntry]:
    """Entries of a project whose interval touches the period, in order of their allocations:
    all of them, or a page behind the allocation ``after``."""
    query = select(LedgerEntry).where(
        scope.where(
            LedgerEntry.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            LedgerEntry.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        ),
        LedgerEntry.project_id == project_id,
        LedgerEntry.usage_from < end,
        LedgerEntry.usage_to.is_(None) | (LedgerEntry.usage_to > start),
    )
    if after is not None:
        query = query.where(LedgerEntry.allocation_id > after)
    query = query.order_by(LedgerEntry.allocation_id).limit(limit)
    return list((await session.scalars(query)).all())


async def prices(session: AsyncSession) -> list[PriceStep]:
    """All price steps; prices are no tenant's."""
    rows = (await session.scalars(select(Price))).all()
    return [
        PriceStep(p.site_id, p.node_type, p.valid_from, p.price_per_node_hour, p.currency)
        for p in rows
    ]


async def quotas(session: AsyncSession, scope: Scope, project_id: str) -> list[Quota]:
    """The limits of a project."""
    query = select(Quota).where(
        scope.where(
            Quota.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            Quota.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        ),
        Quota.project_id == project_id,
    )
    return list((await session.scalars(query.order_by(Quota.node_type))).all())
