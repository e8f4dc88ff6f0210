"""What a tenant's system on a simulated server sends of its measurements, and how long."""

import json
from typing import Any

from agent_platform import AgentPlatform
from dflare.services.metrics import domain
from dflare.services.metrics.domain import Sample
from dflare.services.metrics.domain_exporters import samples_of
from simulator import SimHandle

SYSTEM = "/redfish/v1/Systems/System.Embedded.1"
MEDIA = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD/Actions/VirtualMedia"


async def start_tenant(sim: SimHandle, platform: AgentPlatform, name: str, **told: Any) -> None:
    """Write a system that is told of ``told`` and boot it."""
    drive = {
        "user_data": "",
        "meta_data": json.dumps({"dflare": told}),
        "ssh_keys": ["ssh-ed25519 AAAA tenant@one"],
    }
    reset = f"{SYSTEM}/Actions/ComputerSystem.Reset"
    async with sim.bmc(name) as bmc:
        image = {"Image": platform.iso_url(name)}
        (await bmc.post(f"{MEDIA}.InsertMedia", json=image)).raise_for_status()
        once = {"BootSourceOverrideTarget": "Cd", "BootSourceOverrideEnabled": "Once"}
        (await bmc.patch(SYSTEM, json={"Boot": once})).raise_for_status()
        (await bmc.post(reset, json={"ResetType": "On"})).raise_for_status()
        await sim.until(name, system="agent")
        task = platform.write_image(name, "", config_drive=drive)
        assert (await platform.finished(task))["state"] == "succeeded"
        (await bmc.post(reset, json={"ResetType": "ForceRestart"})).raise_for_status()
    await sim.until(name, system="tenant")


def busy(text: str) -> list[float]:
    """How busy each accelerator is that answers, by its number."""
    found: list[Sample] = samples_of(text, frozenset())
    shares = {s.labels["hw_id"]: s.value for s in found if s.name == domain.GPU_UTILIZATION}
    return [shares[number] for number in sorted(shares, key=int)]


async def test_a_system_sends_what_runs_on_it_until_its_token_is_refused(
    sim: SimHandle, platform: AgentPlatform
) -> None:
    told = {"metrics_url": f"{platform.url}/v1/agent/metrics", "metrics_token": "m0"}
    await start_tenant(sim, platform, "n0", **told, metrics_every_s=0.01)
    heard = platform.measured["m0"]
    await platform.until(lambda: heard)
    assert busy(heard[0]) == [0.0] * 8
    await sim.control.post("/hosts/n0/load", json={"gpus": {"0": 1.0, "7": 0.5}})
    await platform.until(lambda: busy(heard[-1]) == [1.0, *[0.0] * 6, 0.5])
    await sim.fault("gpu_dead", "n0", params={"gpu": 1})
    await platform.until(lambda: len(busy(heard[-1])) == 7)
    truth_log = await sim.log(kind="crashed", subject="n0")
    assert truth_log == []
    platform.refused.add("m0")
    await sim.control.delete("/faults")
    count = len(heard)
    other = {**told, "metrics_token": "m1"}
    await start_tenant(sim, platform, "n1", **other, metrics_every_s=0.01)
    await platform.until(lambda: len(platform.measured["m1"]) >= 3)
    assert len(heard) == count, "a refused token is not tried again"


async def test_a_system_that_was_told_nothing_sends_nothing(
    sim: SimHandle, platform: AgentPlatform
) -> None:
    await start_tenant(sim, platform, "n2")
    answer = await sim.control.post("/hosts/n3/load", json={"gpus": {"0": 1.0}})
    assert answer.status_code == 409, "nothing runs there"
    answer = await sim.control.post("/hosts/n2/load", json={"gpus": {"9": 1.0}})
    assert answer.status_code == 422
    assert set(platform.measured) <= {"m0", "m1"}
