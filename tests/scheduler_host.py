"""A simulator whose scheduler host runs real Slurm, and its API as a client sees it."""

import asyncio
import base64
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_platform import AgentPlatform
from dflare.sim.slurm.programs import PackagesMissingError, Programs
from simulator import SimHandle, data_center, free_ports

KEPT = Path(__file__).parents[1] / ".lab" / "slurm-packages"
ACCOUNT = {"username": "dflare", "password": "scheduler-of-tests"}
PATIENCE_S = 90.0
SYSTEM = "/redfish/v1/Systems/System.Embedded.1"
CD = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD"


def slurm_packages() -> Path | None:
    """The root of unpacked packages, which ``DFLARE_SLURM_PACKAGES`` names or ``make test-lab``
    left; None without."""
    named = os.environ.get("DFLARE_SLURM_PACKAGES", "off")
    root = (KEPT if named == "off" else Path(named)) / "root"
    try:
        Programs.find(root)
    except PackagesMissingError:
        return None
    return root


def packages_or_skip() -> Path:
    """The root of unpacked packages; a test that has none is skipped."""
    packages = slurm_packages()
    if packages is None:
        pytest.skip("no Slurm packages; make test-lab gets them, or name DFLARE_SLURM_PACKAGES")
    return packages


def data_center_with_scheduler(nodes: int, network: str) -> dict[str, Any]:
    """A simulator's file with a scheduler host."""
    (port,) = free_ports(1)
    return data_center(
        nodes,
        network=network,
        scheduler_port=port,
        scheduler_credentials=ACCOUNT,
        scheduler={"name": "head-0", "address": f"{network}.252.1"},
    )


def slots(count: int, pool: str = "gpu", **more: Any) -> list[dict[str, Any]]:
    """Slots of one pool, on leaves of four."""
    return [
        {
            "name": f"{pool}-{number}",
            "partition": pool,
            "cpus": 64,
            "memory_mib": 1_000_000,
            "gpus": 8,
            "gpu_type": "h100",
            "switch": f"leaf-{number // 4}",
        }
        | more
        for number in range(count)
    ]


def wish(name: str, key: bytes, count: int = 2, **more: Any) -> dict[str, Any]:
    """The body of a PUT."""
    return {
        "name": name,
        "munge_key": base64.b64encode(key).decode(),
        "slots": slots(count),
        "mounts": [],
        "account": "my-project",
    } | more


def vendor_data(cluster_id: str, slot: str, key: bytes) -> str:
    """What cloud-init finds on the disk of a node."""
    controller = f"{cluster_id.replace('_', '-')}.scheduler.internal:6817"
    return (
        "#cloud-config\n"
        "write_files:\n"
        "- path: /etc/munge/munge.key\n"
        "  encoding: b64\n"
        "  permissions: '0400'\n"
        f"  content: {base64.b64encode(key).decode()}\n"
        "- path: /etc/default/slurmd\n"
        f'  content: SLURMD_OPTIONS="-N {slot} --conf-server {controller}"\n'
        "runcmd:\n"
        "- [systemctl, enable, --now, munge, slurmd]\n"
    )


