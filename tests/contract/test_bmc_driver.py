"""What every driver of the BMC port promises, here the Redfish driver against the simulator."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from baremetal_site import simulated_site
from dflare.drivers.bmc.port import (
    BiosSetting,
    BmcAccess,
    BmcFaultError,
    BmcRefusedError,
    BmcUnreachableError,
    BootTarget,
    Power,
)
from dflare.drivers.bmc.redfish.bios import RegistryEntry, resolve
from dflare.drivers.bmc.redfish.driver import RedfishDriver
from dflare.kit.db import Database, OpenTransactionError
from dflare.kit.migrations import upgrade_all
from simulator import SimHandle, simulator

DOCUMENT, CONFIG = simulated_site(3)
NODE = DOCUMENT.nodes[0]
NAME = NODE.name
URL = "http://127.0.0.1:9/agent.iso"


@pytest.fixture(scope="module")
async def sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    async with simulator(tmp_path_factory.mktemp("bmc"), CONFIG) as found:
        yield found


@pytest.fixture(scope="module")
async def driver(sim: SimHandle) -> AsyncIterator[RedfishDriver]:
    found = RedfishDriver(str(sim.ca_file))
    yield found
    await found.close()


@pytest.fixture
def bmc() -> BmcAccess:
    account = DOCUMENT.credentials[NODE.bmc.credentials_ref]
    assert account.password is not None
    return BmcAccess(
        NODE.bmc.address, account.username, account.password.get_secret_value(), "dell"
    )


@pytest.fixture(autouse=True)
async def no_faults(sim: SimHandle) -> AsyncIterator[None]:
    yield
    await sim.control.delete("/faults")


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await look():
                return
            await asyncio.sleep(0.02)


async def test_inventory_shows_what_stands_in_the_server(
    driver: RedfishDriver, bmc: BmcAccess
) -> None:
    found = await driver.inventory(bmc)
    assert found.serial == NODE.serial
    assert found.gpus == 8
    assert found.macs == {port.mac for port in NODE.ethernet}
    assert found.guids == {port.guid for port in NODE.infiniband}
    assert found.document["drives"] == 2
    assert len(found.document["cpus"]) == 2


async def test_power_is_changed_once_and_seen(
    driver: RedfishDriver, bmc: BmcAccess, sim: SimHandle
) -> None:
    await driver.ensure_power(bmc, Power.ON)
    await _until(lambda: _power_is(driver, bmc, Power.ON))
    mark = await sim.mark()
    assert (await driver.ensure_power(bmc, Power.ON)).power is Power.ON
    await driver.ensure_power(bmc, Power.OFF)
    await _until(lambda: _power_is(driver, bmc, Power.OFF))
    await driver.ensure_power(bmc, Power.OFF)
    asked = await sim.log(kind="reset_asked", subject=NAME, after=mark)
    assert [entry["reset"] for entry in asked] == ["ForceOff"]


async def _power_is(driver: RedfishDriver, bmc: BmcAccess, wanted: Power) -> bool:
    return (await driver.observe(bmc)).power is wanted


async def test_boot_turns_a_server_on_that_was_off_and_resets_one_that_runs(
    driver: RedfishDriver, bmc: BmcAccess, sim: SimHandle
) -> None:
    await driver.ensure_power(bmc, Power.OFF)
    await _until(lambda: _power_is(driver, bmc, Power.OFF))
    await driver.boot(bmc, None)
    await _until(lambda: _power_is(driver, bmc, Power.ON))
    mark = await sim.mark()
    await driver.boot(bmc, None)
    asked = await sim.log(kind="reset_asked", subject=NAME, after=mark)
    assert [entry["reset"] for entry in asked] == ["ForceRestart"]


async def test_media_is_inserted_exchanged_and_ejected(
    driver: RedfishDriver, bmc: BmcAccess, sim: SimHandle
) -> None:
    before = None
    for url in (URL, URL, URL + "?2", None, None):
        assert await driver.ensure_media(bmc, url) == before
        before = url
        shown = (await sim.truth(NAME))["virtual_media"]
        assert list(shown.values()) == ([url] if url else [])


async def test_a_boot_goes_to_its_target_once(
    driver: RedfishDriver, bmc: BmcAccess, sim: SimHandle
) -> None:
    await driver.ensure_media(bmc, URL)
    mark = await sim.mark()
    await driver.boot(bmc, BootTarget.CD)
    await sim.until_logged("medium_unreadable", NAME, mark)
    mark = await sim.mark()
    await driver.boot(bmc, BootTarget.DISK)
    await sim.until_logged("restarted", NAME, mark)
    await driver.ensure_media(bmc, None)


async def test_bios_settings_wait_for_a_reset_and_are_then_in_force(
    driver: RedfishDriver, bmc: BmcAccess
) -> None:
    settings = frozenset(BiosSetting)
    first = await driver.ensure_bios(bmc, settings)
    assert (first.applied, first.staged) == (False, True)
    assert first.differing["SysProfile"] == ("PerfPerWattOptimizedDapc", "PerfOptimized")
    again = await driver.ensure_bios(bmc, settings)
    assert (again.applied, again.staged) == (False, False)
    await driver.boot(bmc, None)

    async def applied() -> bool:
        return (await driver.ensure_bios(bmc, settings)).applied

    await _until(applied)
    assert "SysProfile" in await driver.changed_bios(bmc)
    assert await driver.reset_bios(bmc)
    await driver.boot(bmc, None)

    async def default() -> bool:
        return await driver.changed_bios(bmc) == ()

    await _until(default)


async def test_errors_say_whether_another_try_may_help(
    driver: RedfishDriver, bmc: BmcAccess, sim: SimHandle
) -> None:
    await sim.fault("bmc_error_500", NAME, count=1)
    with pytest.raises(BmcFaultError) as fault:
        await driver.observe(bmc)
    assert fault.value.transient
    # A client may repeat a GET once by itself when a kept connection was dropped.
    await sim.fault("bmc_unreachable", NAME)
    with pytest.raises(BmcUnreachableError) as unreachable:
        await driver.observe(bmc)
    assert unreachable.value.transient
    await sim.control.delete("/faults")
    with pytest.raises(BmcRefusedError) as refused:
        await driver.observe(replace(bmc, password="wrong"))
    assert not refused.value.transient
    assert "wrong" not in str(refused.value)


async def test_a_bmc_with_a_certificate_of_nobody_is_not_talked_to(bmc: BmcAccess) -> None:
    stranger = RedfishDriver("")
    with pytest.raises(BmcUnreachableError):
        await stranger.observe(bmc)
    await stranger.close()


async def test_no_call_is_made_while_a_transaction_is_open(
    driver: RedfishDriver, bmc: BmcAccess, database_url: str
) -> None:
    await upgrade_all(database_url, {})
    database = Database(database_url, application="test")
    async with database.transaction("feed_reader"):
        with pytest.raises(OpenTransactionError):
            await driver.observe(bmc)
    await database.dispose()


@pytest.mark.parametrize(
    ("maker", "attributes", "offered", "wanted"),
    [
        (
            "Supermicro",
            {"PackageCState_00A1": "Auto", "SNC_0042": "Enable"},
            {"PackageCState_00A1": ("Auto", "C0/C1 state"), "SNC_0042": ("Enable", "Disable")},
            {"PackageCState_00A1": "C0/C1 state", "SNC_0042": "Disable"},
        ),
        (
            "HPE",
            {"PowerRegulator": "DynamicPowerSavings", "PciSlot1Aspm": "Auto", "PciSlot2Aspm": ""},
            {
                "PowerRegulator": ("DynamicPowerSavings", "StaticHighPerf"),
                "PciSlot1Aspm": ("Auto", "Disabled"),
                "PciSlot2Aspm": ("Auto", "Disabled"),
            },
            {
                "PowerRegulator": "StaticHighPerf",
                "PciSlot1Aspm": "Disabled",
                "PciSlot2Aspm": "Disabled",
            },
        ),
        (
            "Lenovo",
            {"OperatingModes_ChooseOperatingMode": "CustomMode", "Power_ASPM": "Auto"},
            {"OperatingModes_ChooseOperatingMode": ("CustomMode", "MaximumPerformance")},
            {"OperatingModes_ChooseOperatingMode": "MaximumPerformance"},
        ),
    ],
)
def test_settings_find_a_vendors_names_and_only_values_that_its_registry_offers(
    maker: str,
    attributes: dict[str, str],
    offered: dict[str, tuple[str, ...]],
    wanted: dict[str, str],
) -> None:
    registry = {name: RegistryEntry(values) for name, values in offered.items()}
    found, unsupported = resolve(maker, frozenset(BiosSetting), attributes, registry)
    assert found == wanted
    assert BiosSetting.IOMMU_ON in unsupported
