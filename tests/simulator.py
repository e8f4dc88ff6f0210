"""Starts the real simulator process for tests, and describes small data centers for it.

async with simulator(folder, data_center(nodes=4)) as sim:
    await sim.control.get("/healthz")
"""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dflare.sim.config import HardwareTimes, SimConfig

START_DEADLINE_S = 60
BMC_USER, BMC_PASSWORD = "root", "calvin-of-tests"


@dataclass(frozen=True)
class SimHandle:
    """A running simulator. ``control`` is a client of its control API."""

    config: SimConfig
    control_url: str
    ca_file: Path
    log_file: Path
    pid: int
    control: httpx.AsyncClient

    def bmc_url(self, name: str) -> str:
        """The address of a host's BMC."""
        node = next(node for node in self.config.nodes if node.name == name)
        return f"https://{node.bmc_address}:{self.config.bmc_port}"

    def bmc(self, name: str, **options: Any) -> httpx.AsyncClient:
        """A client of a host's BMC, logged in by Basic authentication."""
        return httpx.AsyncClient(
            base_url=self.bmc_url(name),
            verify=ssl.create_default_context(cafile=str(self.ca_file)),
            timeout=30,
            **({"auth": (BMC_USER, BMC_PASSWORD)} | options),
        )

    async def truth(self, name: str) -> dict[str, Any]:
        """The ground truth of one host."""
        return (await self.control.get(f"/truth/hosts/{name}")).json()

    async def log(self, **query: str | int) -> list[dict[str, Any]]:
        """Entries of the ground-truth log."""
        return (await self.control.get("/truth/log", params=query)).json()["entries"]

    async def until_logged(self, kind: str, subject: str, after: int) -> None:
        """Wait until the log has an entry above ``after``, 30 seconds at most."""
        async with asyncio.timeout(30):
            while True:
                if await self.log(kind=kind, subject=subject, after=after):
                    return
                await asyncio.sleep(0.02)

    async def mark(self) -> int:
        """The present end of the log."""
        return (await self.control.post("/truth/marker", json={"text": "here"})).json()["seq"]

    async def fault(self, kind: str, target: str = "*", **more: Any) -> None:
        """Put a fault in force."""
        answer = await self.control.post("/faults", json={"kind": kind, "target": target, **more})
        answer.raise_for_status()

    async def until(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait until the ground truth of a host has these values, 30 seconds at most."""
        async with asyncio.timeout(30):
            while True:
                found = await self.truth(name)
                if all(found[key] == value for key, value in wanted.items()):
                    return found
                await asyncio.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """TCP ports that are free at every address."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for made in sockets:
            made.bind(("0.0.0.0", 0))
        return [made.getsockname()[1] for made in sockets]
    finally:
        for made in sockets:
            made.close()


def data_center(
    nodes: int = 2,
    *,
    gpus: int = 8,
    network: str = "127.77",
    speed: float = 600,
    zero_times: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """A simulator's file: hosts ``n0``, ``n1``, … on leaves ``leaf0``, …, free ports.

    Hosts have two drives, one Ethernet port and one InfiniBand port a GPU. ``more`` overrides keys
    of the file.
    """
    bmc, nvue, ufm, control = free_ports(4)
    switches = -(-nodes // 64)
    document: dict[str, Any] = {
        "speed": speed,
        "bmc_port": bmc,
        "nvue_port": nvue,
        "ufm_port": ufm,
        "control_port": control,
        "bmc_credentials": {"username": BMC_USER, "password": BMC_PASSWORD},
        "nvue_credentials": {"username": "cumulus", "password": "cumulus-of-tests"},
        "ufm_credentials": {"username": "admin", "password": "ufm-of-tests"},
        "nodes": [_node(number, gpus, network) for number in range(nodes)],
        "switches": [
            {
                "name": f"leaf{number}",
                "address": f"{network}.250.{number + 1}",
                "role": "leaf",
                "ports": [f"swp{port}" for port in range(1, 65)],
            }
            for number in range(switches)
        ],
        "ufm": {"name": "ufm", "address": f"{network}.251.1"},
    }
    if zero_times:
        document["times"] = dict.fromkeys(HardwareTimes.model_fields, 0)
    return document | more


@asynccontextmanager
async def simulator(
    folder: Path, document: dict[str, Any], arguments: Sequence[str] = ()
) -> AsyncIterator[SimHandle]:
    """Run the simulator on ``document``; its log, its CA and its output stand in ``folder``.
    ``arguments`` are further ones of the program.

    Raises:
        RuntimeError: it ended or did not get ready; the message holds its output.
    """
    process = _start(folder, document, arguments)
    try:
        announced = await _until_ready(process, folder)
        async with httpx.AsyncClient(base_url=announced["control_url"], timeout=30) as control:
            yield SimHandle(
                config=SimConfig.model_validate(document),
                control_url=announced["control_url"],
                ca_file=Path(announced["ca_file"]),
                log_file=folder / "truth.jsonl",
                pid=process.pid,
                control=control,
            )
    finally:
        await stop(process)


def _start(folder: Path, document: dict[str, Any], more: Sequence[str]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "sim.json"
    config_file.write_text(json.dumps(document))
    files = ["--log", folder / "truth.jsonl", "--ready-file", folder / "ready.json"]
    arguments = ["-m", "dflare.sim", "--config", config_file, *files, *more]
    with (folder / "sim.out").open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )


async def _until_ready(process: subprocess.Popen[bytes], folder: Path) -> dict[str, str]:
    deadline = asyncio.get_running_loop().time() + START_DEADLINE_S
    while asyncio.get_running_loop().time() < deadline:
        if (announced := _announced(folder)) is not None:
            return announced
        if process.poll() is not None:
            raise RuntimeError(f"the simulator ended: {_output(folder)}")
        await asyncio.sleep(0.02)
    raise RuntimeError(f"the simulator did not get ready: {_output(folder)}")


def _announced(folder: Path) -> dict[str, str] | None:
    ready = folder / "ready.json"
    return json.loads(ready.read_text()) if ready.exists() else None


def _output(folder: Path) -> str:
    return (folder / "sim.out").read_text()


async def stop(process: subprocess.Popen[bytes]) -> int:
    """End a process with SIGTERM, after 20 seconds with SIGKILL; returns its exit code."""
    process.terminate()
    try:
        return await asyncio.to_thread(process.wait, 20)
    except subprocess.TimeoutExpired:
        process.kill()
        return await asyncio.to_thread(process.wait)


def _node(number: int, gpus: int, network: str) -> dict[str, Any]:
    leaf, port = divmod(number, 64)
    return {
        "name": f"n{number}",
        "serial": f"SER{number:05d}",
        "uuid": f"4c4c4544-0000-4000-8000-{number:012x}",
        "model": "PowerEdge XE9680",
        "bmc_address": f"{network}.{number // 250}.{number % 250 + 1}",
        "cpu_cores": 96,
        "memory_gib": 2048,
        "gpus": [{"vendor": "nvidia", "model": "NVIDIA H100 80GB HBM3", "memory_gib": 80}] * gpus,
        "disks": [
            {"name": "nvme0n1", "size_gib": 960, "serial": f"PM{number:05d}A"},
            {"name": "nvme1n1", "size_gib": 3840, "serial": f"PM{number:05d}B"},
        ],
        "ethernet": [
            {
                "name": "eth0",
                "mac": f"02:00:00:00:{number // 256:02x}:{number % 256:02x}",
                "switch": f"leaf{leaf}",
                "switch_port": f"swp{port + 1}",
            }
        ],
        "infiniband": [
            {
                "name": f"ib{rail}",
                "guid": f"{0x0002C90300000000 + number * 16 + rail:016x}",
                "rail": rail,
                "switch": f"ib-leaf{rail}",
                "switch_port": f"{number + 1}",
            }
            for rail in range(gpus)
        ],
    }
