"""Measurements on their way in: who they are said to be of, and when."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette

from dflare.drivers.bmc.port import (
    BmcAccess,
    BmcUnreachableError,
    SensorKind,
    SensorPart,
    SensorReading,
)
from dflare.kit.clock import ManualClock, SystemClock
from dflare.kit.lease import Lease
from dflare.kit.seal import Sealer
from dflare.kit.series import SeriesStore, SeriesUnreachableError
from dflare.services.metrics import domain, service_ingest
from dflare.services.metrics.api_agent import MeasurementsApi, agent_token
from dflare.services.metrics.contract import BmcTarget
from dflare.services.metrics.domain import Sample
from dflare.services.metrics.reconciler import BmcCollector
from metrics_world import Scripted, World, metrics_world
from tenancy import BLUE, NOW, RED

GPU = Sample(domain.GPU_UTILIZATION, 0.5, {"hw_type": "gpu", "hw_id": "0"})
HOUR = timedelta(hours=1)


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    async with metrics_world(postgres_url, ManualClock(NOW), Scripted()) as made:
        await made.declare("n0", "n1")
        yield made


def scripted(world: World) -> Scripted:
    assert isinstance(world.store, Scripted)
    return world.store


async def written(world: World) -> list[str]:
    await world.ingest.flush()
    return scripted(world).written


async def test_a_measurement_is_of_who_has_the_node_at_that_time(world: World) -> None:
    clock = world.clock
    assert isinstance(clock, ManualClock)
    await world.hand_over("n0", RED, since=NOW + HOUR, until=NOW + 2 * HOUR)
    await world.hand_over("n0", BLUE, since=NOW + 3 * HOUR)
    owners: list[str] = []
    for _ in range(4):
        world.ingest.put("node_n0", [GPU])
        owners += [
            next((one.id for one in (RED, BLUE) if one.id in line), "")
            for line in (await written(world))[-1:]
        ]
        clock.at += HOUR + timedelta(seconds=1)
    assert owners == ["", RED.id, "", BLUE.id]


async def test_every_label_of_the_platform_stands_on_a_measurement(world: World) -> None:
    await world.hand_over("n0", RED, since=NOW - HOUR)
    world.ingest.put("node_n0", [GPU])
    at_ms = round(NOW.timestamp() * 1000)
    (line,) = await written(world)
    assert line == (
        'hw_gpu_utilization_ratio{cluster="train-red",hw_id="0",hw_type="gpu",node="n0",'
        f'organization="org_red",project="proj_red",site="demo",vendor="dell"}} 0.5 {at_ms}'
    )


async def test_what_nobody_knows_is_not_written(world: World) -> None:
    world.ingest.put("node_gone", [GPU])
    world.ingest.put("node_n0", [Sample("mine", 1), Sample(GPU.name, 1, {"project": BLUE.id})])
    assert await written(world) == []


async def test_a_store_that_is_away_gets_measurements_late_and_loses_only_too_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = scripted(world)
    store.away = SeriesUnreachableError("away")
    world.ingest.put("node_n0", [GPU])
    with pytest.raises(SeriesUnreachableError):
        await world.ingest.flush()
    monkeypatch.setattr(service_ingest, "MOST_WAITING", 2)
    world.ingest.put("node_n1", [GPU])
    world.ingest.put("node_n1", [GPU])
    assert world.ingest.lost == 1
    store.away = None
    assert len(await written(world)) == 2
    world.ingest.put("node_n1", [GPU])
    assert len(await written(world)) == 3


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(os.urandom(32))


@pytest.fixture
async def agent(world: World, sealer: Sealer) -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=MeasurementsApi(world.ingest, world.store, sealer).routes())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://agents") as client:
        yield client


async def send(agent: httpx.AsyncClient, token: str, text: str | bytes = "") -> int:
    headers = {b"Authorization": b"Bearer " + token.encode(), b"Content-Type": b"text/plain"}
    return (await agent.post("/v1/agent/metrics", content=text, headers=headers)).status_code


SAID = """
DCGM_FI_DEV_GPU_UTIL{gpu="0",project="proj_blue",node="n1"} 50
node_network_up{device="eth0"} 0
"""


async def test_a_system_speaks_for_the_node_of_its_token_whatever_it_says(
    world: World, agent: httpx.AsyncClient, sealer: Sealer
) -> None:
    await world.hand_over("n0", RED, since=NOW - HOUR)
    token = agent_token(sealer, "node_n0", "clu_proj_red")
    assert await send(agent, token, SAID) == 204
    lines = await written(world)
    assert len(lines) == 5
    assert all('node="n0"' in line and 'project="proj_red"' in line for line in lines)
    assert any(line.startswith("hw_gpu_count{") and 'state="seen"' in line for line in lines)


async def test_a_token_counts_from_the_hand_over_to_the_release(
    world: World, agent: httpx.AsyncClient, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dflare.services.metrics.api_agent.LEAST_PAUSE_S", 0)
    monkeypatch.setattr("dflare.services.metrics.api_agent.OWNERS_FOR_S", -1)
    token = agent_token(sealer, "node_n0", "clu_proj_red")
    assert await send(agent, token, SAID) == 425, "the node was not handed over yet"
    await world.hand_over("n0", RED, since=NOW - HOUR)
    assert await send(agent, token, SAID) == 204
    await world.hand_over("n0", RED, since=NOW - HOUR, until=NOW - timedelta(minutes=1))
    assert await send(agent, token, SAID) == 401
    await world.hand_over("n0", BLUE, since=NOW)
    assert await send(agent, token, SAID) == 401
    assert await send(agent, agent_token(sealer, "node_n0", "clu_proj_blue"), SAID) == 204


async def test_what_is_no_token_of_ours_is_refused(
    world: World, agent: httpx.AsyncClient, sealer: Sealer
) -> None:
    await world.hand_over("n0", RED, since=NOW - HOUR)
    good = agent_token(sealer, "node_n0", "clu_proj_red")
    forged = agent_token(Sealer(os.urandom(32)), "node_n0", "clu_proj_red")
    for token in ("", "x", "é", good[:-2], good + "AA", forged, "A" * 2_000):
        assert await send(agent, token, SAID) == 401, token
    assert (await agent.post("/v1/agent/metrics")).status_code == 401
    assert await written(world) == []


async def test_a_node_is_heard_once_a_second_and_a_megabyte_at_most(
    world: World, agent: httpx.AsyncClient, sealer: Sealer
) -> None:
    await world.hand_over("n0", RED, since=NOW - HOUR)
    await world.hand_over("n1", RED, since=NOW - HOUR)
    token = agent_token(sealer, "node_n0", "clu_proj_red")
    assert await send(agent, token, SAID) == 204
    assert await send(agent, token, SAID) == 429
    other = agent_token(sealer, "node_n1", "clu_proj_red")
    assert await send(agent, other, b"x" * ((1 << 20) + 1)) == 413


async def test_a_crowd_of_nodes_takes_one_connection_of_the_processs_at_a_time(
    world: World, agent: httpx.AsyncClient, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"crowd-{number}" for number in range(40)]
    await world.declare(*names)
    for name in names[::2]:
        await world.hand_over(name, RED, since=NOW - HOUR)
    world.ingest._nodes_at = float("-inf")
    held, most = 0, 0
    reading = world.database.reading

    @asynccontextmanager
    async def counted(schema: str) -> AsyncIterator[AsyncSession]:
        nonlocal held, most
        held += 1
        most = max(most, held)
        try:
            async with reading(schema) as session:
                yield session
        finally:
            held -= 1

    monkeypatch.setattr(world.database, "reading", counted)
    tokens = [agent_token(sealer, f"node_{name}", "clu_proj_red") for name in names]
    answers = await asyncio.gather(*(send(agent, token, SAID) for token in tokens))
    assert answers == [204, 425] * 20
    assert most == 1


class Sensors:
    """BMCs whose answers are known; ``gone`` ones do not answer."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.at_once = self.most = 0

    async def sensors(self, bmc: BmcAccess) -> list[SensorReading]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if bmc.address in self.gone:
            raise BmcUnreachableError("gone")
        return [
            SensorReading("Inlet", SensorKind.CELSIUS, SensorPart.ENCLOSURE, 23.5, "intake"),
            SensorReading("Total", SensorKind.WATTS, SensorPart.ENCLOSURE, 6_000.0),
            SensorReading("Fan1", SensorKind.RATIO, SensorPart.FAN, 0.4),
        ]


