"""Steps killed in the middle of their work, and the sweeps that look at nodes nobody acts on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from sqlalchemy import update

from baremetal_site import BaremetalSite, Order, baremetal_site
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.reconciler import NodeReconciler
from dflare.services.baremetal.tables import Node


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[BaremetalSite]:
    folder = tmp_path_factory.mktemp("interrupted")
    async with baremetal_site(database_url, folder, nodes=4) as found:
        await found.enrol()
        yield found


async def _kill_in_calls(site: BaremetalSite, step: str, order: Order, calls: int) -> None:
    """Run a step and end it after that many calls to its BMC, until it gets through."""
    driver, made = site.parts.bmc, 0
    client = driver._client  # type: ignore[attr-defined]
    original = client.call

    async def call(*arguments: object, **named: object) -> object:
        nonlocal made
        made += 1
        if made > calls:
            running.cancel()
        return await original(*arguments, **named)

    client.call = call
    try:
        running = asyncio.create_task(site.run(f"baremetal.{step}@1", order))
        with suppress(asyncio.CancelledError):
            await running
    finally:
        client.call = original


@pytest.mark.parametrize("calls", [1, 3, 5])
async def test_steps_killed_between_their_calls_end_well_when_run_again(
    site: BaremetalSite, calls: int
) -> None:
    order = await site.order(["node-0001"])
    for step in ("prepare", "profile", "provision", "start"):
        await _kill_in_calls(site, step, order, calls)
        report = await site.run(f"baremetal.{step}@1", order)
        assert report.done == order.node_ids, report
    truth = await site.sim.truth("node-0001")
    assert (truth["system"], truth["virtual_media"]) == ("tenant", {})
    await site.sim.control.post("/hosts/node-0001/secret", json={"text": "kept secret"})
    release = await site.release_order(order)
    for step in ("power_off", "erase", "free"):
        await _kill_in_calls(site, step, release, calls)
        report = await site.run(f"baremetal.{step}@1", release)
        assert report.done == release.node_ids, report
    found = await site.sim.control.get("/truth/find", params={"text": "kept secret"})
    assert found.json()["places"] == []
    assert (await site.node("node-0001")).state == NodeState.AVAILABLE


async def test_a_server_that_loses_power_while_its_agent_works_is_booted_again(
    site: BaremetalSite,
) -> None:
    order = await site.order(["node-0002"])
    await site.run("baremetal.prepare@1", order)
    provisioning = asyncio.create_task(site.run("baremetal.provision@1", order))
    await site.sim.until("node-0002", system="agent")
    await site.sim.control.post("/hosts/node-0002/fail", json={"kind": "power"})
    report = await provisioning
    assert report.done == order.node_ids, report


async def _due(site: BaremetalSite) -> None:
    async with site.database.transaction("baremetal") as session:
        await session.execute(update(Node).values(checked_at=None))


async def test_a_sweep_notes_health_as_a_condition_and_leaves_the_state(
    site: BaremetalSite,
) -> None:
    await _due(site)
    before = await site.node("node-0003")
    await site.sim.fault("bmc_unreachable", "node-0003")
    await NodeReconciler(site.parts).sweep()
    await site.sim.control.delete("/faults")
    node = await site.node("node-0003")
    assert (node.health, node.state, node.version) == (
        "unreachable",
        NodeState.AVAILABLE,
        before.version,
    )
    assert node.health_reason
    other = await site.node("node-0004")
    assert (other.health, other.power) == ("ok", "off")


async def test_a_sweep_skips_claimed_nodes_and_those_it_has_seen(site: BaremetalSite) -> None:
    await _due(site)
    order = await site.order(["node-0003"])
    reconciler = NodeReconciler(site.parts)
    assert await reconciler.sweep() > 0
    assert (await site.node("node-0003")).checked_at is None
    assert (await site.node("node-0004")).checked_at is not None
    assert await reconciler.sweep() == 0
    await site.unclaim(order)
