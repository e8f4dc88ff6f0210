"""Promises of snapshots of volumes, over a storage that keeps them and one that does not."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from dflare.services.volumes.service_snapshots import MAX_SNAPSHOTS
from dflare.services.volumes.tables import Snapshot
from tenancy import STRANGER, VIEWER
from volume_world import VOLUMES, CopyingVolumes, World, data_of, volume_world

KEPT = f"{VOLUMES}/data/snapshots"


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with volume_world(postgres_url, tmp_path, CopyingVolumes) as world:
        yield world


async def listed(world: World) -> dict[str, str]:
    items: list[dict[str, Any]] = (await world.ask("GET", KEPT)).json()["items"]
    return {one["name"]: one["state"] for one in items}


async def test_a_snapshot_is_ready_when_the_storage_was_seen_to_have_it(world: World) -> None:
    volume_id = await world.made("data")
    (data_of(world, volume_id) / "file").write_text("before")
    asked = await world.ask("PUT", f"{KEPT}/first")
    assert (asked.status_code, asked.json()["state"], asked.json()["taken_at"]) == (
        200,
        "creating",
        None,
    )

    await world.settle()

    (data_of(world, volume_id) / "file").write_text("after")
    again = (await world.ask("PUT", f"{KEPT}/first")).json()
    assert (again["state"], again["id"]) == ("ready", asked.json()["id"])
    await world.settle()
    assert (data_of(world, volume_id) / again["path"] / "file").read_text() == "before"
    told = await world.events("volume.snapshot_changed")
    assert [one["state"] for one in told] == ["creating", "ready"]


async def test_a_snapshot_is_forgotten_when_the_storage_was_seen_to_have_dropped_it(
    world: World,
) -> None:
    await world.made("data")
    for name in ("first", "second"):
        await world.ask("PUT", f"{KEPT}/{name}")
    await world.settle()

    dropped = await world.ask("DELETE", f"{KEPT}/first")

    assert dropped.json()["state"] == "deleting"
    assert await listed(world) == {"first": "deleting", "second": "ready"}
    assert (await world.ask("PUT", f"{KEPT}/first")).status_code == 409
    await world.settle()
    assert await listed(world) == {"second": "ready"}
    assert (await world.ask("DELETE", f"{KEPT}/first")).status_code == 404
    assert (await world.events("volume.snapshot_changed"))[-1]["state"] == "deleted"


async def test_a_snapshot_that_somebody_removed_is_lost_and_never_taken_anew(world: World) -> None:
    volume_id = await world.made("data")
    await world.ask("PUT", f"{KEPT}/first")
    await world.settle()
    (row,) = (await world.ask("GET", KEPT)).json()["items"]
    await world.storage.inner.drop_snapshot(volume_id, row["id"])
    world.clock.at += timedelta(minutes=5)
    await world.settle()
    await world.ask("PUT", f"{KEPT}/second")
    await world.settle()
    assert await listed(world) == {"first": "lost", "second": "ready"}
    volume = await world.volume(volume_id)
    assert volume.observed_revision == volume.revision


async def test_what_the_storage_refuses_to_keep_stops_nothing_else(world: World) -> None:
    volume_id = await world.made("data")
    (data_of(world, volume_id) / ".snapshots").write_text("a file of the tenant's")
    await world.ask("PUT", f"{KEPT}/first")
    await world.cluster("clu_a")
    await world.ask("PUT", f"{VOLUMES}/data/access/a", json={"mode": "rw"})
    await world.settle()
    assert await listed(world) == {"first": "lost"}
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert [one["observed"] for one in shown["access"]] == ["rw"]


async def test_snapshots_end_with_their_volume(world: World) -> None:
    await world.made("data")
    await world.ask("PUT", f"{KEPT}/first")
    await world.settle()
    await world.carry_out((await world.ask("DELETE", f"{VOLUMES}/data")).json())
    async with world.database.transaction("volumes") as session:
        assert list(await session.scalars(select(Snapshot.id))) == []
    assert (await world.events("volume.snapshot_changed"))[-1]["state"] == "deleted"


async def test_a_volume_has_a_bounded_number_of_snapshots(world: World) -> None:
    await world.made("data")
    for number in range(MAX_SNAPSHOTS):
        assert (await world.ask("PUT", f"{KEPT}/s{number}")).status_code == 200
    refused = await world.ask("PUT", f"{KEPT}/more")
    assert (refused.status_code, str(MAX_SNAPSHOTS) in refused.json()["detail"]) == (409, True)


async def test_snapshots_are_asked_for_by_those_who_may_change_the_volume(world: World) -> None:
    await world.made("data")
    for method, who, status in (
        ("PUT", VIEWER, 403),
        ("PUT", STRANGER, 404),
        ("DELETE", VIEWER, 403),
        ("DELETE", STRANGER, 404),
    ):
        assert (await world.ask(method, f"{KEPT}/first", who)).status_code == status
    assert (await world.ask("GET", KEPT, VIEWER)).status_code == 200
    assert (await world.ask("GET", KEPT, STRANGER)).status_code == 404
    assert (await world.ask("PUT", f"{KEPT}/No_Name")).status_code == 422


async def test_a_storage_that_keeps_none_says_why_and_refuses(
    postgres_url: str, tmp_path: Path
) -> None:
    async with volume_world(postgres_url, tmp_path) as world:
        await world.made("data")
        shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
        assert "no snapshots" in shown["no_snapshots"]
        refused = await world.ask("PUT", f"{KEPT}/first")
        assert (refused.status_code, refused.json()["type"].split("/")[-1]) == (409, "no-snapshots")
        assert shown["no_snapshots"] in refused.json()["detail"]
        assert await listed(world) == {}
