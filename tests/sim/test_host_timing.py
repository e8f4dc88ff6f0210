"""Hosts whose hardware takes its time: the steps of a boot, progress, and power that goes away."""

from collections.abc import AsyncIterator

import httpx
import pytest

from agent_platform import AgentPlatform
from simulator import SimHandle, data_center, simulator

SYSTEM = "/redfish/v1/Systems/System.Embedded.1"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
CD = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD"


@pytest.fixture(scope="module")
async def slow_sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    """Three hosts with the usual durations, at 600x."""
    document = data_center(3, network="127.73", zero_times=False)
    async with simulator(tmp_path_factory.mktemp("slow"), document) as handle:
        yield handle


async def boot_agent(bmc: httpx.AsyncClient, iso_url: str) -> None:
    """Ask a host that is off for a boot from virtual media."""
    await bmc.post(f"{CD}/Actions/VirtualMedia.InsertMedia", json={"Image": iso_url})
    await bmc.patch(SYSTEM, json={"Boot": {"BootSourceOverrideTarget": "Cd"}})
    (await bmc.post(RESET, json={"ResetType": "On"})).raise_for_status()


async def test_a_boot_takes_power_on_post_and_the_agents_start(
    slow_sim: SimHandle, platform: AgentPlatform
) -> None:
    async with slow_sim.bmc("n0") as bmc:
        await boot_agent(bmc, platform.iso_url("slow0"))
        await slow_sim.until("n0", system="agent")
        assert (await bmc.get(SYSTEM)).json()["PowerState"] == "On"
    entries = {entry["kind"]: entry["at_sim"] for entry in await slow_sim.log(subject="n0")}
    times = slow_sim.config.times
    assert entries["power_on"] - entries["reset_asked"] >= times.power_on_s
    started = entries["system_started"] - entries["power_on"]
    assert started >= times.post_s + times.agent_boot_s


async def test_an_image_is_written_with_progress_in_between(
    slow_sim: SimHandle, platform: AgentPlatform
) -> None:
    async with slow_sim.bmc("n1") as bmc:
        await boot_agent(bmc, platform.iso_url("slow1"))
    task = platform.write_image("slow1", "key")
    assert (await platform.finished(task))["state"] == "succeeded"
    reports = [(report["state"], report["percent"]) for report in platform.reports[task]]
    running = [("running", percent) for percent in (0, 25, 50, 75)]
    assert reports == [*running, ("succeeded", 100)]


async def test_power_that_goes_away_ends_the_agent_in_the_middle_of_its_task(
    slow_sim: SimHandle, platform: AgentPlatform
) -> None:
    async with slow_sim.bmc("n2") as bmc:
        await boot_agent(bmc, platform.iso_url("slow2"))
        task = platform.write_image("slow2", "key")
        await platform.until(lambda: platform.reports[task])
        (await bmc.post(RESET, json={"ResetType": "ForceOff"})).raise_for_status()
        truth = await slow_sim.until("n2", power="Off")
    assert truth["system"] is None
    assert all(report["state"] == "running" for report in platform.reports[task])
    assert truth["disks"][0]["blank"]


async def test_a_reset_during_post_starts_over_and_boots_once(
    slow_sim: SimHandle, platform: AgentPlatform
) -> None:
    async with slow_sim.bmc("n0") as bmc:
        await bmc.post(RESET, json={"ResetType": "ForceOff"})
        await slow_sim.until("n0", power="Off")
        here = await slow_sim.mark()
        await bmc.patch(SYSTEM, json={"Boot": {"BootSourceOverrideTarget": "Cd"}})
        await bmc.post(RESET, json={"ResetType": "On"})
        await slow_sim.until("n0", power="On")
        await bmc.post(RESET, json={"ResetType": "ForceRestart"})
        await slow_sim.until("n0", system="agent")
    started = await slow_sim.log(subject="n0", after=here, kind="system_started")
    assert len(started) == 1
    (power_on,) = await slow_sim.log(subject="n0", after=here, kind="power_on")
    restarted = (await slow_sim.log(subject="n0", after=here, kind="restarted"))[-1]
    assert restarted["at_sim"] > power_on["at_sim"]
    assert started[0]["at_sim"] - restarted["at_sim"] >= slow_sim.config.times.post_s
