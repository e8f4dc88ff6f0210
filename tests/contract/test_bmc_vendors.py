"""The Redfish driver against every vendor's personality, and servers of every GPU maker.

The promises are those of the BMC port; what each vendor does its own way stands in the test that
shows that the driver minds it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address

import pytest

from dflare.drivers.bmc.port import BiosSetting, BmcAccess, BootTarget, GpuMaker, Inventory, Power
from dflare.drivers.bmc.redfish.driver import RedfishDriver
from dflare.services.baremetal.steps.enrol import compare
from dflare.services.baremetal.steps.profile import CPU_PROFILE, GPU_PROFILES, profile_of
from dflare.site.document import GpuVendor, Node, ServerVendor
from dflare.site.layout import LayoutOptions, SimPorts
from dflare.site.simulator_file import simulator_config
from dflare.site.synthetic import synthetic_site
from simulator import SimHandle, free_ports, simulator

VENDORS = (ServerVendor.DELL, ServerVendor.SUPERMICRO, ServerVendor.HPE, ServerVendor.LENOVO)
MAKERS = (GpuVendor.NVIDIA, GpuVendor.AMD, GpuVendor.INTEL)
PORTS = SimPorts(*free_ports(4))
SITE = synthetic_site(
    12,
    options=LayoutOptions(
        vendors=VENDORS,
        ports=PORTS,
        address_base=IPv4Address("127.150.0.0"),
    ),
    makers=MAKERS,
)
URL = "http://127.0.0.1:9/agent.iso"
WANTED = {
    ServerVendor.DELL: {
        "SysProfile": "PerfOptimized",
        "SubNumaCluster": "Disabled",
        "PcieAspmL1": "Disabled",
        "ProcVirtualization": "Enabled",
        "SriovGlobalEnable": "Enabled",
        "MmioAbove4Gb": "Enabled",
    },
    ServerVendor.SUPERMICRO: {
        "PowerTechnology_0071": "Disable",
        "PackageCState_0093": "C0/C1 state",
        "CPUC6Report_0094": "Disable",
        "SNC_00AE": "Disable",
        "NUMA_00A1": "Enabled",
        "PCIeASPMSupport_Global_00C4": "Disable",
        "IntelVTforDirectedI_O_VT_d__00C9": "Enable",
        "SR_IOVSupport_0103": "Enabled",
        "Above4GDecoding_0101": "Enabled",
    },
    ServerVendor.HPE: {
        "WorkloadProfile": "Custom",
        "PowerRegulator": "StaticHighPerf",
        "MinProcIdlePower": "NoCStates",
        "NumaMemoryDomainsPerSocket": "OneMemoryDomainPerSocket",
        "PciSlot1Aspm": "Disabled",
        "PciSlot2Aspm": "Disabled",
        "PciSlot3Aspm": "Disabled",
        "PciSlot4Aspm": "Disabled",
        "ProcAmdIoVt": "Enabled",
        "Sriov": "Enabled",
    },
    ServerVendor.LENOVO: {
        "OperatingModes_ChooseOperatingMode": "MaximumPerformance",
        "Processors_SNC": "Disable",
        "Power_ASPM": "Disable",
        "DevicesandIOPorts_IntelVTforDirectedIOVTd": "Enable",
    },
}


@pytest.fixture(scope="module")
async def sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    config = simulator_config(SITE, PORTS, speed=600, hardware_time="zero")
    async with simulator(tmp_path_factory.mktemp("vendors"), config) as found:
        yield found


@pytest.fixture(scope="module")
async def driver(sim: SimHandle) -> AsyncIterator[RedfishDriver]:
    found = RedfishDriver(str(sim.ca_file))
    yield found
    await found.close()


def _node(vendor: ServerVendor, maker: GpuVendor = GpuVendor.NVIDIA) -> Node:
    return next(
        node for node in SITE.nodes if SITE.vendor_of(node) is vendor and _maker_of(node) is maker
    )


def _maker_of(node: Node) -> GpuVendor:
    gpu = SITE.types_by_name[node.type].gpu
    assert gpu is not None
    return gpu.vendor


def _access(node: Node) -> BmcAccess:
    account = SITE.credentials[node.bmc.credentials_ref]
    assert account.password is not None
    password = account.password.get_secret_value()
    return BmcAccess(node.bmc.address, account.username, password, str(SITE.vendor_of(node)))


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await look():
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_inventory_shows_the_parts_whoever_made_server_and_gpus(
    driver: RedfishDriver, vendor: ServerVendor, maker: GpuVendor
) -> None:
    node = _node(vendor, maker)
    found = await driver.inventory(_access(node))
    assert found.serial == node.serial
    assert found.gpus == 8
    assert found.gpu_makers == {GpuMaker(str(maker))}
    assert found.macs == {port.mac for port in node.ethernet}
    assert found.guids == {port.guid for port in node.infiniband}
    assert found.document["drives"] == 2
    assert len(found.document["cpus"]) == 2
    gpu = SITE.types_by_name[node.type].gpu
    assert gpu is not None
    assert {shown["model"] for shown in found.document["gpus"]} == {gpu.model}


def _found(makers: frozenset[GpuMaker]) -> Inventory:
    return Inventory("S", "HPE", "XD685", 8, frozenset(), frozenset(), Power.OFF, {}, makers)


def test_a_server_with_another_makers_gpus_is_not_the_declared_one() -> None:
    declared: dict[str, object] = {"gpus": 8, "gpu_vendor": "amd"}
    assert compare("S", declared, _found(frozenset({GpuMaker.AMD}))) == []
    assert compare("S", declared, _found(frozenset())) == []
    (difference,) = compare("S", declared, _found(frozenset({GpuMaker.NVIDIA})))
    assert difference == "its GPUs are by nvidia, declared are GPUs by amd"


@pytest.mark.parametrize("vendor", VENDORS)
async def test_power_is_changed_once_and_asking_again_is_no_error(
    driver: RedfishDriver, sim: SimHandle, vendor: ServerVendor
) -> None:
    node = _node(vendor)
    bmc = _access(node)

    async def is_on() -> bool:
        return (await driver.observe(bmc)).power is Power.ON

    async def is_off() -> bool:
        return (await driver.observe(bmc)).power is Power.OFF

    mark = await sim.mark()
    await driver.ensure_power(bmc, Power.ON)
    await _until(is_on)
    await driver.ensure_power(bmc, Power.ON)
    await driver.ensure_power(bmc, Power.OFF)
    await _until(is_off)
    await driver.ensure_power(bmc, Power.OFF)
    asked = await sim.log(kind="reset_asked", subject=node.name, after=mark)
    assert [entry["reset"] for entry in asked] == ["On", "ForceOff"]


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_boot_goes_to_the_virtual_cd_once(
    driver: RedfishDriver, sim: SimHandle, vendor: ServerVendor
) -> None:
    node = _node(vendor)
    bmc = _access(node)
    before = None
    for url in (URL, URL, URL + "?2", None, None, URL):
        assert await driver.ensure_media(bmc, url) == before
        before = url
        shown = (await sim.truth(node.name))["virtual_media"]
        assert list(shown.values()) == ([url] if url else [])
    mark = await sim.mark()
    await driver.boot(bmc, BootTarget.CD)
    # There is nothing at the URL, and nothing on the disk that is tried after it.
    await sim.until_logged("boot_failed", node.name, mark)
    tried = await sim.log(kind="medium_unreadable", subject=node.name, after=mark)
    # By the override, and once more by the boot order.
    assert len(tried) == 2
    mark = await sim.mark()
    await driver.boot(bmc, None)
    await sim.until_logged("boot_failed", node.name, mark)
    assert len(await sim.log(kind="medium_unreadable", subject=node.name, after=mark)) == 1
    await driver.ensure_media(bmc, None)


@pytest.mark.parametrize("vendor", VENDORS)
async def test_the_profile_is_staged_applied_read_back_and_undone(
    driver: RedfishDriver, sim: SimHandle, vendor: ServerVendor
) -> None:
    node = _node(vendor, GpuVendor.AMD)
    bmc = _access(node)
    settings = GPU_PROFILES["amd"]
    first = await driver.ensure_bios(bmc, settings)
    assert (first.applied, first.staged) == (False, True)
    again = await driver.ensure_bios(bmc, settings)
    assert (again.applied, again.staged) == (False, False)
    await driver.boot(bmc, None)

    async def applied() -> bool:
        return (await driver.ensure_bios(bmc, settings)).applied

    await _until(applied)
    in_force = (await driver.ensure_bios(bmc, settings)).in_force
    assert dict(in_force) == WANTED[vendor]
    changed = (await sim.truth(node.name))["bios"]
    assert changed.items() <= WANTED[vendor].items()
    assert set(await driver.changed_bios(bmc)) == set(changed)
    assert await driver.reset_bios(bmc)
    await driver.boot(bmc, None)

    async def default() -> bool:
        return await driver.changed_bios(bmc) == ()

    await _until(default)
    assert (await sim.truth(node.name))["bios"] == {}


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_setting_without_an_attribute_is_named(
    driver: RedfishDriver, vendor: ServerVendor
) -> None:
    found = await driver.ensure_bios(_access(_node(vendor)), frozenset({BiosSetting.ABOVE_4G_ON}))
    without = (ServerVendor.HPE, ServerVendor.LENOVO)
    expected = (BiosSetting.ABOVE_4G_ON,) if vendor in without else ()
    assert found.unsupported == expected


def test_each_makers_gpus_have_a_profile_with_an_iommu() -> None:
    profiles = {m: profile_of({"gpus": 8, "gpu_vendor": m}) for m in ("nvidia", "amd", "intel")}
    assert all(BiosSetting.IOMMU_ON in profile for profile in profiles.values())
    assert profiles["amd"] - profiles["nvidia"] == {BiosSetting.SRIOV_ON, BiosSetting.ABOVE_4G_ON}
    assert profiles["intel"] - profiles["nvidia"] == {BiosSetting.ABOVE_4G_ON}
    assert profile_of({"gpus": 0, "gpu_vendor": None}) == CPU_PROFILE
    # Nodes that were declared before their GPUs' makers were kept.
    assert profile_of({"gpus": 8}) == profiles["nvidia"]
