"""The relay: one active, every event numbered, every new operation started."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update
from temporalio.client import Client

from dflare.apps.relay import Relay, RelaySettings
from dflare.kit import feed_tables
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.lease import Lease
from dflare.kit.operations import NewOperation, create_operation
from dflare.kit.outbox import Event, emit
from dflare.kit.plan import Plan, PlannedStep
from dflare.kit.retention import Retention
from dflare.kit.settings import PlatformSettings
from dflare.kit.temporal import connect
from dflare.services.orchestrator.reconciler import Sweeper, WorkflowStarter, workflow_id
from dflare.services.orchestrator.reconciler_waiting import WaitingOrders
from dflare.services.orchestrator.tables import KIT
from stores import drop_database
from tenancy import migrated_database

KITS = {"orchestrator": KIT}
PLAN = Plan(saga="none", steps=(PlannedStep(name="nobody.serves@1"),))


async def polls() -> AsyncIterator[None]:
    while True:
        yield
        await asyncio.sleep(0.02)


@dataclass
class Relays:
    """Relays over one database of their own."""

    database: Database
    client: Client

    def relay(self, holder: str, **settings: float) -> Relay:
        clock = SystemClock()
        return Relay(
            database=self.database,
            lease=Lease(self.database, "relay", holder, ttl_s=2),
            starter=WorkflowStarter(self.database, self.client, KITS, queue=new_id("queue")),
            sweeper=Sweeper(self.database, self.client, KITS, clock),
            waiting=WaitingOrders(self.database, KITS, clock),
            retention=Retention(self.database, KITS, clock, timedelta(days=30)),
            settings=RelaySettings(**settings),
            schemas=KITS,
        )

    async def emit(self, count: int, at: datetime | None = None) -> None:
        async with self.database.transaction("orchestrator") as session:
            await emit(
                session,
                KIT,
                [
                    Event("thing.changed", "thing", new_id("thing"), 1, at or datetime.now(UTC), {})
                    for _ in range(count)
                ],
            )

    async def order(self) -> str:
        operation_id = new_id("op")
        async with self.database.transaction("orchestrator") as session:
            await create_operation(
                session,
                KIT,
                NewOperation(
                    id=operation_id,
                    kind="none",
                    organization_id=None,
                    project_id=None,
                    site_id=None,
                    resource_kind="thing",
                    resource_id="thing",
                    plan=PLAN,
                    targets=(),
                    created_by="test",
                    trace={},
                ),
                datetime.now(UTC),
            )
        return operation_id

    async def positions(self) -> list[int]:
        async with self.database.transaction("feed") as session:
            query = select(feed_tables.log.c.position).order_by(feed_tables.log.c.position)
            return list(await session.scalars(query))

    async def holder(self) -> str | None:
        async with self.database.transaction("feed") as session:
            return await session.scalar(select(feed_tables.lease.c.holder))

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(60):
            async for _ in polls():
                if len(await self.positions()) >= count:
                    return

    async def held_by(self, holder: str) -> None:
        async with asyncio.timeout(60):
            async for _ in polls():
                if await self.holder() == holder:
                    return


@pytest.fixture
async def relays(postgres_url: str, temporal_address: str) -> AsyncIterator[Relays]:
    url = await migrated_database(postgres_url, "trace", "orchestrator")
    database = Database(url, application="test-relay")
    client = await connect(
        PlatformSettings(postgres_url=url, temporal_address=temporal_address, secret_key_file="")
    )
    yield Relays(database, client)
    await database.dispose()
    drop_database(url)


@contextlib.asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(relay.run())
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_every_event_is_numbered_densely_however_many_there_are(relays: Relays) -> None:
    await relays.emit(2_500)
    async with running(relays.relay("one")):
        await relays.reach(2_500)
        await relays.emit(3)
        await relays.reach(2_503)
    assert await relays.positions() == list(range(1, 2_504))


async def test_a_new_operation_is_started_once(relays: Relays) -> None:
    operation_id = await relays.order()
    relay = relays.relay("one")
    assert await relay.forward()
    assert not await relay.forward()

    handle = relays.client.get_workflow_handle(workflow_id(operation_id, 1))
    assert (await handle.describe()).id == workflow_id(operation_id, 1)

    # The relay died before it could note the start: the repeat finds it started.
    async with relays.database.transaction("orchestrator") as session:
        await session.execute(update(KIT.operation).values(started_attempt=0))
    assert await relay.forward()
    async with relays.database.transaction("orchestrator") as session:
        assert await session.scalar(select(KIT.operation.c.started_attempt)) == 1
    await handle.terminate()


async def test_one_relay_is_active_and_another_takes_over_when_it_ends(relays: Relays) -> None:
    async with running(relays.relay("one")) as first:
        await relays.held_by("one")
        async with running(relays.relay("two")):
            await relays.emit(1)
            await relays.reach(1)
            assert await relays.holder() == "one"
            first.cancel()
            await relays.held_by("two")
            await relays.emit(1)
            await relays.reach(2)


async def test_a_lease_that_ran_out_is_taken_and_a_live_one_is_not(relays: Relays) -> None:
    one = Lease(relays.database, "relay", "one", ttl_s=60)
    two = Lease(relays.database, "relay", "two", ttl_s=60)
    assert await one.take()
    assert await one.take()
    assert not await two.take()
    async with relays.database.transaction("feed") as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(feed_tables.lease).values(until=past))
    assert await two.take()
    assert not await one.take()
    await one.give_back()
    assert await relays.holder() == "two"


async def test_retention_removes_what_is_old_but_nothing_that_a_reader_has_yet_to_read(
    relays: Relays,
) -> None:
    await relays.emit(4, datetime.now(UTC) - timedelta(days=40))
    await relays.emit(2)
    relay = relays.relay("one")
    assert await relay.forward()
    async with relays.database.transaction("orchestrator") as session:
        await session.execute(KIT.feed_cursor.insert().values(consumer="slow", position=3))

    assert await relay.retention.apply() == 3
    assert await relays.positions() == [4, 5, 6]

    async with relays.database.transaction("orchestrator") as session:
        await session.execute(update(KIT.feed_cursor).values(position=6))
    assert await relay.retention.apply() == 1
    assert await relays.positions() == [5, 6]
    async with relays.database.transaction("orchestrator") as session:
        assert len(list(await session.scalars(select(KIT.event.c.id)))) == 2
