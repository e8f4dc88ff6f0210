"""Promises of the numbered event log (DESIGN section 5, "Events")."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import feed, feed_tables
from dflare.kit.db import Database
from dflare.kit.errors import GoneError
from dflare.kit.feed import (
    FeedEntry,
    FeedSignal,
    Follower,
    Following,
    advance,
    copy_events,
    head_position,
    read_feed,
    run_projections,
)
from dflare.kit.outbox import Event, emit
from dflare.kit.tables import KitTables
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.metering.tables import KIT as METERING
from stores import drop_database
from tenancy import migrated_database

SOURCES = (CLUSTERS, METERING)
AT = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    url = await migrated_database(postgres_url, "clusters", "metering")
    database = Database(url, application="test-feed")
    yield database
    await database.dispose()
    drop_database(url)


async def change(
    database: Database, kit: KitTables, resource: str, kind: str = "thing.changed"
) -> int:
    """Raise the version of a resource, its row locked, and emit that; returns the version."""
    cursor = kit.feed_cursor
    async with database.transaction(kit.schema) as session:
        raised = insert(cursor).values(consumer=resource, position=1)
        version = (
            await session.execute(
                raised.on_conflict_do_update(
                    index_elements=["consumer"], set_={"position": cursor.c.position + 1}
                ).returning(cursor.c.position)
            )
        ).scalar_one()
        await emit(session, kit, [Event(kind, "thing", resource, version, AT, {"v": version})])
    return version


async def drain(database: Database) -> None:
    for kit in SOURCES:
        while await copy_events(database, kit):
            pass


async def everything(database: Database) -> list[FeedEntry]:
    found: list[FeedEntry] = []
    position = 0
    while True:
        entries, position = await read_feed(database, position, limit=7)
        if not entries:
            return found
        found.extend(entries)


async def test_eight_writers_lose_nothing_and_nothing_comes_twice(database: Database) -> None:
    written: Counter[tuple[str, str]] = Counter()
    done = asyncio.Event()

    async def write(writer: int) -> None:
        for turn in range(30):
            kit = SOURCES[(writer + turn) % 2]
            resource = f"res_{turn % 5}"
            if turn % 7 == 3:
                await _roll_back(database, kit, resource)
            else:
                await change(database, kit, resource)
                written[kit.schema, resource] += 1

    async def relay() -> None:
        while not done.is_set():
            for kit in SOURCES:
                await copy_events(database, kit)
            await asyncio.sleep(0)

    async def follow() -> list[FeedEntry]:
        seen: list[FeedEntry] = []
        position = 0
        while not done.is_set() or seen[-1].position < (await feed.head_position(database)):
            entries, position = await read_feed(database, position, limit=20)
            seen.extend(entries)
            await asyncio.sleep(0)
        return seen

    async with asyncio.TaskGroup() as tasks:
        follower = tasks.create_task(follow())
        # Two relays at once are a mistake of operation that the log must survive.
        relays = [tasks.create_task(relay()) for _ in range(2)]
        await asyncio.gather(*(write(writer) for writer in range(8)))
        await drain(database)
        done.set()
        await asyncio.gather(*relays)

    log = follower.result()
    assert [entry.position for entry in log] == list(range(1, written.total() + 1))
    assert len({(entry.source, entry.event_id) for entry in log}) == written.total()
    versions: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for entry in log:
        versions[entry.source, entry.resource_id].append(entry.resource_version)
    assert {key: list(range(1, count + 1)) for key, count in written.items()} == versions
    assert log == await everything(database)


async def _roll_back(database: Database, kit: KitTables, resource: str) -> None:
    with contextlib.suppress(RuntimeError):
        async with database.transaction(kit.schema) as session:
            await emit(session, kit, [Event("thing.changed", "thing", resource, 0, AT, {})])
            raise RuntimeError("taken back")


class DyingDatabase(Database):
    """Fails at the ``last`` transaction that it is asked for, as a process that is killed."""

    def __init__(self, url: str, last: int) -> None:
        super().__init__(url, application="dying-relay")
        self._left = last

    @asynccontextmanager
    async def transaction(self, schema: str) -> AsyncGenerator[AsyncSession]:
        self._left -= 1
        if self._left <= 0:
            raise ProcessLookupError("killed")
        async with super().transaction(schema) as session:
            yield session


@pytest.mark.parametrize("last", [2, 3], ids=["before-the-log", "between-log-and-source"])
async def test_a_relay_that_dies_midway_copies_nothing_twice_and_loses_nothing(
    database: Database, last: int
) -> None:
    for _ in range(3):
        await change(database, CLUSTERS, "res_a")
    dying = DyingDatabase(database.url, last)
    with pytest.raises(ProcessLookupError):
        await copy_events(dying, CLUSTERS)
    await dying.dispose()
    await change(database, CLUSTERS, "res_a")
    await drain(database)
    log = await everything(database)
    assert [(e.position, e.resource_version) for e in log] == [(n, n) for n in (1, 2, 3, 4)]
    assert await copy_events(database, CLUSTERS) == 0, "the source is marked in the end"


async def test_an_event_arrives_as_it_was_emitted(database: Database) -> None:
    event = Event(
        type="cluster.changed",
        resource_kind="cluster",
        resource_id="clu_1",
        resource_version=4,
        at=AT,
        data={"name": "a", "nested": [1, None, "ü"]},
        organization_id="org_1",
        project_id="proj_1",
        site_id="site_1",
        operation_id="op_1",
    )
    async with database.transaction("clusters") as session:
        await emit(session, CLUSTERS, [event])
    await drain(database)
    (entry,) = await everything(database)
    assert {name: getattr(entry, name) for name in vars(event)} == vars(event)
    assert (entry.position, entry.source) == (1, "clusters")


async def test_a_filtered_reader_moves_past_what_it_does_not_want(database: Database) -> None:
    for turn in range(6):
        await change(database, CLUSTERS, "res_a", "wanted" if turn == 1 else "other")
    await drain(database)
    entries, position = await read_feed(database, 0, types=frozenset({"wanted"}))
    assert ([e.position for e in entries], position) == ([2], 6)
    entries, position = await read_feed(database, 0, types=frozenset({"other"}), limit=2)
    assert ([e.position for e in entries], position) == ([1, 3], 3)
    condition = feed_tables.log.c.resource_version > 4
    entries, position = await read_feed(database, 0, condition=condition)
    assert ([e.position for e in entries], position) == ([5, 6], 6)


async def test_a_cursor_below_the_retention_floor_is_gone_with_a_way_on(
    database: Database,
) -> None:
    for _ in range(5):
        await change(database, CLUSTERS, "res_a")
    await drain(database)
    async with database.transaction("feed") as session:
        await session.execute(text("DELETE FROM feed.log WHERE position <= 3"))
        await session.execute(update(feed_tables.head).values(floor=3))
    with pytest.raises(GoneError) as gone:
        await read_feed(database, 2)
    assert gone.value.document()["snapshot"]
    assert gone.value.next_step
    entries, _ = await read_feed(database, 3)
    assert [e.position for e in entries] == [4, 5]
    assert await feed.floor_position(database) == 3


class Count:
    """A read model that is not idempotent: it shows whether events are applied exactly once."""

    name = "test.count"
    kit = METERING
    types = frozenset({"thing.changed"})

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.batches = 0

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        table = METERING.feed_cursor
        counted = insert(table).values(consumer="counted", position=len(entries))
        await session.execute(
            counted.on_conflict_do_update(
                index_elements=["consumer"], set_={"position": table.c.position + len(entries)}
            )
        )
        self.batches += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the process fails after it applied")


async def counted(database: Database) -> int:
    table = METERING.feed_cursor
    async with database.transaction("metering") as session:
        query = select(table.c.position).where(table.c.consumer == "counted")
        return (await session.execute(query)).scalar() or 0


async def test_a_projection_in_two_processes_applies_each_event_once(database: Database) -> None:
    other = Database(database.url, application="other-worker")
    projections = [Count(), Count(failures=1)]
    running = [
        asyncio.create_task(run_projections(one, FeedSignal(one.url), [projection]))
        for one, projection in zip((database, other), projections, strict=True)
    ]
    for turn in range(60):
        await change(database, CLUSTERS, f"res_{turn % 3}", "thing.changed")
        await change(database, CLUSTERS, "noise", "other")
        await copy_events(database, CLUSTERS)
    async with asyncio.timeout(120):
        while await counted(database) < 60 or not all(p.batches for p in projections):
            await change(database, CLUSTERS, "noise", "other")
            await copy_events(database, CLUSTERS)
            await asyncio.sleep(0.05)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await other.dispose()
    while await advance(database, Count()):
        pass
    assert await counted(database) == 60


class MeetingDatabase(Database):
    """Meets others like it behind each reading of the log, so that all have read the same."""

    def __init__(self, url: str, meeting: asyncio.Barrier) -> None:
        super().__init__(url, application="meeting-worker")
        self._meeting = meeting

    @asynccontextmanager
    async def reading(self, schema: str) -> AsyncGenerator[AsyncSession]:
        async with super().reading(schema) as session:
            yield session
        if schema == "feed_reader":
            await self._meeting.wait()


async def test_of_two_processes_that_read_the_same_batch_one_applies_it(
    database: Database,
) -> None:
    await change(database, CLUSTERS, "res_a")
    await drain(database)
    meeting = asyncio.Barrier(2)
    workers = [MeetingDatabase(database.url, meeting) for _ in range(2)]
    async with asyncio.timeout(60):
        applied = await asyncio.gather(*(advance(worker, Count()) for worker in workers))
    for worker in workers:
        await worker.dispose()
    assert sorted(applied) == [0, 1]
    assert await counted(database) == 1


async def stored_cursor(database: Database) -> int:
    table = METERING.feed_cursor
    async with database.transaction("metering") as session:
        query = select(table.c.position).where(table.c.consumer == Count.name)
        return (await session.execute(query)).scalar() or 0


async def test_noise_moves_the_stored_cursor_late_and_the_next_event_at_once(
    database: Database,
) -> None:
    follower, count = Follower(database, Count(), store_every_s=3600), 0
    await change(database, CLUSTERS, "res_a")
    await drain(database)
    count += await follower.advance()
    at_event = await stored_cursor(database)
    await change(database, CLUSTERS, "noise", "other")
    await drain(database)
    count += await follower.advance()
    assert (count, await stored_cursor(database)) == (1, at_event)

    await change(database, CLUSTERS, "res_a")
    await drain(database)
    count += await follower.advance()
    assert (count, await stored_cursor(database)) == (2, await head_position(database))

    hasty = Follower(database, Count(), store_every_s=0)
    await change(database, CLUSTERS, "noise", "other")
    await drain(database)
    assert await hasty.advance() == 0
    assert await stored_cursor(database) == await head_position(database)
    assert await follower.advance() == 0
    assert await follower.advance() == 0
    assert await counted(database) == 2


async def test_a_batch_that_fails_moves_no_cursor(database: Database) -> None:
    await change(database, CLUSTERS, "res_a")
    await drain(database)
    with pytest.raises(RuntimeError):
        await advance(database, Count(failures=1))
    assert await counted(database) == 0
    assert await advance(database, Count()) == 1
    assert await advance(database, Count()) == 0
    assert await counted(database) == 1


async def test_an_append_between_look_and_wait_wakes_the_reader(database: Database) -> None:
    signal = FeedSignal(database.url)
    listening = asyncio.create_task(signal.run())
    mark = signal.mark()
    async with asyncio.timeout(60):
        while not mark.is_set():
            await change(database, CLUSTERS, "res_a")
            await drain(database)
            await asyncio.sleep(0.05)
        await signal.wait(3_600, mark)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_a_lost_listener_comes_back(database: Database) -> None:
    signal = FeedSignal(database.url)
    listening = asyncio.create_task(signal.run())

    async def woken() -> None:
        mark = signal.mark()
        while not mark.is_set():
            await change(database, CLUSTERS, "res_a")
            await drain(database)
            await asyncio.sleep(0.05)

    async with asyncio.timeout(60):
        await woken()
        async with database.across() as connection:
            killed = await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = ''"
                )
            )
            assert killed.rowcount >= 1
        await woken()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_a_wait_without_appends_ends_by_itself(database: Database) -> None:
    async with asyncio.timeout(60):
        await FeedSignal(database.url).wait(0.01)


class Fold:
    """Remembers what it was given; a broken one fails always."""

    kit = METERING
    types = frozenset({"thing.changed"})

    def __init__(self, name: str, *, broken: bool = False) -> None:
        self.name = name
        self.broken = broken
        self.seen: list[str] = []

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        if self.broken:
            raise RuntimeError("this projection cannot fold")
        self.seen += [entry.resource_id for entry in entries]


async def test_a_projection_that_fails_keeps_no_other_back(database: Database) -> None:
    sound, broken = Fold("follow.sound"), Fold("follow.broken", broken=True)
    following = Following(database, [sound, broken])
    for turn in range(3):
        await change(database, CLUSTERS, f"res_follow_{turn}", "thing.changed")
        await drain(database)
        while await following.advance():
            pass
    wanted = [f"res_follow_{turn}" for turn in range(3)]
    assert [one for one in sound.seen if one in wanted] == wanted
    broken.broken = False
    following = Following(database, [sound, broken])
    while await following.advance():
        pass
    assert [one for one in broken.seen if one in wanted] == wanted
    assert all(sound.seen.count(one) == 1 for one in wanted)


async def test_one_reading_of_the_log_serves_all_that_keep_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = Following(database, [Fold(f"follow.{number}") for number in range(5)])
    while await following.advance():
        pass
    readings = 0
    read = feed.read_feed

    async def counted_read(*given: Any, **named: Any) -> Any:
        nonlocal readings
        readings += 1
        return await read(*given, **named)

    monkeypatch.setattr(feed, "read_feed", counted_read)
    await change(database, CLUSTERS, "res_once", "thing.changed")
    await drain(database)
    assert await following.advance() == 5
    assert readings == 1
