"""A cluster's life on the whole platform: it grows and shrinks while its workers are killed, a node
is replaced by the command line, and it is released when its time is over."""

from typing import Any

import pytest

from judgement import peers
from running_platform import (
    KILL_SETTINGS,
    PlatformHandle,
    Tenant,
    ok,
    running_platform,
    running_steps,
)
from site_files import PlatformWish

NODES, SPEED = 6, 20
# Seconds of the site's clock, so that a step takes long enough to be struck in.
TIMES = {
    "power_on_s": 4,
    "power_off_s": 8,
    "post_s": 6,
    "os_boot_s": 10,
    "agent_boot_s": 4,
    "image_write_s": 20,
    "erase_s": 20,
}


async def scaled(
    platform: PlatformHandle, tenant: Tenant, count: int, *, step: str, victim: str
) -> dict[str, Any]:
    """Order another size and kill a process while ``step`` runs; the operation at its end."""
    path = f"/v1/projects/{tenant.project_id}/clusters/c/pools/default"
    operation = await platform.repeated(tenant.http, "PATCH", path, {"count": count})

    async def struck_in() -> bool:
        seen = await platform.operation(operation["id"])
        assert seen is None or seen["state"] in {"pending", "running"}, seen
        return seen is not None and step in running_steps(seen)

    await platform.until(struck_in, 90)
    pid = platform.kill(victim)
    await platform.until_healthy(other_than=pid)
    return await platform.wait(operation, deadline_s=200)


async def together(platform: PlatformHandle) -> list[int]:
    """How many others each host reaches, in order of number: both technologies must agree."""
    truth = await platform.sim.reachability()
    names = [node.name for node in platform.document.nodes]
    found = [
        sorted(len(peers(truth, technology, name)) for name in names)
        for technology in ("ethernet", "infiniband")
    ]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_cluster_lives_through_killed_workers_a_replacement_and_its_end() -> None:
    wish = PlatformWish(nodes=NODES, speed=SPEED, times=TIMES, environment=KILL_SETTINGS)
    async with running_platform(wish) as platform:
        await platform.apply_site()
        tenant = await platform.tenant("red", {"h100-8": NODES})
        await platform.wait(await platform.order(tenant, "c", "h100-8", 2), deadline_s=200)

        await scaled(platform, tenant, 4, step="baremetal.provision@1", victim="worker")
        grown = await platform.cluster(tenant, "c")
        assert (grown["state"], len(grown["nodes"])) == ("ready", 4)
        assert await together(platform) == [0, 0, 3, 3, 3, 3]

        await scaled(platform, tenant, 2, step="baremetal.erase@1", victim="site-worker")
        shrunk = await platform.cluster(tenant, "c")
        assert (shrunk["state"], len(shrunk["nodes"])) == ("ready", 2)
        assert [node["slot"] for node in shrunk["nodes"]] == [0, 1]
        assert await together(platform) == [0, 0, 0, 0, 1, 1]
        await platform.until_available(NODES - 2)

        old = shrunk["nodes"][0]
        arguments = ("cluster", "replace-node", "c", old["name"], "--yes", "--wait")
        done = await platform.cli(*arguments, token=tenant.token, project=tenant.project_id)
        assert done.exit_code == 0, done.err or done.out
        replaced = await platform.cluster(tenant, "c")
        assert (replaced["state"], len(replaced["nodes"])) == ("ready", 2)
        assert old["name"] not in {node["name"] for node in replaced["nodes"]}
        assert await together(platform) == [0, 0, 0, 0, 1, 1]

        await expire(platform, tenant)
        await platform.until_available(NODES)
        assert await together(platform) == [0] * NODES
        await judge_usage(platform)


async def expire(platform: PlatformHandle, tenant: Tenant) -> None:
    """Give the cluster an end, let that come at once, and wait for its release."""
    path = f"/v1/projects/{tenant.project_id}/clusters/c"
    cluster = ok(await tenant.http.patch(path, json={"ttl_s": 60}))
    conditions = {one["type"]: one["status"] for one in cluster["conditions"]}
    assert conditions["Ready"] == "true"
    async with platform.database() as database:
        await database.execute("UPDATE clusters.cluster SET expires_at = now()")
    by_id = f"/v1/projects/{tenant.project_id}/clusters/{cluster['id']}"

    async def gone() -> bool:
        return ok(await tenant.http.get(by_id))["state"] == "deleted"

    await platform.until(gone, 200)
    after = ok(await tenant.http.get(by_id))
    release = await platform.wait({"id": after["operation_id"]})
    assert (release["kind"], release["created_by"]) == ("release_expired_cluster", "dflare:expiry")


async def judge_usage(platform: PlatformHandle) -> None:
    """Every node that was handed over was billed once, and for no time after its release."""
    async with platform.database() as database:
        rows = await database.fetch(
            "SELECT state, usage_from, usage_to FROM orchestrator.allocation"
        )
        claims = await database.fetchval(
            "SELECT count(*) FROM orchestrator.claim WHERE ended_at IS NULL"
        )
    assert {row["state"] for row in rows} == {"ended"}
    # Two at first, two by growth, one as a stand-in.
    billed = [row for row in rows if row["usage_from"] is not None]
    assert len(billed) == 5
    assert all(row["usage_from"] < row["usage_to"] for row in billed)
    assert claims == 0
    assert (await platform.audit_usage())["state"] == "clean"
