"""Promises of a running cluster's life: its size, its nodes, its end, its protection, its drains.

Orders go to the real ledger of nodes; of the operations the steps of clusters and orchestrator are
carried out, which are all that touch no device.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select

from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.ids import new_id
from dflare.kit.operations import lock_operation
from dflare.kit.plan import Plan, StepCall, StepReport
from dflare.kit.seal import Sealer
from dflare.kit.steps import Step, StepRunner
from dflare.services.auth.contract import Principal
from dflare.services.clusters import activities, activities_life, api, api_life
from dflare.services.clusters.reconciler import ClusterReconciler
from dflare.services.clusters.service import ClusterService
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.service_life import LifeService
from dflare.services.clusters.tables import KIT, Cluster, KnownSite, NodePool
from dflare.services.orchestrator import activities as ledger
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.tables import KIT as LEDGER
from dflare.services.orchestrator.tables import Allocation
from orchestrator_fleet import Fleet
from stores import drop_database
from tenancy import (
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    VIEWER,
    Tenancy,
    application,
    client,
    migrated_database,
)

CLUSTERS = f"/projects/{RED.id}/clusters"
C1 = f"{CLUSTERS}/c1"
POOL = f"{C1}/pools/main"
NODES = 8


@dataclass
class Town:
    """A small fleet, the API over it, and a cluster that lives there."""

    database: Database
    clock: ManualClock
    fleet: Fleet
    calls: dict[str, httpx.AsyncClient]
    positions: int = field(default=1_000)

    async def ask(
        self, method: str, path: str, caller: Principal = MEMBER, **more: Any
    ) -> httpx.Response:
        return await self.calls[caller.subject].request(method, path, **more)

    async def shown(self) -> dict[str, Any]:
        return (await self.ask("GET", C1)).json()

    async def order(self, method: str, path: str, **more: Any) -> str:
        answer = await self.ask(method, path, **more)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def operation(self, operation_id: str) -> dict[str, Any]:
        async with self.database.transaction("clusters") as session:
            return dict(await lock_operation(session, KIT, operation_id))

    async def carry_out(self, operation_id: str, *, until: str = "") -> None:
        """Do the operation's steps that touch no device, up to one of them."""
        row = await self.operation(operation_id)
        for index, step in enumerate(Plan.model_validate(row["plan"]).steps):
            if step.service in ("clusters", "orchestrator"):
                targets = row["targets"] if step.on == "nodes" else [row["resource_id"]]
                report = await self.step(operation_id, step.name, index, targets, step.params)
                assert report.failed == {}, report.failed
            if step.name == until:
                break
        await self.tell()

    async def undo(self, operation_id: str, *steps: str) -> None:
        row = await self.operation(operation_id)
        for index, name in enumerate(steps):
            on_nodes = not name.endswith("resize_undone@1")
            targets = row["targets"] if on_nodes else [row["resource_id"]]
            await self.step(operation_id, name, index, targets, {}, undoing=True)
        await self.tell()

    async def step(
        self,
        operation_id: str,
        name: str,
        index: int,
        targets: Sequence[str],
        params: dict[str, str],
        **more: Any,
    ) -> StepReport:
        steps: dict[str, Step[Any]] = {
            step.name: step
            for step in (
                *activities.steps(self.clock),
                *activities_life.steps(self.clock, SAGAS.__getitem__),
                *ledger.steps(self.clock),
            )
        }
        row = await self.operation(operation_id)
        call = StepCall(
            operation_id=operation_id,
            ordering_service="clusters",
            attempt=1,
            generation=more.pop("generation", 1),
            step=name,
            index=index,
            batch=new_id("batch"),
            project_id=row["project_id"],
            resource_id=row["resource_id"],
            targets=tuple(targets),
            params=params,
            deadline_at=self.clock.now() + timedelta(minutes=5),
            **more,
        )
        kit = KIT if name.startswith("clusters.") else LEDGER
        return await StepRunner(self.database, kit, self.clock).run(steps[name], call, 1)

    async def tell(self) -> None:
        """Let clusters hear of what became of its nodes."""
        async with self.database.transaction("orchestrator") as session:
            table = LEDGER.event
            query = select(table).where(table.c.type == "allocation.changed")
            rows = (await session.execute(query.order_by(table.c.ordinal))).mappings().all()
        entries = [self.entry(row["type"], row["data"], row["resource_version"]) for row in rows]
        async with self.database.transaction("clusters") as session:
            await activities.MembersProjection().apply(session, entries)

    async def node_is(self, number: int, state: str, version: int, reason: str = "") -> None:
        data = {
            "node_id": self.fleet.node_id(number),
            "site_id": self.fleet.site_id,
            "name": f"n{number:04}",
            "state": state,
            "reason": reason,
        }
        entry = self.entry("node.state_changed", data, version, data["node_id"])
        async with self.database.transaction("clusters") as session:
            await activities_life.NodesProjection().apply(session, [entry])

    def entry(self, kind: str, data: dict[str, Any], version: int, of: str = "") -> FeedEntry:
        self.positions += 1
        return FeedEntry(
            position=self.positions,
            source="test",
            event_id=new_id("evt"),
            type=kind,
            organization_id=None,
            project_id=None,
            site_id=None,
            resource_kind="",
            resource_id=of,
            resource_version=version,
            operation_id=None,
            at=self.clock.now(),
            data=data,
        )

    async def allocations(self) -> dict[str, Allocation]:
        return {one.node_id: one for one in await self.fleet.allocations()}

    async def events(self, kind: str) -> list[dict[str, Any]]:
        async with self.database.transaction("clusters") as session:
            query = select(KIT.event.c.data).where(KIT.event.c.type == kind)
            return list(await session.scalars(query.order_by(KIT.event.c.ordinal)))

    async def operations(self, kind: str) -> list[dict[str, Any]]:
        async with self.database.transaction("clusters") as session:
            query = select(KIT.operation).where(KIT.operation.c.kind == kind)
            return [dict(row) for row in (await session.execute(query)).mappings()]

    def later(self, passed: timedelta) -> None:
        self.clock.at += passed

    @property
    def reconciler(self) -> ClusterReconciler:
        return ClusterReconciler(self.database, self.clock, self.fleet.service)


