"""Promises of a running cluster's end, protection, conditions and drains."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import select

from cluster_town import C1, CLUSTERS, POOL, Town, cluster_town
from dflare.services.clusters.tables import Cluster
from tenancy import NOW, OPERATOR, VIEWER


@pytest.fixture
async def town(postgres_url: str) -> AsyncIterator[Town]:
    async with cluster_town(postgres_url) as town:
        yield town


async def test_a_cluster_is_released_once_when_its_time_is_over(town: Town) -> None:
    extended = await town.ask("PATCH", C1, json={"ttl_s": 3600})
    assert extended.json()["expires_at"] == (NOW + timedelta(hours=1)).isoformat().replace(
        "+00:00", "Z"
    )
    town.later(timedelta(minutes=59))
    assert await town.reconciler.release_expired() == 0
    town.later(timedelta(minutes=1))
    ordered = await asyncio.gather(*(town.reconciler.release_expired() for _ in range(3)))
    assert sum(ordered) == 1
    assert await town.reconciler.release_expired() == 0

    (release,) = await town.operations("release_expired_cluster")
    assert release["created_by"] == "dflare:expiry"
    shown = await town.shown()
    assert (shown["state"], shown["reason"]) == ("deleting", "expired")
    assert set(release["targets"]) == {node["node_id"] for node in shown["nodes"]}
    expired_at = town.clock.now()
    town.later(timedelta(minutes=5))
    await town.carry_out(release["id"])
    assert await town.fleet.used() == 0
    assert {one.usage_to for one in await town.fleet.allocations()} == {expired_at}


async def test_an_end_can_be_moved_and_taken_away(town: Town) -> None:
    await town.ask("PATCH", C1, json={"ttl_s": 60})
    await town.ask("PATCH", C1, json={"ttl_s": 7200})
    town.later(timedelta(hours=1))
    assert await town.reconciler.release_expired() == 0
    endless = await town.ask("PATCH", C1, json={"ttl_s": None})
    assert endless.json()["expires_at"] is None
    town.later(timedelta(days=300))
    assert await town.reconciler.release_expired() == 0


async def test_a_time_to_live_and_protection_can_come_with_the_order(town: Town) -> None:
    pools = [{"name": "main", "node_type": "g8", "count": 1}]
    body = {"name": "c2", "pools": pools, "ttl_s": 600, "protected": True}
    await town.order("POST", CLUSTERS, json=body)
    shown = (await town.ask("GET", f"{CLUSTERS}/c2")).json()
    assert shown["expires_at"].startswith((NOW + timedelta(minutes=10)).isoformat()[:19])
    assert shown["protected"] is True


async def test_a_protected_cluster_is_released_by_nobody_until_it_is_unprotected(
    town: Town,
) -> None:
    await town.ask("PATCH", C1, json={"protected": True, "ttl_s": 60})
    refused = await town.ask("DELETE", C1)
    assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (
        409,
        "cluster-protected",
    )
    assert "dflare cluster unprotect c1" in refused.json()["next_step"]
    town.later(timedelta(hours=1))
    assert await town.reconciler.release_expired() == 0
    assert (await town.shown())["state"] == "ready"

    await town.ask("PATCH", C1, json={"protected": False, "ttl_s": None})
    assert (await town.ask("DELETE", C1)).status_code == 202


async def test_conditions_follow_the_nodes_and_change_only_with_them(town: Town) -> None:
    before = await town.shown()
    version, numbers = before["version"], [int(node["name"][1:]) for node in before["nodes"]]
    await town.reconciler.look()
    assert await conditions(town) == {"Ready": "true", "NodesHealthy": "unknown"}
    for number in numbers:
        await town.node_is(number, "active", 5)
    assert await town.reconciler.look() == 1
    assert await conditions(town) == {"Ready": "true", "NodesHealthy": "true"}
    since = (await town.shown())["conditions"][0]["since"]

    town.later(timedelta(minutes=1))
    await town.node_is(numbers[1], "quarantine", 6, "no heartbeat")
    await town.node_is(numbers[1], "active", 5)
    assert await town.reconciler.look() == 1
    shown = await town.shown()
    assert await conditions(town) == {"Ready": "true", "NodesHealthy": "false"}
    assert "no heartbeat" in shown["conditions"][1]["message"]
    assert shown["conditions"][0]["since"] == since
    assert await town.reconciler.look() == 0
    assert (await town.shown())["version"] == version, "what its caller saw still stands"
    told = (await town.events("cluster.changed"))[-1]["conditions"]
    assert [one["status"] for one in told] == ["true", "false"]


async def test_people_are_warned_once_before_the_end(town: Town) -> None:
    await town.ask("PATCH", C1, json={"ttl_s": 8 * 3600})
    await town.reconciler.look()
    assert (await conditions(town))["Expiring"] == "false"
    town.later(timedelta(hours=7, minutes=1))
    for _ in range(2):
        await town.reconciler.look()
        town.later(timedelta(minutes=1))
    assert (await conditions(town))["Expiring"] == "true"
    assert [one["name"] for one in await town.events("cluster.expiring")] == ["c1"]

    await town.ask("PATCH", C1, json={"ttl_s": None})
    await town.reconciler.look()
    assert "Expiring" not in await conditions(town)


async def conditions(town: Town) -> dict[str, str]:
    return {one["type"]: one["status"] for one in (await town.shown())["conditions"]}


async def test_only_the_owner_of_a_drain_ends_it(town: Town) -> None:
    node = (await town.shown())["nodes"][0]["name"]
    path = f"{C1}/nodes/{node}"
    drained = await town.ask("POST", f"{path}/drain", OPERATOR, json={"reason": "bad fan"})
    assert drained.status_code == 200
    (mine,) = [one for one in drained.json()["nodes"] if one["drained_by"]]
    assert (mine["drained_by"], mine["drain_reason"]) == (OPERATOR.subject, "bad fan")

    for verb, body in (("undrain", None), ("drain", {"reason": "mine now"})):
        refused = await town.ask("POST", f"{path}/{verb}", json=body)
        assert (refused.status_code, refused.json()["owner"]) == (409, OPERATOR.subject)
        assert "bad fan" in refused.json()["detail"]
    again = await town.ask("POST", f"{path}/drain", OPERATOR, json={"reason": "fan 3"})
    assert [n["drain_reason"] for n in again.json()["nodes"]] == ["fan 3", None]
    for _ in range(2):
        ended = await town.ask("POST", f"{path}/undrain", OPERATOR)
        assert [n["drained_by"] for n in ended.json()["nodes"]] == [None, None]
    unknown = await town.ask("POST", f"{C1}/nodes/n9999/drain", json={"reason": "x"})
    assert unknown.status_code == 422


async def test_who_may_only_look_changes_nothing(town: Town) -> None:
    node = (await town.shown())["nodes"][0]["name"]
    before = await town.shown()
    for method, path, body in (
        ("PATCH", C1, {"protected": True}),
        ("PATCH", POOL, {"count": 3}),
        ("POST", f"{C1}/nodes/{node}/replace", None),
        ("POST", f"{C1}/nodes/{node}/drain", {"reason": "x"}),
        ("POST", f"{C1}/nodes/{node}/undrain", None),
    ):
        assert (await town.ask(method, path, VIEWER, json=body)).status_code == 403
    assert await town.shown() == before


async def test_a_release_leaves_no_drain_behind(town: Town) -> None:
    nodes = (await town.shown())["nodes"]
    await town.ask("POST", f"{C1}/nodes/{nodes[1]['name']}/drain", json={"reason": "fan"})
    await town.carry_out(await town.order("PATCH", POOL, json={"nodes": [nodes[1]["name"]]}))
    async with town.database.transaction("clusters") as session:
        cluster = (await session.scalars(select(Cluster))).one()
    assert (cluster.state, [n["drained_by"] for n in (await town.shown())["nodes"]]) == (
        "ready",
        [None],
    )
