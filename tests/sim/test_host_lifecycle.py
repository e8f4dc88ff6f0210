"""Hosts from power-on to hand-over and back, driven over the wire alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from agent_platform import AgentPlatform
from simulator import SimHandle

SYSTEM = "/redfish/v1/Systems/System.Embedded.1"
CD = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD"
KEY = "ssh-ed25519 AAAA tenant@one"


class Server:
    """What a driver does to one server."""

    def __init__(self, sim: SimHandle, platform: AgentPlatform, name: str) -> None:
        self.sim, self.platform, self.name = sim, platform, name
        self.bmc: httpx.AsyncClient = sim.bmc(name)

    async def reset(self, kind: str) -> None:
        url = f"{SYSTEM}/Actions/ComputerSystem.Reset"
        (await self.bmc.post(url, json={"ResetType": kind})).raise_for_status()

    async def off(self) -> None:
        if (await self.sim.truth(self.name))["power"] != "Off":
            await self.reset("ForceOff")
        await self.sim.until(self.name, power="Off")

    async def boot_agent(self) -> None:
        await self.off()
        await self.bmc.post(f"{CD}/Actions/VirtualMedia.EjectMedia", json={})
        image = {"Image": self.platform.iso_url(self.name)}
        answer = await self.bmc.post(f"{CD}/Actions/VirtualMedia.InsertMedia", json=image)
        answer.raise_for_status()
        once = {"BootSourceOverrideTarget": "Cd", "BootSourceOverrideEnabled": "Once"}
        (await self.bmc.patch(SYSTEM, json={"Boot": once})).raise_for_status()
        await self.reset("On")
        await self.sim.until(self.name, system="agent")

    async def provision(self, key: str = KEY) -> dict[str, Any]:
        await self.boot_agent()
        report = await self.platform.finished(self.platform.write_image(self.name, key))
        assert report["state"] == "succeeded"
        await self.reset("ForceRestart")
        return await self.sim.until(self.name, system="tenant")


@pytest.fixture
async def server(sim: SimHandle, platform: AgentPlatform) -> AsyncIterator[Server]:
    made = Server(sim, platform, "n0")
    yield made
    await sim.control.delete("/faults")
    await made.off()
    await made.bmc.aclose()


async def test_a_server_boots_the_agent_from_virtual_media_and_says_hello(server: Server) -> None:
    await server.boot_agent()
    await server.platform.until(lambda: server.platform.hellos["n0"])
    hello = server.platform.hellos["n0"][-1]
    assert hello["serial"] == "SER00000"
    assert hello["macs"] == ["02:00:00:00:00:00"]
    assert [disk["name"] for disk in hello["inventory"]["disks"]] == ["nvme0n1", "nvme1n1"]
    assert len(hello["inventory"]["gpus"]) == len(hello["inventory"]["infiniband"]) == 8


async def test_the_tenants_keys_come_from_the_config_drive_and_the_system_phones_home(
    server: Server,
) -> None:
    truth = await server.provision()
    assert truth["ssh_keys_running"] == truth["ssh_keys_on_disk"] == [KEY]
    await server.platform.until(lambda: server.platform.ups)
    up = server.platform.ups[-1]
    assert up["image_sha256"] == server.platform.image_sha256
    assert up["ssh_keys"] == [KEY]
    assert up["boot_id"] == truth["boot_id"]
    system = (await server.bmc.get(SYSTEM)).json()
    assert system["BootProgress"]["LastState"] == "OSRunning"
    calls = len(server.platform.ups)
    await server.reset("ForceRestart")
    await server.sim.until("n0", system="tenant")
    assert len(server.platform.ups) == calls


async def test_a_secret_stays_on_the_disks_of_a_server_without_power_until_it_is_erased(
    server: Server,
) -> None:
    await server.provision()
    secret = "the tenant's secret " * 60
    written = await server.sim.control.post("/hosts/n0/secret", json={"text": secret})
    places = {place["place"] for place in written.json()["places"]}
    assert places == {"disk nvme0n1", "disk nvme1n1", "memory", "gpu memory"}
    await server.off()
    found = (await server.sim.control.get("/truth/find", params={"text": secret})).json()
    assert {p["place"] for p in found["places"]} == {"disk nvme0n1", "disk nvme1n1"}
    await server.boot_agent()
    before = await server.platform.finished(server.platform.give("n0", "read_back", samples=16))
    assert all(disk["nonzero_sectors"] > 0 for disk in before["observed"]["disks"])
    erased = await server.platform.finished(server.platform.give("n0", "erase", disks=None))
    assert erased["observed"]["gpu_memory_wiped"] is True
    after = await server.platform.finished(server.platform.give("n0", "read_back", samples=16))
    assert all(disk["nonzero_sectors"] == 0 for disk in after["observed"]["disks"])
    found = (await server.sim.control.get("/truth/find", params={"text": secret})).json()
    assert found["places"] == []


async def test_an_erase_that_lies_is_caught_by_reading_back(server: Server) -> None:
    await server.provision()
    await server.sim.fault("erase_lies", "n0", count=1)
    await server.boot_agent()
    lie = await server.platform.finished(server.platform.give("n0", "erase", disks=None))
    assert all(disk["nonzero_sectors"] == 0 for disk in lie["observed"]["disks"])
    truth = await server.platform.finished(
        server.platform.give("n0", "read_back", samples=8, seed="1")
    )
    boot_disk = truth["observed"]["disks"][0]
    assert boot_disk["nonzero_sectors"] > 0


async def test_a_failing_erase_is_reported_as_failed(server: Server) -> None:
    await server.sim.fault("erase_fails", "n0", count=1)
    await server.boot_agent()
    report = await server.platform.finished(server.platform.give("n0", "erase", disks=None))
    assert report["state"] == "failed"
    assert "media error" in report["message"]


async def test_a_corrupted_image_shows_in_what_is_read_back_and_does_not_boot(
    server: Server,
) -> None:
    await server.sim.fault("image_corrupt", "n0", count=1)
    await server.boot_agent()
    report = await server.platform.finished(server.platform.write_image("n0", KEY))
    assert report["observed"]["sha256"] != server.platform.image_sha256
    await server.bmc.post(f"{CD}/Actions/VirtualMedia.EjectMedia", json={})
    here = await server.sim.mark()
    await server.reset("ForceRestart")
    await server.sim.until_logged("boot_failed", "n0", here)
    assert (await server.sim.truth("n0"))["system"] is None


async def test_an_image_with_another_digest_than_promised_is_not_written(server: Server) -> None:
    await server.boot_agent()
    task = server.platform.write_image("n0", KEY, image_sha256="0" * 64)
    report = await server.platform.finished(task)
    assert report["state"] == "failed"
    assert server.platform.image_sha256 in report["message"]


async def test_a_task_that_is_sent_again_is_answered_with_its_last_report_and_not_done_again(
    server: Server,
) -> None:
    await server.boot_agent()
    task = server.platform.write_image("n0", KEY)
    first = await server.platform.finished(task)
    written = len(await server.sim.log(kind="image_written", subject="n0"))
    server.platform.give("n0", "write_image", task_id=task)
    assert await server.platform.finished(task, times=2) == first
    assert len(await server.sim.log(kind="image_written", subject="n0")) == written


async def test_an_agent_whose_token_is_refused_stops(server: Server) -> None:
    await server.boot_agent()
    await server.platform.until(lambda: server.platform.hellos["n0"])
    here = await server.sim.mark()
    server.platform.refused.add("n0")
    try:
        await server.sim.until_logged("agent_stopped", "n0", here)
    finally:
        server.platform.refused.clear()
    task = server.platform.give("n0", "inventory")
    await server.boot_agent()
    assert (await server.platform.finished(task))["state"] == "succeeded"


async def test_a_report_that_is_not_wanted_drops_the_task_and_the_agent_goes_on(
    server: Server,
) -> None:
    await server.boot_agent()
    dropped = server.platform.give("n0", "inventory")
    server.platform.unwanted.add(dropped)
    await server.platform.finished(dropped)
    report = await server.platform.finished(server.platform.give("n0", "inventory"))
    assert report["observed"]["serial"] == "SER00000"


async def test_a_rescue_system_lets_the_key_in_and_leaves_the_disks_alone(server: Server) -> None:
    await server.provision()
    disks = (await server.sim.truth("n0"))["disks"]
    await server.boot_agent()
    task = server.platform.give("n0", "rescue", ssh_keys=["ssh-ed25519 RESCUE"], user_data="")
    assert (await server.platform.finished(task))["observed"] == {
        "ssh_keys": ["ssh-ed25519 RESCUE"]
    }
    truth = await server.sim.truth("n0")
    assert truth["system"] == "rescue"
    assert truth["ssh_keys_running"] == ["ssh-ed25519 RESCUE"]
    assert truth["disks"] == disks


async def test_a_medium_without_an_agent_boots_the_old_tenants_disk(server: Server) -> None:
    await server.provision()
    await server.off()
    await server.bmc.post(f"{CD}/Actions/VirtualMedia.EjectMedia", json={})
    not_an_iso = {"Image": server.platform.image_url}
    await server.bmc.post(f"{CD}/Actions/VirtualMedia.InsertMedia", json=not_an_iso)
    once = {"BootSourceOverrideTarget": "Cd", "BootSourceOverrideEnabled": "Once"}
    await server.bmc.patch(SYSTEM, json={"Boot": once})
    await server.reset("On")
    truth = await server.sim.until("n0", system="tenant")
    assert truth["ssh_keys_running"] == [KEY]


async def test_power_that_is_stuck_accepts_the_reset_and_stays(server: Server) -> None:
    await server.sim.fault("power_stuck", "n0", count=1)
    await server.reset("On")
    await asyncio.sleep(0.1)
    assert (await server.sim.truth("n0"))["power"] == "Off"
    await server.reset("On")
    await server.sim.until("n0", power="On")


async def test_memory_keeps_its_content_through_a_restart_and_loses_it_without_power(
    server: Server,
) -> None:
    await server.provision()
    await server.sim.control.post("/hosts/n0/secret", json={"text": "in memory"})
    await server.reset("ForceRestart")
    truth = await server.sim.until("n0", system="tenant")
    assert truth["memory"] == truth["gpu_memory"] == ["in memory"]
    await server.reset("PowerCycle")
    await server.sim.until("n0", memory=[], gpu_memory=[])


async def test_no_secret_is_written_where_no_tenants_system_runs(server: Server) -> None:
    await server.boot_agent()
    answer = await server.sim.control.post("/hosts/n0/secret", json={"text": "no"})
    assert answer.status_code == 409


async def test_bios_changes_take_effect_at_the_next_reset_and_not_before(server: Server) -> None:
    change = {"Attributes": {"SysProfile": "PerfOptimized"}}
    answer = await server.bmc.patch(f"{SYSTEM}/Bios/Settings", json=change)
    assert answer.status_code == 202
    job = answer.headers["Location"]
    assert (await server.bmc.get(job)).json()["TaskState"] == "Pending"
    in_force = (await server.bmc.get(f"{SYSTEM}/Bios")).json()["Attributes"]
    assert in_force["SysProfile"] == "PerfPerWattOptimizedDapc"
    await server.reset("On")
    await server.sim.until("n0", bios={"SysProfile": "PerfOptimized"}, bios_pending={})
    assert (await server.bmc.get(job)).json()["TaskState"] == "Completed"


async def test_a_bios_that_ignores_changes_shows_the_old_value_after_the_reset(
    server: Server,
) -> None:
    await server.sim.fault("bios_ignored", "n0", count=1)
    change = {"Attributes": {"ProcCStates": "Disabled"}}
    await server.bmc.patch(f"{SYSTEM}/Bios/Settings", json=change)
    await server.reset("On")
    await server.sim.until("n0", bios_pending={})
    in_force = (await server.bmc.get(f"{SYSTEM}/Bios")).json()["Attributes"]
    assert in_force["ProcCStates"] == "Enabled"


async def test_cut_power_leaves_the_disks_and_ends_the_system_at_once(server: Server) -> None:
    await server.provision()
    await server.sim.control.post("/hosts/n0/fail", json={"kind": "power"})
    truth = await server.sim.truth("n0")
    assert truth["power"] == "Off"
    assert truth["system"] is None
    assert truth["ssh_keys_on_disk"] == [KEY]
