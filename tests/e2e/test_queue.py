"""A site that is full: orders wait in turn, start when nodes come free, and lose nothing when the
relay is killed as it places them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from running_platform import KILL_SETTINGS, PlatformHandle, Tenant, ok, running_platform
from site_files import PlatformWish

pytestmark = pytest.mark.timeout(900)

KIND, NODES = "h100-8", 16
"""Two racks of eight."""


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[PlatformHandle]:
    async with running_platform(PlatformWish(nodes=NODES, environment=KILL_SETTINGS)) as platform:
        await platform.apply_site()
        yield platform


async def _order(
    platform: PlatformHandle, tenant: Tenant, name: str, count: int, **wishes: Any
) -> dict[str, Any]:
    body = {
        "name": name,
        "ssh_keys": ["key"],
        "pools": [{"node_type": KIND, "count": count}],
        "wait_for_capacity": True,
        **wishes,
    }
    path = f"/v1/projects/{tenant.project_id}/clusters"
    return await platform.repeated(tenant.http, "POST", path, body)


async def _nodes(platform: PlatformHandle, tenant: Tenant, name: str) -> set[str]:
    return {node["name"] for node in (await platform.cluster(tenant, name))["nodes"]}


async def test_orders_wait_in_turn_survive_a_killed_relay_and_end_with_their_nodes(
    platform: PlatformHandle,
) -> None:
    red = await platform.tenant("red", {KIND: 100})
    blue = await platform.tenant("blue", {KIND: 100})

    for name, count in (("first", NODES - 4), ("kept", 2)):
        await platform.wait(await _order(platform, red, name, count), deadline_s=240)
    # Red holds fourteen nodes and keeps two of them, so blue's turn comes first although it asked
    # later, and stays so.
    second = await _order(platform, red, "second", 4)
    third = await _order(platform, blue, "third", NODES - 3)
    cancelled = await _order(platform, blue, "fourth", 1)
    assert second["state"] == "pending"
    assert second["reason"].startswith("waits for capacity: position 1")

    async def told(operation: dict[str, Any], position: int) -> bool:
        now = await platform.operation(operation["id"])
        return bool(now) and f"position {position}," in now["reason"]

    await platform.until(lambda: told(third, 1))
    await platform.until(lambda: told(second, 3))

    # Two nodes are free, yet neither a small order of the queue nor one beside it passes.
    dry = await platform.cli(
        *("cluster", "create", "dry", "--type", KIND, "--nodes", "1", "--queue", "--dry-run"),
        token=red.token,
        project=red.project_id,
    )
    assert "waits for capacity: position" in dry.out, dry.err
    refused = await platform.cli(
        *("cluster", "create", "jump", "--type", KIND, "--nodes", "1"),
        token=blue.token,
        project=blue.project_id,
    )
    assert refused.exit_code != 0
    assert "wait for them" in refused.err

    ok(await blue.http.post(f"/v1/operations/{cancelled['id']}/cancel"))
    await platform.wait(cancelled, state="cancelled", deadline_s=30)

    await platform.release(red, "first")
    platform.kill("relay")
    await platform.until_healthy()
    await platform.wait(third, deadline_s=240)
    assert len(await _nodes(platform, blue, "third")) == NODES - 3
    shown = await platform.cluster(blue, "third")
    assert (shown["state"], shown["reason"]) == ("ready", "")
    assert "13 of 1" in shown["placement"]

    await platform.release(blue, "third")
    await platform.wait(second, deadline_s=240)
    assert len(await _nodes(platform, red, "second")) == 4
    allocations = [
        one
        for tenant in (red, blue)
        for one in await platform.all_pages("/v1/allocations", tenant.http, state="confirmed")
    ]
    assert len({one["node_id"] for one in allocations}) == len(allocations) == 6
    for name in ("second", "kept"):
        await platform.wait(await platform.release(red, name), deadline_s=240)


async def test_wishes_reach_the_nodes_and_a_reserved_leaf_is_left_alone(
    platform: PlatformHandle,
) -> None:
    green = await platform.tenant("green", {KIND: 100})
    white = await platform.tenant("white", {KIND: 100})
    await platform.until_available(NODES, 240)
    by_name = {node["name"]: node for node in await platform.nodes()}

    made = await platform.cli(
        *("reservation", "create", "camp", "--blocks", "1", "--of", "leaf", "--type", KIND),
        *("--end", "2099-01-01T00:00Z", "-o", "json"),
        project=green.project_id,
    )
    assert made.exit_code != 0
    assert "366 days" in made.err
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    end = {"ends_at": tomorrow, "node_type": KIND, "blocks": 1, "level": "leaf"}
    reserved = await platform.made(
        f"/v1/projects/{green.project_id}/reservations", name="camp", **end
    )
    assert reserved["state"] == "active"
    free = [name for name in by_name if name not in reserved["nodes"]]

    spread = await platform.cli(
        *("cluster", "create", "spread", "--type", KIND, "--nodes", str(len(free)), "--spread"),
        *("--exclude", free[0], "--dry-run"),
        token=white.token,
        project=white.project_id,
    )
    assert spread.exit_code != 0
    assert "without the exclusions" in spread.err
    order = await _order(
        platform,
        white,
        "most",
        len(free) - 1,
        placement={"shape": "spread", "exclude": [free[0]]},
    )
    await platform.wait(order, deadline_s=240)
    assert await _nodes(platform, white, "most") == set(free[1:])
    assert "spread" in (await platform.cluster(white, "most"))["placement"]
    await platform.wait(await platform.release(white, "most"), deadline_s=240)
