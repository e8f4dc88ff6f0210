"""How long events, answers and spans are kept: bounded deletes, never past a slow consumer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, delete, func, select, tuple_, update

from dflare.kit import feed_tables, trace_tables
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.tables import KitTables

BATCH = 5_000
MOST_BATCHES = 40
"""Batches that one pass removes of one table at most: a backlog must not keep the relay's other
work from the database."""


@dataclass(frozen=True)
class Retention:
    """Removes what is older than it has to be kept.

    ``keep`` is the age of events in the log, and of spans. ``keep_relayed`` is that of an outbox's
    rows which the log has: nobody reads them, they stay for a person who looks for a fault.
    ``keep_answers`` is how long a request may be repeated under its idempotency key.
    """

    database: Database
    schemas: Mapping[str, KitTables]
    clock: Clock
    keep: timedelta
    keep_relayed: timedelta = timedelta(hours=1)
    keep_answers: timedelta = timedelta(hours=24)
    batch: int = BATCH

    async def apply(self) -> int:
        """One bounded pass; returns how many log entries were removed."""
        now = self.clock.now()
        read = [await self._slowest_reader(kit) for kit in self.schemas.values()]
        slowest = min((position for position in read if position is not None), default=None)
        removed = 0
        for _ in range(MOST_BATCHES):
            step = await self._trim_log(now - self.keep, slowest)
            removed += step
            if step < self.batch:
                break
        for kit in self.schemas.values():
            event, answer = kit.event.c, kit.idempotency.c
            relayed = event.relayed & (event.at < now - self.keep_relayed)
            await self._remove(kit.schema, [event.id], relayed)
            # A try that still runs after all this time puts its row back when it claims it.
            key = [answer.caller, answer.route, answer.key]
            await self._remove(kit.schema, key, answer.created_at < now - self.keep_answers)
        span = trace_tables.span.c
        await self._remove("trace", [span.span_id], span.ended_at < now - self.keep)
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
                    log.c.position <= floor + self.batch, log.c.at < before
                )
            )
            limits = [position for position in (newest_old, slowest) if position is not None]
            if newest_old is None or min(limits) <= floor:
                return 0
            await session.execute(delete(log).where(log.c.position <= min(limits)))
            await session.execute(update(head).where(head.c.id == 1).values(floor=min(limits)))
            return min(limits) - floor

    async def _remove(
        self, schema: str, key: Sequence[Column[Any]], condition: ColumnElement[bool]
    ) -> None:
        """Delete the rows of one table that ``condition`` names, a batch a transaction. Rows that
        somebody holds are left for the next pass."""
        table = key[0].table
        old = select(*key).where(condition).limit(self.batch).with_for_update(skip_locked=True)
        for _ in range(MOST_BATCHES):
            async with self.database.transaction(schema) as session:
                gone = delete(table).where(tuple_(*key).in_(old)).returning(key[0])
                removed = len((await session.execute(gone)).all())
            if removed < self.batch:
                return
