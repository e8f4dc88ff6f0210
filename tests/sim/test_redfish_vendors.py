"""Every vendor's BMC on the wire: foreign clients work against it, and its quirks are those that
the vendor's file states, each with its source."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redfish
import redfish_utilities
import sushy
from redfish.rest.v1 import HttpClient

from agent_platform import AgentPlatform
from simulator import BMC_PASSWORD, BMC_USER, SimHandle, data_center, simulator

HOSTS = {"supermicro": "n0", "hpe": "n1", "lenovo": "n2"}
NEW_VENDORS = sorted(HOSTS)
SYSTEM = "/redfish/v1/Systems/1"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
BIOS = {"supermicro": f"{SYSTEM}/Bios", "hpe": f"{SYSTEM}/bios", "lenovo": f"{SYSTEM}/Bios"}
CD = {
    "supermicro": "/redfish/v1/Managers/1/VirtualMedia/VirtualMedia1",
    "hpe": "/redfish/v1/Managers/1/VirtualMedia/2",
    "lenovo": "/redfish/v1/Managers/1/VirtualMedia/EXT1",
}
ATTRIBUTE = {
    "supermicro": ("CPUC6Report_0094", "Auto", "Disable"),
    "hpe": ("ProcSMT", "Enabled", "Disabled"),
    "lenovo": ("Processors_HyperThreading", "Enable", "Disable"),
}
MANUFACTURER = {"supermicro": "Supermicro", "hpe": "HPE", "lenovo": "Lenovo"}


@pytest.fixture(scope="module")
async def sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    """A host of each vendor; the second one has AMD's GPUs, the third one Intel's."""
    document = data_center(3, network="127.79")
    for vendor, name in HOSTS.items():
        node = next(node for node in document["nodes"] if node["name"] == name)
        node["personality"] = vendor
    gpu = {"vendor": "amd", "model": "AMD Instinct MI300X", "memory_gib": 192}
    document["nodes"][1]["gpus"] = [gpu] * 8
    gaudi = {"vendor": "intel", "model": "Intel Gaudi 3", "memory_gib": 128}
    document["nodes"][2]["gpus"] = [gaudi] * 8
    async with simulator(tmp_path_factory.mktemp("vendors"), document) as handle:
        yield handle


@pytest.fixture(params=NEW_VENDORS)
def vendor(request: pytest.FixtureRequest) -> str:
    """Each vendor in turn."""
    return request.param


@pytest.fixture
async def host(sim: SimHandle, vendor: str) -> AsyncIterator[str]:
    """The vendor's host, off and with an empty drive and factory settings before and after."""
    name = HOSTS[vendor]
    yield name
    async with sim.bmc(name) as bmc:
        if (await sim.truth(name))["virtual_media"]:
            if vendor == "lenovo":
                await bmc.patch(CD[vendor], json={"Inserted": False})
            else:
                await bmc.post(f"{CD[vendor]}/Actions/VirtualMedia.EjectMedia", json={})
        document = (await bmc.get(BIOS[vendor])).json()
        await bmc.post(document["Actions"]["#Bios.ResetBios"]["target"], json={})
        if (await sim.truth(name))["power"] == "Off":
            await bmc.post(RESET, json={"ResetType": "On"})
        else:
            await bmc.post(RESET, json={"ResetType": "ForceRestart"})
        await sim.until(name, bios={}, bios_pending={})
        await bmc.post(RESET, json={"ResetType": "ForceOff"})
        await sim.until(name, power="Off")


@contextmanager
def dmtf_client(sim: SimHandle, name: str) -> Iterator[HttpClient]:
    """DMTF's client with a session."""
    client = redfish.redfish_client(
        base_url=sim.bmc_url(name),
        username=BMC_USER,
        password=BMC_PASSWORD,
        cafile=str(sim.ca_file),
        check_connectivity=False,
    )
    client.login(auth="session")
    try:
        yield client
    finally:
        client.logout()


@contextmanager
def sushy_system(sim: SimHandle, name: str) -> Iterator[sushy.resources.system.system.System]:
    """Sushy's view of the one system, with a session that ends with the view."""
    auth = sushy.auth.SessionAuth(BMC_USER, BMC_PASSWORD)
    root = sushy.Sushy(sim.bmc_url(name), auth=auth, verify=str(sim.ca_file))
    try:
        yield root.get_system()
    finally:
        auth.close()


