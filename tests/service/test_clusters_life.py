"""Promises of a running cluster's size and nodes: it grows, shrinks, and nodes are replaced."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from cluster_town import C1, POOL, Town, cluster_town
from dflare.kit.plan import Plan
from dflare.services.clusters.tables import NodePool
from tenancy import MEMBER


@pytest.fixture
async def town(postgres_url: str) -> AsyncIterator[Town]:
    async with cluster_town(postgres_url) as town:
        yield town


def count_of(shown: dict[str, Any]) -> int:
    return int(shown["pools"][0]["count"])


async def test_a_pool_grows_near_its_nodes_and_the_cluster_is_ready_again(town: Town) -> None:
    operation = await town.order("PATCH", POOL, json={"count": 5})

    resizing = await town.shown()
    assert (resizing["state"], resizing["operation_id"]) == ("resizing", operation)
    assert count_of(resizing) == 2, "nodes that are not handed over do not count yet"
    await town.carry_out(operation)

    shown = await town.shown()
    assert (shown["state"], count_of(shown), shown["deadline"]) == ("ready", 5, None)
    assert [node["slot"] for node in shown["nodes"]] == [0, 1, 2, 3, 4]
    billed = [one for one in await town.fleet.allocations() if one.usage_from is not None]
    assert len(billed) == 5
    assert await town.fleet.used() == 5
    assert (await town.operation(operation))["kind"] == "grow_cluster"


async def test_a_growth_that_is_undone_leaves_the_cluster_ready_as_it_was(town: Town) -> None:
    operation = await town.order("PATCH", POOL, json={"count": 4})
    await town.carry_out(operation, until="orchestrator.confirm@1")

    await town.undo(operation, "orchestrator.end@1", "clusters.resize_undone@1")

    shown = await town.shown()
    assert (shown["state"], count_of(shown), len(shown["nodes"])) == ("ready", 2, 2)
    assert await town.fleet.used() == 2


async def test_a_growth_that_comes_back_after_another_one_does_not_touch_that(town: Town) -> None:
    first = await town.order("PATCH", POOL, json={"count": 3})
    await town.undo(first, "orchestrator.end@1", "clusters.resize_undone@1")
    second = await town.order("PATCH", POOL, json={"count": 4})
    cluster = (await town.shown())["id"]

    late = await town.step(first, "clusters.begin_grow@1", 0, [cluster], {}, generation=2)
    await town.undo(first, "clusters.resize_undone@1")

    assert "resizing" in late.failed[cluster]
    shown = await town.shown()
    assert (shown["state"], shown["operation_id"]) == ("resizing", second)


async def test_a_pool_shrinks_by_its_last_nodes_and_their_bill_ends_with_the_request(
    town: Town,
) -> None:
    await town.carry_out(await town.order("PATCH", POOL, json={"count": 5}))
    before = await town.shown()
    leaving = {node["node_id"] for node in before["nodes"] if node["slot"] >= 3}
    town.later(timedelta(minutes=10))
    asked = town.clock.now()

    operation = await town.order("PATCH", POOL, json={"count": 3})
    town.later(timedelta(minutes=10))
    await town.carry_out(operation)

    shown = await town.shown()
    assert (shown["state"], count_of(shown)) == ("ready", 3)
    assert [node["slot"] for node in shown["nodes"]] == [0, 1, 2]
    for node_id, one in (await town.allocations()).items():
        assert one.usage_to == (asked if node_id in leaving else None)
    assert await town.fleet.used() == 3


async def test_named_nodes_leave_before_others(town: Town) -> None:
    await town.carry_out(await town.order("PATCH", POOL, json={"count": 4}))
    nodes = (await town.shown())["nodes"]

    operation = await town.order("PATCH", POOL, json={"nodes": [nodes[0]["name"]]})
    assert (await town.operation(operation))["targets"] == [nodes[0]["node_id"]]
    await town.carry_out(operation)
    body = {"count": 1, "nodes": [nodes[1]["node_id"]]}
    await town.carry_out(await town.order("PATCH", POOL, json=body))

    assert [node["name"] for node in (await town.shown())["nodes"]] == [nodes[2]["name"]]


async def test_a_shrink_that_is_undone_lets_its_nodes_take_work_again(town: Town) -> None:
    nodes = (await town.shown())["nodes"]
    await town.ask("POST", f"{C1}/nodes/{nodes[0]['name']}/drain", json={"reason": "fan"})
    operation = await town.order("PATCH", POOL, json={"nodes": [nodes[1]["name"]]})
    await town.carry_out(operation, until="clusters.drain@1")
    drained = [node["drained_by"] for node in (await town.shown())["nodes"]]
    assert drained == [MEMBER.subject, operation]

    await town.undo(operation, "clusters.undrain@1", "clusters.resize_undone@1")

    shown = await town.shown()
    assert shown["state"] == "ready"
    assert [node["drained_by"] for node in shown["nodes"]] == [MEMBER.subject, None]


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({"count": 2}, 409, "cannot-scale"),
        ({"count": 0}, 409, "cannot-scale"),
        ({"count": 1, "nodes": ["n9999"]}, 422, "unknown-node"),
        ({"count": 3, "nodes": ["n0000"]}, 409, "cannot-scale"),
        ({"count": 9}, 409, "capacity"),
        ({"count": 2000}, 409, "quota"),
        ({}, 422, "invalid"),
    ],
    ids=str,
)
async def test_a_size_that_cannot_be_is_refused_and_changes_nothing(
    town: Town, body: dict[str, Any], status: int, problem: str
) -> None:
    before = await town.shown()
    answer = await town.ask("PATCH", POOL, json=body, headers={"Idempotency-Key": "k"})

    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (status, problem)
    assert answer.json()["next_step"]
    assert await town.shown() == before
    assert await town.fleet.used() == 2
    again = await town.ask("PATCH", POOL, json={"count": 3}, headers={"Idempotency-Key": "k"})
    assert again.status_code == 202, "a refused order leaves its key free"


async def test_a_pool_grows_no_further_than_its_scheduler_has_room_for(town: Town) -> None:
    async with town.database.transaction("clusters") as session:
        (await session.scalars(select(NodePool))).one().max_nodes = 3
    refused = await town.ask("PATCH", POOL, json={"count": 4})
    assert (refused.status_code, refused.json()["max_nodes"]) == (409, 3)
    assert (await town.ask("PATCH", POOL, json={"count": 3})).status_code == 202


async def test_a_cluster_changes_its_size_once_at_a_time_and_is_not_deleted_meanwhile(
    town: Town,
) -> None:
    operation = await town.order("PATCH", POOL, json={"count": 3})
    second = await town.ask("PATCH", POOL, json={"count": 4})
    deletion = await town.ask("DELETE", C1)
    for refused in (second, deletion):
        assert refused.status_code == 409
        assert operation in refused.json()["next_step"]
    assert await town.fleet.used() == 3


async def test_a_repeated_order_is_one_order_and_an_outdated_one_is_refused(town: Town) -> None:
    seen = (await town.ask("GET", C1)).headers["etag"]
    headers = {"Idempotency-Key": "once", "If-Match": seen}
    orders = await asyncio.gather(
        *(town.ask("PATCH", POOL, json={"count": 3}, headers=headers) for _ in range(3))
    )
    done = [one for one in orders if one.status_code == 202]
    assert done
    assert len({one.json()["id"] for one in done}) == 1
    assert len(await town.operations("grow_cluster")) == 1
    await town.carry_out(done[0].json()["id"])

    again = await town.ask("PATCH", POOL, json={"count": 3}, headers=headers)
    assert again.json()["id"] == done[0].json()["id"]
    late = await town.ask("PATCH", POOL, json={"count": 1}, headers={"If-Match": seen})
    assert late.status_code == 412
    assert await town.fleet.used() == 3


@pytest.mark.parametrize("well", [True, False])
async def test_a_node_is_replaced_by_one_that_comes_before_it_goes(town: Town, well: bool) -> None:
    old = (await town.shown())["nodes"][0]
    number = int(old["name"][1:])
    await town.node_is(number, "active" if well else "failed", 5)
    growth = await town.order("POST", f"{C1}/nodes/{old['name']}/replace")
    assert (await town.operation(growth))["kind"] == "replace_node"

    await town.carry_out(growth)
    grown = Plan.model_validate((await town.operation(growth))["plan"]).steps[-1]
    assert grown.params["drain"] == ("wait" if well else "now")
    between = await town.shown()
    assert (between["state"], count_of(between)) == ("resizing", 3)
    cluster = between["id"]
    for generation in (1, 2):
        await town.step(
            growth, grown.name, 99, [cluster], dict(grown.params), generation=generation
        )
    (release,) = await town.operations("release_replaced_node")
    assert (release["id"], release["targets"]) == (between["operation_id"], [old["node_id"]])
    assert release["created_by"] == MEMBER.subject
    await town.carry_out(release["id"])

    shown = await town.shown()
    assert (shown["state"], count_of(shown), len(shown["nodes"])) == ("ready", 2, 2)
    assert old["node_id"] not in {node["node_id"] for node in shown["nodes"]}
    assert await town.fleet.used() == 2