@pytest.fixture
async def town(postgres_url: str) -> AsyncIterator[Town]:
    """A ready cluster ``c1`` of two nodes in pool ``main``, in a fleet of eight."""
    url = await migrated_database(postgres_url, "clusters", "orchestrator")
    database, at = Database(url, application="test-life"), ManualClock(NOW)
    fleet = Fleet(database, at, project_id=RED.id)
    await fleet.declare(NODES)
    async with database.transaction("clusters") as session:
        await session.execute(
            insert(KnownSite).values(
                site_id=fleet.site_id,
                name="hall-1",
                currency="EUR",
                node_types={"g8": "12.50"},
                images=["base"],
                version=1,
            )
        )
    tenancy, sealer = Tenancy(), Sealer(bytes(range(32)))
    clusters = ClusterService(
        database=database, clock=at, sealer=sealer, authorizer=tenancy, orchestrator=fleet.service
    )
    keys = KeyService(database=database, clock=at, sealer=sealer, authorizer=tenancy)
    life = LifeService(database, at, tenancy, fleet.service, clusters)

    def routes(principal: Any) -> Any:
        both = api.router(clusters, keys, tenancy, principal)
        both.include_router(api_life.router(life, tenancy, principal))
        return both

    app = application(tenancy, routes)
    async with AsyncExitStack() as stack:
        calls = {
            caller.subject: await stack.enter_async_context(client(app, caller))
            for caller in (OPERATOR, MEMBER, VIEWER)
        }
        town = Town(database, at, fleet, calls)
        body = {"name": "c1", "pools": [{"name": "main", "node_type": "g8", "count": 2}]}
        await town.carry_out(await town.order("POST", CLUSTERS, json=body))
        yield town
    await database.dispose()
    drop_database(url)


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
    numbers = [int(node["name"][1:]) for node in (await town.shown())["nodes"]]
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
    version = shown["version"]
    assert await town.reconciler.look() == 0
    assert (await town.shown())["version"] == version
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
