"""The numbered event log: the relay's copying, reading by cursor, and projections.

Positions are dense and given by the one relay that holds the row lock of ``feed.head``; a copy is
unique by (source, event id), so that a relay that died between its two transactions copies nothing
twice. Source: DESIGN section 5, "Events".
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Protocol, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]
from sqlalchemy import ColumnElement, and_, select, text, update
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

REST_S = 1.0
"""After a failure, before it is tried again."""

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
    async with database.reading("feed_reader") as session:
        return (await session.execute(select(feed_tables.head.c.floor))).scalar_one()


async def head_position(database: Database) -> int:
    """The position of the newest event; 0 for an empty log."""
    async with database.reading("feed_reader") as session:
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
    wanted = [table.c.position > after, table.c.position <= head.c.position]
    if types is not None:
        wanted.append(table.c.type.in_(types))
    if condition is not None:
        wanted.append(condition)
    # One statement sees one moment: what is behind the newest position is all there, and what
    # retention removed is missed aloud.
    query = (
        select(head.c.position.label("newest"), head.c.floor, *table.c)
        .select_from(head.outerjoin(table, and_(*wanted)))
        .order_by(table.c.position)
        .limit(limit)
    )
    async with database.reading("feed_reader") as session:
        rows = (await session.execute(query)).mappings().all()
    newest, floor = rows[0]["newest"], rows[0]["floor"]
    if after < floor:
        raise GoneError(
            f"events up to position {floor} are no longer kept",
            next_step="Read the resources anew (GET), then subscribe without a cursor.",
            snapshot="/v1/operations",
        )
    entries = [
        FeedEntry(**{name: row[name] for name in _ENTRY})
        for row in rows
        if row["position"] is not None
    ]
    return entries, entries[-1].position if len(entries) == limit else newest


_ENTRY = tuple(one.name for one in fields(FeedEntry))


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

    @property
    def projection(self) -> Projection:
        """What it folds into."""
        return self._projection

    async def position(self) -> int:
        """Behind which event it goes on."""
        if self._stored is None:
            self._stored = self._seen = await self._read_cursor()
        return self._seen

    async def advance(self) -> int:
        """Read and fold one batch; returns how many events were applied."""
        entries, position = await read_feed(
            self._database, await self.position(), types=self._projection.types
        )
        return await self.fold(entries, position)

    async def fold(self, entries: Sequence[FeedEntry], position: int) -> int:
        """Fold what was read up to ``position``; returns how many events were applied."""
        before, seen = self._stored, self._seen
        if before is None or position <= seen:
            return 0
        mine = [e for e in entries if e.position > seen and e.type in self._projection.types]
        now = asyncio.get_running_loop().time()
        if not mine and now < self._store_at:
            self._seen = position
            return 0
        # Until it is folded, where the cursor stands is not known.
        self._stored = None
        if not await self._fold(mine, before, position):
            # Another process was first.
            return 0
        self._stored = self._seen = position
        self._store_at = now + self._store_every_s
        return len(mine)

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


class Following:
    """Folds the log into several projections, with one reading of it for all that keep up.

    A projection that is far behind, at its first start or since it fails, reads for itself and
    keeps nobody back.
    """

    def __init__(self, database: Database, projections: Sequence[Projection]) -> None:
        self._database = database
        self._rest_until = {Follower(database, projection): 0.0 for projection in projections}

    async def advance(self) -> int:
        """One pass; returns how many events were applied. One that fails rests for a while."""
        now = asyncio.get_running_loop().time()
        able = [follower for follower, until in self._rest_until.items() if until <= now]
        if not able:
            return 0
        positions = {follower: await follower.position() for follower in able}
        near = max(positions.values()) - READ_BATCH
        together = [follower for follower in able if positions[follower] >= near]
        after = min(positions[follower] for follower in together)
        types = frozenset[str]().union(*(follower.projection.types for follower in together))
        entries, position = await read_feed(self._database, after, types=types)
        results = await asyncio.gather(
            *(
                self._survive(
                    follower,
                    follower.fold(entries, position)
                    if follower in together
                    else follower.advance(),
                )
                for follower in able
            )
        )
        return sum(results)

    async def _survive(self, follower: Follower, work: Coroutine[Any, Any, int]) -> int:
        try:
            return await work
        except Exception as error:
            name = follower.projection.name
            log.exception("projection_failed", projection=name, error=str(error))
            self._rest_until[follower] = asyncio.get_running_loop().time() + REST_S
            return 0


async def run_projections(
    database: Database, signal: FeedSignal, projections: Sequence[Projection]
) -> None:
    """Keep projections current until cancelled."""
    following = Following(database, projections)
    while True:
        mark = signal.mark()
        try:
            applied = await following.advance()
        except Exception as error:
            log.exception("feed_not_read", error=str(error))
            await asyncio.sleep(REST_S)
            continue
        if applied == 0:
            await signal.wait(1.0, mark)
