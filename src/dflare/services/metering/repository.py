"""Queries of schema ``metering``; each starts from the caller's scope."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.auth.contract import Scope
from dflare.services.metering.domain import PriceStep
from dflare.services.metering.tables import LedgerEntry, Price, Quota


async def ledger(
    session: AsyncSession, scope: Scope, project_id: str, start: datetime, end: datetime
) -> list[LedgerEntry]:
    """Entries of a project whose interval touches the period."""
    query = select(LedgerEntry).where(
        scope.where(
            LedgerEntry.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            LedgerEntry.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        ),
        LedgerEntry.project_id == project_id,
        LedgerEntry.usage_from < end,
        LedgerEntry.usage_to.is_(None) | (LedgerEntry.usage_to > start),
    )
    return list((await session.scalars(query.order_by(LedgerEntry.allocation_id))).all())


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
