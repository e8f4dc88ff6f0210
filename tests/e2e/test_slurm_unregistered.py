"""Nodes of an order that never register in its Slurm: the deadline, why, and who stands in."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from running_platform import ok, running_platform
from site_files import PlatformWish
from slurm_platform import admitted_order, order_of, slurm_environment

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

NODES = 6
# The quarter of an hour of the site's time that a node has to register in becomes half a minute.
SPEED = 30
TIMES = dict.fromkeys(
    (
        "power_on_s",
        "power_off_s",
        "post_s",
        "bios_apply_s",
        "os_boot_s",
        "agent_boot_s",
        "image_write_s",
        "erase_s",
        "switch_apply_s",
        "ufm_job_s",
    ),
    0.5,
)
DIAGNOSES = {
    "munge_key_wrong": "its munge key is not the cluster's",
    "slurmd_silent": "its slurmd has not registered",
}


@dataclass(frozen=True)
class Evidence:
    """The operation, who never registered, and the nodes of the cluster in the end."""

    operation: dict[str, Any]
    faulty: dict[str, str]
    nodes: frozenset[str]


@pytest.fixture(scope="module")
async def evidence() -> AsyncIterator[Evidence]:
    """An order whose two nodes both fail, each in its way."""
    wish = PlatformWish(nodes=NODES, speed=SPEED, times=TIMES, environment=slurm_environment())
    async with running_platform(wish) as platform:
        await platform.apply_site()
        tenant = await platform.tenant("red", {"h100-8": NODES})
        order = order_of("odd", len(DIAGNOSES))
        path = f"/v1/projects/{tenant.project_id}/clusters"
        await platform.until(lambda: _quoted(tenant.http, path, order), 120)
        answer = await tenant.http.post(path, params={"dry_run": "true"}, json=order)
        faulty = dict(zip(DIAGNOSES, ok(answer)["nodes"], strict=True))
        for fault, node in faulty.items():
            await platform.sim.fault(fault, node)
        operation = await platform.wait(
            await admitted_order(platform, tenant, order), deadline_s=240
        )
        nodes = (await platform.cluster(tenant, "odd"))["nodes"]
        yield Evidence(operation, faulty, frozenset(node["name"] for node in nodes))
        await platform.wait(await platform.release(tenant, "odd"), deadline_s=120)


async def _quoted(http: Any, path: str, order: dict[str, Any]) -> bool:
    return (await http.post(path, params={"dry_run": "true"}, json=order)).status_code == 200


def test_nodes_that_never_register_are_replaced_after_the_deadline(evidence: Evidence) -> None:
    assert len(evidence.nodes) == len(DIAGNOSES)
    assert not evidence.nodes & set(evidence.faulty.values())


def test_the_order_says_why_each_of_them_was_replaced(evidence: Evidence) -> None:
    (message,) = (
        step["message"]
        for step in evidence.operation["steps"]
        if step["name"] == "clusters.await_nodes@1"
    )
    assert "replaced" in message
    assert any(diagnosis in message for diagnosis in DIAGNOSES.values()), message
