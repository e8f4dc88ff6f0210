"""Every step cut at its three points, and repeated, ends as if nothing had happened."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from baremetal_site import BaremetalSite, Order, baremetal_site
from dflare.kit.ids import new_id
from dflare.kit.plan import StepCall
from dflare.services.baremetal.contract import NodeState

FORWARD = ("prepare", "profile", "provision", "start")
BACK = ("power_off", "erase", "free")
POINTS = ("before_call", "after_call", "after_record")


class CutError(Exception):
    """What the cut raises, as if the process had died there."""


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[BaremetalSite]:
    folder = tmp_path_factory.mktemp("repeats")
    async with baremetal_site(database_url, folder, nodes=4) as found:
        await found.enrol()
        yield found


async def _state(site: BaremetalSite, name: str) -> dict[str, Any]:
    """All that should be the same, of the row and of the ground truth."""
    row, truth = await site.node(name), await site.sim.truth(name)
    kept = ("power", "system", "ssh_keys_running", "ssh_keys_on_disk", "bios")
    disks = [{**disk, "serial": ""} for disk in truth["disks"]]
    return {
        "row": (row.state, row.reason, row.fault, row.dirty, row.acting_operation_id),
        "disks": disks,
        # Where the media come from holds a token, which is another one for each node.
        "media": list(truth["virtual_media"]),
        **{key: truth[key] for key in kept},
    }


async def _cut(site: BaremetalSite, step: str, point: str, order: Order) -> None:
    """Run ``step`` so that it dies at ``point``; then run it again as a retry would."""
    died: list[str] = []

    async def cut(at: str, call: StepCall) -> None:
        if at == point and not died:
            died.append(call.step)
            raise CutError(at)

    site.cut = cut
    try:
        with pytest.raises(CutError):
            await site.run(f"baremetal.{step}@1", order)
    finally:
        site.cut = None
    report = await site.run(f"baremetal.{step}@1", order)
    assert report.done == order.node_ids, report
    repeated = await site.run(f"baremetal.{step}@1", order)
    assert repeated.done == order.node_ids


@pytest.mark.parametrize("point", POINTS)
async def test_steps_cut_at_a_point_and_repeated_end_like_steps_left_alone(
    site: BaremetalSite, point: str
) -> None:
    undisturbed, disturbed = await site.order(["node-0001"]), await site.order(["node-0002"])
    for step in FORWARD:
        await site.run(f"baremetal.{step}@1", undisturbed)
        await _cut(site, step, point, disturbed)
        assert await _state(site, "node-0002") == {
            **await _state(site, "node-0001"),
            "row": _with_operation(await _state(site, "node-0001"), disturbed),
        }
    undisturbed = await site.release_order(undisturbed)
    disturbed = await site.release_order(disturbed)
    for step in BACK:
        await site.run(f"baremetal.{step}@1", undisturbed)
        await _cut(site, step, point, disturbed)
        assert await _state(site, "node-0002") == {
            **await _state(site, "node-0001"),
            "row": _with_operation(await _state(site, "node-0001"), disturbed),
        }


def _with_operation(state: dict[str, Any], order: Order) -> tuple[Any, ...]:
    """The other node's row as it looks with this order's operation in it."""
    *same, acting = state["row"]
    reason = same[1]
    if reason.startswith("operation "):
        reason = f"operation {order.operation_id}"
    return (same[0], reason, *same[2:], order.operation_id if acting else None)


async def test_what_a_tenant_does_to_its_node_keeps_its_disks(site: BaremetalSite) -> None:
    order = await site.order(["node-0003"])
    await site.provision(order)
    before = await site.sim.truth("node-0003")
    await site.unclaim(order)

    async def act(verb: str) -> dict[str, Any]:
        own = Order(new_id("op"), order.node_ids[0], order.node_ids, "baremetal")
        await site.claim(own)
        report = await site.run(f"baremetal.{verb}@1", own)
        await site.unclaim(own)
        assert report.done == own.node_ids, report
        return await site.sim.truth("node-0003")

    rebooted = await act("reboot")
    assert rebooted["boot_id"] != before["boot_id"]
    assert rebooted["system"] == "tenant"
    rescued = await act("rescue")
    assert (rescued["system"], rescued["ssh_keys_running"]) == (
        "rescue",
        before["ssh_keys_running"],
    )
    assert (await site.node("node-0003")).state == NodeState.RESCUE
    assert rescued["disks"] == before["disks"]
    back = await act("unrescue")
    assert back["system"] == "tenant"
    assert back["disks"] == before["disks"]
    assert (await site.node("node-0003")).state == NodeState.ACTIVE


async def test_reimage_writes_the_disks_anew_and_starts_the_same_keys(site: BaremetalSite) -> None:
    order = await site.order(["node-0004"])
    await site.provision(order)
    await site.unclaim(order)
    await site.sim.control.post("/hosts/node-0004/secret", json={"text": "left behind"})
    own = Order(new_id("op"), order.node_ids[0], order.node_ids, "baremetal")
    await site.claim(own)
    for verb in ("reimage", "start"):
        report = await site.run(f"baremetal.{verb}@1", own)
        assert report.done == own.node_ids, report
    truth = await site.sim.truth("node-0004")
    written = await site.sim.log(kind="image_written", subject="node-0004")
    assert len(written) == 2
    assert truth["system"] == "tenant"
    assert (await site.node("node-0004")).state == NodeState.ACTIVE