def paths_in(value: Any) -> set[str]:
    """Every reference in a document."""
    if isinstance(value, list):
        return set().union(*map(paths_in, value)) if value else set()
    if isinstance(value, dict):
        found = {value["@odata.id"]} if isinstance(value.get("@odata.id"), str) else set()
        return found.union(*map(paths_in, value.values())) if value else found
    return set()


def first_id(answer: httpx.Response) -> str:
    """The id of the first message of an error body."""
    return answer.json()["error"]["@Message.ExtendedInfo"][0]["MessageId"]


async def test_every_linked_resource_of_each_vendor_exists(sim: SimHandle, vendor: str) -> None:
    seen: set[str] = set()
    waiting = {"/redfish/v1/"}
    async with sim.bmc(HOSTS[vendor]) as bmc:
        while waiting:
            path = waiting.pop()
            seen.add(path)
            answer = await bmc.get(path)
            assert answer.status_code == 200, path
            assert answer.json()["@odata.id"].rstrip("/") == path.rstrip("/")
            waiting |= {found.split("#")[0] for found in paths_in(answer.json())} - seen
    assert len(seen) > 150


async def test_sushy_reads_each_vendors_inventory(sim: SimHandle, vendor: str) -> None:
    def inventory() -> None:
        with sushy_system(sim, HOSTS[vendor]) as system:
            assert system.manufacturer == MANUFACTURER[vendor]
            kinds = [part.processor_type for part in system.processors.get_members()]
            assert kinds.count(sushy.PROCESSOR_TYPE_CPU) == 2
            assert kinds.count(sushy.PROCESSOR_TYPE_GPU) == (0 if vendor == "hpe" else 8)
            assert len(system.ethernet_interfaces.summary) == 1
            (storage,) = system.storage.get_members()
            assert len(storage.drives) == 2

    await asyncio.to_thread(inventory)


async def test_sushy_boots_the_agent_on_each_vendors_server(
    sim: SimHandle, platform: AgentPlatform, host: str
) -> None:
    def boot() -> None:
        with sushy_system(sim, host) as system:
            drives = system.managers[0].virtual_media.get_members()
            cd = next(d for d in drives if sushy.VIRTUAL_MEDIA_CD in d.media_types)
            cd.insert_media(platform.iso_url(host))
            system.set_system_boot_options(
                target=sushy.BootSource.CD, enabled=sushy.BootSourceOverrideEnabled.ONCE
            )
            system.reset_system(sushy.ResetType.ON)

    mark = await sim.mark()
    await asyncio.to_thread(boot)
    await sim.until_logged("system_started", host, mark)
    assert (await sim.truth(host))["system"] == "agent"

    def eject() -> None:
        with sushy_system(sim, host) as system:
            drives = system.managers[0].virtual_media.get_members()
            cd = next(d for d in drives if d.inserted)
            cd.eject_media()

    await asyncio.to_thread(eject)
    assert (await sim.truth(host))["virtual_media"] == {}


async def test_sushy_changes_each_vendors_bios_at_the_next_reset(
    sim: SimHandle, host: str, vendor: str
) -> None:
    name, before, after = ATTRIBUTE[vendor]

    def stage() -> None:
        with sushy_system(sim, host) as system:
            system.bios.set_attributes({name: after})
            assert system.bios.pending_attributes[name] == after
            assert system.bios.attributes[name] == before
            registry = system.bios.get_attribute_registry().registry_entries.attributes
            assert name in {entry.name for entry in registry}
            system.reset_system(sushy.ResetType.ON)

    await asyncio.to_thread(stage)
    await sim.until(host, bios_pending={}, bios={name: after})


async def test_redfish_utilities_drives_each_vendors_server(
    sim: SimHandle, platform: AgentPlatform, host: str, vendor: str
) -> None:
    name, before, after = ATTRIBUTE[vendor]
    url = platform.iso_url(host)

    def drive() -> None:
        with dmtf_client(sim, host) as client:
            (parts,) = redfish_utilities.get_system_inventory(client)
            assert len(parts["Drives"]) == 2
            assert len(parts["NetworkAdapters"]) == 9
            redfish_utilities.insert_virtual_media(client, url)
            drives = redfish_utilities.get_virtual_media(client)
            (used,) = [drive for drive in drives if drive["Inserted"]]
            redfish_utilities.eject_virtual_media(client, used["Id"])
            redfish_utilities.set_system_boot(client, ov_target="Cd", ov_enabled="Once")
            boot = redfish_utilities.get_system_boot(client)
            assert boot["BootSourceOverrideTarget"] == "Cd"
            redfish_utilities.set_system_boot(client, ov_target="None", ov_enabled="Disabled")
            redfish_utilities.set_system_bios(client, {name: after})
            current, future = redfish_utilities.get_system_bios(client)
            assert (current[name], future[name]) == (before, after)
            redfish_utilities.system_reset(client, reset_type="On")

    await asyncio.to_thread(drive)
    await sim.until(host, bios_pending={}, bios={name: after})


