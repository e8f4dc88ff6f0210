"""The process: its files, exit codes and control API, and the hosts' way through the fabric."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from agent_platform import AgentPlatform
from dflare.sim.processes import HostProcesses
from simulator import SimHandle, data_center, simulator


async def run_sim(folder: Path, content: str) -> tuple[int, str]:
    """Run the simulator on a file until it ends by itself; returns exit code and error output."""

    def run() -> subprocess.CompletedProcess[str]:
        (folder / "sim.yaml").write_text(content)
        files = ["--config", str(folder / "sim.yaml"), "--log", str(folder / "truth.jsonl")]
        command = [sys.executable, "-m", "dflare.sim", *files]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = await asyncio.to_thread(run)
    return done.returncode, done.stderr


async def test_a_port_in_use_ends_the_process_with_3_and_names_the_address(
    tmp_path: Path,
) -> None:
    document = data_center(2, network="127.76")
    with socket.socket() as taken:
        taken.bind(("127.76.0.2", document["bmc_port"]))
        taken.listen()
        code, output = await run_sim(tmp_path, json.dumps(document))
    assert code == 3
    assert f"127.76.0.2:{document['bmc_port']} is in use" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speed": 6000}, "speed"),
        ({"nodes": [{"name": "n0"}]}, "nodes.0.serial"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
async def test_a_bad_file_ends_the_process_with_2_and_names_the_key(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    code, output = await run_sim(tmp_path, json.dumps(data_center(1) | change))
    assert code == 2
    assert words in output
    assert "Traceback" not in output


async def test_a_file_that_is_not_there_or_not_yaml_ends_the_process_with_2(
    tmp_path: Path,
) -> None:
    code, output = await run_sim(tmp_path, "nodes: [")
    assert code == 2
    assert "not YAML" in output


async def test_a_vendor_without_a_table_ends_the_process_with_2_and_names_those_that_have_one(
    tmp_path: Path,
) -> None:
    document = data_center(1)
    document["nodes"][0]["personality"] = "nvidia"
    code, output = await run_sim(tmp_path, json.dumps(document))
    assert code == 2
    assert "no personality 'nvidia' yet; it has: dell" in output
    assert "Traceback" not in output


async def test_sigterm_ends_the_process_cleanly_while_hosts_run(
    tmp_path: Path, platform: AgentPlatform
) -> None:
    async with simulator(tmp_path, data_center(1, network="127.75")) as sim:
        process = psutil.Process(sim.pid)
        async with sim.bmc("n0") as bmc:
            await boot_agent(bmc, platform.iso_url("term"))
        await sim.until("n0", system="agent")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await asyncio.to_thread(process.wait)
    assert not os.path.exists(tmp_path / "ready.json")  # noqa: ASYNC240 - one look
    assert "Traceback" not in (tmp_path / "sim.out").read_text()


async def test_the_ca_covers_every_device(sim: SimHandle) -> None:
    config = sim.config
    assert config.ufm is not None
    addresses = [(node.bmc_address, config.bmc_port) for node in config.nodes]
    addresses += [(switch.address, config.nvue_port) for switch in config.switches]
    addresses.append((config.ufm.address, config.ufm_port))
    async with sim.bmc("n0") as client:
        for address, port in addresses:
            answer = await client.get(f"https://{address}:{port}/", auth=None)
            assert answer.status_code in (401, 404)


async def test_an_agent_without_a_link_cannot_report_until_its_port_is_back(
    sim: SimHandle, platform: AgentPlatform
) -> None:
    await set_link(sim, "leaf0", "swp6", "down")
    async with sim.bmc("n5") as bmc:
        await boot_agent(bmc, platform.iso_url("n5"))
        await sim.until("n5", system="agent")
        interface = "/redfish/v1/Systems/System.Embedded.1/EthernetInterfaces/eth0"
        assert (await bmc.get(interface)).json()["LinkStatus"] == "LinkDown"
    assert not platform.hellos["n5"]
    await set_link(sim, "leaf0", "swp6", "up")
    await platform.until(lambda: platform.hellos["n5"])


async def test_an_agent_that_is_silent_never_says_hello(
    sim: SimHandle, platform: AgentPlatform
) -> None:
    await sim.control.post("/hosts/n6/fail", json={"kind": "agent"})
    for name in ("n6", "n7"):
        async with sim.bmc(name) as bmc:
            await boot_agent(bmc, platform.iso_url(name))
    await sim.until("n6", system="agent")
    await platform.until(lambda: platform.hellos["n7"])
    assert not platform.hellos["n6"]
    await sim.control.delete("/faults")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/truth/hosts/nobody", None, 404),
        ("POST", "/hosts/nobody/secret", {"text": "x"}, 404),
        ("POST", "/hosts/n0/secret", {"words": "x"}, 422),
        ("POST", "/hosts/n0/secret", {"text": "x"}, 409),
        ("POST", "/hosts/n0/fail", {"kind": "meteor"}, 422),
        ("POST", "/switches/nowhere/reset", {"to": "factory"}, 404),
        ("POST", "/faults", {"kind": "gremlins"}, 422),
        ("POST", "/clock", {"speed": 9000}, 422),
        ("GET", "/truth/log?after=x", None, 422),
        ("GET", "/truth/find", None, 422),
        ("DELETE", "/faults?id=x", None, 422),
    ],
)
async def test_the_control_api_refuses_what_makes_no_sense_with_a_problem(
    sim: SimHandle, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    answer = await sim.control.request(method, path, json=body)
    assert answer.status_code == status
    problem = answer.json()
    assert problem["status"] == status
    assert problem["detail"]


async def test_the_log_is_read_on_from_a_marker(sim: SimHandle) -> None:
    here = await sim.mark()
    there = await sim.mark()
    assert [entry["seq"] for entry in await sim.log(after=here, kind="marker")] == [there]


async def test_the_clock_can_be_set_while_it_runs(sim: SimHandle) -> None:
    answer = (await sim.control.post("/clock", json={"speed": 60})).json()
    assert answer["speed"] == 60
    await sim.control.post("/clock", json={"speed": 600})


async def test_cutting_the_power_kills_a_hosts_process_groups_with_all_members() -> None:
    processes = HostProcesses()
    script = "sleep 1000 & sleep 1000"
    group = await processes.start(["sh", "-c", script], {"PATH": os.environ["PATH"]})
    leader = psutil.Process(group)
    async with asyncio.timeout(30):
        while True:
            members = [leader, *leader.children(recursive=True)]
            if len(members) == 3:
                break
            await asyncio.sleep(0.01)
    assert processes.groups() == [group]
    await processes.kill()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, members, 30)
    assert alive == []
    assert len(gone) == 3
    assert processes.groups() == []


async def boot_agent(bmc: httpx.AsyncClient, iso_url: str) -> None:
    """Boot a host that is off from virtual media."""
    system = "/redfish/v1/Systems/System.Embedded.1"
    cd = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD"
    inserted = await bmc.post(f"{cd}/Actions/VirtualMedia.InsertMedia", json={"Image": iso_url})
    inserted.raise_for_status()
    once = {"BootSourceOverrideTarget": "Cd", "BootSourceOverrideEnabled": "Once"}
    (await bmc.patch(system, json={"Boot": once})).raise_for_status()
    on = await bmc.post(f"{system}/Actions/ComputerSystem.Reset", json={"ResetType": "On"})
    on.raise_for_status()


async def set_link(sim: SimHandle, switch: str, port: str, state: str) -> None:
    """Set a front port's link by NVUE: revision, patch, apply."""
    address = next(s.address for s in sim.config.switches if s.name == switch)
    auth = (sim.config.nvue_credentials.username, sim.config.nvue_credentials.password)
    async with sim.bmc("n0", auth=auth) as client:
        base = f"https://{address}:{sim.config.nvue_port}/nvue_v1"
        made = await client.post(f"{base}/revision")
        (revision,) = made.json()
        wanted = {"link": {"state": {state: {}}}}
        patched = await client.patch(f"{base}/interface/{port}?rev={revision}", json=wanted)
        patched.raise_for_status()
        apply = {"state": "apply", "auto-prompt": {"ays": "ays_yes"}}
        (await client.patch(f"{base}/revision/{revision}", json=apply)).raise_for_status()
        async with asyncio.timeout(30):
            while True:
                now = (await client.get(f"{base}/revision/{revision}")).json()
                if now["state"] == "applied":
                    return
                await asyncio.sleep(0.02)