@dataclass
class SchedulerHost:
    """A client of the API."""

    sim: SimHandle
    http: httpx.AsyncClient

    @classmethod
    def of(cls, sim: SimHandle, **options: Any) -> "SchedulerHost":
        """A client that is logged in."""
        scheduler = sim.config.scheduler
        assert scheduler is not None
        context = ssl.create_default_context(cafile=str(sim.ca_file))
        return cls(
            sim,
            httpx.AsyncClient(
                base_url=f"https://{scheduler.address}:{sim.config.scheduler_port}",
                verify=context,
                timeout=60,
                **({"auth": (ACCOUNT["username"], ACCOUNT["password"])} | options),
            ),
        )

    async def until_able(self) -> dict[str, Any]:
        """Waits until clusters can be run, or cannot for good; returns what it says."""

        async def told() -> bool:
            return (await self._status())["state"] != "preparing"

        await until(told)
        return await self._status()

    async def put(self, cluster_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Asks for a cluster."""
        answer = await self.http.put(f"/v1/clusters/{cluster_id}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def get(self, cluster_id: str) -> dict[str, Any] | None:
        """The cluster; None when nothing is left of it."""
        answer = await self.http.get(f"/v1/clusters/{cluster_id}")
        return None if answer.status_code == 404 else answer.raise_for_status().json()

    async def until_ready(self, cluster_id: str) -> None:
        """Waits for the controllers."""

        async def ready() -> bool:
            found = await self.get(cluster_id)
            assert found is not None
            assert found["state"] != "failed", found["reason"]
            return found["state"] == "ready"

        await until(ready)

    async def until_node(self, cluster_id: str, slot: str, **wanted: Any) -> dict[str, Any]:
        """Waits until the node has these values; a state is met by its first word."""
        found: dict[str, Any] = {}

        async def as_wanted() -> bool:
            nonlocal found
            cluster = await self.get(cluster_id)
            found = (cluster or {}).get("nodes", {}).get(slot, {})
            return bool(found) and all(
                str(found[key]).startswith(str(value)) for key, value in wanted.items()
            )

        await until(as_wanted, lambda: str(found))
        return found

    async def run(
        self, cluster_id: str, argv: Sequence[str], stdin: str = "", **more: Any
    ) -> dict[str, Any]:
        """Runs a client program; returns its exit code and what it wrote."""
        body = {"argv": list(argv), "stdin": base64.b64encode(stdin.encode()).decode(), **more}
        answer = await self.http.post(f"/v1/clusters/{cluster_id}/run", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def job(self, cluster_id: str, script: str) -> str:
        """What a shell script prints as a job, its errors included."""
        done = await self.run(cluster_id, ["srun", "-N1", "sh", "-c", f"exec 2>&1; {script}"])
        return done["stdout"] + done["stderr"]

    async def remove(self, cluster_id: str) -> None:
        """Removes a cluster and waits until nothing is left of it."""
        answer = await self.http.delete(f"/v1/clusters/{cluster_id}")
        assert answer.status_code == 202, answer.text

        async def gone() -> bool:
            return await self.get(cluster_id) is None

        await until(gone)

    async def _status(self) -> dict[str, Any]:
        return (await self.http.get("/v1/status")).raise_for_status().json()["slurm"]


async def until(holds: Callable[[], Awaitable[bool]], said: Callable[[], str] = lambda: "") -> None:
    """Waits until the condition holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not await holds():
        assert loop.time() < deadline, f"not within {PATIENCE_S:.0f} s: {said()}"
        await asyncio.sleep(0.1)


async def provision(sim: SimHandle, platform: AgentPlatform, host: str, data: str) -> None:
    """Writes a tenant's system with these vendor data to a host's disk and boots it."""
    async with sim.bmc(host) as bmc:

        async def sent(path: str, body: dict[str, Any]) -> None:
            (await bmc.post(path, json=body)).raise_for_status()

        await _off(sim, bmc, host)
        iso = {"Image": platform.iso_url(host)}
        await sent(f"{CD}/Actions/VirtualMedia.InsertMedia", iso)
        once = {"BootSourceOverrideTarget": "Cd", "BootSourceOverrideEnabled": "Once"}
        (await bmc.patch(SYSTEM, json={"Boot": once})).raise_for_status()
        await sent(f"{SYSTEM}/Actions/ComputerSystem.Reset", {"ResetType": "On"})
        await sim.until(host, system="agent")
        drive = {"ssh_keys": ["ssh-ed25519 AAAA tenant"], "vendor_data": data}
        task = platform.write_image(host, "", config_drive=drive)
        report = await platform.finished(task)
        assert report["state"] == "succeeded", report
        await sent(f"{CD}/Actions/VirtualMedia.EjectMedia", {})
        await sent(f"{SYSTEM}/Actions/ComputerSystem.Reset", {"ResetType": "ForceRestart"})
        await sim.until(host, system="tenant")


async def reset(sim: SimHandle, host: str, kind: str) -> None:
    """Resets a host by its BMC."""
    async with sim.bmc(host) as bmc:
        path = f"{SYSTEM}/Actions/ComputerSystem.Reset"
        (await bmc.post(path, json={"ResetType": kind})).raise_for_status()


async def _off(sim: SimHandle, bmc: httpx.AsyncClient, host: str) -> None:
    if (await sim.truth(host))["power"] != "Off":
        body = {"ResetType": "ForceOff"}
        path = f"{SYSTEM}/Actions/ComputerSystem.Reset"
        (await bmc.post(path, json=body)).raise_for_status()
        await sim.until(host, power="Off")
    media = (await bmc.get(CD)).json()
    if media.get("Inserted"):
        (await bmc.post(f"{CD}/Actions/VirtualMedia.EjectMedia", json={})).raise_for_status()
