"""Promises of ordering and releasing clusters."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import clock
from dflare.kit.db import Database, assert_no_transaction
from dflare.kit.seal import Sealer
from dflare.services.auth.contract import Principal
from dflare.services.clusters import api
from dflare.services.clusters.service import ClusterService
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.tables import KIT, Cluster, KnownSite, NodePool
from dflare.services.orchestrator.contract import Reservation, Wishes
from stores import drop_database
from tenancy import (
    BLUE,
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    STRANGER,
    VIEWER,
    Rack,
    Tenancy,
    application,
    client,
    migrated_database,
)

CLUSTERS = f"/projects/{RED.id}/clusters"


class DyingDatabase(Database):
    """Once armed, fails as a gateway that is killed when its ``last`` transaction would begin."""

    last: int | None = None

    @asynccontextmanager
    async def transaction(self, schema: str) -> AsyncGenerator[AsyncSession]:
        if self.last is not None:
            self.last -= 1
            if self.last <= 0:
                raise ProcessLookupError("killed")
        async with super().transaction(schema) as session:
            yield session


@dataclass
class Shop:
    """The clusters API over a small rack."""

    database: DyingDatabase
    rack: Rack
    tenancy: Tenancy
    calls: Callable[[Principal], httpx.AsyncClient]

    async def count(self, table: Any) -> int:
        async with self.database.transaction("clusters") as session:
            return (await session.execute(select(func.count()).select_from(table))).scalar_one()

    async def set_state(self, name: str, state: str) -> None:
        """What the steps of an operation do, which are tested on their own."""
        async with self.database.transaction("clusters") as session:
            await session.execute(
                update(Cluster)
                .where(Cluster.name == name, Cluster.state != "deleted")
                .values(state=state, version=Cluster.version + 1)
            )

    async def events(self) -> list[Any]:
        async with self.database.transaction("clusters") as session:
            query = select(KIT.event).order_by(KIT.event.c.ordinal)
            return list((await session.execute(query)).mappings())


@pytest.fixture
async def shop(postgres_url: str) -> AsyncIterator[Shop]:
    url = await migrated_database(postgres_url, "clusters")
    database = DyingDatabase(url, application="test-clusters")
    async with database.transaction("clusters") as session:
        await session.execute(
            insert(KnownSite).values(
                site_id="site_1",
                name="hall-1",
                currency="EUR",
                node_types={"g8": "12.50", "g1": "1.10"},
                images=["base", "cuda"],
                version=1,
            )
        )
    tenancy, rack, at = Tenancy(), Rack(), clock.ManualClock(NOW)
    sealer = Sealer(bytes(range(32)))
    service = ClusterService(
        database=database, clock=at, sealer=sealer, authorizer=tenancy, orchestrator=rack
    )
    keys = KeyService(database=database, clock=at, sealer=sealer, authorizer=tenancy)
    app = application(tenancy, lambda principal: api.router(service, keys, tenancy, principal))
    async with AsyncExitStack() as stack:
        clients: dict[str, httpx.AsyncClient] = {}
        for caller in (OPERATOR, MEMBER, VIEWER, STRANGER):
            clients[caller.subject] = await stack.enter_async_context(client(app, caller))
        yield Shop(database, rack, tenancy, lambda caller: clients[caller.subject])
    await database.dispose()
    drop_database(url)


def order(name: str = "c1", count: int = 2, **more: Any) -> dict[str, Any]:
    return {"name": name, "pools": [{"node_type": "g8", "count": count}], **more}


async def test_an_order_is_a_cluster_an_operation_and_its_events_in_one(shop: Shop) -> None:
    response = await shop.calls(MEMBER).post(CLUSTERS, json=order())
    assert response.status_code == 202, response.text
    operation = response.json()
    assert response.headers["location"] == f"/v1/operations/{operation['id']}"
    assert (operation["state"], operation["targets"]) == ("pending", 2)
    assert operation["steps"][0]["name"] == "clusters.begin@1"
    shown = (await shop.calls(MEMBER).get(f"{CLUSTERS}/c1")).json()
    assert shown["id"] == operation["resource_id"]
    assert (shown["state"], shown["operation_id"]) == ("pending", operation["id"])
    assert shown["deadline"] > shown["since"]
    types = [event["type"] for event in await shop.events()]
    assert [one for one in types if not one.startswith("audit.")] == [
        "cluster.declared",
        "cluster.changed",
        "operation.changed",
    ]
    assert await shop.count(KIT.audit) == 1


@pytest.mark.parametrize(
    ("asked", "booted"), [({}, "base"), ({"image": "default"}, "base"), ({"image": "cuda"}, "cuda")]
)
async def test_an_order_boots_the_image_that_it_names_or_the_sites_first(
    shop: Shop, asked: dict[str, str], booted: str
) -> None:
    member = shop.calls(MEMBER)
    assert (await member.post(CLUSTERS, json=order(**asked))).status_code == 202
    assert (await member.get(f"{CLUSTERS}/c1")).json()["image"] == booted
    declared = [e["data"]["image"] for e in await shop.events() if e["type"] == "cluster.declared"]
    assert declared == [booted]


async def test_a_dry_run_refuses_an_unknown_image_too_and_lists_those_there_are(
    shop: Shop,
) -> None:
    body, dry = order(image="windows"), {"dry_run": True}
    refused = await shop.calls(MEMBER).post(CLUSTERS, json=body, params=dry)
    assert refused.status_code == 422
    problem = refused.json()
    assert problem["type"].endswith("/unknown-image")
    assert (problem["detail"], problem["images"]) == (
        "site hall-1 has no image windows",
        ["base", "cuda"],
    )


async def test_at_a_site_without_images_nothing_can_be_ordered_and_the_order_says_why(
    shop: Shop,
) -> None:
    async with shop.database.transaction("clusters") as session:
        await session.execute(update(KnownSite).values(images=[]))
    for body in (order(), order(image="base")):
        refused = await shop.calls(MEMBER).post(CLUSTERS, json=body)
        assert (refused.status_code, "no image to boot" in refused.json()["detail"]) == (422, True)
        assert "images" in refused.json()["next_step"]
    assert await shop.count(KIT.operation) == 0


async def test_a_name_is_free_again_once_its_cluster_is_deleted(shop: Shop) -> None:
    member = shop.calls(MEMBER)
    await member.post(CLUSTERS, json=order())
    taken = await member.post(CLUSTERS, json=order())
    assert (taken.status_code, taken.json()["type"].rpartition("/")[2]) == (409, "name-taken")
    await shop.set_state("c1", "deleted")
    assert (await member.post(CLUSTERS, json=order())).status_code == 202
    listed = (await member.get(CLUSTERS, params={"deleted": True})).json()["items"]
    assert sorted(one["state"] for one in listed) == ["deleted", "pending"]
    shown = (await member.get(f"{CLUSTERS}/c1")).json()
    assert shown["state"] == "pending", "a name means the living one"


async def test_the_same_name_in_another_project_is_no_conflict(shop: Shop) -> None:
    await shop.calls(MEMBER).post(CLUSTERS, json=order())
    other = await shop.calls(STRANGER).post(f"/projects/{BLUE.id}/clusters", json=order())
    assert other.status_code == 202


async def test_two_orders_of_one_name_at_once_are_one_cluster(shop: Shop) -> None:
    member = shop.calls(MEMBER)
    answers = await asyncio.gather(*(member.post(CLUSTERS, json=order()) for _ in range(4)))
    assert sorted(a.status_code for a in answers) == [202, 409, 409, 409]
    assert await shop.count(Cluster) == 1


async def test_an_order_refused_after_its_nodes_were_held_gives_them_back_at_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = shop.rack.reserve

    async def overtaken(operation_id: str, wishes: Wishes) -> Reservation:
        monkeypatch.undo()
        assert (await shop.calls(MEMBER).post(CLUSTERS, json=order())).status_code == 202
        return await reserve(operation_id, wishes)

    monkeypatch.setattr(shop.rack, "reserve", overtaken)
    refused = await shop.calls(MEMBER).post(CLUSTERS, json=order())

    assert refused.status_code == 409
    assert len(shop.rack.held) == 1
    assert len(shop.rack.free) == 6


async def test_two_requests_with_one_key_at_once_are_one_order_for_both(shop: Shop) -> None:
    member, headers = shop.calls(MEMBER), {"Idempotency-Key": "k"}
    answers = await asyncio.gather(
        *(member.post(CLUSTERS, json=order(), headers=headers) for _ in range(4))
    )
    assert [a.status_code for a in answers] == [202] * 4, [a.text for a in answers]
    assert len({a.json()["id"] for a in answers}) == 1
    assert (await shop.count(Cluster), await shop.count(KIT.operation)) == (1, 1)
    assert len(shop.rack.free) == 6


@pytest.mark.parametrize("last", [2, 3])
async def test_a_gateway_that_dies_midway_and_a_repeat_are_one_order(shop: Shop, last: int) -> None:
    """Transactions: 1 the key, 2 the checks, 3 the order itself (behind the reservation)."""
    member, headers = shop.calls(MEMBER), {"Idempotency-Key": "k"}
    shop.database.last = last
    dead = await member.post(CLUSTERS, json=order(), headers=headers)
    assert dead.status_code >= 500
    shop.database.last = None
    held = set(shop.rack.held)
    assert len(held) == last - 2
    answers = [await member.post(CLUSTERS, json=order(), headers=headers) for _ in range(2)]
    assert [a.status_code for a in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert held <= {answers[0].json()["id"]}, "the reservation of the dead gateway is used"
    assert (await shop.count(Cluster), len(shop.rack.free)) == (1, 6)


async def test_a_key_with_another_body_is_refused(shop: Shop) -> None:
    member, headers = shop.calls(MEMBER), {"Idempotency-Key": "k"}
    await member.post(CLUSTERS, json=order(), headers=headers)
    other = await member.post(CLUSTERS, json=order(count=3), headers=headers)
    assert other.status_code == 422
    assert other.json()["type"].endswith("idempotency-key-reused")


async def test_a_refused_order_keeps_nothing_and_its_key_may_try_again(shop: Shop) -> None:
    member, headers = shop.calls(MEMBER), {"Idempotency-Key": "k"}
    refused = await member.post(CLUSTERS, json=order(count=9), headers=headers)
    assert (refused.status_code, refused.json()["missing"]) == (409, 1)
    assert (await shop.count(Cluster), await shop.count(KIT.idempotency)) == (0, 0)
    shop.rack.free.append("node_09")
    again = await member.post(CLUSTERS, json=order(count=9), headers=headers)
    assert again.status_code == 202


async def test_who_may_not_see_gets_404_and_who_may_only_see_gets_403(shop: Shop) -> None:
    made = (await shop.calls(MEMBER).post(CLUSTERS, json=order())).json()["resource_id"]
    one = f"{CLUSTERS}/{made}"
    stranger, viewer = shop.calls(STRANGER), shop.calls(VIEWER)
    for path in (CLUSTERS, one):
        assert (await stranger.get(path)).status_code == 404
        assert (await viewer.get(path)).status_code == 200
    through_own = f"/projects/{BLUE.id}/clusters/{made}"
    assert (await stranger.get(through_own)).status_code == 404
    assert (await stranger.delete(through_own)).status_code == 404
    assert (await stranger.post(CLUSTERS, json=order("x"))).status_code == 404
    assert (await viewer.post(CLUSTERS, json=order("x"))).status_code == 403
    assert (
        await viewer.post(CLUSTERS, json=order("x"), params={"dry_run": True})
    ).status_code == 403
    assert (await viewer.delete(one)).status_code == 403
    assert (await shop.calls(OPERATOR).get(one)).status_code == 200
    assert await shop.count(Cluster) == 1
    assert (await shop.calls(MEMBER).get(one)).json()["state"] == "pending"


async def test_lists_show_what_the_caller_may_see_in_pages_without_an_empty_one(
    shop: Shop,
) -> None:
    for name in ("a", "b", "c", "d"):
        assert (await shop.calls(MEMBER).post(CLUSTERS, json=order(name, 1))).status_code == 202
    await shop.calls(STRANGER).post(f"/projects/{BLUE.id}/clusters", json=order("e", 1))
    seen: list[str] = []
    cursor, pages = None, 0
    while pages == 0 or cursor:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await shop.calls(VIEWER).get("/clusters", params=params)).json()
        seen += [one["name"] for one in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert (sorted(seen), pages) == (["a", "b", "c", "d"], 2)
    everyone = (await shop.calls(OPERATOR).get("/clusters")).json()["items"]
    assert len(everyone) == 5
    assert [pool["count"] for pool in everyone[0]["pools"]] == [1]


async def test_a_page_that_policy_thins_out_still_leads_to_the_rest(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        await shop.calls(MEMBER).post(CLUSTERS, json=order(name, 1))

    async def all_but_the_first(*arguments: Any) -> list[bool]:
        return [False] + [True] * (len(arguments[-1]) - 1)

    monkeypatch.setattr(shop.tenancy, "readable", all_but_the_first)
    page = (await shop.calls(MEMBER).get(CLUSTERS, params={"limit": 2})).json()
    assert [one["name"] for one in page["items"]] == ["b"]
    assert page["next_cursor"]


async def test_a_dry_run_says_nodes_and_price_and_holds_nothing(shop: Shop) -> None:
    body = order(count=3)
    body["pools"].append({"name": "small", "node_type": "g1", "count": 1})
    response = await shop.calls(MEMBER).post(CLUSTERS, json=body, params={"dry_run": True})
    quote = response.json()
    assert response.status_code == 200
    assert (quote["price_per_hour"], quote["currency"]) == ("38.60", "EUR")
    assert (len(quote["nodes"]), quote["placement"]) == (4, "one rack")
    assert (len(shop.rack.free), shop.rack.held) == (8, {})
    for table in (Cluster, NodePool, KIT.operation, KIT.idempotency, KIT.event, KIT.audit):
        assert await shop.count(table) == 0
    refused = await shop.calls(MEMBER).post(CLUSTERS, json=order(count=9), params={"dry_run": True})
    assert refused.status_code == 409


async def test_a_release_closes_at_its_request_and_a_second_one_is_told(shop: Shop) -> None:
    member = shop.calls(MEMBER)
    await member.post(CLUSTERS, json=order())
    busy = await member.delete(f"{CLUSTERS}/c1")
    assert (busy.status_code, "cancel" in busy.json()["next_step"]) == (409, True)
    await shop.set_state("c1", "ready")
    released = await member.delete(f"{CLUSTERS}/c1")
    assert (released.status_code, released.json()["targets"]) == (202, 2)
    async with shop.database.transaction("clusters") as session:
        query = select(KIT.operation.c.plan).where(KIT.operation.c.id == released.json()["id"])
        plan = (await session.execute(query)).scalar_one()
    requested = [
        step["params"].get("requested_at")
        for step in plan["steps"]
        if step["name"].startswith("orchestrator.release@")
    ]
    assert requested == [NOW.isoformat()], "usage ends at the request"
    again = await member.delete(f"{CLUSTERS}/c1")
    assert (again.status_code, "watch" in again.json()["next_step"]) == (409, True)
    assert (await member.get(f"{CLUSTERS}/c1")).json()["state"] == "deleting"
    assert await shop.count(KIT.operation) == 2


async def test_a_release_of_what_was_read_is_refused_once_it_is_something_else(
    shop: Shop,
) -> None:
    member = shop.calls(MEMBER)
    await member.post(CLUSTERS, json=order())
    await shop.set_state("c1", "ready")
    seen = {"If-Match": (await member.get(f"{CLUSTERS}/c1")).headers["etag"]}
    await shop.set_state("c1", "ready")
    refused = await member.delete(f"{CLUSTERS}/c1", headers=seen)
    assert refused.status_code == 412
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["type"].endswith("/precondition-failed")
    assert "Read it again" in refused.json()["next_step"]
    assert (await shop.count(KIT.operation), await shop.count(KIT.idempotency)) == (1, 1)
    now = {"If-Match": (await member.get(f"{CLUSTERS}/c1")).headers["etag"], "Idempotency-Key": "k"}
    released = await member.delete(f"{CLUSTERS}/c1", headers=now)
    assert released.status_code == 202
    repeated = await member.delete(f"{CLUSTERS}/c1", headers=now)
    assert (repeated.status_code, repeated.json()) == (202, released.json())


async def test_a_tag_of_a_cluster_does_not_fit_a_later_one_of_its_name(shop: Shop) -> None:
    member = shop.calls(MEMBER)
    tags: list[str] = []
    for _ in range(2):
        await member.post(CLUSTERS, json=order())
        await shop.set_state("c1", "ready")
        tags.append((await member.get(f"{CLUSTERS}/c1")).headers["etag"])
        if len(tags) == 1:
            await shop.set_state("c1", "deleted")
    old = await member.delete(f"{CLUSTERS}/c1", headers={"If-Match": tags[0]})
    assert old.status_code == 412
    for tag in (tags[1], "*"):
        answer = await member.delete(
            f"{CLUSTERS}/c1", headers={"If-Match": tag, "Idempotency-Key": "k"}
        )
        assert answer.status_code == 202


async def test_who_may_only_look_is_told_so_before_any_tag_is_compared(shop: Shop) -> None:
    await shop.calls(MEMBER).post(CLUSTERS, json=order())
    for caller, wanted in ((VIEWER, 403), (STRANGER, 404)):
        answer = await shop.calls(caller).delete(f"{CLUSTERS}/c1", headers={"If-Match": '"9"'})
        assert answer.status_code == wanted


async def test_two_releases_at_once_are_one_operation(shop: Shop) -> None:
    member = shop.calls(MEMBER)
    await member.post(CLUSTERS, json=order())
    await shop.set_state("c1", "ready")
    answers = await asyncio.gather(*(member.delete(f"{CLUSTERS}/c1") for _ in range(4)))
    assert sorted(a.status_code for a in answers) == [202, 409, 409, 409]
    assert await shop.count(KIT.operation) == 2


async def test_a_release_repeated_with_its_key_is_the_same_even_when_all_is_gone(
    shop: Shop,
) -> None:
    member, headers = shop.calls(MEMBER), {"Idempotency-Key": "k"}
    await member.post(CLUSTERS, json=order())
    await shop.set_state("c1", "ready")
    answers = await asyncio.gather(
        *(member.delete(f"{CLUSTERS}/c1", headers=headers) for _ in range(3))
    )
    await shop.set_state("c1", "deleted")
    answers.append(await member.delete(f"{CLUSTERS}/c1", headers=headers))
    assert [a.status_code for a in answers] == [202] * 4
    assert len({a.json()["id"] for a in answers}) == 1
    assert (await member.delete(f"{CLUSTERS}/c1")).status_code == 404


async def test_a_release_whose_nodes_changed_meanwhile_is_not_ordered_for_the_old_ones(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = shop.calls(MEMBER)
    await member.post(CLUSTERS, json=order())
    await shop.set_state("c1", "ready")
    asked: Callable[[str], Awaitable[Any]] = shop.rack.nodes_of

    async def then_changed(cluster_id: str) -> Any:
        placed = await asked(cluster_id)
        await shop.set_state("c1", "ready")
        return placed

    monkeypatch.setattr(shop.rack, "nodes_of", then_changed)
    assert (await member.delete(f"{CLUSTERS}/c1")).status_code == 409
    monkeypatch.undo()
    assert (await member.delete(f"{CLUSTERS}/c1")).status_code == 202


async def test_no_reservation_is_asked_for_under_a_transaction(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = shop.rack.reserve

    async def guarded(operation_id: str, wishes: Wishes) -> Reservation:
        assert_no_transaction("reserve")
        return await reserve(operation_id, wishes)

    monkeypatch.setattr(shop.rack, "reserve", guarded)
    assert (await shop.calls(MEMBER).post(CLUSTERS, json=order())).status_code == 202


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (order("Upper"), "body.name"),
        (order("a" * 64), "body.name"),
        (order(count=0), "body.pools.0.count"),
        (order(pools=[]), "body.pools"),
        (order(colour="red"), "body.colour"),
        (order(site="hall-9"), "hall-1"),
        (order(image="windows"), "Its images are: base, cuda."),
        (order(pools=[{"node_type": "g9", "count": 1}]), "Its node types are: g1, g8."),
        (order(site="hall\x00"), "body.site"),
        (order(ssh_keys=["none"]), "none"),
        (order(user_data="none"), "none"),
        (order(pools=[{"node_type": "g8", "count": 1}] * 2), "same name"),
    ],
)
async def test_bad_input_is_refused_with_what_is_wrong_and_keeps_nothing(
    shop: Shop, body: dict[str, Any], words: str
) -> None:
    response = await shop.calls(MEMBER).post(CLUSTERS, json=body)
    assert response.status_code == 422, response.text
    assert words in response.text
    assert response.json()["next_step"]
    assert (await shop.count(Cluster), await shop.count(KIT.idempotency)) == (0, 0)
    assert len(shop.rack.free) == 8


async def test_without_a_token_there_is_nothing(shop: Shop) -> None:
    response = await shop.calls(MEMBER).get(CLUSTERS, headers={"Authorization": "Bearer old"})
    assert response.status_code == 401
    assert "login" in response.json()["next_step"]
