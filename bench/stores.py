"""From nothing to healthy with all stores, how long the stop takes, and memory by component."""

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from bench.report import seconds, table
from dflare.embedded import control
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.packages import VICTORIA_METRICS
from dflare.embedded.state import SupervisorState, read_state
from dflare.kit.objects import ObjectStore
from dflare.kit.settings import PlatformSettings
from stores import VICTORIA_PACKAGES

ROUNDS, NODES = 3, 64
SETTLE_S = 30.0
OBJECT_MIB, OBJECTS, SMALL, SMALL_BYTES = 16, 16, 200, 4096
AIM_START_S, AIM_MIB = 20.0, 3 * 1024


def run() -> None:
    """Print the tables."""
    os.environ.setdefault("DFLARE_SLURM_PACKAGES", "off")
    os.environ[VICTORIA_METRICS.switch_variable] = str(VICTORIA_PACKAGES.folder)
    VICTORIA_PACKAGES.prepare()
    directory = Path(tempfile.mkdtemp(prefix="dflare-bench-"))
    directory.chmod(0o755)
    layout = Layout(directory / "data")
    starts: list[list[object]] = []
    try:
        for number in range(ROUNDS):
            started = control.up(layout, UpOptions(nodes=NODES))
            if number == ROUNDS - 1:
                time.sleep(SETTLE_S)
                _print_memory(layout)
                print(asyncio.run(_objects(layout, started.state)))
            began = time.monotonic()
            control.down(layout)
            stop_s = time.monotonic() - began
            kind = "first" if number == 0 else "again"
            verdict = "yes" if started.took_s < AIM_START_S else "no"
            starts.append([kind, seconds(started.took_s), verdict, seconds(stop_s)])
    finally:
        control.down(layout)
        shutil.rmtree(directory, ignore_errors=True)
    header = ["start", "until healthy", f"below {AIM_START_S:.0f} s", "stop"]
    print(table(f"Start and stop with all stores, {NODES} nodes", header, starts))


def _print_memory(layout: Layout) -> None:
    """Proportional set sizes: a page that processes share counts once in the sum."""
    state = read_state(layout.state_file)
    assert state is not None
    sizes = {"supervisor": _pss_mib(state.supervisor.pid, alone=True)}
    for component in state.components:
        if component.process is not None:
            sizes[component.name] = _pss_mib(component.process.pid)
    total = sum(sizes.values())
    rows = [[name, f"{size:.0f}"] for name, size in sorted(sizes.items(), key=lambda i: -i[1])]
    verdict = "below" if total < AIM_MIB else "above"
    rows.append([f"**all** ({verdict} the aim of {AIM_MIB} MiB)", f"{total:.0f}"])
    print(table(f"Memory {SETTLE_S:.0f} s after a start", ["component", "MiB (PSS)"], rows))


def _pss_mib(pid: int, *, alone: bool = False) -> float:
    process = psutil.Process(pid)
    family = [process] if alone else [process, *process.children(recursive=True)]
    return sum(one.memory_full_info().pss for one in family) / 2**20


async def _objects(layout: Layout, state: SupervisorState) -> str:
    settings = PlatformSettings(
        postgres_url="",
        temporal_address="",
        secret_key_file="",
        s3_url=state.urls["s3"],
        s3_access_key="dflare",
        s3_secret_key_file=str(layout.s3_secret_key_file),
    )
    store = ObjectStore(settings)
    content, small = os.urandom(OBJECT_MIB * 2**20), os.urandom(SMALL_BYTES)
    began = time.monotonic()
    for number in range(OBJECTS):
        await store.put(f"bench/{number}", content)
    written_s, began = time.monotonic() - began, time.monotonic()
    for number in range(OBJECTS):
        async for _ in store.get(f"bench/{number}"):
            pass
    read_s = time.monotonic() - began
    times: list[float] = []
    for number in range(SMALL):
        began = time.monotonic()
        await store.put(f"bench/small/{number}", small)
        times.append(time.monotonic() - began)
    await store.close()
    mib = OBJECTS * OBJECT_MIB
    rows = [
        ["write", f"{OBJECTS} of {OBJECT_MIB} MiB", f"{mib / written_s:.0f} MiB/s"],
        ["read", f"{OBJECTS} of {OBJECT_MIB} MiB", f"{mib / read_s:.0f} MiB/s"],
        [
            "write, one after another",
            f"{SMALL} of {SMALL_BYTES // 1024} KiB",
            f"median {statistics.median(times) * 1000:.1f} ms",
        ],
    ]
    return table("Objects through the platform's client", ["what", "objects", "figure"], rows)
