"""Promises of volumes beyond their orders: access maps and the reconciler of a storage."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.volumes.reconciler import Tools, VolumeReconciler
from dflare.services.volumes.reconciler_scan import VolumeScanner
from dflare.services.volumes.tables import Access, Volume
from tenancy import BLUE
from volume_world import SITE, VOLUMES, World, data_of, volume_world


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with volume_world(postgres_url, tmp_path) as world:
        yield world


# --- access ----------------------------------------------------------------------------------


async def test_a_cluster_of_the_project_gets_what_it_is_given_and_is_seen_to_have_it(
    world: World,
) -> None:
    volume_id = await world.made("data")
    await world.cluster("clu_a")
    given = await world.ask("PUT", f"{VOLUMES}/data/access/a", json={"mode": "ro"})
    (entry,) = given.json()["access"]
    assert (entry["cluster_id"], entry["mode"], entry["observed"]) == ("clu_a", "ro", "none")

    await world.settle()

    (entry,) = (await world.ask("GET", f"{VOLUMES}/data")).json()["access"]
    assert (entry["mode"], entry["observed"]) == ("ro", "ro")
    assert dict((await world.storage.observe([volume_id]))[volume_id].access) == {"clu_a": False}
    told = await world.events("volume.access_changed")
    assert [(one["desired"], one["observed"]) for one in told] == [("ro", "none"), ("ro", "ro")]


async def test_a_volume_is_deleted_only_after_the_storage_was_seen_to_have_taken_it_from_all(
    world: World,
) -> None:
    await world.made("data")
    await world.cluster("clu_a")
    await world.ask("PUT", f"{VOLUMES}/data/access/clu_a", json={"mode": "rw"})
    await world.settle()
    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 409
    await world.ask("DELETE", f"{VOLUMES}/data/access/clu_a")
    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 409
    await world.settle()
    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 202


async def test_no_cluster_of_another_project_or_site_or_of_the_past_gets_a_volume(
    world: World,
) -> None:
    await world.made("data")
    await world.cluster("clu_other", project_id=BLUE.id)
    await world.cluster("clu_far", site_id="site_2")
    await world.cluster("clu_old", state="deleted")
    for cluster in ("clu_other", "other", "clu_far", "clu_old", "clu_unknown"):
        refused = await world.ask("PUT", f"{VOLUMES}/data/access/{cluster}", json={"mode": "rw"})
        assert refused.status_code == 422, cluster


async def test_a_deleted_cluster_loses_its_access(world: World) -> None:
    volume_id = await world.made("data")
    await world.cluster("clu_a")
    await world.cluster("clu_b")
    for cluster in ("clu_a", "clu_b"):
        await world.ask("PUT", f"{VOLUMES}/data/access/{cluster}", json={"mode": "rw"})
    await world.settle()

    await world.cluster("clu_a", version=2, state="deleted")
    await world.settle()

    assert dict((await world.storage.observe([volume_id]))[volume_id].access) == {"clu_b": True}
    async with world.database.transaction("volumes") as session:
        assert list(await session.scalars(select(Access.cluster_id))) == ["clu_b"]


# --- the storage -----------------------------------------------------------------------------


async def test_a_storage_that_fails_is_tried_again_and_its_places_are_not_told_to_tenants(
    world: World,
) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    world.storage.broken = 2
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    await world.reconciler.look()
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert shown["trouble"] == "the storage fails: Input/output error"

    await world.settle()

    assert (await world.ask("GET", f"{VOLUMES}/data")).json()["trouble"] == ""
    assert (await world.step(operation, plan.steps[2], 2)).done


async def test_a_frozen_site_is_not_written_to_until_it_is_thawed(world: World) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    await world.told("site.frozen", SITE, 2, site_id=SITE, frozen=True)
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    await world.settle()
    assert world.storage.writes == []
    await world.told("site.frozen", SITE, 3, site_id=SITE, frozen=False)
    await world.settle()
    assert world.storage.writes != []


async def test_a_write_that_hangs_keeps_others_away_until_it_can_no_longer_take_effect(
    world: World,
) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    world.storage.stuck = asyncio.Event()
    first = asyncio.create_task(world.reconciler.look())
    await world.storage.begun.wait()
    tools = world.reconciler.tools
    other = VolumeReconciler(Tools(**{**vars(tools), "holder": "holder-b"}))
    async with world.database.transaction("feed") as session:
        # Its lease is lost: the first holder was silent for too long.
        await session.execute(text("DELETE FROM feed.lease"))
    await other.look()
    assert world.storage.writes == ["ensure"]

    world.clock.at += timedelta(seconds=tools.settings.intent_s + 1)
    world.storage.stuck, release = None, world.storage.stuck
    await other.look()
    seen = await world.volume(operation["resource_id"])
    assert seen.observed_revision == seen.revision
    release.set()
    await first

    after = await world.volume(operation["resource_id"])
    assert (after.version, after.observed_revision) == (seen.version, seen.revision)


async def test_content_beyond_an_advisory_size_is_found_and_told(world: World) -> None:
    volume_id = await world.made("data", 1)
    with (data_of(world, volume_id) / "large").open("wb") as stream:
        stream.write(b"x" * (1 << 20))
    async with world.database.transaction("volumes") as session:
        await session.execute(update(Volume).values(size_gib=0))
    await world.settle()
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert shown["used_bytes"] >= 1 << 20
    assert shown["over_quota"] is True
    assert (await world.events("volume.changed"))[-1]["over_quota"] is True
    world.clock.at += timedelta(minutes=5)
    await world.settle()
    (told,) = await world.events("volume.over_quota")
    assert (told["id"], told["used_bytes"]) == (volume_id, shown["used_bytes"])


async def test_what_took_long_to_count_is_left_alone_for_a_multiple_of_that(world: World) -> None:
    slow = await world.made("slow")
    tools = world.scanner.tools
    settings = tools.settings.model_copy(update={"scan_rest": 1e9})
    scanner = VolumeScanner(Tools(**{**vars(tools), "settings": settings}))
    await scanner.look()
    quick = await world.made("quick")
    for _ in range(3):
        world.clock.at += timedelta(minutes=2)
        await scanner.look()

    assert world.storage.counted == [slow, quick]


async def test_volumes_are_counted_in_turn_a_few_at_a_time(world: World) -> None:
    made = [await world.made(f"v{n}") for n in range(5)]
    for count in (2, 4, 5, 5):
        await world.scanner.look()
        assert len(world.storage.counted) == count
    assert sorted(world.storage.counted) == sorted(made)


async def test_access_that_somebody_changed_in_the_storage_is_put_right(world: World) -> None:
    volume_id = await world.made("data")
    await world.settle()
    await world.storage.inner.set_access(volume_id, {"clu_intruder": True})
    world.clock.at += timedelta(minutes=5)
    await world.settle()
    assert dict((await world.storage.observe([volume_id]))[volume_id].access) == {}


async def test_a_volume_that_the_storage_lost_is_told_and_not_made_again_empty(
    world: World,
) -> None:
    volume_id = await world.made("data")
    await world.settle()
    await world.storage.inner.remove(volume_id, 5)
    world.clock.at += timedelta(minutes=5)
    await world.settle()
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert shown["trouble"] == "the storage has lost this volume"
    assert not data_of(world, volume_id).exists()
    await world.carry_out((await world.ask("DELETE", f"{VOLUMES}/data")).json())
