"""Orders and releases of 16, 256 and 1,024 nodes by step, hardware time 0, and what reads meet
meanwhile: point reads at 200 a second from another process, and the gateway's loop lag."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx

from bench.report import percentile, seconds, table
from running_platform import FINAL, PlatformHandle, Tenant, running_platform
from site_files import PlatformWish

SIZES = tuple(int(size) for size in os.environ.get("BENCH_SIZES", "16,256,1024").split(","))
SITE_NODES = SIZES[-1] + 16
READS_PER_S = 200
ORDER_DEADLINE_S = 600
POLL_S = 0.25


def step_seconds(operation: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each step by its name."""
    return {
        step["name"]: (_time(step["finished_at"]) - _time(step["started_at"])).total_seconds()
        for step in operation["steps"]
        if step["finished_at"] and step["started_at"]
    }


def whole_seconds(operation: Mapping[str, Any]) -> float:
    """Seconds from the order's acceptance to its end."""
    return (_time(operation["finished_at"]) - _time(operation["created_at"])).total_seconds()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def step_table(title: str, operations: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> str:
    """One row a step, one column a size."""
    by_size = [step_seconds(operation) for operation in operations]
    rows: list[list[object]] = [
        [name, *(seconds(steps.get(name, 0)) for steps in by_size)] for name in by_size[-1]
    ]
    rows.append(["**all**", *(seconds(whole_seconds(operation)) for operation in operations)])
    return table(title, ["step", *(f"{size} nodes" for size in sizes)], rows)


async def _read_load(platform: PlatformHandle, tenant: Tenant) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.read_load",
        platform.url,
        tenant.token,
        f"/v1/projects/{tenant.project_id}/quotas",
        str(READS_PER_S),
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,
    )


async def _stop(load: asyncio.subprocess.Process) -> list[float]:
    out, _ = await load.communicate(b"stop\n")
    return json.loads(out)


async def _lag(platform: PlatformHandle) -> Mapping[str, float]:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{platform.url}/healthz")).json()["loop_lag"]


def run() -> None:
    """Print the tables."""
    asyncio.run(_run())


async def enrol(platform: PlatformHandle) -> None:
    """Apply the site by the program and wait for the operation, asking for nothing meanwhile."""
    done = await platform.cli(
        "site", "apply", str(platform.layout.site_file), "--wait", timeout_s=ORDER_DEADLINE_S
    )
    if done.exit_code != 0:
        raise SystemExit(done.err or done.out)


async def ended(platform: PlatformHandle, operation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The operation once it succeeded, asked for seldom enough not to be a load of its own."""
    deadline = time.monotonic() + ORDER_DEADLINE_S
    while time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
        seen = await platform.operation(operation["id"])
        if seen is not None and seen["state"] in FINAL:
            if seen["state"] != "succeeded":
                raise SystemExit(f"{seen['id']} is {seen['state']}: {seen['reason']}")
            return seen
    raise SystemExit(f"{operation['id']} did not end within {ORDER_DEADLINE_S} s")


async def _create(platform: PlatformHandle, tenant: Tenant, size: int) -> Mapping[str, Any]:
    return await ended(platform, await platform.order(tenant, f"n{size}", "h100-8", size))


async def _release(platform: PlatformHandle, tenant: Tenant, size: int) -> Mapping[str, Any]:
    return await ended(platform, await platform.release(tenant, f"n{size}"))


async def _run() -> None:
    async with running_platform(PlatformWish(nodes=SITE_NODES)) as platform:
        began = time.perf_counter()
        await enrol(platform)
        enrolled_s = time.perf_counter() - began
        tenant = await platform.tenant("bench", {"h100-8": SITE_NODES})
        created: list[Mapping[str, Any]] = []
        released: list[Mapping[str, Any]] = []
        for size in SIZES:
            created.append(await _create(platform, tenant, size))
            released.append(await _release(platform, tenant, size))
        load = await _read_load(platform, tenant)
        under_reads = await _create(platform, tenant, SIZES[-1])
        lag = await _lag(platform)
        reads = await _stop(load)
        print(step_table("Order of n bare nodes, hardware time 0", created, SIZES))
        print(step_table("Release of n bare nodes, hardware time 0", released, SIZES))
        print(
            table(
                f"Point reads at {READS_PER_S}/s while {SIZES[-1]} nodes are ordered",
                ["order", "reads", "p50", "p99", "max", "gateway loop lag p99", "loop lag max"],
                [
                    [
                        seconds(whole_seconds(under_reads)),
                        len(reads),
                        f"{percentile(reads, 0.5) * 1000:.1f} ms",
                        f"{percentile(reads, 0.99) * 1000:.1f} ms",
                        f"{max(reads) * 1000:.1f} ms",
                        f"{lag['p99_ms']} ms",
                        f"{lag['max_ms']} ms",
                    ]
                ],
            )
        )
        print(
            table(
                "Enrolment of a synthetic site, hardware time 0",
                ["BMCs", "from apply to all available"],
                [[SITE_NODES, seconds(enrolled_s)]],
            )
        )
