"""Start to the first answer, memory of each process, and enrolment of the 1,213-node fleet."""

import asyncio
import time

import psutil

from bench.orders import enrol
from bench.report import seconds, table
from dflare.embedded.state import read_state
from running_platform import PlatformHandle, running_platform
from site_files import PlatformWish, import_whole_fleet

FLEET_NODES = 1_213


def memory_mib(platform: PlatformHandle) -> dict[str, float]:
    """Proportional memory of each component with its children, in MiB."""
    used: dict[str, float] = {}
    for component in read_state(platform.layout.state_file).components:
        if component.process is None:
            continue
        root = psutil.Process(component.process.pid)
        members = [root, *root.children(recursive=True)]
        used[component.name] = sum(m.memory_full_info().pss for m in members) / 2**20
    return used


async def _measure(wish: PlatformWish, nodes: int) -> tuple[float, float, dict[str, float]]:
    began = time.perf_counter()
    async with running_platform(wish) as platform:
        up_s = time.perf_counter() - began
        applied = time.perf_counter()
        await enrol(platform)
        await platform.until_available(nodes)
        enrolled_s = time.perf_counter() - applied
        memory = await asyncio.to_thread(memory_mib, platform)
    return up_s, enrolled_s, memory


def run() -> None:
    """Print the tables."""
    asyncio.run(_run())


async def _run() -> None:
    small = await _measure(PlatformWish(nodes=64), 64)
    large = await _measure(PlatformWish(prepare=import_whole_fleet), FLEET_NODES)
    print(
        table(
            "Start to the first answered request, and enrolment over TLS",
            ["site", "start (import of the fleet included)", "apply to all available"],
            [
                ["64 nodes, hardware time 0", seconds(small[0]), seconds(small[1])],
                ["1,213 nodes, speed 300", seconds(large[0]), seconds(large[1])],
            ],
        )
    )
    rows: list[list[object]] = [
        [name, f"{small[2].get(name, 0):.0f} MiB", f"{used:.0f} MiB"]
        for name, used in large[2].items()
    ]
    rows.append(
        ["**all**", f"{sum(small[2].values()):.0f} MiB", f"{sum(large[2].values()):.0f} MiB"]
    )
    print(table("Memory (PSS) after enrolment", ["process", "64 nodes", "1,213 nodes"], rows))
