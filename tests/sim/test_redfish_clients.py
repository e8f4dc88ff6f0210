"""Redfish clients that nobody here wrote work against the simulated BMCs: sushy and DMTF's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import redfish
import redfish_utilities
import sushy
from redfish.rest.v1 import HttpClient

from agent_platform import AgentPlatform
from simulator import BMC_PASSWORD, BMC_USER, SimHandle


@pytest.fixture
async def host(sim: SimHandle) -> AsyncIterator[str]:
    """A host that is off, with an empty drive, before and after."""
    name = "n1"
    yield name
    async with sim.bmc(name) as bmc:
        if (await sim.truth(name))["power"] != "Off":
            url = "/redfish/v1/Systems/System.Embedded.1/Actions/ComputerSystem.Reset"
            await bmc.post(url, json={"ResetType": "ForceOff"})
        await sim.until(name, power="Off")
        slot = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD"
        await bmc.post(f"{slot}/Actions/VirtualMedia.EjectMedia", json={})


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


async def test_sushy_reads_the_inventory(sim: SimHandle, host: str) -> None:
    def inventory() -> None:
        with sushy_system(sim, host) as system:
            assert system.manufacturer == "Dell Inc."
            assert system.serial_number == "SER00001"
            assert system.memory_summary.size_gib == 2048
            kinds = [part.processor_type for part in system.processors.get_members()]
            assert kinds.count(sushy.PROCESSOR_TYPE_CPU) == 2
            assert kinds.count(sushy.PROCESSOR_TYPE_GPU) == 8
            assert list(system.ethernet_interfaces.summary) == ["02:00:00:00:00:01"]
            (storage,) = system.storage.get_members()
            assert [drive.serial_number for drive in storage.drives] == ["PM00001A", "PM00001B"]
            assert system.managers[0].firmware_version == "7.10.50.00"

    await asyncio.to_thread(inventory)


async def test_sushy_boots_the_agent_from_virtual_media(
    sim: SimHandle, platform: AgentPlatform, host: str
) -> None:
    def boot() -> None:
        with sushy_system(sim, host) as system:
            (cd, _) = system.managers[0].virtual_media.get_members()
            cd.insert_media(platform.iso_url(host))
            system.set_system_boot_options(
                target=sushy.BootSource.CD, enabled=sushy.BootSourceOverrideEnabled.ONCE
            )
            system.reset_system(sushy.ResetType.ON)

    await asyncio.to_thread(boot)
    await sim.until(host, system="agent", power="On")

    def look() -> None:
        with sushy_system(sim, host) as system:
            assert system.power_state == sushy.PowerState.ON
            assert system.boot.enabled == sushy.BootSourceOverrideEnabled.DISABLED
            assert system.boot_progress.last_state == sushy.BootProgressStates.OS_RUNNING
            (cd, _) = system.managers[0].virtual_media.get_members()
            assert cd.inserted
            cd.eject_media()

    await asyncio.to_thread(look)


async def test_sushy_changes_the_bios_at_the_next_reset(sim: SimHandle, host: str) -> None:
    def stage() -> None:
        with sushy_system(sim, host) as system:
            system.bios.set_attributes(
                {"SubNumaCluster": "2-way"}, apply_time=sushy.APPLY_TIME_ON_RESET
            )
            assert system.bios.pending_attributes == {"SubNumaCluster": "2-way"}
            assert system.bios.attributes["SubNumaCluster"] == "Disabled"
            entries = system.bios.get_attribute_registry().registry_entries.attributes
            assert "SubNumaCluster" in {entry.name for entry in entries}
            system.reset_system(sushy.ResetType.ON)

    await asyncio.to_thread(stage)
    await sim.until(host, bios_pending={})

    def look() -> None:
        with sushy_system(sim, host) as system:
            assert system.bios.attributes["SubNumaCluster"] == "2-way"

    await asyncio.to_thread(look)


async def test_redfish_utilities_turns_power_on_and_off(sim: SimHandle, host: str) -> None:
    def turn(kind: str) -> None:
        with dmtf_client(sim, host) as client:
            redfish_utilities.system_reset(client, reset_type=kind)

    await asyncio.to_thread(turn, "On")
    await sim.until(host, power="On")
    await asyncio.to_thread(turn, "ForceOff")
    await sim.until(host, power="Off")


async def test_redfish_utilities_sets_the_boot_override(sim: SimHandle, host: str) -> None:
    def override() -> None:
        with dmtf_client(sim, host) as client:
            redfish_utilities.set_system_boot(client, ov_target="Cd", ov_enabled="Once")
            boot = redfish_utilities.get_system_boot(client)
            assert boot["BootSourceOverrideTarget"] == "Cd"
            assert boot["BootSourceOverrideEnabled"] == "Once"
            redfish_utilities.set_system_boot(client, ov_target="None", ov_enabled="Disabled")

    await asyncio.to_thread(override)


async def test_redfish_utilities_inserts_and_ejects_virtual_media(
    sim: SimHandle, platform: AgentPlatform, host: str
) -> None:
    url = platform.iso_url(host)

    def insert() -> None:
        with dmtf_client(sim, host) as client:
            redfish_utilities.insert_virtual_media(client, url)

    def eject() -> None:
        with dmtf_client(sim, host) as client:
            drives = redfish_utilities.get_virtual_media(client)
            (used,) = [drive for drive in drives if drive["Inserted"]]
            redfish_utilities.eject_virtual_media(client, used["Id"])

    await asyncio.to_thread(insert)
    assert (await sim.truth(host))["virtual_media"] == {"CD": url}
    await asyncio.to_thread(eject)
    assert (await sim.truth(host))["virtual_media"] == {}


async def test_redfish_utilities_reads_and_changes_the_bios(sim: SimHandle, host: str) -> None:
    def change() -> None:
        with dmtf_client(sim, host) as client:
            redfish_utilities.set_system_bios(client, {"ProcC1E": "Disabled"})
            current, future = redfish_utilities.get_system_bios(client)
            assert current["ProcC1E"] == "Enabled"
            assert future["ProcC1E"] == "Disabled"
            redfish_utilities.system_reset(client, reset_type="On")

    await asyncio.to_thread(change)
    await sim.until(host, bios_pending={})
    assert (await sim.truth(host))["bios"]["ProcC1E"] == "Disabled"


async def test_redfish_utilities_catalogs_the_parts(sim: SimHandle, host: str) -> None:
    def catalog() -> None:
        with dmtf_client(sim, host) as client:
            (parts,) = redfish_utilities.get_system_inventory(client)
        assert len(parts["Processors"]) == 10
        assert len(parts["Drives"]) == 2
        assert len(parts["NetworkAdapters"]) == 9
        assert len(parts["Memory"]) == 32
        assert {drive["SerialNumber"] for drive in parts["Drives"]} == {"PM00001A", "PM00001B"}

    await asyncio.to_thread(catalog)


async def test_redfish_utilities_is_told_what_is_wrong_with_a_bios_attribute(
    sim: SimHandle, host: str
) -> None:
    def change() -> None:
        with (
            dmtf_client(sim, host) as client,
            pytest.raises(redfish_utilities.messages.RedfishOperationFailedError, match="Nonsense"),
        ):
            redfish_utilities.set_system_bios(client, {"Nonsense": "Enabled"})

    await asyncio.to_thread(change)
