"""A small data center for tests of the fabric: its file, its fabric, and clients at the wire."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.types import ASGIApp

from dflare.sim.clock import SimClock
from dflare.sim.config import HardwareTimes, SimConfig
from dflare.sim.fabric import Fabric
from dflare.sim.faults import FaultPlan
from dflare.sim.truth import TruthLog

AUTH = ("admin", "secret")
ZERO = HardwareTimes(**dict.fromkeys(HardwareTimes.model_fields, 0.0))
BRIDGE = "br_default"


def fabric_config(
    leaves: int = 2,
    nodes_per_leaf: int = 3,
    rails: int = 2,
    uplinks: int = 2,
    times: HardwareTimes = ZERO,
    default_membership: str = "full",
) -> SimConfig:
    """``leaves`` switches named leaf0…, each with nodes n<leaf>-<i> on swp1…, then uplinks."""
    credentials = {"username": AUTH[0], "password": AUTH[1]}
    nodes: list[dict[str, Any]] = []
    for leaf in range(leaves):
        for i in range(nodes_per_leaf):
            number = leaf * nodes_per_leaf + i
            nodes.append(
                {
                    "name": f"n{leaf}-{i}",
                    "serial": f"S{number}",
                    "uuid": f"00000000-0000-0000-0000-{number:012d}",
                    "model": "test",
                    "bmc_address": f"127.30.{number // 250}.{number % 250 + 1}",
                    "cpu_cores": 8,
                    "memory_gib": 64,
                    "disks": [{"name": "nvme0n1", "size_gib": 100, "serial": f"D{number}"}],
                    "ethernet": [
                        {
                            "name": "eth0",
                            "mac": f"02:00:00:00:{number // 256:02x}:{number % 256:02x}",
                            "switch": f"leaf{leaf}",
                            "switch_port": f"swp{i + 1}",
                        }
                    ],
                    "infiniband": [
                        {
                            "name": f"mlx5_{rail}",
                            "guid": guid(number, rail),
                            "rail": rail,
                            "switch": f"ib{rail}",
                            "switch_port": str(number),
                        }
                        for rail in range(rails)
                    ],
                }
            )
    ports = [f"swp{p + 1}" for p in range(nodes_per_leaf + uplinks)]
    return SimConfig.model_validate(
        {
            "times": times.model_dump(),
            "speed": 600,
            "bmc_port": 8443,
            "nvue_port": 8765,
            "ufm_port": 443,
            "control_port": 9000,
            "bmc_credentials": credentials,
            "nvue_credentials": credentials,
            "ufm_credentials": credentials,
            "nodes": nodes,
            "switches": [
                {"name": f"leaf{n}", "address": f"127.31.0.{n + 1}", "role": "leaf", "ports": ports}
                for n in range(leaves)
            ],
            "ufm": {
                "name": "ufm1",
                "address": "127.32.0.1",
                "default_membership": default_membership,
            },
        }
    )


def guid(node: int, rail: int = 0) -> str:
    """The port GUID of rail ``rail`` of the node with that number."""
    return f"{0x0C42_A103_0000_0000 + node * 16 + rail:016x}"


@dataclass
class FabricSite:
    """A fabric with clients for its devices."""

    config: SimConfig
    fabric: Fabric
    clock: SimClock
    log: TruthLog
    faults: FaultPlan
    nvue_app: ASGIApp
    ufm: httpx.AsyncClient

    def nvue(self, leaf: int = 0) -> httpx.AsyncClient:
        """A client whose paths start below ``/nvue_v1`` of a leaf."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.nvue_app),
            base_url=f"https://127.31.0.{leaf + 1}:8765/nvue_v1",
            auth=AUTH,
        )

    async def configure(self, leaf: int, patch: dict[str, Any]) -> dict[str, Any]:
        """Apply ``patch`` to a leaf through the wire; returns the revision at its end."""
        async with self.nvue(leaf) as client:
            revision = await new_revision(client)
            await ok(client.patch("/", params={"rev": revision}, json=patch))
            await ok(client.patch(f"/revision/{revision}", json=APPLY))
            return await ended(client, revision)

    async def member(self, pkey: str, guids: Iterable[str], **more: object) -> httpx.Response:
        """Add ports to a partition through the wire."""
        body = {"pkey": pkey, "guids": list(guids), **more}
        return await self.ufm.post("/resources/pkeys", json=body)


APPLY = {"state": "apply", "auto-prompt": {"ays": "ays_yes"}}


@asynccontextmanager
async def fabric_site(
    config: SimConfig | None = None, speed: float = 600
) -> AsyncIterator[FabricSite]:
    """A running fabric, in this process and without sockets."""
    config = config or fabric_config()
    clock = SimClock(speed)
    log = TruthLog(None, clock)
    faults = FaultPlan(config.seed)
    fabric = Fabric(config, clock, log, faults)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(fabric.ufm_app()),
        base_url="https://127.32.0.1/ufmRest",
        auth=AUTH,
    ) as ufm:
        try:
            yield FabricSite(config, fabric, clock, log, faults, fabric.nvue_app(), ufm)
        finally:
            await fabric.stop()


async def ok(response: Any) -> Any:
    """The JSON of a response (awaited) that must be a success."""
    answer = await response
    assert answer.is_success, f"{answer.status_code}: {answer.text}"
    return answer.json() if answer.content else None


async def new_revision(client: httpx.AsyncClient) -> str:
    """The id of a fresh pending revision."""
    return next(iter(await ok(client.post("/revision"))))


async def ended(client: httpx.AsyncClient, revision: str) -> dict[str, Any]:
    """The revision once it is in one of its last states; at most 5,000 looks."""
    for _ in range(5000):
        document = await ok(client.get(f"/revision/{revision}"))
        if document["state"] in {"applied", "invalid", "ays_fail", "confirm_fail"}:
            return document
        await SimClock(600).sleep(1)
    raise AssertionError(f"revision {revision} never ended: {document}")


async def job_ended(site: FabricSite, response: httpx.Response) -> dict[str, Any]:
    """The job of a write once it runs no more; at most 5,000 looks."""
    path = response.headers["location"].removeprefix("/ufmRest")
    for _ in range(5000):
        job = await ok(site.ufm.get(path))
        if job["Status"] != "Running":
            return job
        await SimClock(600).sleep(1)
    raise AssertionError(f"{path} never ended")


def vlan_with_vni(vlan: int, vni: int) -> dict[str, Any]:
    """A root patch that maps ``vlan`` to ``vni``."""
    return {"bridge": {"domain": {BRIDGE: {"vlan": {str(vlan): {"vni": {str(vni): {}}}}}}}}


def access(vlan: int, *ports: str) -> dict[str, Any]:
    """A root patch that makes ``ports`` access members of ``vlan``."""
    body = {"bridge": {"domain": {BRIDGE: {"access": vlan}}}}
    return {"interface": dict.fromkeys(ports, body)}
