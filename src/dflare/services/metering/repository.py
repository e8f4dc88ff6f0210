"""Queries of schema ``metering``; each starts from the caller's scope."""

from datetime import datetime
from typing import TypeVar

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.auth.contract import Scope
from dflare.services.metering.domain import PriceStep, VolumePriceStep
from dflare.services.metering.tables import (
    JobEntry,
    LedgerEntry,
    Price,
    Quota,
    RegistryEntry,
    VolumeEntry,
    VolumePrice,
)

HeldT = TypeVar("HeldT", VolumeEntry, RegistryEntry)


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


async def intervals(
    session: AsyncSession,
    entry: type[HeldT],
    scope: Scope,
    project_id: str,
    start: datetime,
    end: datetime,
    *,
    after: str | None = None,
    limit: int | None = None,
) -> list[HeldT]:
    """Intervals of what a project's volumes or repositories held that touch the period, in order of
    their ids: all of them, or a page behind the interval ``after``."""
    table = entry.__table__.c
    query = select(entry).where(
        scope.where(table.organization_id, table.project_id),
        entry.project_id == project_id,
        _touches(entry, start, end),
    )
    if after is not None:
        query = query.where(entry.interval_id > after)
    query = query.order_by(entry.interval_id).limit(limit)
    return list((await session.scalars(query)).all())


async def jobs(
    session: AsyncSession,
    scope: Scope,
    project_id: str,
    start: datetime,
    end: datetime,
    *,
    after: tuple[str, int] | None = None,
    limit: int | None = None,
) -> list[JobEntry]:
    """Runs of a project's jobs that touch the period, in order of their jobs: all of them, or a
    page behind the run ``after``."""
    table = JobEntry.__table__.c
    query = select(JobEntry).where(
        scope.where(table.organization_id, table.project_id),
        JobEntry.project_id == project_id,
        _touches(JobEntry, start, end),
    )
    if after is not None:
        query = query.where(tuple_(JobEntry.job_id, JobEntry.run) > after)
    query = query.order_by(JobEntry.job_id, JobEntry.run).limit(limit)
    return list((await session.scalars(query)).all())


def _touches(
    entry: type[VolumeEntry] | type[RegistryEntry] | type[JobEntry], start: datetime, end: datetime
) -> ColumnElement[bool]:
    return (entry.usage_from < end) & (entry.usage_to.is_(None) | (entry.usage_to > start))


async def volume_prices(session: AsyncSession) -> list[VolumePriceStep]:
    """All prices of volumes; they are no tenant's."""
    rows = (await session.scalars(select(VolumePrice))).all()
    return [
        VolumePriceStep(row.site_id, row.valid_from, row.price_per_gib_hour, row.currency)
        for row in rows
    ]


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
