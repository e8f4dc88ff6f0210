"""Promises of volumes that clusters' orders mount."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from dflare.services.volumes.tables import Access, DeclaredCluster
from tenancy import BLUE
from volume_world import VOLUMES, World, data_of, volume_world


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with volume_world(postgres_url, tmp_path) as world:
        yield world


def mount(volume_id: str, target: str = "/mnt/data", *, read_only: bool = False) -> dict[str, Any]:
    return {"volume_id": volume_id, "target": target, "read_only": read_only}


async def granted(world: World, volume_id: str) -> dict[str, bool]:
    """What the storage itself says, whatever the rows do."""
    return dict((await world.storage.observe([volume_id]))[volume_id].access)


async def test_a_cluster_has_the_volumes_of_its_order_when_the_storage_was_seen_to_grant_them(
    world: World,
) -> None:
    data, tools = await world.made("data"), await world.made("tools")
    await world.orders("clu_a", mount(data), mount(tools, "/opt", read_only=True))
    assert (await world.share("clu_a", looks=2)).pending == ("clu_a",)

    assert (await world.share("clu_a")).done == ("clu_a",)

    assert await granted(world, data) == {"clu_a": True}
    assert await granted(world, tools) == {"clu_a": False}
    writes = len(world.storage.writes)
    assert (await world.share("clu_a")).done == ("clu_a",)
    assert len(world.storage.writes) == writes


async def test_a_volume_mounted_twice_is_written_to_if_either_mount_is(world: World) -> None:
    data = await world.made("data")
    await world.orders("clu_a", mount(data, "/a", read_only=True), mount(data, "/b"))
    assert (await world.share("clu_a")).done
    assert await granted(world, data) == {"clu_a": True}


async def test_taking_a_cluster_s_volumes_waits_until_the_storage_took_them_from_it_alone(
    world: World,
) -> None:
    data, tools = await world.made("data"), await world.made("tools")
    await world.orders("clu_a", mount(data))
    await world.orders("clu_b", mount(data))
    for cluster in ("clu_a", "clu_b"):
        assert (await world.share(cluster)).done
    await world.ask("PUT", f"{VOLUMES}/tools/access/a", json={"mode": "rw"})
    await world.settle()
    await world.cluster("clu_a", version=2, state="deleting")
    assert (await world.share("clu_a", "volumes.revoke@1", looks=2)).pending == ("clu_a",)

    assert (await world.share("clu_a", "volumes.revoke@1")).done == ("clu_a",)

    assert await granted(world, data) == {"clu_b": True}
    assert await granted(world, tools) == {}
    assert (await world.share("clu_a", "volumes.revoke@1")).done == ("clu_a",)


async def test_nothing_is_given_to_a_cluster_whose_release_began(world: World) -> None:
    data = await world.made("data")
    await world.orders("clu_a", mount(data))
    await world.cluster("clu_a", version=2, state="deleting")
    report = await world.share("clu_a")
    assert report.failed == {"clu_a": "the cluster is deleting"}
    await world.settle()
    assert await granted(world, data) == {}


async def test_an_order_without_volumes_waits_for_nothing_but_to_be_heard_of(world: World) -> None:
    assert (await world.share("clu_a", looks=2)).pending == ("clu_a",)
    await world.orders("clu_a")
    assert (await world.share("clu_a", looks=2)).done == ("clu_a",)


async def test_an_order_gets_all_of_its_volumes_or_none(world: World) -> None:
    data, foreign = await world.made("data"), await world.made("foreign")
    away = {"clu_unknown": "vol_zzz", "clu_blue": foreign, "clu_far": foreign, "clu_gone": foreign}
    await world.orders("clu_unknown", mount(data), mount(away["clu_unknown"]))
    await world.orders("clu_blue", mount(foreign), project_id=BLUE.id)
    await world.orders("clu_far", mount(foreign), site_id="site_2")
    await world.carry_out((await world.ask("DELETE", f"{VOLUMES}/foreign")).json())
    await world.orders("clu_gone", mount(data), mount(foreign))
    reasons = {}
    for cluster, volume_id in away.items():
        (reason,) = (await world.share(cluster)).failed.values()
        reasons[cluster] = reason.removeprefix(f"volume {volume_id} ")
    assert reasons == {
        "clu_unknown": "is none of the project's",
        "clu_blue": "is none of the project's",
        "clu_far": "is at another site",
        "clu_gone": "is deleted",
    }
    await world.settle()
    assert await granted(world, data) == {}
    async with world.database.transaction("volumes") as session:
        assert list(await session.scalars(select(Access))) == []


async def test_a_volume_that_is_being_made_is_waited_for(world: World) -> None:
    operation = await world.order("data")
    await world.orders("clu_a", mount(operation["resource_id"]))
    assert (await world.share("clu_a", looks=3)).pending == ("clu_a",)
    await world.carry_out(operation)
    assert (await world.share("clu_a")).done == ("clu_a",)


async def test_what_an_order_mounts_is_neither_detached_nor_deleted_before_the_cluster_is(
    world: World,
) -> None:
    data = await world.made("data")
    await world.orders("clu_a", mount(data))
    assert (await world.share("clu_a")).done
    refused = await world.ask("DELETE", f"{VOLUMES}/data/access/a")
    assert (refused.status_code, refused.json()["detail"].count("clu_a")) == (409, 1)
    changed = await world.ask("PUT", f"{VOLUMES}/data/access/a", json={"mode": "ro"})
    assert changed.status_code == 409
    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 409
    await world.settle()
    assert await granted(world, data) == {"clu_a": True}

    assert (await world.share("clu_a", "volumes.revoke@1")).done
    await world.cluster("clu_a", version=2, state="deleted")

    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 202
    async with world.database.transaction("volumes") as session:
        assert list(await session.scalars(select(DeclaredCluster))) == []


async def test_a_cluster_s_release_does_not_wait_for_a_volume_that_the_storage_lost(
    world: World,
) -> None:
    data = await world.made("data")
    await world.orders("clu_a", mount(data))
    assert (await world.share("clu_a")).done
    await world.storage.inner.remove(data, 5)
    assert (await world.share("clu_a", "volumes.revoke@1")).done == ("clu_a",)
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert (shown["trouble"], shown["access"]) == ("the storage has lost this volume", [])


async def test_what_hosts_mount_is_told_while_the_storage_has_it(world: World) -> None:
    data = await world.made("data")
    told = await world.events("volume.changed")
    assert told[0]["source"] == ""
    assert told[-1]["source"] == str(data_of(world, data))
    await world.carry_out((await world.ask("DELETE", f"{VOLUMES}/data")).json())
    assert (await world.events("volume.changed"))[-1]["source"] == ""
