"""The numbered event log: the relay's copying, reading by cursor, and projections.

Positions are dense and given by the one relay that holds the row lock of ``feed.head``; a copy is
unique by (source, event id), so that a relay that died between its two transactions copies nothing
twice. Source: DESIGN section 5, "Events".
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]
from sqlalchemy import ColumnElement, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import feed_tables
from dflare.kit.db import Database
from dflare.kit.errors import GoneError
from dflare.kit.tables import KitTables
from dflare.kit.telemetry import log

COPY_BATCH = 1_000
READ_BATCH = 500
CHANNEL = "dflare_feed"
STORE_EVERY_S = 10.0
"""How late the stored cursor of a projection may be over events that are not for it."""

_COPIED = (
    "type",
    "organization_id",
    "project_id",
    "site_id",
    "resource_kind",
    "resource_id",
    "resource_version",
    "operation_id",
    "at",
    "data",
)


@dataclass(frozen=True)
class FeedEntry:
    """One numbered event as read from the log."""

    position: int
    source: str
    event_id: str
    type: str
    organization_id: str | None
    project_id: str | None
    site_id: str | None
    resource_kind: str
    resource_id: str
    resource_version: int
    operation_id: str | None
    at: datetime
    data: dict[str, Any]


async def copy_events(database: Database, kit: KitTables) -> int:
    """Copy one batch of a schema's unrelayed events into the log; returns how many were read.

    Two transactions, in this order: append to the log, then mark the source.
    """
    event = kit.event
    async with database.transaction(kit.schema) as session:
        rows = (
            (
                await session.execute(
                    select(event)
                    .where(~event.c.relayed)
                    .order_by(event.c.ordinal)
                    .limit(COPY_BATCH)
                )
            )
            .mappings()
            .all()
        )
    if not rows:
        return 0
    ids = [row["id"] for row in rows]
    async with database.transaction("feed") as session:
        await _append(session, kit.schema, rows, ids)
    async with database.transaction(kit.schema) as session:
        await session.execute(update(event).where(event.c.id.in_(ids)).values(relayed=True))
    return len(rows)


async def _append(
    session: AsyncSession, source: str, rows: Sequence[Any], ids: Sequence[str]
) -> None:
    log_table, head = feed_tables.log, feed_tables.head
    position = (
        await session.execute(select(head.c.position).where(head.c.id == 1).with_for_update())
    ).scalar_one()
    known = set(
        await session.scalars(
            select(log_table.c.event_id).where(
                log_table.c.source == source, log_table.c.event_id.in_(ids)
            )
        )
    )
    fresh = [row for row in rows if row["id"] not in known]
    if not fresh:
        return
    await session.execute(
        insert(log_table),
        [
            {
                "position": position + offset,
                "source": source,
                "event_id": row["id"],
                **{name: row[name] for name in _COPIED},
            }
            for offset, row in enumerate(fresh, start=1)
        ],
    )
    await session.execute(update(head).where(head.c.id == 1).values(position=position + len(fresh)))
    await session.execute(text(f"NOTIFY {CHANNEL}"))


async def floor_position(database: Database) -> int:
    """The position behind which every event is still kept; 0 before any retention."""
    async with database.transaction("feed_reader") as session:
        return (await session.execute(select(feed_tables.head.c.floor))).scalar_one()


async def head_position(database: Database) -> int:
    """The position of the newest event; 0 for an empty log."""
    async with database.transaction("feed_reader") as session:
        return (await session.execute(select(feed_tables.head.c.position))).scalar_one()


async def read_feed(
    database: Database,
    after: int,
    *,
    types: frozenset[str] | None = None,
    condition: ColumnElement[bool] | None = None,
    limit: int = READ_BATCH,
) -> tuple[list[FeedEntry], int]:
    """Events behind position ``after`` and the position to continue from.

    ``types`` and ``condition`` (on columns of ``feed_tables.log``) filter in the database.

    Raises:
        GoneError: events behind ``after`` were removed by retention; start from a snapshot.
    """
    table, head = feed_tables.log, feed_tables.head
    async with database.transaction("feed_reader") as session:
        newest = (await session.execute(select(head.c.position))).scalar_one()
        query = select(table).where(table.c.position > after, table.c.position <= newest)
        if types is not None:
            query = query.where(table.c.type.in_(types))
        if condition is not None:
            query = query.where(condition)
        rows = (
            (await session.execute(query.order_by(table.c.position).limit(limit))).mappings().all()
        )
        # Last, so that events which retention removed during the reading are missed aloud.
        floor = (await session.execute(select(head.c.floor))).scalar_one()
    if after < floor:
        raise GoneError(
            f"events up to position {floor} are no longer kept",
            next_step="Read the resources anew (GET), then subscribe without a cursor.",
            snapshot="/v1/operations",
        )
    entries = [FeedEntry(**cast("dict[str, Any]", dict(row))) for row in rows]
    return entries, entries[-1].position if len(entries) == limit else newest


class Projection(Protocol):
    """A read model fed by events. ``apply`` must be idempotent by resource version."""

    @property
    def name(self) -> str:
        """What its cursor is stored under."""
        ...

    @property
    def kit(self) -> KitTables:
        """The kit's tables of its schema."""
        ...

    @property
    def types(self) -> frozenset[str]:
        """The event types that it folds."""
        ...

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Fold ``entries``, in order, within the transaction that also moves the cursor."""
        ...


class Follower:
    """Folds the log into one projection, and remembers between looks where it is.

    A stretch of the log without an event for it moves the stored cursor late: at the next event
    that it folds, or after ``store_every_s``. Several processes may follow for one projection: a
    batch is folded by whoever moves the stored cursor.
    """

    def __init__(
        self, database: Database, projection: Projection, store_every_s: float = STORE_EVERY_S
    ) -> None:
        self._database = database
        self._projection = projection
        self._store_every_s = store_every_s
        self._stored: int | None = None
        self._seen = 0
        self._store_at = 0.0

    async def advance(self) -> int:
        """Fold one batch; returns how many events were applied."""
        if self._stored is None:
            self._stored = self._seen = await self._read_cursor()
        entries, position = await read_feed(
            self._database, self._seen, types=self._projection.types
        )
        if position == self._stored:
            return 0
        now = asyncio.get_running_loop().time()
        if not entries and now < self._store_at:
            self._seen = position
            return 0
        if not await self._fold(entries, self._stored, position):
            # Another process was first, or where the cursor stands is not known any more.
            self._stored = None
            return 0
        self._stored = self._seen = position
        self._store_at = now + self._store_every_s
        return len(entries)

    async def _read_cursor(self) -> int:
        projection = self._projection
        cursor = projection.kit.feed_cursor
        async with self._database.transaction(projection.kit.schema) as session:
            query = select(cursor.c.position).where(cursor.c.consumer == projection.name)
            return await session.scalar(query) or 0

    async def _fold(self, entries: Sequence[FeedEntry], before: int, position: int) -> bool:
        projection = self._projection
        cursor = projection.kit.feed_cursor
        async with self._database.transaction(projection.kit.schema) as session:
            await session.execute(
                insert(cursor).values(consumer=projection.name, position=0).on_conflict_do_nothing()
            )
            moved = await session.execute(
                update(cursor)
                .where(cursor.c.consumer == projection.name, cursor.c.position == before)
                .values(position=position)
                .returning(cursor.c.position)
            )
            if moved.first() is None:
                return False
            await projection.apply(session, entries)
        return True


async def advance(database: Database, projection: Projection) -> int:
    """Fold one batch; returns how many events were applied. Safe to run in several processes."""
    return await Follower(database, projection, store_every_s=0).advance()


# asyncpg ships no complete types; its edge is here.
_connect = cast("Any", asyncpg).connect


class FeedSignal:
    """Wakes the process's readers when the relay has appended; falls back to a slow poll."""

    def __init__(self, postgres_url: str) -> None:
        self._url = postgres_url
        self._event = asyncio.Event()

    def mark(self) -> asyncio.Event:
        """The present moment. A reader takes it before it reads and gives it to ``wait``, so that
        an append between the two wakes it at once."""
        return self._event

    async def wait(self, timeout_s: float, since: asyncio.Event | None = None) -> None:
        """Return at the first append after ``since`` (or after now), or after ``timeout_s``."""
        event = since or self._event
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return

    def _woken(self, *_: object) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def run(self) -> None:
        """Listen until cancelled; connects again after a lost connection."""
        while True:
            try:
                connection = await _connect(self._url)
                try:
                    await connection.add_listener(CHANNEL, self._woken)
                    while not connection.is_closed():
                        await asyncio.sleep(1)
                        await connection.execute("SELECT 1")
                finally:
                    await connection.close(timeout=2)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                log.warning("feed_signal_lost", error=str(error))
                await asyncio.sleep(1)


async def run_projection(database: Database, signal: FeedSignal, projection: Projection) -> None:
    """Keep a projection current until cancelled."""
    follower = Follower(database, projection)
    while True:
        mark = signal.mark()
        try:
            applied = await follower.advance()
        except Exception as error:
            log.exception("projection_failed", projection=projection.name, error=str(error))
            await asyncio.sleep(1)
            continue
        if applied == 0:
            await signal.wait(1.0, mark)
