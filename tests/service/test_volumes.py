"""Promises of orders of volumes: lives, usage, refusals."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from dflare.kit.clock import ManualClock
from dflare.kit.errors import ConflictError
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.volumes import activities
from dflare.services.volumes.contract import QUOTA, VolumeState
from dflare.services.volumes.domain import check_transition
from dflare.services.volumes.tables import KIT, Volume
from tenancy import BLUE, MEMBER, NOW, STRANGER, VIEWER
from volume_world import SITE, VOLUMES, World, data_of, volume_world


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with volume_world(postgres_url, tmp_path) as world:
        yield world


# --- orders and lives ------------------------------------------------------------------------


def test_there_is_a_step_for_each_that_the_sagas_name() -> None:
    named = {
        name
        for plan in SAGAS.values()
        for step in plan.steps
        for name in (step.name, step.undo)
        if name and name.startswith("volumes.")
    }
    clock = ManualClock(NOW)
    parts: Any = None
    have = {s.name for s in (*activities.steps(clock), *activities.site_steps(parts))}
    assert named | {"volumes.grant@1", "volumes.revoke@1"} == have


def test_only_a_ready_or_failed_volume_may_be_deleted() -> None:
    for state in VolumeState:
        if state in {VolumeState.READY, VolumeState.FAILED, VolumeState.DELETING}:
            check_transition(state, VolumeState.DELETING)
        else:
            with pytest.raises(ConflictError):
                check_transition(state, VolumeState.DELETING)


async def test_an_ordered_volume_is_made_says_how_its_size_is_held_and_is_used_from_then(
    world: World,
) -> None:
    operation = await world.order("data", 10)
    assert operation["kind"] == "create_volume"
    assert await world.usage(operation["resource_id"]) == []

    await world.carry_out(operation)
    await world.settle()

    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert (shown["state"], shown["size_gib"], shown["quota"]) == ("ready", 10, "advisory")
    assert data_of(world, shown["id"]).is_dir()
    assert shown["used_bytes"] is not None
    ((size_gib, _, ended),) = await world.usage(shown["id"])
    assert (size_gib, ended) == (10, None)


async def test_a_repeat_with_the_same_key_is_the_same_order(world: World) -> None:
    key = {"Idempotency-Key": "k"}
    first, again = [await world.order("data", headers=key) for _ in range(2)]
    assert first == again
    assert len((await world.ask("GET", VOLUMES)).json()["items"]) == 1


async def test_a_name_is_free_again_only_when_the_storage_holds_nothing_of_its_volume(
    world: World,
) -> None:
    volume_id = await world.made("data")
    (data_of(world, volume_id) / "file").write_text("secret")
    taken = await world.ask("POST", VOLUMES, json={"name": "data", "size_gib": 1})
    assert taken.status_code == 409
    operation = (await world.ask("DELETE", f"{VOLUMES}/data")).json()
    begin, remove, awaiting, deleted = SAGAS["delete_volume"].steps
    world.generation += 1
    for index, step in enumerate((begin, remove)):
        await world.step(operation, step, index)
    assert (data_of(world, volume_id) / "file").exists()
    still = await world.ask("POST", VOLUMES, json={"name": "data", "size_gib": 1})
    assert still.status_code == 409

    await world.step(operation, awaiting, 2)
    assert not data_of(world, volume_id).exists()
    await world.step(operation, deleted, 3)

    assert (
        await world.ask("POST", VOLUMES, json={"name": "data", "size_gib": 1})
    ).status_code == 202


async def test_usage_ends_with_the_request_of_release_and_not_when_the_content_is_gone(
    world: World,
) -> None:
    volume_id = await world.made("data", 10)
    world.clock.at = NOW + timedelta(hours=3)
    requested_at = world.clock.now()
    operation = (await world.ask("DELETE", f"{VOLUMES}/data")).json()
    world.clock.at += timedelta(hours=1)
    await world.carry_out(operation)

    ((size_gib, _, ended),) = await world.usage(volume_id)

    assert (size_gib, ended) == (10, requested_at)
    told = await world.events("volume.usage_changed")
    assert [(one["version"], one["usage_to"] is None) for one in told] == [(1, True), (2, False)]


async def test_each_size_has_an_interval_of_its_own_without_a_gap(world: World) -> None:
    volume_id = await world.made("data", 10)
    world.clock.at = NOW + timedelta(hours=2)
    answer = await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 30})
    assert (await world.volume(volume_id)).size_gib == 10
    await world.carry_out(answer.json())

    first, second = await world.usage(volume_id)

    assert (first[0], second[0], second[2]) == (10, 30, None)
    assert first[2] == second[1] >= NOW + timedelta(hours=2)
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert (shown["size_gib"], shown["state"]) == (30, "ready")


async def test_a_resize_that_is_undone_leaves_size_quota_and_usage_as_they_were(
    world: World,
) -> None:
    volume_id = await world.made("data", 10)
    before = await world.usage(volume_id)
    operation = (await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 80})).json()
    plan = SAGAS["resize_volume"].with_params("volumes.set_size@1", size_gib="80")
    world.generation += 1
    await world.step(operation, plan.steps[0], 0)
    await world.settle()

    await world.step(operation, plan.steps[0], 0, undo=True)

    volume = await world.volume(volume_id)
    assert (volume.state, volume.size_gib, volume.wanted_gib) == ("ready", 10, 10)
    assert (await world.storage.observe([volume_id]))[volume_id].size_gib == 10
    assert await world.usage(volume_id) == before
    await world.order("other", 90)


async def test_an_undone_order_leaves_nothing_in_the_storage(world: World) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    await world.settle()
    assert data_of(world, operation["resource_id"]).exists()

    for index in (1, 0):
        report = await world.step(operation, plan.steps[index], index, undo=True)
        assert report.done

    assert (await world.volume(operation["resource_id"])).state == "failed"
    seen = await world.storage.observe([operation["resource_id"]])
    assert not seen[operation["resource_id"]].present


async def test_an_order_that_became_ready_unheard_of_is_undone_without_a_bill(world: World) -> None:
    volume_id = await world.made("data")
    await world.cluster("clu_a")
    await world.ask("PUT", f"{VOLUMES}/data/access/a", json={"mode": "rw"})
    volume = await world.volume(volume_id)
    operation = {"id": volume.operation_id, "resource_id": volume_id}
    plan = SAGAS["create_volume"]

    for index in (1, 0):
        report = await world.step(operation, plan.steps[index], index, undo=True)
        assert report.done

    assert (await world.volume(volume_id)).state == "failed"
    ((_, began, ended),) = await world.usage(volume_id)
    assert began == ended
    assert not (await world.storage.observe([volume_id]))[volume_id].present
    assert (await world.ask("GET", f"{VOLUMES}/data")).json()["access"] == []


# --- dry runs --------------------------------------------------------------------------------


async def test_a_dry_run_says_size_price_and_room_and_leaves_nothing_behind(world: World) -> None:
    await world.made("first", 30)
    await world.told(
        "site.declared",
        SITE,
        2,
        site_id=SITE,
        name="demo",
        currency="EUR",
        volume_price_per_gib_hour="0.0005",
    )
    body = {"name": "data", "size_gib": 70}
    quoted = await world.ask("POST", VOLUMES, json=body, params={"dry_run": True})
    assert quoted.status_code == 200
    quote = {k: quoted.json()[k] for k in ("price_per_hour", "currency", "used_gib", "limit_gib")}
    price = {"price_per_hour": "0.0350", "currency": "EUR"}
    assert quote == {**price, "used_gib": 30, "limit_gib": 100}
    resized = await world.ask(
        "PATCH", f"{VOLUMES}/first", json={"size_gib": 100}, params={"dry_run": True}
    )
    assert (resized.json()["price_per_hour"], resized.json()["quota"]) == ("0.0500", "advisory")

    (only,) = (await world.ask("GET", VOLUMES)).json()["items"]
    assert (only["name"], only["size_gib"], only["state"]) == ("first", 30, "ready")
    async with world.database.transaction("volumes") as session:
        assert len((await session.execute(select(KIT.operation.c.id))).all()) == 1


async def test_a_dry_run_is_refused_for_what_would_refuse_the_order(world: World) -> None:
    await world.made("data", 10)
    asked = [
        ("POST", VOLUMES, {"name": "data", "size_gib": 1}, MEMBER, 409),
        ("POST", VOLUMES, {"name": "more", "size_gib": 91}, MEMBER, 409),
        ("POST", VOLUMES, {"name": "more", "size_gib": 1, "site": "nowhere"}, MEMBER, 422),
        ("POST", VOLUMES, {"name": "more", "size_gib": 1}, VIEWER, 403),
        ("PATCH", f"{VOLUMES}/data", {"size_gib": 101}, MEMBER, 409),
        ("PATCH", f"{VOLUMES}/data", {"size_gib": 1}, VIEWER, 403),
        ("PATCH", f"{VOLUMES}/data", {"size_gib": 1}, STRANGER, 404),
    ]
    for method, path, body, who, status in asked:
        answer = await world.ask(method, path, who, json=body, params={"dry_run": True})
        assert answer.status_code == status, (method, body)


# --- refusals --------------------------------------------------------------------------------


async def test_a_project_has_no_more_gib_than_it_was_given(world: World) -> None:
    await world.order("a", 60)
    refused = await world.ask("POST", VOLUMES, json={"name": "b", "size_gib": 41})
    assert refused.status_code == 409
    numbers = {k: refused.json()[k] for k in ("limit_gib", "used_gib", "wanted_gib")}
    assert numbers == {"limit_gib": 100, "used_gib": 60, "wanted_gib": 41}
    assert f"quota set {QUOTA}" in refused.json()["next_step"]
    await world.order("b", 40)


async def test_orders_at_once_do_not_pass_the_quota_together(world: World) -> None:
    bodies = [{"name": f"v{n}", "size_gib": 30} for n in range(8)]
    answers = await asyncio.gather(*(world.ask("POST", VOLUMES, json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [409] * 5


async def test_a_project_without_a_quota_has_no_volumes_until_an_operator_gives_one(
    world: World,
) -> None:
    path = f"/projects/{BLUE.id}/volumes"
    body = {"name": "data", "size_gib": 1}
    assert (await world.ask("POST", path, STRANGER, json=body)).status_code == 409
    facts = {"project_id": BLUE.id, "organization_id": BLUE.organization_id}
    await world.told("quota.changed", "q", 1, node_type="h100-8", nodes=50, **facts)
    assert (await world.ask("POST", path, STRANGER, json=body)).status_code == 409
    await world.told("quota.changed", "q", 1, node_type=QUOTA, nodes=5, **facts)
    assert (await world.ask("POST", path, STRANGER, json=body)).status_code == 202


async def test_a_growth_beyond_the_quota_is_refused_and_nothing_is_changed(world: World) -> None:
    volume_id = await world.made("data", 10)
    refused = await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 101})
    assert refused.status_code == 409
    assert (await world.volume(volume_id)).state == "ready"


async def test_a_volume_is_not_made_smaller_than_what_it_holds(world: World) -> None:
    volume_id = await world.made("data", 10)
    async with world.database.transaction("volumes") as session:
        await session.execute(update(Volume).values(used_bytes=5 * 2**30))
    refused = await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 4})
    assert (refused.status_code, refused.json()["detail"].count("5.0 GiB")) == (409, 1)
    assert (await world.volume(volume_id)).wanted_gib == 10


@pytest.mark.parametrize(
    "body",
    [
        {"name": "Data", "size_gib": 1},
        {"name": "data", "size_gib": 0},
        {"name": "data", "size_gib": 1.5},
        {"name": "data", "size_gib": 1, "site": "nowhere"},
        {"name": "data", "size_gib": 1, "driver": "local"},
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(world: World, body: Any) -> None:
    assert (await world.ask("POST", VOLUMES, json=body)).status_code == 422
    assert (await world.ask("GET", VOLUMES)).json()["items"] == []


async def test_a_volume_in_the_hands_of_an_operation_is_left_to_it(world: World) -> None:
    operation = await world.order("data")
    for method, more in (("PATCH", {"json": {"size_gib": 20}}), ("DELETE", {})):
        refused = await world.ask(method, f"{VOLUMES}/data", **more)
        assert refused.status_code == 409
        assert operation["id"] in refused.json()["next_step"]


async def test_viewers_look_and_strangers_find_nothing(world: World) -> None:
    await world.made("data")
    one = f"{VOLUMES}/data"
    assert (await world.ask("GET", one, VIEWER)).status_code == 200
    assert (await world.ask("DELETE", one, VIEWER)).status_code == 403
    assert (await world.ask("GET", one, STRANGER)).status_code == 404
    assert (await world.ask("GET", "/volumes", STRANGER)).json()["items"] == []
