"""From an order of 16 nodes to its first finished job on 128 GPUs, hardware time 0, against the
same Slurm alone on the same machine, by turns in one run; the memory that a cluster takes; and a
cluster that grows from 16 nodes to 64, against 48 more slurmd of Slurm alone.

Needs Slurm's packages: ``make test-lab`` gets them, or ``DFLARE_SLURM_PACKAGES`` names them.
"""

import asyncio
import os
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil

from bench.orders import ended, enrol
from bench.report import seconds, table
from dflare.drivers.scheduler.port import HostAccess
from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_host import SlurmHost
from dflare.sim.slurm.cluster import ClusterFacts, ClusterNamespace
from dflare.sim.slurm.configuration import Host
from running_platform import PlatformHandle, Tenant, running_platform
from scheduler_host import slurm_packages
from site_files import PlatformWish

NODES, GPUS, TURNS = 16, 8, int(os.environ.get("BENCH_TURNS", "3"))
GROWN = 64
SCRIPT = b"#!/bin/sh\nsrun --ntasks-per-node=1 hostname\n"
SUBMIT = ("sbatch", "--parsable", f"--nodes={NODES}", f"--gres=gpu:{GPUS}")
PATIENCE_S, LOOK_S = 180.0, 0.05

Run = Callable[[Sequence[str], bytes], Awaitable[str]]
"""Runs a client program of Slurm with this input; returns what it printed."""


def run() -> None:
    """Print the tables."""
    asyncio.run(_run())


async def _run() -> None:
    packages = slurm_packages()
    if packages is None:
        raise SystemExit("no Slurm packages: make test-lab gets them")
    alone: list[float] = []
    ordered: list[tuple[float, float]] = []
    memory: list[float] = []
    grown: list[tuple[float, float]] = []
    environment = {"DFLARE_SLURM_PACKAGES": str(packages.parent)}
    wish = PlatformWish(nodes=GROWN, environment=environment)
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(running_platform(wish))
        await enrol(platform)
        host = _host(platform, stack)
        tenant = await platform.tenant("bench", {"h100-8": GROWN})
        for turn in range(TURNS):
            took_s, mib, alone_s = await _alone(packages)
            alone.append(took_s)
            memory.append(mib)
            order_s, job_s, grown_s = await _ordered(platform, tenant, host, f"turn-{turn}")
            ordered.append((order_s, job_s))
            grown.append((alone_s, grown_s))
    print(_times(alone, ordered))
    print(_growth(grown))
    print(table("Memory of one cluster, 16 slurmd (PSS)", ["least", "most"], [_ends(memory)]))


def _times(alone: Sequence[float], ordered: Sequence[tuple[float, float]]) -> str:
    rows: list[list[object]] = []
    for turn, (raw_s, (order_s, job_s)) in enumerate(zip(alone, ordered, strict=True), 1):
        aim = "yes" if order_s + job_s < 2 * raw_s + 5 else "no"
        rows.append(
            [turn, seconds(raw_s), seconds(order_s), seconds(job_s), seconds(order_s + job_s), aim]
        )
    header = ["turn", "Slurm alone", "order", "job", "order to finished job", "below 2x + 5 s"]
    return table(f"First finished {NODES * GPUS}-GPU job, hardware time 0", header, rows)


def _growth(grown: Sequence[tuple[float, float]]) -> str:
    rows: list[list[object]] = [
        [turn, seconds(alone_s), seconds(grown_s)]
        for turn, (alone_s, grown_s) in enumerate(grown, 1)
    ]
    title = f"From {NODES} nodes to {GROWN} that take work, hardware time 0"
    return table(title, ["turn", f"{GROWN - NODES} slurmd of Slurm alone", "growth"], rows)


def _ends(values: Sequence[float]) -> list[object]:
    return [f"{min(values):.0f} MiB", f"{max(values):.0f} MiB"]


def _host(platform: PlatformHandle, stack: AsyncExitStack) -> SlurmHost:
    (declared,) = platform.document.scheduler_hosts
    account = platform.document.credentials[declared.credentials_ref]
    assert account.password is not None
    password = account.password.get_secret_value()
    rest = HostRest(ca_file=str(platform.layout.device_ca_file), timeout_s=30)
    stack.push_async_callback(rest.close)
    return SlurmHost(rest, HostAccess(declared.name, declared.address, account.username, password))


