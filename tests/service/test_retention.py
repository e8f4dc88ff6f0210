"""Promises of retention: what nobody needs goes in time, and nothing before."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import insert, select

from dflare.kit import idempotency, trace_tables
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import copy_events, read_feed
from dflare.kit.idempotency import Begun, request_key
from dflare.kit.ids import new_id
from dflare.kit.outbox import Event, emit
from dflare.kit.retention import MOST_BATCHES, Retention
from dflare.services.clusters.tables import KIT
from dflare.services.metering.tables import KIT as METERING
from stores import drop_database
from tenancy import NOW, migrated_database

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    url = await migrated_database(postgres_url, "clusters", "metering", "trace")
    database = Database(url, application="test-retention")
    yield database
    await database.dispose()
    drop_database(url)


def retention(database: Database, clock: ManualClock, batch: int = 100) -> Retention:
    schemas = {kit.schema: kit for kit in (KIT, METERING)}
    return Retention(database, schemas, clock, keep=30 * DAY, batch=batch)


async def emit_at(database: Database, at: datetime, count: int = 1) -> None:
    async with database.transaction("clusters") as session:
        events = [Event("thing.changed", "thing", new_id("thing"), 1, at, {}) for _ in range(count)]
        await emit(session, KIT, events)


async def outbox(database: Database) -> list[tuple[datetime, bool]]:
    async with database.transaction("clusters") as session:
        query = select(KIT.event.c.at, KIT.event.c.relayed).order_by(KIT.event.c.ordinal)
        return [(row.at, row.relayed) for row in await session.execute(query)]


async def test_an_outbox_keeps_for_an_hour_what_the_log_has(database: Database) -> None:
    clock = ManualClock(NOW)
    await emit_at(database, NOW)
    await emit_at(database, NOW + HOUR)
    await copy_events(database, KIT)
    clock.at = NOW + HOUR
    await retention(database, clock).apply()
    assert [at for at, _ in await outbox(database)] == [NOW, NOW + HOUR]
    clock.at += timedelta(seconds=1)
    await retention(database, clock).apply()
    assert [at for at, _ in await outbox(database)] == [NOW + HOUR]
    entries, _ = await read_feed(database, 0)
    assert [entry.at for entry in entries] == [NOW, NOW + HOUR], "the log keeps its own copy"


async def test_an_event_that_the_log_does_not_have_is_kept_however_old(database: Database) -> None:
    await emit_at(database, NOW - 400 * DAY)
    await retention(database, ManualClock(NOW)).apply()
    assert await outbox(database) == [(NOW - 400 * DAY, False)]
    await copy_events(database, KIT)
    await retention(database, ManualClock(NOW)).apply()
    assert await outbox(database) == []


async def test_a_pass_removes_many_batches_but_not_without_end(database: Database) -> None:
    await emit_at(database, NOW - DAY, MOST_BATCHES * 2 + 3)
    await copy_events(database, KIT)
    pruning = retention(database, ManualClock(NOW), batch=2)
    await pruning.apply()
    assert len(await outbox(database)) == 3
    await pruning.apply()
    assert await outbox(database) == []


async def test_a_pass_shortens_the_log_by_many_batches(database: Database) -> None:
    await emit_at(database, NOW - 40 * DAY, 7)
    await emit_at(database, NOW)
    await copy_events(database, KIT)
    assert await retention(database, ManualClock(NOW), batch=2).apply() == 7
    entries, _ = await read_feed(database, 7)
    assert [entry.position for entry in entries] == [8]


async def answered(database: Database, key: str, at: datetime) -> Begun:
    begun = await idempotency.begin(database, KIT, request_key("user_a", "POST", key, b"{}"), at)
    async with database.transaction("clusters") as session:
        claimed = await idempotency.claim(session, KIT, begun, at)
        await idempotency.complete(session, KIT, claimed, 202, {"operation": begun.operation_id})
    return begun


async def test_an_answer_is_repeated_for_a_day_and_then_forgotten(database: Database) -> None:
    first = await answered(database, "one", NOW)
    clock = ManualClock(NOW + DAY)
    await retention(database, clock).apply()
    again = await idempotency.begin(database, KIT, first.request, clock.now())
    assert (again.operation_id, again.status) == (first.operation_id, 202)
    clock.at += timedelta(seconds=1)
    await retention(database, clock).apply()
    assert await idempotency.earlier(database, KIT, first.request) is None


async def test_answers_go_in_batches_by_their_whole_key(database: Database) -> None:
    for number in range(7):
        await answered(database, f"key-{number}", NOW - 2 * DAY)
    kept = await answered(database, "key", NOW)
    await retention(database, ManualClock(NOW), batch=2).apply()
    async with database.transaction("clusters") as session:
        keys = (await session.scalars(select(KIT.idempotency.c.key))).all()
    assert keys == [kept.request.key]


async def test_a_try_that_died_is_forgotten_after_a_day_too(database: Database) -> None:
    request = request_key("user_a", "POST", "died", b"{}")
    await idempotency.begin(database, KIT, request, NOW)
    await retention(database, ManualClock(NOW + 2 * DAY)).apply()
    assert await idempotency.earlier(database, KIT, request) is None


async def test_a_try_whose_row_went_between_its_transactions_still_keeps_its_key(
    database: Database,
) -> None:
    request = request_key("user_a", "POST", "slow", b"{}")
    begun = await idempotency.begin(database, KIT, request, NOW - 2 * DAY)
    await retention(database, ManualClock(NOW)).apply()
    async with database.transaction("clusters") as session:
        await idempotency.claim(session, KIT, begun, NOW)
        await idempotency.complete(session, KIT, begun, 202, {"done": True})
    repeated = await idempotency.begin(database, KIT, request, NOW)
    assert (repeated.operation_id, repeated.answer) == (begun.operation_id, {"done": True})


async def test_an_answer_that_a_try_holds_is_left_for_the_next_pass(database: Database) -> None:
    begun = await answered(database, "held", NOW - 2 * DAY)
    other = Database(database.url, application="test-holder")
    async with other.engine.connect() as holder:
        table = KIT.idempotency
        await holder.execute(select(table).where(table.c.key == "held").with_for_update())
        await retention(database, ManualClock(NOW)).apply()
    await other.dispose()
    assert await idempotency.earlier(database, KIT, begun.request) is not None
    await retention(database, ManualClock(NOW)).apply()
    assert await idempotency.earlier(database, KIT, begun.request) is None


async def test_spans_go_with_the_events_of_their_time(database: Database) -> None:
    async with database.transaction("trace") as session:
        for name, ended_at in (("old", NOW - 31 * DAY), ("new", NOW - 29 * DAY)):
            await session.execute(
                insert(trace_tables.span).values(
                    span_id=name,
                    trace_id="t",
                    operation_id="op",
                    process="worker",
                    name=name,
                    started_at=ended_at,
                    ended_at=ended_at,
                    attributes={},
                )
            )
    await retention(database, ManualClock(NOW)).apply()
    async with database.transaction("trace") as session:
        assert (await session.scalars(select(trace_tables.span.c.name))).all() == ["new"]
