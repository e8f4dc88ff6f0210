"""Promises of live events: pages and a WebSocket, resumable by cursor."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import uvicorn
from sqlalchemy import text, update
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dflare.apps import events
from dflare.kit import feed_tables
from dflare.kit.db import Database
from dflare.kit.feed import FeedSignal, copy_events
from dflare.kit.outbox import Event, emit
from dflare.services.auth.contract import Principal, ProjectRef
from dflare.services.clusters.tables import KIT
from stores import drop_database
from tenancy import BLUE, MEMBER, OPERATOR, RED, STRANGER, Tenancy, application, migrated_database

AT = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass
class Gateway:
    """A served events API. Messages are awaited for at most a minute."""

    database: Database
    tenancy: Tenancy
    hub: events.EventHub
    port: int

    async def happen(self, *events: Event) -> None:
        async with self.database.transaction("clusters") as session:
            await emit(session, KIT, events)
        while await copy_events(self.database, KIT):
            pass

    async def page(self, caller: Principal, **params: Any) -> dict[str, Any]:
        response = await self.ask(caller, **params)
        assert response.status_code == 200, response.text
        return response.json()

    async def ask(self, caller: Principal, **params: Any) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(
                f"http://127.0.0.1:{self.port}/v1/events",
                params=params,
                headers={"Authorization": f"Bearer {caller.subject}"},
            )

    @asynccontextmanager
    async def subscribed(
        self, caller: Principal | None, **params: str
    ) -> AsyncIterator["Subscription"]:
        headers = {"Authorization": f"Bearer {caller.subject}"} if caller else {}
        url = f"ws://127.0.0.1:{self.port}/v1/events?{urlencode(params)}"
        async with connect(url, additional_headers=headers) as connection:
            yield Subscription(connection)


@dataclass
class Subscription:
    connection: ClientConnection

    async def message(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            return json.loads(await self.connection.recv())

    async def event(self) -> dict[str, Any]:
        """The next message that is no heartbeat."""
        while (message := await self.message())["type"] == "heartbeat":
            continue
        return message

    async def closed(self) -> int:
        """The code it is closed with, whatever comes before."""
        async with asyncio.timeout(60):
            try:
                while True:
                    await self.connection.recv()
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else 0


@pytest.fixture
async def gateway(postgres_url: str) -> AsyncIterator[Gateway]:
    url = await migrated_database(postgres_url, "clusters")
    async with serving(url) as gateway:
        yield gateway
    drop_database(url)


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[Gateway]:
    database = Database(url, application="test-events")
    signal, tenancy = FeedSignal(url), Tenancy()
    hub = events.EventHub(database, signal, heartbeat_s=0.2)
    app = application(tenancy, lambda principal: events.router(hub, tenancy, principal))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            ws="websockets-sansio",
            timeout_graceful_shutdown=1,
        )
    )
    running = [
        asyncio.create_task(signal.run()),
        asyncio.create_task(hub.run()),
        asyncio.create_task(server.serve([listener])),
    ]
    yield Gateway(database, tenancy, hub, listener.getsockname()[1])
    server.should_exit = True
    await running[2]
    for task in running[:2]:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await database.dispose()


def happened(
    number: int,
    project: ProjectRef | None = RED,
    kind: str = "cluster.changed",
    operation_id: str | None = None,
) -> Event:
    return Event(
        type=kind,
        resource_kind="cluster",
        resource_id="clu_1",
        resource_version=number,
        at=AT,
        data={"number": number},
        organization_id=project.organization_id if project else None,
        project_id=project.id if project else None,
        operation_id=operation_id,
    )


def numbers(page: dict[str, Any]) -> list[int]:
    return [item["data"]["number"] for item in page["items"]]


async def test_pages_hold_what_the_caller_may_see_in_order_to_the_end(gateway: Gateway) -> None:
    await gateway.happen(
        *(happened(n, BLUE if n % 3 == 0 else None if n % 3 == 1 else RED) for n in range(12))
    )
    first = await gateway.page(MEMBER, limit=3)
    assert numbers(first) == [2, 5, 8]
    rest = await gateway.page(MEMBER, limit=3, cursor=first["next_cursor"])
    assert numbers(rest) == [11]
    assert numbers(await gateway.page(MEMBER, cursor=rest["next_cursor"])) == []
    assert numbers(await gateway.page(STRANGER)) == [0, 3, 6, 9]
    assert numbers(await gateway.page(OPERATOR)) == list(range(12))
    await gateway.happen(happened(12))
    assert numbers(await gateway.page(MEMBER, cursor=rest["next_cursor"])) == [12]


async def test_an_items_cursor_continues_behind_it(gateway: Gateway) -> None:
    await gateway.happen(*(happened(n) for n in range(4)))
    items = (await gateway.page(MEMBER))["items"]
    assert numbers(await gateway.page(MEMBER, cursor=items[1]["cursor"])) == [2, 3]


async def test_pages_are_filtered_by_type_and_operation(gateway: Gateway) -> None:
    await gateway.happen(
        happened(1, kind="cluster.changed"),
        happened(2, kind="operation.changed", operation_id="op_1"),
        happened(3, kind="clusterXchanged"),
        happened(4, kind="cluster_changed", operation_id="op_1"),
        happened(5, kind="network.changed", operation_id="op_1"),
    )
    assert numbers(await gateway.page(MEMBER, types="cluster.")) == [1]
    assert numbers(await gateway.page(MEMBER, types="cluster_, operation")) == [2, 4]
    assert numbers(await gateway.page(MEMBER, types="%")) == []
    assert numbers(await gateway.page(MEMBER, operation="op_1")) == [2, 4, 5]
    assert numbers(await gateway.page(MEMBER, operation="op_1", types="network.")) == [5]


@pytest.mark.parametrize(
    "cursor", ["x", "é", base64.urlsafe_b64encode(b"-1").decode(), base64.b64encode(b"9" * 40)]
)
async def test_a_cursor_that_this_api_did_not_give_is_invalid(
    gateway: Gateway, cursor: str
) -> None:
    response = await gateway.ask(MEMBER, cursor=cursor)
    assert (response.status_code, "cursor" in response.json()["next_step"]) == (422, True)
    async with gateway.subscribed(MEMBER, cursor=cursor) as subscription:
        assert await subscription.closed() == 1008


async def retain_from(gateway: Gateway, floor: int) -> None:
    async with gateway.database.transaction("feed") as session:
        await session.execute(text(f"DELETE FROM feed.log WHERE position <= {floor}"))
        await session.execute(update(feed_tables.head).values(floor=floor))


async def test_below_the_floor_is_gone_but_no_cursor_starts_at_the_oldest_kept(
    gateway: Gateway,
) -> None:
    await gateway.happen(*(happened(n) for n in range(6)))
    old = (await gateway.page(MEMBER, limit=2))["next_cursor"]
    await retain_from(gateway, 4)
    assert numbers(await gateway.page(MEMBER)) == [4, 5]
    response = await gateway.ask(MEMBER, cursor=old)
    assert (response.status_code, bool(response.json()["snapshot"])) == (410, True)
    # A gateway that still has them in memory may serve them; one that starts now cannot.
    async with (
        serving(gateway.database.url) as later,
        later.subscribed(MEMBER, cursor=old) as subscription,
    ):
        assert await subscription.closed() == events.CLOSE_GONE


async def test_a_subscriber_sees_what_happens_from_now_on_and_nothing_of_others(
    gateway: Gateway,
) -> None:
    await gateway.happen(happened(0))
    async with gateway.subscribed(MEMBER) as subscription:
        assert (await subscription.message())["type"] == "hello"
        await gateway.happen(happened(1, BLUE), happened(2), happened(3, None), happened(4))
        seen = [await subscription.event() for _ in range(2)]
        assert [message["data"]["number"] for message in seen] == [2, 4]
        assert seen[0]["resource_version"] == 2


async def test_a_subscriber_who_comes_back_with_its_cursor_misses_nothing(
    gateway: Gateway,
) -> None:
    async with gateway.subscribed(MEMBER) as subscription:
        cursor = (await subscription.message())["cursor"]
        await gateway.happen(happened(1), happened(2))
        cursor = (await subscription.event())["cursor"]
    await gateway.happen(*(happened(n) for n in range(3, 700)))
    async with gateway.subscribed(MEMBER, cursor=cursor) as subscription:
        assert (await subscription.message())["type"] == "hello"
        seen = [(await subscription.event())["data"]["number"] for _ in range(698)]
        assert seen == list(range(2, 700))
        await gateway.happen(happened(700))
        assert (await subscription.event())["data"]["number"] == 700


async def test_a_subscriber_with_filters_gets_only_those(gateway: Gateway) -> None:
    async with gateway.subscribed(MEMBER, types="operation.", operation="op_1") as subscription:
        await subscription.message()
        await gateway.happen(
            happened(1, kind="operation.changed", operation_id="op_2"),
            happened(2, kind="cluster.changed", operation_id="op_1"),
            happened(3, kind="operation.changed", operation_id="op_1"),
        )
        assert (await subscription.event())["data"]["number"] == 3


async def test_rights_that_change_change_what_an_open_connection_is_sent(
    gateway: Gateway,
) -> None:
    async with gateway.subscribed(MEMBER) as subscription:
        await subscription.message()
        await gateway.happen(happened(1))
        assert (await subscription.event())["data"]["number"] == 1
        rights = gateway.tenancy.callers
        rights[MEMBER.subject], own = STRANGER, rights[MEMBER.subject]
        await gateway.happen(happened(2), happened(3, BLUE))
        assert (await subscription.event())["data"]["number"] == 3
        rights[MEMBER.subject] = own
        await gateway.happen(happened(4, BLUE), happened(5))
        assert (await subscription.event())["data"]["number"] == 5


async def test_a_token_that_expires_ends_its_idle_connection(gateway: Gateway) -> None:
    async with gateway.subscribed(MEMBER) as subscription:
        await subscription.message()
        del gateway.tenancy.callers[MEMBER.subject]
        assert await subscription.closed() == events.CLOSE_UNAUTHENTICATED


async def test_a_token_comes_by_header_or_by_query_and_no_token_is_refused(
    gateway: Gateway,
) -> None:
    async with gateway.subscribed(None, access_token=MEMBER.subject) as subscription:
        assert (await subscription.message())["type"] == "hello"
    async with gateway.subscribed(None) as subscription:
        assert await subscription.closed() == events.CLOSE_UNAUTHENTICATED
    async with gateway.subscribed(None, access_token="forged") as subscription:
        assert await subscription.closed() == events.CLOSE_UNAUTHENTICATED


async def test_an_empty_log_waits_for_its_first_event_without_a_flood(gateway: Gateway) -> None:
    async with gateway.subscribed(MEMBER) as subscription:
        hello = await subscription.message()
        beat = await subscription.message()
        assert (beat["type"], beat["cursor"]) == ("heartbeat", hello["cursor"])
        with pytest.raises(TimeoutError):
            # The next heartbeat is due in 0.2 s; a loop that spins sends thousands by then.
            async with asyncio.timeout(0.05):
                await subscription.connection.recv()
        await gateway.happen(happened(1))
        assert (await subscription.event())["data"]["number"] == 1


async def test_what_a_subscriber_sends_is_not_listened_to(gateway: Gateway) -> None:
    async with gateway.subscribed(MEMBER) as subscription:
        await subscription.message()
        await subscription.connection.send("text")
        await subscription.connection.send(b"bytes")
        await gateway.happen(happened(1))
        assert (await subscription.event())["data"]["number"] == 1


async def test_many_subscribers_are_served_by_one_reading_of_the_log(gateway: Gateway) -> None:
    async def follow(caller: Principal) -> list[int]:
        async with gateway.subscribed(caller) as subscription:
            await subscription.message()
            ready.release()
            return [(await subscription.event())["data"]["number"] for _ in range(20)]

    ready = asyncio.Semaphore(0)
    callers = [MEMBER, STRANGER, OPERATOR] * 7
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(caller)) for caller in callers]
        for _ in callers:
            await ready.acquire()
        for number in range(20):
            await gateway.happen(happened(number, RED), happened(number, BLUE))
    for caller, task in zip(callers, following, strict=True):
        expected = sorted([*range(10)] * 2) if caller is OPERATOR else list(range(20))
        assert task.result() == expected


async def test_a_subscriber_slower_than_memory_is_served_from_the_log(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.hub._kept = type(gateway.hub._kept)(maxlen=10)
    monkeypatch.setattr(events, "KEPT", 10)
    await gateway.happen(happened(0))
    async with gateway.subscribed(MEMBER) as subscription:
        cursor = (await subscription.message())["cursor"]
    await gateway.happen(*(happened(n) for n in range(1, 100)))
    async with asyncio.timeout(60):
        reached = 0
        while reached < 100:
            _, reached = await gateway.hub.after(99)
    assert len(gateway.hub._kept) == 10
    async with gateway.subscribed(MEMBER, cursor=cursor) as subscription:
        await subscription.message()
        seen = [(await subscription.event())["data"]["number"] for _ in range(99)]
    assert seen == list(range(1, 100))
