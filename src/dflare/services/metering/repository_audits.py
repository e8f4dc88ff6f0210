"""Queries of audits and of the ledger as a whole; each starts from the caller's scope."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, DateTime, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from dflare.services.auth.contract import Scope
from dflare.services.metering.domain_audits import AuditState
from dflare.services.metering.tables import LedgerEntry, UsageAudit, UsageFinding

OPEN = (AuditState.REQUESTED, AuditState.RUNNING)
_NEVER = literal_column("'infinity'::timestamptz", DateTime(timezone=True))


def _platform(scope: Scope) -> ColumnElement[bool]:
    """Audits belong to no tenant: nobody whose scope ends somewhere knows of them."""
    return scope.where(None, None)


async def entries(
    session: AsyncSession, scope: Scope, since: datetime, after: str | None, limit: int
) -> list[LedgerEntry]:
    """A page of the whole ledger: what does not end before ``since``, by allocation."""
    query = select(LedgerEntry).where(
        _within(scope), LedgerEntry.usage_to.is_(None) | (LedgerEntry.usage_to >= since)
    )
    if after is not None:
        query = query.where(LedgerEntry.allocation_id > after)
    rows = await session.scalars(query.order_by(LedgerEntry.allocation_id).limit(limit))
    return list(rows.all())


async def entries_of(
    session: AsyncSession, scope: Scope, allocation_ids: Sequence[str]
) -> list[LedgerEntry]:
    """Entries by allocation, whenever their usage was."""
    query = select(LedgerEntry).where(_within(scope), LedgerEntry.allocation_id.in_(allocation_ids))
    return list((await session.scalars(query)).all())


def _within(scope: Scope) -> ColumnElement[bool]:
    table = LedgerEntry.__table__.c
    return scope.where(table.organization_id, table.project_id)


async def overlaps(
    session: AsyncSession, scope: Scope, since: datetime, limit: int
) -> list[tuple[LedgerEntry, LedgerEntry]]:
    """Pairs of intervals of one node that share time behind ``since``, the earlier one first; an
    interval without length shares none."""
    first, second = aliased(LedgerEntry), aliased(LedgerEntry)
    first_end = func.coalesce(first.usage_to, _NEVER)
    second_end = func.coalesce(second.usage_to, _NEVER)
    query = (
        select(first, second)
        .join(second, first.node_id == second.node_id)
        .where(
            _platform(scope),
            (first.usage_from < second.usage_from)
            | (
                (first.usage_from == second.usage_from)
                & (first.allocation_id < second.allocation_id)
            ),
            second.usage_from < first_end,
            first.usage_from < first_end,
            second.usage_from < second_end,
            first_end > since,
            second_end > since,
        )
        .order_by(second.allocation_id, first.allocation_id)
        .limit(limit)
    )
    return [(row[0], row[1]) for row in await session.execute(query)]


async def audits(
    session: AsyncSession, scope: Scope, after: str | None, limit: int
) -> list[UsageAudit]:
    """Audits, newest first, behind the audit ``after``."""
    query = select(UsageAudit).where(_platform(scope))
    if after is not None:
        query = query.where(UsageAudit.id < after)
    return list((await session.scalars(query.order_by(UsageAudit.id.desc()).limit(limit))).all())


async def audit(session: AsyncSession, scope: Scope, audit_id: str) -> UsageAudit | None:
    """One audit."""
    query = select(UsageAudit).where(_platform(scope), UsageAudit.id == audit_id)
    return (await session.scalars(query)).first()


async def findings(
    session: AsyncSession, scope: Scope, audit_id: str, after: int, limit: int
) -> list[UsageFinding]:
    """Findings of an audit by their number, behind the number ``after``."""
    query = (
        select(UsageFinding)
        .where(_platform(scope), UsageFinding.audit_id == audit_id, UsageFinding.number > after)
        .order_by(UsageFinding.number)
        .limit(limit)
    )
    return list((await session.scalars(query)).all())


async def waiting(session: AsyncSession, scope: Scope, usage_since: datetime) -> UsageAudit | None:
    """An audit that nobody has begun and that will cover everything from ``usage_since`` on."""
    query = (
        select(UsageAudit)
        .where(
            _platform(scope),
            UsageAudit.state == AuditState.REQUESTED,
            UsageAudit.usage_since <= usage_since,
        )
        .order_by(UsageAudit.requested_at)
        .limit(1)
    )
    return (await session.scalars(query)).first()


async def due(session: AsyncSession, scope: Scope, now: datetime) -> UsageAudit | None:
    """The oldest audit that waits for a worker or lost its own, locked."""
    query = (
        select(UsageAudit)
        .where(
            _platform(scope),
            UsageAudit.state.in_(OPEN),
            (UsageAudit.state == AuditState.REQUESTED) | (UsageAudit.deadline < now),
        )
        .order_by(UsageAudit.requested_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return (await session.scalars(query)).first()
