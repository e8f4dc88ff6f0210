"""What measuring costs: reading the sensors of 1,213 BMCs, writing what they say, and a query
through the proxy beside the same one put to the store itself.

Needs Debian's victoria-metrics, which is unpacked without root where the machine can download it.
"""

import asyncio
import gc
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn

from bench.report import percentile, table
from dflare.drivers.bmc.port import BmcAccess, SensorReading
from dflare.drivers.bmc.redfish.driver import RedfishDriver
from dflare.embedded.stores import running_victoria
from dflare.kit.clock import SystemClock
from dflare.kit.series import SeriesStore
from dflare.services.metrics.domain import GPU_UTILIZATION, line
from dflare.services.metrics.reconciler import samples_of
from dflare.services.metrics.service import QueryService
from dflare.services.metrics.settings import MetricsSettings
from metrics_routes import query_application
from simulator import BMC_PASSWORD, BMC_USER, SimHandle, data_center, simulator
from stores import VICTORIA_PACKAGES
from tenancy import BLUE, MEMBER, RED, Tenancy

BMCS = 1_213
VENDORS = ("dell", "supermicro", "hpe", "lenovo")
SWEEPS = 4
AT_ONCE = 64
QUERIES = 300
TIMES = 40
"""Samples of each of the series that queries go over, 15 s apart."""
PATH = f"/v1/projects/{RED.id}/metrics/api/v1/query_range"
QUERY = f"avg by (node) ({GPU_UTILIZATION})"

Rows = list[tuple[object, ...]]


def run() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory(prefix="dflare-bench-") as folder,
        running_victoria(Path(folder), VICTORIA_PACKAGES) as url,
    ):
        print(asyncio.run(_run(Path(folder), url)))


async def _run(folder: Path, url: str) -> str:
    store = SeriesStore(url)
    try:
        rows = [*await _sweeps(folder, store), *await _queries(store)]
    finally:
        await store.close()
    return table("Measuring", ("what", "median", "worst", "more"), rows)


async def _sweeps(folder: Path, store: SeriesStore) -> Rows:
    """All BMCs read as the collector reads them, and what they say written in batches."""
    document = data_center(BMCS, network="127.79")
    for number, node in enumerate(document["nodes"]):
        node["personality"] = VENDORS[number % len(VENDORS)]
    async with simulator(folder / "sim", document) as sim:
        driver = RedfishDriver(str(sim.ca_file))
        process = psutil.Process()
        took: list[float] = []
        written: list[float] = []
        try:
            for _ in range(SWEEPS):
                gc.collect()
                spent, began = process.cpu_times().user, time.perf_counter()
                readings = await _sweep(sim, driver)
                took.append(time.perf_counter() - began)
                spent = process.cpu_times().user - spent
                lines = _lines(readings)
                began = time.perf_counter()
                for start in range(0, len(lines), 20_000):
                    await store.write(lines[start : start + 20_000])
                written.append(time.perf_counter() - began)
        finally:
            await driver.close()
    later = took[1:]
    count = sum(len(one) for one in readings)
    return [
        (f"first sweep of {BMCS} BMCs (paths, TLS)", f"{took[0]:.2f} s", "-", f"{AT_ONCE} at once"),
        (
            f"a later sweep of {BMCS} BMCs",
            f"{statistics.median(later):.2f} s",
            f"{max(later):.2f} s",
            f"{count} readings, {spent:.1f} s of CPU in the reader",
        ),
        (
            f"writing {len(lines)} samples of a sweep",
            f"{statistics.median(written):.2f} s",
            f"{max(written):.2f} s",
            "-",
        ),
    ]


async def _sweep(sim: SimHandle, driver: RedfishDriver) -> list[list[SensorReading]]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def read(address: str, vendor: str) -> list[SensorReading]:
        async with slots:
            where = f"{address}:{sim.config.bmc_port}"
            return await driver.sensors(BmcAccess(where, BMC_USER, BMC_PASSWORD, vendor))

    return await asyncio.gather(
        *(read(node.bmc_address, str(node.personality)) for node in sim.config.nodes)
    )


def _lines(readings: Sequence[Sequence[SensorReading]]) -> list[str]:
    at_ms = round(time.time() * 1000)
    return [
        line(sample.name, {**sample.labels, "node": f"n{number}", "site": "s"}, sample.value, at_ms)
        for number, one in enumerate(readings)
        for sample in samples_of(one)
    ]


async def _queries(store: SeriesStore) -> Rows:
    """The same question by the proxy and by the store, alternately, over 64 of 1,213 nodes."""
    now = int(time.time())
    lines = [
        line(GPU_UTILIZATION, _labels(number, gpu), 0.5, (now - 15 * age) * 1000)
        for age in range(TIMES)
        for number in range(BMCS)
        for gpu in range(8)
    ]
    for start in range(0, len(lines), 20_000):
        await store.write(lines[start : start + 20_000])
    question = {"query": QUERY, "start": now - 600, "end": now - 60, "step": "15s"}
    tenancy = Tenancy()
    app = query_application(tenancy, QueryService(store, SystemClock(), tenancy, MetricsSettings()))
    raw: list[float] = []
    proxied: list[float] = []
    fenced = {**question, "extra_label": [f"project={RED.id}"], "nocache": "1"}
    async with _served(app) as base, httpx.AsyncClient() as client:
        headers = {"Authorization": f"Bearer {MEMBER.subject}"}
        address = store.address
        for _ in range(QUERIES):
            raw.append(await _timed(client, address + "/api/v1/query_range", fenced, {}))
            proxied.append(await _timed(client, base + PATH, question, headers))
    rows: Rows = []
    for name, times in (("the store itself", raw), ("through the proxy", proxied)):
        rows.append(
            (
                f"query of 64 nodes over 9 minutes, {name}",
                f"{1000 * statistics.median(times):.1f} ms",
                f"p99 {1000 * percentile(times, 0.99):.1f} ms",
                f"{len(lines)} samples in the store",
            )
        )
    return rows


def _labels(number: int, gpu: int) -> dict[str, str]:
    owner = RED if number < 64 else BLUE
    return {
        "node": f"q{number}",
        "site": "s",
        "hw_id": str(gpu),
        "project": owner.id,
        "organization": owner.organization_id,
    }


async def _timed(
    client: httpx.AsyncClient, url: str, question: dict[str, Any], headers: dict[str, str]
) -> float:
    began = time.perf_counter()
    answer = await client.post(url, data=question, headers=headers)
    took = time.perf_counter() - began
    if answer.status_code != 200 or len(answer.json()["data"]["result"]) != 64:
        sys.exit(f"{url} answered {answer.status_code}: {answer.text[:300]}")
    return took


@asynccontextmanager
async def _served(app: Any) -> AsyncGenerator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve([listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await running
