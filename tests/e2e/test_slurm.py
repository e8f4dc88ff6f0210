"""A Slurm cluster of sixteen nodes on the whole platform, from its order to the last free node.

Slurm is Debian's own: the packages are those that ``DFLARE_SLURM_PACKAGES`` names, or that ``make
test-lab`` left; without them there is nothing to test. What runs is judged by Slurm's accounting
and by the scheduler host, not by what the platform says of itself.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dflare.drivers.scheduler.port import JobRecord, JobScript, SchedulerObserved
from dflare.drivers.scheduler.slurm_host import SlurmHost
from running_platform import PlatformHandle, Tenant, ok, running_platform
from site_files import PlatformWish
from slurm_platform import scheduler_host, slurm_environment

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

NODES = 16
TRAIN = "#!/bin/sh\nsrun --ntasks-per-node=1 hostname\necho data > /mnt/data/result\n"


@dataclass
class Story:
    """What was seen, in order."""

    refused: dict[str, Any] = field(default_factory=dict[str, Any])
    shown: dict[str, Any] = field(default_factory=dict[str, Any])
    seen: SchedulerObserved | None = None
    job: JobRecord | None = None
    output: str = ""
    left: SchedulerObserved | None = None
    states: dict[str, int] = field(default_factory=dict[str, int])
    written: str = ""


@pytest.fixture(scope="module")
async def story() -> AsyncIterator[Story]:
    """The life of one cluster."""
    wish = PlatformWish(nodes=NODES, environment=slurm_environment())
    async with running_platform(wish) as platform:
        await platform.apply_site()
        async with scheduler_host(platform) as host:
            yield await _live(platform, host)


async def _live(platform: PlatformHandle, host: SlurmHost) -> Story:
    story = Story()
    tenant = await platform.tenant("red", {"h100-8": NODES})
    await _volume(platform, tenant)
    operation = await _order(tenant)
    await platform.wait(operation, deadline_s=180)
    story.shown = await platform.cluster(tenant, "ml")
    cluster_id = story.shown["id"]
    story.seen = await host.observe(cluster_id)

    options = (f"--nodes={NODES}", "--gres=gpu:8")
    job_id = await host.submit(cluster_id, JobScript(TRAIN, "train", options, wckey="alice"))
    story.job = await _ended(host, cluster_id, job_id)
    story.output = (await host.output(cluster_id, job_id, 0, 10_000)).decode()
    story.written = (await host.run(cluster_id, ["cat", "/mnt/data/result"])).stdout

    await platform.wait(await platform.release(tenant, "ml"), deadline_s=180)
    story.left = await host.observe(cluster_id)
    await platform.until_available(NODES)
    story.states = await platform.node_states()
    return story


async def _volume(platform: PlatformHandle, tenant: Tenant) -> None:
    limit = f"/v1/projects/{tenant.project_id}/quotas/volume-gib"
    ok(await platform.operator.put(limit, json={"nodes": 10}))
    path = f"/v1/projects/{tenant.project_id}/volumes"
    body = {"name": "data", "size_gib": 1}
    await platform.wait(await _admitted(tenant, path, body, until_not="quota"))


async def _order(tenant: Tenant) -> dict[str, Any]:
    path = f"/v1/projects/{tenant.project_id}/clusters"
    body = {
        "name": "ml",
        "kind": "slurm",
        "pools": [{"name": "gpu", "node_type": "h100-8", "count": NODES}],
        "volumes": [{"volume": "data", "mount": "/mnt/data"}],
    }
    return await _admitted(tenant, path, body, until_not="slurm-unavailable")


async def _admitted(
    tenant: Tenant, path: str, body: dict[str, Any], *, until_not: str
) -> dict[str, Any]:
    """An order's operation; asked for again while it is refused because something that was just
    done has not been heard of."""
    async with asyncio.timeout(120):
        while True:
            answer = await tenant.http.post(path, json=body)
            if answer.status_code == 202:
                return answer.json()
            assert answer.json()["type"].endswith(f"/{until_not}"), answer.text
            await asyncio.sleep(0.5)


async def _ended(host: SlurmHost, cluster_id: str, job_id: str) -> JobRecord:
    async with asyncio.timeout(60):
        while True:
            found = {one.job_id: one for one in await host.jobs(cluster_id)}
            if job_id in found and found[job_id].ended_at is not None:
                return found[job_id]
            await asyncio.sleep(0.2)


def test_a_job_runs_on_every_gpu_of_the_cluster(story: Story) -> None:
    assert story.job is not None
    assert (story.job.state, story.job.exit_code) == ("COMPLETED", 0)
    assert (story.job.node_count, story.job.gpus) == (NODES, NODES * 8)
    assert sorted(story.output.split()) == sorted(f"gpu-{n}" for n in range(NODES))


def test_a_job_writes_to_the_volume_that_the_order_mounts(story: Story) -> None:
    assert story.written == "data\n"


def test_every_node_has_registered_before_the_hand_over(story: Story) -> None:
    assert story.seen is not None
    standing = {name for name, node in story.seen.nodes.items() if node.registered}
    assert standing == {f"gpu-{n}" for n in range(NODES)}
    assert len(story.seen.nodes) == 2 * NODES


def test_nothing_of_it_is_left_after_the_release(story: Story) -> None:
    assert story.left is None
    assert story.states["available"] == NODES