async def test_gpus_are_pcie_devices_by_their_makers_numbers(sim: SimHandle, vendor: str) -> None:
    wanted = {
        "supermicro": ("0x10de", "0x030200"),
        "hpe": ("0x1002", "0x120000"),
        "lenovo": ("0x1da3", "0x120000"),
    }[vendor]
    devices = "/redfish/v1/Chassis/1/PCIeDevices"
    shown: list[tuple[str, str]] = []
    async with sim.bmc(HOSTS[vendor]) as bmc:
        for member in (await bmc.get(devices)).json()["Members"]:
            functions = f"{member['@odata.id']}/PCIeFunctions"
            (only,) = (await bmc.get(functions)).json()["Members"]
            function = (await bmc.get(only["@odata.id"])).json()
            shown.append((function["VendorId"], function["ClassCode"]))
    # The console's adapter is one too, and no accelerator.
    assert sorted(shown) == sorted([wanted] * 8 + [("0x1a03", "0x030000")])


async def test_supermicro_wants_if_match_for_changes_and_offers_no_expand(sim: SimHandle) -> None:
    async with sim.bmc(HOSTS["supermicro"]) as bmc:
        refused = await bmc.patch(SYSTEM, json={"AssetTag": "x"})
        assert refused.status_code == 428
        etag = (await bmc.get(SYSTEM)).headers["ETag"]
        taken = await bmc.patch(SYSTEM, json={"AssetTag": "x"}, headers={"If-Match": etag})
        assert taken.status_code == 200
        old = await bmc.patch(SYSTEM, json={"AssetTag": "y"}, headers={"If-Match": etag})
        assert old.status_code == 412
        assert (await bmc.get(f"{SYSTEM}/Processors?$expand=.")).status_code == 501


async def test_supermicro_boots_its_virtual_cd_as_usb_cd_in_uefi_mode_only(
    sim: SimHandle, platform: AgentPlatform
) -> None:
    name = HOSTS["supermicro"]
    media = CD["supermicro"]
    insert = f"{media}/Actions/VirtualMedia.InsertMedia"
    overrides = {
        "Cd": {"BootSourceOverrideTarget": "Cd", "BootSourceOverrideMode": "UEFI"},
        "no mode": {"BootSourceOverrideTarget": "UsbCd"},
        "UsbCd": {"BootSourceOverrideTarget": "UsbCd", "BootSourceOverrideMode": "UEFI"},
    }
    started: dict[str, bool] = {}
    async with sim.bmc(name) as bmc:
        any_version = {"If-Match": "*"}
        whole = {"Image": platform.iso_url(name), "Inserted": True}
        assert (await bmc.post(insert, json=whole)).status_code == 400
        # An order without the virtual CD, so that the override alone leads there.
        order = {"Boot": {"BootOrder": ["0001"], "BootSourceOverrideMode": "UEFI"}}
        await bmc.patch(SYSTEM, json=order, headers=any_version)
        taken = await bmc.post(insert, json={"Image": platform.iso_url(name)})
        assert taken.json()["Success"]["code"].endswith("Success")
        for what, change in overrides.items():
            boot = {"Boot": {"BootSourceOverrideEnabled": "Once", **change}}
            mark = await sim.mark()
            await bmc.patch(SYSTEM, json=boot, headers=any_version)
            await bmc.post(RESET, json={"ResetType": "PowerCycle"})
            kind = (await bmc.get(SYSTEM)).json()["PowerState"]
            reset = "ForceRestart" if kind == "On" else "On"
            await bmc.post(RESET, json={"ResetType": reset})
            ended = "system_started" if what == "UsbCd" else "boot_failed"
            await sim.until_logged(ended, name, mark)
            started[what] = bool(await sim.log(kind="system_started", subject=name, after=mark))
        order["Boot"]["BootOrder"] = ["0001", "0002"]
        await bmc.patch(SYSTEM, json=order, headers=any_version)
        await bmc.post(f"{media}/Actions/VirtualMedia.EjectMedia", json={})
        await bmc.post(RESET, json={"ResetType": "ForceOff"})
        await sim.until(name, power="Off")
    assert started == {"Cd": False, "no mode": False, "UsbCd": True}


