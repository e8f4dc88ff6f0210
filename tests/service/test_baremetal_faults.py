"""What the steps do when hardware lies, hangs, refuses or is not what was declared."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from baremetal_site import BaremetalSite, Order, baremetal_site
from dflare.kit.ids import new_id
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.projections import FrozenSites
from dflare.services.baremetal.settings import BaremetalSettings
from dflare.services.orchestrator.contract import AllocationState

QUICK = BaremetalSettings(boot_patience_s=0, boot_patience_least_s=3, act_window_s=5)


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[BaremetalSite]:
    folder = tmp_path_factory.mktemp("faults")
    async with baremetal_site(database_url, folder, nodes=8, settings=QUICK) as found:
        await found.enrol()
        yield found


@pytest.fixture(autouse=True)
async def no_faults(site: BaremetalSite) -> AsyncIterator[None]:
    yield
    await site.sim.control.delete("/faults")


async def _used(site: BaremetalSite, name: str) -> Order:
    """A release of a node that a tenant had, powered off."""
    order = await site.order([name])
    report = await site.provision(order)
    assert not report.failed, report
    release = await site.release_order(order)
    await site.run("baremetal.power_off@1", release)
    return release


async def test_an_erase_that_lies_is_found_by_the_read_back_and_the_node_does_not_get_free(
    site: BaremetalSite,
) -> None:
    release = await _used(site, "node-0001")
    await site.sim.fault("erase_lies", "node-0001")
    report = await site.run("baremetal.erase@1", release)
    (reason,) = report.failed.values()
    assert "erase not observed" in reason
    await site.run("baremetal.free@1", release)
    node = await site.node("node-0001")
    assert (node.state, node.dirty) == (NodeState.QUARANTINE, True)


async def test_a_failed_erase_goes_to_quarantine_and_only_cleaning_leads_out(
    site: BaremetalSite,
) -> None:
    release = await _used(site, "node-0002")
    await site.sim.fault("erase_fails", "node-0002")
    report = await site.run("baremetal.erase@1", release)
    assert "media error" in report.failed[release.node_ids[0]]
    await site.run("baremetal.quarantine@1", release, params={"reason": "erase failed"})
    assert (await site.node("node-0002")).state == NodeState.QUARANTINE
    await site.unclaim(release)
    await site.allocate(release, AllocationState.ENDED)
    again = await site.order(["node-0002"])
    refused = await site.run("baremetal.prepare@1", again, deadline_s=5)
    assert "quarantine" in refused.failed[again.node_ids[0]]
    await site.unclaim(again)

    await site.sim.control.delete("/faults")
    clean = Order(new_id("op"), again.node_ids[0], again.node_ids, "baremetal")
    await site.claim(clean)
    for step in ("erase", "free"):
        report = await site.run(f"baremetal.{step}@1", clean)
        assert report.done == clean.node_ids, report
    node = await site.node("node-0002")
    assert (node.state, node.dirty) == (NodeState.AVAILABLE, False)


async def test_a_silent_agent_fails_at_the_deadline_with_what_was_waited_for(
    site: BaremetalSite,
) -> None:
    await site.sim.fault("agent_silent", "node-0003")
    order = await site.order(["node-0003"])
    await site.run("baremetal.prepare@1", order)
    report = await site.run("baremetal.provision@1", order, deadline_s=8)
    assert report.failed == {order.node_ids[0]: "not in time: the agent has not said hello"}


async def test_a_boot_that_fails_once_is_tried_again(site: BaremetalSite) -> None:
    order = await site.order(["node-0004"])
    await site.run("baremetal.prepare@1", order)
    await site.sim.fault("boot_fails", "node-0004", count=1)
    report = await site.run("baremetal.provision@1", order)
    assert report.done == order.node_ids, report


async def test_errors_of_a_bmc_are_retried_within_the_step(site: BaremetalSite) -> None:
    await site.sim.fault("bmc_error_500", "node-0005", count=3)
    await site.sim.fault("bmc_unreachable", "node-0005", count=2)
    order = await site.order(["node-0005"])
    report = await site.provision(order)
    assert report.done == order.node_ids, report
    release = await site.release_order(order)
    for step in ("power_off", "erase", "free"):
        await site.run(f"baremetal.{step}@1", release)
    await site.unclaim(release)


async def test_one_dead_bmc_does_not_hold_up_its_batch(site: BaremetalSite) -> None:
    await site.sim.fault("bmc_unreachable", "node-0006")
    order = await site.order(["node-0006", "node-0007"])
    report = await site.run("baremetal.prepare@1", order, deadline_s=8)
    dead, good = order.node_ids
    assert report.done == (good,)
    assert report.failed[dead].startswith("not in time")
    await site.sim.control.delete("/faults")
    await site.run("baremetal.free@1", order, undoing=True)


async def test_ignored_bios_settings_fail_with_the_attribute_and_stay_noted_as_a_fault(
    site: BaremetalSite,
) -> None:
    await site.sim.fault("bios_ignored", "node-0008")
    order = await site.order(["node-0008"])
    await site.run("baremetal.prepare@1", order)
    report = await site.run("baremetal.profile@1", order)
    assert "SysProfile=PerfPerWattOptimizedDapc" in report.failed[order.node_ids[0]]
    await site.run("baremetal.power_off@1", order, undoing=True)
    await site.run("baremetal.free@1", order, undoing=True)
    node = await site.node("node-0008")
    assert node.state == NodeState.FAILED
    assert "resets" in node.reason


async def test_a_corrupt_image_fails_the_step(site: BaremetalSite) -> None:
    await site.sim.fault("image_corrupt", "node-0007")
    order = await site.order(["node-0007"])
    await site.run("baremetal.prepare@1", order)
    report = await site.run("baremetal.provision@1", order)
    assert "reads back as" in report.failed[order.node_ids[0]]
    undone = await site.run("baremetal.erase@1", order, undoing=True)
    assert undone.done == order.node_ids
    assert all(disk["blank"] for disk in (await site.sim.truth("node-0007"))["disks"])


async def test_a_release_takes_a_node_from_the_operation_that_acts_on_it(
    site: BaremetalSite,
) -> None:
    release = await _used(site, "node-0006")
    old = Order(new_id("op"), "", release.node_ids, "baremetal")
    newer = await site.release_order(Order(new_id("op"), release.cluster_id, release.node_ids))
    await site.claim(old)
    await site.run("baremetal.power_off@1", newer)
    report = await site.run("baremetal.reboot@1", old, deadline_s=5)
    assert report.failed == {old.node_ids[0]: "the node was taken over by a newer operation"}
    assert newer.operation_id not in str(report)


async def test_a_frozen_site_stops_a_step_at_once_and_says_what_waits(site: BaremetalSite) -> None:
    async def freeze(version: int, *, frozen: bool) -> None:
        data = {"site_id": site.site_id, "frozen": frozen, "by": "ops", "reason": "smoke"}
        await site.fold(FrozenSites(), site.site_id, version, data)

    order = await _used(site, "node-0005")
    await site.sim.fault("agent_silent", "node-0005")
    erasing = asyncio.create_task(site.run("baremetal.erase@1", order, deadline_s=12))
    await site.sim.until("node-0005", power="On")
    await freeze(1, frozen=True)
    report = await erasing
    mark = await site.sim.mark()
    assert report.failed == {order.node_ids[0]: "not in time: the site is frozen (smoke)"}
    again = await site.run("baremetal.power_off@1", order, deadline_s=3, generation=2)
    assert "frozen" in again.failed[order.node_ids[0]]
    assert await site.sim.log(kind="reset_asked", subject="node-0005", after=mark) == []
    await freeze(2, frozen=False)
    thawed = await site.run("baremetal.power_off@1", order, generation=3)
    assert thawed.done == order.node_ids


async def test_a_step_waits_for_the_claims_event(site: BaremetalSite) -> None:
    order = await site.order(["node-0004"])
    await site.unclaim(order)
    await site.allocate(
        Order(new_id("op"), order.cluster_id, order.node_ids), AllocationState.RELEASING
    )
    report = await site.run("baremetal.power_off@1", order, deadline_s=3)
    assert "claim's event has not come" in report.failed[order.node_ids[0]]
