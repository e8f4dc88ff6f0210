"""How long events and spans are kept: bounded deletes, never past a slow consumer."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update

from dflare.kit import feed_tables, trace_tables
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.tables import KitTables

BATCH = 5_000


@dataclass(frozen=True)
class Retention:
    """Removes what is older than ``keep``: from the log, from the outboxes, and spans."""

    database: Database
    schemas: Mapping[str, KitTables]
    clock: Clock
    keep: timedelta

    async def apply(self) -> int:
        """One bounded pass; returns how many log entries were removed."""
        before = self.clock.now() - self.keep
        read = [await self._slowest_reader(kit) for kit in self.schemas.values()]
        removed = await self._trim_log(
            before, min((position for position in read if position is not None), default=None)
        )
        for kit in self.schemas.values():
            await self._trim_outbox(kit, before)
        await self._trim_spans(before)
        return removed

    async def _slowest_reader(self, kit: KitTables) -> int | None:
        async with self.database.transaction(kit.schema) as session:
            return await session.scalar(select(func.min(kit.feed_cursor.c.position)))

    async def _trim_log(self, before: datetime, slowest: int | None) -> int:
        log, head = feed_tables.log, feed_tables.head
        async with self.database.transaction("feed") as session:
            floor = (
                await session.execute(select(head.c.floor).where(head.c.id == 1).with_for_update())
            ).scalar_one()
            newest_old = await session.scalar(
                select(func.max(log.c.position)).where(
                    log.c.position <= floor + BATCH, log.c.at < before
                )
            )
            limits = [position for position in (newest_old, slowest) if position is not None]
            if newest_old is None or min(limits) <= floor:
                return 0
            await session.execute(delete(log).where(log.c.position <= min(limits)))
            await session.execute(update(head).where(head.c.id == 1).values(floor=min(limits)))
            return min(limits) - floor

    async def _trim_outbox(self, kit: KitTables, before: datetime) -> None:
        event = kit.event
        async with self.database.transaction(kit.schema) as session:
            old = (
                select(event.c.id)
                .where(event.c.relayed, event.c.at < before)
                .order_by(event.c.ordinal)
                .limit(BATCH)
            )
            await session.execute(delete(event).where(event.c.id.in_(old)))

    async def _trim_spans(self, before: datetime) -> None:
        span = trace_tables.span
        async with self.database.transaction("trace") as session:
            old = select(span.c.span_id).where(span.c.ended_at < before).limit(BATCH)
            await session.execute(delete(span).where(span.c.span_id.in_(old)))
