"""Queries of reservations of blocks; those of tenants start from the caller's scope."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.errors import NotFoundError
from dflare.services.auth.contract import Scope
from dflare.services.orchestrator.tables import BlockReservation, Site

SCHEDULED, CANCELLED = "scheduled", "cancelled"


def _within(scope: Scope) -> ColumnElement[bool]:
    table = BlockReservation.__table__.c
    return scope.where(table.organization_id, table.project_id)


async def find_site(session: AsyncSession, reference: str | None) -> Site | None:
    """A site by id or name; without a reference the only one, if there is just one."""
    query = select(Site)
    if reference is not None:
        query = query.where((Site.site_id == reference) | (Site.name == reference))
    found = (await session.scalars(query.order_by(Site.site_id).limit(2))).all()
    return found[0] if len(found) == 1 or (found and reference is not None) else None


async def barred(
    session: AsyncSession,
    site_id: str,
    project_id: str,
    now: datetime,
    ends_at: datetime | None,
) -> frozenset[str]:
    """Nodes that a project's order must not have: reserved for others in the time from now until
    it ends, or, where its end is not known, at any time to come."""
    overlaps = BlockReservation.ends_at > now
    if ends_at is not None:
        overlaps &= BlockReservation.starts_at < ends_at
    rows = await session.scalars(
        select(BlockReservation.node_ids).where(
            BlockReservation.site_id == site_id,
            BlockReservation.state == SCHEDULED,
            BlockReservation.project_id != project_id,
            overlaps,
        )
    )
    return frozenset(node_id for row in rows for node_id in row)


async def overlapping(
    session: AsyncSession, site_id: str, starts_at: datetime, ends_at: datetime
) -> list[BlockReservation]:
    """The reservations of a site within a time."""
    return list(
        await session.scalars(
            select(BlockReservation).where(
                BlockReservation.site_id == site_id,
                BlockReservation.state == SCHEDULED,
                BlockReservation.starts_at < ends_at,
                BlockReservation.ends_at > starts_at,
            )
        )
    )


async def find(
    session: AsyncSession, scope: Scope, project_id: str, reference: str, *, lock: bool = False
) -> BlockReservation:
    """A reservation of a project by id, or by the name of one that is not cancelled.

    Raises:
        NotFoundError: none within the scope.
    """
    live = BlockReservation.state == SCHEDULED
    query = select(BlockReservation).where(
        _within(scope),
        BlockReservation.project_id == project_id,
        or_(BlockReservation.id == reference, (BlockReservation.name == reference) & live),
    )
    found = (await session.scalars(query.with_for_update() if lock else query)).first()
    if found is None:
        raise NotFoundError(
            f"there is no reservation {reference}", next_step="List the project's reservations."
        )
    return found


async def page(
    session: AsyncSession, scope: Scope, project_id: str, after: str | None, limit: int
) -> Sequence[BlockReservation]:
    """Those not cancelled, newest first; one more than ``limit``."""
    query = select(BlockReservation).where(
        _within(scope),
        BlockReservation.project_id == project_id,
        BlockReservation.state == SCHEDULED,
    )
    if after is not None:
        query = query.where(BlockReservation.id < after)
    return (
        await session.scalars(query.order_by(BlockReservation.id.desc()).limit(limit + 1))
    ).all()