async def _alone(packages: Path) -> tuple[float, float, float]:
    """Seconds from nothing to the finished job, MiB of the cluster then, and seconds of growth."""
    hosts = tuple(Host(f"gpu-{n}", leaf=f"leaf-{n // 8}") for n in range(GROWN))
    with tempfile.TemporaryDirectory(prefix="dflare-bench-", ignore_cleanup_errors=True) as base:
        cluster = ClusterNamespace(Path(base, "alone"), packages, ClusterFacts("alone", hosts))

        async def client(argv: Sequence[str], stdin: bytes) -> str:
            return (await cluster.run(argv, stdin=stdin)).stdout

        began = time.perf_counter()
        try:
            await cluster.start()
            await asyncio.gather(*(cluster.start_node(host.name) for host in hosts[:NODES]))
            await _finished(client)
            took_s, mib = time.perf_counter() - began, _pss_mib(await cluster.pid())
            began = time.perf_counter()
            await asyncio.gather(*(cluster.start_node(host.name) for host in hosts[NODES:]))
            await _registered(client, GROWN)
            return took_s, mib, time.perf_counter() - began
        finally:
            await cluster.destroy()


async def _ordered(
    platform: PlatformHandle, tenant: Tenant, host: SlurmHost, name: str
) -> tuple[float, float, float]:
    """Seconds of the order, as its tenant waits for it, of the job, and of a growth."""
    path = f"/v1/projects/{tenant.project_id}/clusters"
    pool = {"name": "gpu", "node_type": "h100-8", "count": NODES}
    body: dict[str, Any] = {"name": name, "kind": "slurm", "pools": [pool]}

    async def admitted() -> bool:
        quote = await tenant.http.post(path, json=body, params={"dry_run": True})
        return quote.status_code == 200

    await _until(admitted)
    began = time.perf_counter()
    answer = await tenant.http.post(path, json=body)
    answer.raise_for_status()
    operation = answer.json()
    await platform.wait(operation, deadline_s=PATIENCE_S)
    order_s = time.perf_counter() - began

    async def client(argv: Sequence[str], stdin: bytes) -> str:
        return (await host.run(operation["resource_id"], argv, stdin=stdin)).stdout

    await _finished(client)
    job_s = time.perf_counter() - began - order_s
    began = time.perf_counter()
    answer = await tenant.http.patch(f"{path}/{name}/pools/gpu", json={"count": GROWN})
    answer.raise_for_status()
    await platform.wait(answer.json(), deadline_s=PATIENCE_S)
    await _registered(client, GROWN)
    grown_s = time.perf_counter() - began
    await ended(platform, await platform.release(tenant, name))
    await platform.until_available(GROWN)
    return order_s, job_s, grown_s


async def _finished(client: Run) -> None:
    """Queue the job, and wait until Slurm has it as completed."""
    # A node that has not registered would let the job wait for the scheduler's next look.
    await _registered(client, NODES)
    job = (await client(SUBMIT, SCRIPT)).strip()

    async def completed() -> bool:
        shown = await client(["scontrol", "--oneliner", "show", "job", job], b"")
        state = re.search(r"JobState=(\w+)", shown)
        if state and state[1] in {"FAILED", "CANCELLED", "NODE_FAIL"}:
            raise SystemExit(f"the job ended as {state[1]}")
        return state is not None and state[1] == "COMPLETED"

    await _until(completed)


async def _registered(client: Run, count: int) -> None:
    """Wait until so many nodes take work."""

    async def registered() -> bool:
        return await _idle(client) == count

    await _until(registered)


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await true():
                return
            await asyncio.sleep(LOOK_S)


async def _idle(client: Run) -> int:
    shown = await client(["sinfo", "--noheader", "--states=idle", "--format=%D"], b"")
    return sum(int(line) for line in shown.split() if line.isdigit())


def _pss_mib(pid: int | None) -> float:
    """What process 1 of a cluster and all below it take, shared pages by their shares."""
    assert pid is not None, "the cluster runs"
    first = psutil.Process(pid)
    return sum(_pss(one) for one in (first, *first.children(recursive=True))) / 2**20


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