async def test_ilo_names_its_messages_by_id_and_refuses_what_is_so_already(sim: SimHandle) -> None:
    async with sim.bmc(HOSTS["hpe"]) as bmc:
        off = await bmc.post(RESET, json={"ResetType": "ForceOff"})
        assert off.status_code == 400
        (info,) = off.json()["error"]["@Message.ExtendedInfo"]
        assert info == {
            "MessageId": "iLO.2.19.InvalidOperationForSystemState",
            "MessageArgs": ["Power is off"],
        }
        assert off.json()["error"]["code"] == "iLO.0.10.ExtendedInfo"
        eject = await bmc.post(f"{CD['hpe']}/Actions/VirtualMedia.EjectMedia", json={})
        assert first_id(eject) == "iLO.2.19.NoVirtualMediaConnectionAvailable"
        mode = {"Boot": {"BootSourceOverrideMode": "UEFI"}}
        assert (await bmc.patch(SYSTEM, json=mode)).status_code == 400
        assert (await bmc.get(SYSTEM)).headers["ETag"].startswith('W/"')


async def test_ilo_unlocks_attributes_of_a_workload_profile_by_the_profile_custom(
    sim: SimHandle,
) -> None:
    settings = f"{BIOS['hpe']}/settings"
    regulator = {"PowerRegulator": "StaticHighPerf"}
    async with sim.bmc(HOSTS["hpe"]) as bmc:
        locked = await bmc.patch(settings, json={"Attributes": regulator})
        assert (locked.status_code, first_id(locked)) == (400, "Base.1.18.PropertyNotWritable")
        both = {"Attributes": {"WorkloadProfile": "Custom", **regulator}}
        staged = await bmc.patch(settings, json=both)
        assert (staged.status_code, first_id(staged)) == (200, "iLO.2.19.SystemResetRequired")
        shown = (await bmc.get(settings)).json()["Attributes"]
        assert shown.items() >= both["Attributes"].items()
        assert shown["MinProcIdlePower"] == "C6"
        reset = (await bmc.get(BIOS["hpe"])).json()["Actions"]["#Bios.ResetBios"]["target"]
        assert reset == f"{settings}/Actions/Bios.ResetBios"
        assert (await bmc.post(reset, json={})).status_code == 200
    assert (await sim.truth(HOSTS["hpe"]))["bios_pending"] == {}


async def test_ilo_sends_its_attribute_registry_compressed_or_not_at_all(sim: SimHandle) -> None:
    async with sim.bmc(HOSTS["hpe"]) as bmc:
        registry = (await bmc.get(BIOS["hpe"])).json()["AttributeRegistry"]
        file = (await bmc.get(f"/redfish/v1/Registries/{registry}")).json()
        uri = file["Location"][0]["Uri"]
        sent = await bmc.get(uri)
        assert sent.headers["Content-Encoding"] == "gzip"
        names = {row["AttributeName"] for row in sent.json()["RegistryEntries"]["Attributes"]}
        assert "WorkloadProfile" in names
        refused = await bmc.get(uri, headers={"Accept-Encoding": "identity"})
        assert refused.status_code == 406


async def test_xcc_inserts_and_ejects_by_a_change_of_the_drive(sim: SimHandle) -> None:
    name, drive = HOSTS["lenovo"], CD["lenovo"]
    url = "http://127.0.0.1:9/agent.iso"
    async with sim.bmc(name) as bmc:
        assert "Actions" not in (await bmc.get(drive)).json()
        action = await bmc.post(f"{drive}/Actions/VirtualMedia.InsertMedia", json={"Image": url})
        assert action.status_code == 404
        assert (await bmc.patch(drive, json={"Image": url})).status_code == 400
        taken = await bmc.patch(drive, json={"Image": url, "Inserted": True})
        assert taken.status_code == 204
        assert (await sim.truth(name))["virtual_media"] == {"EXT1": url}
        assert (await bmc.patch(drive, json={"Inserted": False})).status_code == 204
    assert (await sim.truth(name))["virtual_media"] == {}


async def test_xcc_locks_c_states_under_a_preset_mode(sim: SimHandle) -> None:
    pending = f"{BIOS['lenovo']}/Pending"
    async with sim.bmc(HOSTS["lenovo"]) as bmc:
        locked = await bmc.patch(pending, json={"Attributes": {"Processors_CStates": "Disable"}})
        assert (locked.status_code, first_id(locked)) == (400, "Base.1.18.PropertyNotWritable")
