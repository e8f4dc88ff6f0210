"""Events and audit rows, written in the transaction that changes the resource.

An event carries the version of its resource and no position: positions are given by the relay.
The writer must hold the lock of the resource's row, so that versions of one resource are
inserted in order. Source: DESIGN section 5, "Events".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.ids import new_id
from dflare.kit.tables import KitTables

Json = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One change of one resource; ``data`` is its new public state, with no secret in it."""

    type: str
    resource_kind: str
    resource_id: str
    resource_version: int
    at: datetime
    data: Json
    organization_id: str | None = None
    project_id: str | None = None
    site_id: str | None = None
    operation_id: str | None = None


@dataclass(frozen=True)
class AuditRecord:
    """Who did or tried what. ``decision`` is ``allow`` or ``deny``."""

    at: datetime
    principal: str
    action: str
    resource_kind: str
    resource_id: str
    decision: str = "allow"
    organization_id: str | None = None
    project_id: str | None = None
    operation_id: str | None = None
    detail: Json = field(default_factory=dict[str, Any])


async def emit(session: AsyncSession, kit: KitTables, events: Sequence[Event]) -> None:
    """Insert ``events`` into the schema's outbox, in their order."""
    if events:
        rows = [{"id": new_id("evt"), **vars(event)} for event in events]
        await session.execute(insert(kit.event), rows)


async def record_audit(session: AsyncSession, kit: KitTables, *records: AuditRecord) -> None:
    """Insert audit rows, and an ``audit.recorded`` event of each for the platform's audit log.

    The event names no owner outside its data: who reads an organization's feed is not thereby
    allowed to read its audit log.
    """
    if records:
        rows = [{"id": new_id("aud"), **vars(record)} for record in records]
        await session.execute(insert(kit.audit), rows)
        await emit(session, kit, [_recorded(row) for row in rows])


def _recorded(row: Json) -> Event:
    return Event(
        type="audit.recorded",
        resource_kind="audit",
        resource_id=row["id"],
        resource_version=1,
        at=row["at"],
        data={name: value for name, value in row.items() if name not in {"id", "at"}},
        operation_id=row["operation_id"],
    )
