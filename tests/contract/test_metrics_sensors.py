"""What every reader of sensors promises, here Redfish against a simulated BMC of each vendor."""

from collections import Counter
from collections.abc import AsyncIterator

import pytest

from dflare.drivers.bmc.port import (
    BmcAccess,
    BmcRefusedError,
    BmcUnreachableError,
    Power,
    SensorKind,
    SensorPart,
    SensorReading,
)
from dflare.drivers.bmc.redfish.driver import RedfishDriver
from simulator import BMC_PASSWORD, BMC_USER, SimHandle, data_center, simulator

VENDORS = ("dell", "hpe", "lenovo", "supermicro")


@pytest.fixture(scope="module")
async def sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    document = data_center(len(VENDORS), network="127.73")
    for node, vendor in zip(document["nodes"], VENDORS, strict=True):
        node["personality"] = vendor
    async with simulator(tmp_path_factory.mktemp("sensors"), document) as found:
        yield found


@pytest.fixture(scope="module")
async def driver(sim: SimHandle) -> AsyncIterator[RedfishDriver]:
    found = RedfishDriver(str(sim.ca_file))
    yield found
    await found.close()


def access(sim: SimHandle, vendor: str, password: str = BMC_PASSWORD) -> BmcAccess:
    node = sim.config.nodes[VENDORS.index(vendor)]
    return BmcAccess(f"{node.bmc_address}:{sim.config.bmc_port}", BMC_USER, password, vendor)


async def turn_on(sim: SimHandle, driver: RedfishDriver, vendor: str) -> None:
    name = f"n{VENDORS.index(vendor)}"
    await driver.boot(access(sim, vendor), None)
    await sim.until(name, power="On")


def of(readings: list[SensorReading], kind: SensorKind, part: SensorPart) -> list[float]:
    return [one.value for one in readings if (one.kind, one.part) == (kind, part)]


@pytest.mark.parametrize("vendor", VENDORS)
async def test_every_vendors_server_tells_its_power_its_heat_and_its_fans(
    sim: SimHandle, driver: RedfishDriver, vendor: str
) -> None:
    await turn_on(sim, driver, vendor)
    readings = await driver.sensors(access(sim, vendor))
    (watts,) = of(readings, SensorKind.WATTS, SensorPart.ENCLOSURE)
    assert 500 < watts < 1_500
    celsius = of(readings, SensorKind.CELSIUS, SensorPart.GPU)
    assert len(celsius) == 8
    assert all(20 < value < 60 for value in celsius)
    assert len(of(readings, SensorKind.CELSIUS, SensorPart.CPU)) == 2
    air = {one.location: one.value for one in readings if one.location}
    assert 20 < air["intake"] < air["exhaust"]
    turning = of(readings, SensorKind.RPM, SensorPart.FAN)
    parts = of(readings, SensorKind.RATIO, SensorPart.FAN)
    assert len(turning) + len(parts) == 6
    assert all(value > 1_000 for value in turning)
    assert all(0.1 < value <= 1 for value in parts)
    ids = Counter((one.id, one.kind) for one in readings)
    assert set(ids.values()) == {1}


async def test_a_part_without_power_measures_nothing(sim: SimHandle, driver: RedfishDriver) -> None:
    await driver.ensure_power(access(sim, "hpe"), Power.OFF)
    await sim.until("n1", power="Off")
    readings = await driver.sensors(access(sim, "hpe"))
    assert of(readings, SensorKind.CELSIUS, SensorPart.GPU) == []
    assert of(readings, SensorKind.WATTS, SensorPart.ENCLOSURE)[0] < 50


async def test_a_dead_accelerator_measures_nothing(sim: SimHandle, driver: RedfishDriver) -> None:
    await turn_on(sim, driver, "dell")
    await sim.fault("gpu_dead", "n0", params={"gpu": 2})
    try:
        readings = await driver.sensors(access(sim, "dell"))
    finally:
        await sim.control.delete("/faults")
    assert len(of(readings, SensorKind.CELSIUS, SensorPart.GPU)) == 7
    assert "GPU3Temp" not in {one.id for one in readings}


async def test_errors_say_whether_trying_again_may_help(
    sim: SimHandle, driver: RedfishDriver
) -> None:
    with pytest.raises(BmcRefusedError):
        await driver.sensors(access(sim, "lenovo", "wrong"))
    await sim.fault("bmc_unreachable", "n3")
    try:
        with pytest.raises(BmcUnreachableError):
            await driver.sensors(access(sim, "supermicro"))
    finally:
        await sim.control.delete("/faults")


async def test_reading_all_sensors_takes_two_calls_at_most(
    sim: SimHandle, driver: RedfishDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vendor in VENDORS:
        await driver.sensors(access(sim, vendor))
        asked: list[str] = []
        client = driver._client
        get = client.get

        async def counted(bmc: BmcAccess, path: str) -> object:
            asked.append(path)  # noqa: B023 - used within this turn of the loop
            return await get(bmc, path)  # noqa: B023

        monkeypatch.setattr(client, "get", counted)
        await driver.sensors(access(sim, vendor))
        monkeypatch.undo()
        assert len(asked) <= 2, (vendor, asked)
