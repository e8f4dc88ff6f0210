"""What becomes an alert, whom it is told, and when it is over."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from dflare.kit.clock import ManualClock, SystemClock
from dflare.kit.lease import Lease
from dflare.kit.series import Sample as Found
from dflare.kit.series import SeriesStore, SeriesUnreachableError
from dflare.services.metrics import domain, repository, tables
from dflare.services.metrics.api import alert_router
from dflare.services.metrics.domain import Sample
from dflare.services.metrics.reconciler_alerts import AlertReconciler
from dflare.services.metrics.service_alerts import AlertService
from metrics_world import SITE_NAME, Scripted, World, metrics_world
from tenancy import (
    BLUE,
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    STRANGER,
    VIEWER,
    Tenancy,
    application,
    client,
)

HOUR = timedelta(hours=1)


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    async with metrics_world(postgres_url, ManualClock(NOW), Scripted()) as made:
        await made.declare("n0", "n1")
        await made.hand_over("n0", RED, since=NOW - HOUR)
        yield made


@pytest.fixture
def alerts(world: World) -> AlertReconciler:
    lease = Lease(world.database, "metrics/alerts", "test")
    return AlertReconciler(world.database, world.store, world.clock, world.settings, lease)


def of(name: str, value: float, **labels: str) -> Found:
    """A series of a node as the store tells it."""
    return Found({"site": SITE_NAME, "node": name, **labels}, value)


def say(world: World, **answers: list[Found]) -> None:
    assert isinstance(world.store, Scripted)
    texts = {"missing": "ignoring(state)", "present": "count_over_time", "down": "hw_network_up"}
    world.store.answers = {texts[name]: found for name, found in answers.items()}


def later(world: World, seconds: float) -> None:
    assert isinstance(world.clock, ManualClock)
    world.clock.at += timedelta(seconds=seconds)


async def look_until_raised(world: World, alerts: AlertReconciler) -> list[Any]:
    await alerts.look()
    later(world, world.settings.alert_after_s + 1)
    await alerts.look()
    return await world.events()


async def test_a_dead_gpu_is_told_its_tenant_by_number_and_is_over_when_it_answers(
    world: World, alerts: AlertReconciler
) -> None:
    present = [of("n0", 2, hw_id=str(n), project=RED.id) for n in range(8) if n != 5]
    say(world, missing=[of("n0", 1, project=RED.id)], present=present)
    await alerts.look()
    assert await world.events() == [], "it must last"
    ((kind, project, data),) = await look_until_raised(world, alerts)
    assert (kind, project) == ("alert.raised", RED.id)
    assert data["summary"] == "GPU 5 of n0 does not answer"
    assert (data["rule"], data["part"], data["severity"]) == ("dead_gpu", "GPU 5", "critical")
    assert (data["subject_id"], data["cluster_id"]) == ("node_n0", "clu_proj_red")
    await alerts.look()
    assert len(await world.events()) == 1, "one condition is one alert"
    say(world)
    await alerts.look()
    told = await world.events()
    assert [kind for kind, _, _ in told] == ["alert.raised", "alert.resolved"]
    assert told[1][2]["id"] == data["id"]
    assert told[1][2]["resolved_at"]
    await alerts.look()
    assert len(await world.events()) == 2


async def test_a_lost_link_names_its_port_and_one_of_nobodys_node_is_told_operators_alone(
    world: World, alerts: AlertReconciler
) -> None:
    down = [of("n0", 0, hw_id="ib0", project=RED.id), of("n1", 0, hw_id="eth1")]
    say(world, down=down)
    told = await look_until_raised(world, alerts)
    by_node = {data["subject_name"]: (project, data["part"]) for _, project, data in told}
    assert by_node == {"n0": (RED.id, "ib0"), "n1": (None, "eth1")}


async def test_what_is_left_of_an_earlier_tenant_is_no_alert_of_anybody(
    world: World, alerts: AlertReconciler
) -> None:
    say(world, down=[of("n0", 0, hw_id="ib0", project=BLUE.id), of("n0", 0, hw_id="ib0")])
    assert await look_until_raised(world, alerts) == []
    say(world, down=[of("gone", 0, hw_id="ib0")])
    assert await look_until_raised(world, alerts) == []


async def test_the_next_tenants_alert_is_another_one(world: World, alerts: AlertReconciler) -> None:
    say(world, down=[of("n0", 0, hw_id="ib0", project=RED.id)])
    await look_until_raised(world, alerts)
    now = world.clock.now()
    await world.hand_over("n0", RED, since=NOW - HOUR, until=now)
    await world.hand_over("n0", BLUE, since=now)
    await alerts.look()
    say(world, down=[of("n0", 0, hw_id="ib0", project=BLUE.id)])
    told = await look_until_raised(world, alerts)
    assert [(kind, project) for kind, project, _ in told] == [
        ("alert.raised", RED.id),
        ("alert.resolved", RED.id),
        ("alert.raised", BLUE.id),
    ]


async def test_a_store_that_is_away_neither_raises_nor_resolves_what_is_of_nodes(
    world: World, alerts: AlertReconciler
) -> None:
    say(world, down=[of("n0", 0, hw_id="ib0", project=RED.id)])
    await look_until_raised(world, alerts)
    assert isinstance(world.store, Scripted)
    world.store.away = SeriesUnreachableError("away")
    await alerts.look()
    assert [kind for kind, _, _ in await world.events()] == ["alert.raised"]


def operation(state: str = "running", attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": "op_1",
        "kind": "create_cluster",
        "organization_id": RED.organization_id,
        "project_id": RED.id,
        "site_id": "site_1",
        "state": state,
        "reason": "",
        "attempt": attempt,
        "finished_at": None,
        "steps": [],
        **more,
    }


async def test_an_operation_that_takes_too_long_is_late_until_it_ends(
    world: World, alerts: AlertReconciler
) -> None:
    await world.tell("operation.changed", operation())
    await alerts.look()
    later(world, world.settings.late_operation_s + 60)
    await alerts.look()
    ((kind, project, data),) = await world.events()
    assert (kind, project, data["rule"]) == ("alert.raised", RED.id, "late_operation")
    assert data["summary"] == "create_cluster is under way for 31 minutes"
    ended = operation("succeeded", finished_at=world.clock.now().isoformat())
    await world.tell("operation.changed", ended)
    await alerts.look()
    assert [kind for kind, _, _ in await world.events()] == ["alert.raised", "alert.resolved"]


async def test_one_that_waits_for_capacity_is_not_late_and_one_that_needs_a_person_is_at_once(
    world: World, alerts: AlertReconciler
) -> None:
    await world.tell("operation.changed", operation("pending", attempt=0))
    later(world, 100_000)
    await alerts.look()
    assert await world.events() == []
    await world.tell("operation.changed", operation("needs_operator", reason="the BMC is mute"))
    await alerts.look()
    ((_, _, data),) = await world.events()
    assert data["summary"] == "create_cluster needs an operator: the BMC is mute"


async def test_without_a_store_late_operations_are_found_all_the_same(
    world: World, alerts: AlertReconciler
) -> None:
    alerts.store = SeriesStore("")
    await world.tell("operation.changed", operation("needs_operator"))
    await alerts.look()
    assert [kind for kind, _, _ in await world.events()] == ["alert.raised"]


async def test_everybody_lists_the_alerts_that_concern_them(
    world: World, alerts: AlertReconciler
) -> None:
    down = [of("n0", 0, hw_id="ib0", project=RED.id), of("n1", 0, hw_id="eth1")]
    say(world, down=down)
    await look_until_raised(world, alerts)
    tenancy = Tenancy()
    service = AlertService(world.database, world.clock, tenancy)
    app = application(tenancy, lambda who: alert_router(service, tenancy, who))
    seen: dict[str, set[str]] = {}
    for caller in (OPERATOR, MEMBER, VIEWER, STRANGER):
        async with client(app, caller) as http:
            answer = (await http.get("/alerts")).json()
            seen[caller.subject] = {one["subject_name"] for one in answer["items"]}
            own = await http.get(f"/projects/{RED.id}/alerts")
            assert own.status_code == (404 if caller is STRANGER else 200)
            if caller is not STRANGER:
                assert [one["part"] for one in own.json()["items"]] == ["ib0"]
    assert seen == {
        OPERATOR.subject: {"n0", "n1"},
        MEMBER.subject: {"n0"},
        VIEWER.subject: {"n0"},
        STRANGER.subject: set(),
    }
    say(world)
    await alerts.look()
    async with client(app, MEMBER) as http:
        assert (await http.get("/alerts")).json()["items"] == []
        past = (await http.get("/alerts", params={"resolved": True, "limit": 1})).json()
        assert [one["state"] for one in past["items"]] == ["resolved"]


async def test_the_rules_find_what_is_in_a_real_store(postgres_url: str, victoria_url: str) -> None:
    store = SeriesStore(victoria_url)
    settings = {"alert_after_s": 0.0}
    async with metrics_world(postgres_url, SystemClock(), store, **settings) as world:
        await world.declare("v0", "v1", gpus=2)
        await world.hand_over("v0", RED, since=datetime.now(UTC) - HOUR)
        lease = Lease(world.database, "metrics/alerts", "test")
        alerts = AlertReconciler(world.database, store, world.clock, world.settings, lease)
        for name, seen, up in (("v0", 1, 0.0), ("v1", 2, 1.0)):
            gpus = [
                Sample(domain.GPU_UTILIZATION, 0.5, {"hw_type": "gpu", "hw_id": str(number)})
                for number in range(seen)
            ]
            link = Sample(domain.NETWORK_UP, up, {"hw_type": "network", "hw_id": "eth0"})
            counts = [
                Sample(domain.GPU_COUNT, 2, {"state": "declared"}),
                Sample(domain.GPU_COUNT, seen, {"state": "seen"}),
            ]
            world.ingest.put(f"node_{name}", [*gpus, link, *counts])
        await world.ingest.flush()
        async with asyncio.timeout(60):
            while len(told := await world.events()) < 2:
                await alerts.look()
                await asyncio.sleep(0.1)
        summaries = {data["summary"] for _, _, data in told}
        assert summaries == {"GPU 1 of v0 does not answer", "port eth0 of v0 has no link"}
        assert {project for _, project, _ in told} == {RED.id}


async def test_how_long_steps_took_is_counted_once_however_often_an_operation_changes(
    world: World,
) -> None:
    step = {
        "name": "network.attach@1",
        "state": "done",
        "started_at": NOW.isoformat(),
        "finished_at": (NOW + timedelta(seconds=2)).isoformat(),
    }
    second = {
        **step,
        "name": "network.await@1",
        "started_at": step["finished_at"],
        "finished_at": (NOW + timedelta(seconds=62)).isoformat(),
    }
    planned = {**second, "state": "planned", "started_at": None, "finished_at": None}
    await world.tell("operation.changed", operation(steps=[step, planned]))
    await world.tell("operation.changed", operation(steps=[step, planned]))
    await world.tell("operation.changed", operation(steps=[step, second]))
    async with world.database.reading("metrics") as session:
        rows = {row.step: row for row in await repository.step_times(session)}
        counts = await repository.operation_counts(session)
    assert {name: (row.buckets[-1], row.seconds) for name, row in rows.items()} == {
        "network.attach@1": (1, 2.0),
        "network.await@1": (1, 60.0),
    }
    assert counts == [("create_cluster", "running", 1)]


async def test_what_is_long_over_is_not_remembered_for_ever(
    world: World, alerts: AlertReconciler
) -> None:
    await world.tell("operation.changed", operation("needs_operator"))
    await alerts.look()
    ended = operation("failed", finished_at=NOW.isoformat())
    await world.tell("operation.changed", ended)
    await world.hand_over("n1", BLUE, since=NOW - HOUR, until=NOW)
    await alerts.look()
    later(world, 100 * 86_400)
    await alerts.look()
    async with world.database.reading("metrics") as session:
        rows = [
            (await session.scalars(select(kind))).all()
            for kind in (tables.Alert, tables.KnownOperation, tables.Tenancy)
        ]
    assert [len(found) for found in rows] == [0, 0, 1], "who has a node now is known"