class Directory:
    def __init__(self, *names: str) -> None:
        self._targets = [BmcTarget(f"node_{name}", BmcAccess(name, "u", "p")) for name in names]

    async def targets(self) -> list[BmcTarget]:
        return self._targets


async def test_all_bmcs_are_read_so_many_at_a_time_and_one_that_is_gone_is_noted(
    world: World,
) -> None:
    names = [f"m{number}" for number in range(30)]
    await world.declare(*names)
    sensors = Sensors()
    sensors.gone = {"m3"}
    settings = world.settings.model_copy(update={"scrape_at_once": 4})
    lease = Lease(world.database, "metrics/bmc", "test")
    collector = BmcCollector(Directory(*names), sensors, world.ingest, settings, lease)
    assert await collector.sweep() == 29
    assert sensors.most == 4
    lines = await written(world)
    up = {line.split('node="')[1].split('"')[0]: line for line in lines if "dflare_bmc_up" in line}
    assert len(up) == 30
    assert " 0 " in up["m3"]
    assert all(" 1 " in line for name, line in up.items() if name != "m3")
    (inlet,) = [line for line in lines if 'node="m0"' in line and "hw_temperature" in line]
    assert 'sensor_location="intake"' in inlet
    assert " 23.5 " in inlet
    assert not any("project=" in line for line in lines)


async def test_what_is_written_is_found_in_the_store(postgres_url: str, victoria_url: str) -> None:
    store = SeriesStore(victoria_url)
    async with metrics_world(postgres_url, SystemClock(), store) as world:
        await world.declare("w0")
        await world.hand_over("w0", RED, since=datetime.now(UTC) - HOUR)
        names = [
            Sample(domain.POWER, float(number), {"hw_type": "gpu", "hw_id": str(number)})
            for number in range(3_000)
        ]
        world.ingest.put("node_w0", names)
        await world.ingest.flush()

        async def counted() -> float:
            found = await store.instant('count(hw_power_watts{node="w0",project="proj_red"})')
            return found[0].value if found else 0

        await until(counted, 3_000)


async def until(look: Callable[..., object], wanted: object) -> None:
    async with asyncio.timeout(60):
        while True:
            if await look() == wanted:  # pyright: ignore[reportGeneralTypeIssues]
                return
            await asyncio.sleep(0.1)


def test_the_time_of_a_sample_is_in_milliseconds() -> None:
    at_ms = round(time.time() * 1000)
    assert domain.line("a", {"b": "c"}, 1, at_ms).endswith(f" {at_ms}")
