"""The rules of the Redfish protocol (DSP0266) that clients rely on."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from simulator import BMC_PASSWORD, BMC_USER, SimHandle

SYSTEM = "/redfish/v1/Systems/System.Embedded.1"
SESSIONS = "/redfish/v1/SessionService/Sessions"
RESET = f"{SYSTEM}/Actions/ComputerSystem.Reset"
CD = "/redfish/v1/Managers/iDRAC.Embedded.1/VirtualMedia/CD"


@pytest.fixture
async def bmc(sim: SimHandle) -> AsyncIterator[httpx.AsyncClient]:
    """A client of one BMC, logged in."""
    async with sim.bmc("n2") as client:
        yield client
    await sim.control.delete("/faults")


def message_id(answer: httpx.Response) -> str:
    """The first message of an error body, without registry and version."""
    return answer.json()["error"]["@Message.ExtendedInfo"][0]["MessageId"].rsplit(".", 1)[1]


def paths_in(value: Any) -> set[str]:
    """Every reference in a document."""
    if isinstance(value, list):
        return set().union(*map(paths_in, value)) if value else set()
    if isinstance(value, dict):
        found = {value["@odata.id"]} if isinstance(value.get("@odata.id"), str) else set()
        return found.union(*map(paths_in, value.values())) if value else found
    return set()


async def test_every_resource_that_is_linked_exists_and_names_its_type(
    bmc: httpx.AsyncClient,
) -> None:
    seen: set[str] = set()
    waiting = {"/redfish/v1/"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = await bmc.get(path)
        assert answer.status_code == 200, path
        document = answer.json()
        assert document["@odata.type"].startswith("#"), path
        assert document["@odata.id"].rstrip("/") == path.rstrip("/")
        waiting |= {found.split("#")[0] for found in paths_in(document)} - seen
    assert len(seen) > 150


async def test_only_the_root_its_versions_and_the_metadata_need_no_login(sim: SimHandle) -> None:
    async with sim.bmc("n2", auth=None) as nobody:
        for path in ("/redfish", "/redfish/v1/", "/redfish/v1/$metadata", "/redfish/v1/odata"):
            assert (await nobody.get(path)).status_code == 200, path
        for path in (SYSTEM, SESSIONS, f"{SYSTEM}/Bios"):
            answer = await nobody.get(path)
            assert answer.status_code == 401, path
            assert "Basic" in answer.headers["WWW-Authenticate"]
        assert (await nobody.post(RESET, json={"ResetType": "On"})).status_code == 401
        wrong = await nobody.get(SYSTEM, auth=(BMC_USER, "wrong"))
        assert wrong.status_code == 401
    assert (await sim.truth("n2"))["power"] == "Off"


async def test_a_session_is_opened_used_and_closed(sim: SimHandle) -> None:
    async with sim.bmc("n2", auth=None) as client:
        login = {"UserName": BMC_USER, "Password": BMC_PASSWORD}
        opened = await client.post(SESSIONS, json=login)
        assert opened.status_code == 201
        token = {"X-Auth-Token": opened.headers["X-Auth-Token"]}
        assert (await client.get(SYSTEM, headers=token)).status_code == 200
        location = opened.headers["Location"]
        assert (await client.delete(location, headers=token)).status_code == 204
        assert (await client.get(SYSTEM, headers=token)).status_code == 401
        wrong = await client.post(SESSIONS, json=login | {"Password": "wrong"})
        assert wrong.status_code == 401


async def test_sessions_beyond_the_limit_are_refused(sim: SimHandle) -> None:
    async with sim.bmc("n3", auth=None) as client:
        login = {"UserName": BMC_USER, "Password": BMC_PASSWORD}
        codes = [(await client.post(SESSIONS, json=login)).status_code for _ in range(9)]
        assert codes == [201] * 8 + [503]


async def test_a_change_with_an_old_etag_is_refused(bmc: httpx.AsyncClient) -> None:
    before = (await bmc.get(SYSTEM)).headers["ETag"]
    first = await bmc.patch(SYSTEM, json={"AssetTag": "one"}, headers={"If-Match": before})
    assert first.status_code == 204
    second = await bmc.patch(SYSTEM, json={"AssetTag": "two"}, headers={"If-Match": before})
    assert second.status_code == 412
    assert message_id(second) == "PreconditionFailed"
    assert (await bmc.get(SYSTEM)).json()["AssetTag"] == "one"


async def test_an_unchanged_resource_is_not_sent_again(bmc: httpx.AsyncClient) -> None:
    etag = (await bmc.get(f"{SYSTEM}/Bios")).headers["ETag"]
    again = await bmc.get(f"{SYSTEM}/Bios", headers={"If-None-Match": etag})
    assert again.status_code == 304
    assert again.content == b""


async def test_a_missing_resource_is_named_in_the_error(bmc: httpx.AsyncClient) -> None:
    answer = await bmc.get(f"{SYSTEM}/Memory/DIMM.Socket.Z9")
    assert answer.status_code == 404
    assert message_id(answer) == "ResourceMissingAtURI"
    assert "DIMM.Socket.Z9" in answer.json()["error"]["message"]


async def test_a_method_that_a_resource_does_not_take_is_answered_with_those_it_takes(
    bmc: httpx.AsyncClient,
) -> None:
    answer = await bmc.delete(SYSTEM)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD, PATCH"
    assert (await bmc.head(SYSTEM)).content == b""


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (SYSTEM, {"Nonsense": 1}, "PropertyUnknown"),
        (SYSTEM, {"SerialNumber": "x"}, "PropertyNotWritable"),
        (SYSTEM, {"AssetTag": 7}, "PropertyValueTypeError"),
        (SYSTEM, {"Boot": {"BootSourceOverrideTarget": "Moon"}}, "PropertyValueNotInList"),
        (SYSTEM, {"Boot": {"BootOrder": ["Boot0009"]}}, "PropertyValueNotInList"),
        (f"{SYSTEM}/Bios/Settings", {"Attributes": {"Nonsense": "x"}}, "PropertyUnknown"),
        (
            f"{SYSTEM}/Bios/Settings",
            {"Attributes": {"SystemServiceTag": "x"}},
            "PropertyNotWritable",
        ),
        (
            f"{SYSTEM}/Bios/Settings",
            {"Attributes": {"ProcCStates": "Sometimes"}},
            "PropertyValueNotInList",
        ),
        (
            f"{SYSTEM}/Bios/Settings",
            {"Attributes": {"AcPwrRcvryUserDelay": 5}},
            "PropertyValueOutOfRange",
        ),
        (f"{SYSTEM}/Bios/Settings", {}, "PropertyMissing"),
    ],
)
async def test_a_bad_change_is_refused_whole_with_its_reason(
    bmc: httpx.AsyncClient, path: str, body: dict[str, Any], message: str
) -> None:
    before = (await bmc.get(path)).json()
    answer = await bmc.patch(path, json={"AssetTag": "no"} | body if path == SYSTEM else body)
    assert answer.status_code == 400
    assert message_id(answer) == message
    assert (await bmc.get(path)).json() == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "ActionParameterMissing"),
        ({"ResetType": "Explode"}, "ActionParameterValueNotInList"),
        ({"ResetType": "On", "Delay": 5}, "ActionParameterNotSupported"),
    ],
)
async def test_a_bad_reset_is_refused_with_its_reason(
    bmc: httpx.AsyncClient, body: dict[str, Any], message: str
) -> None:
    answer = await bmc.post(RESET, json=body)
    assert answer.status_code == 400
    assert message_id(answer) == message


async def test_a_body_that_is_not_json_is_refused(bmc: httpx.AsyncClient) -> None:
    answer = await bmc.patch(SYSTEM, content=b"{not json")
    assert answer.status_code == 400
    assert message_id(answer) == "MalformedJSON"


async def test_a_reset_into_the_present_power_state_is_a_conflict_on_this_vendor(
    bmc: httpx.AsyncClient,
) -> None:
    assert (await bmc.post(RESET, json={"ResetType": "ForceOff"})).status_code == 409


async def test_a_drive_that_holds_an_image_takes_no_second_one(bmc: httpx.AsyncClient) -> None:
    insert, eject = (
        f"{CD}/Actions/VirtualMedia.InsertMedia",
        f"{CD}/Actions/VirtualMedia.EjectMedia",
    )
    image = {"Image": "http://127.0.0.1:9/agent.iso"}
    assert (await bmc.post(insert, json=image)).status_code == 204
    assert (await bmc.post(insert, json=image)).status_code == 409
    under_system = (await bmc.get(f"{SYSTEM}/VirtualMedia/1")).json()
    assert under_system["Image"] == image["Image"]
    assert (await bmc.post(eject, json={})).status_code == 204
    assert (await bmc.post(eject, json={})).status_code == 204
    assert (await bmc.get(CD)).json()["Inserted"] is False
    answer = await bmc.post(insert, json={"Image": "nfs://elsewhere/agent.iso"})
    assert message_id(answer) == "ActionParameterValueFormatError"


async def test_expand_puts_members_in_place_of_links(bmc: httpx.AsyncClient) -> None:
    plain = (await bmc.get(f"{SYSTEM}/Processors")).json()["Members"]
    whole = (await bmc.get(f"{SYSTEM}/Processors?$expand=.($levels=1)")).json()["Members"]
    assert [member["@odata.id"] for member in whole] == [link["@odata.id"] for link in plain]
    assert [member["ProcessorType"] for member in whole] == ["CPU"] * 2 + ["GPU"] * 8
    assert (await bmc.get(f"{SYSTEM}?$expand=.($levels=3)")).status_code == 400
    assert (await bmc.get(f"{SYSTEM}?$select=Id")).status_code == 501


async def test_ports_show_the_addresses_of_the_file(sim: SimHandle, bmc: httpx.AsyncClient) -> None:
    node = next(node for node in sim.config.nodes if node.name == "n2")
    adapters = "/redfish/v1/Chassis/System.Embedded.1/NetworkAdapters"
    found: set[str] = set()
    for adapter in (await bmc.get(adapters)).json()["Members"]:
        ports = await bmc.get(f"{adapter['@odata.id']}/Ports?$expand=.")
        for port in ports.json()["Members"]:
            found |= {
                g.replace(":", "")
                for g in port.get("InfiniBand", {}).get("AssociatedPortGUIDs", [])
            }
            found |= set(port.get("Ethernet", {}).get("AssociatedMACAddresses", []))
    assert found == {p.guid for p in node.infiniband} | {p.mac for p in node.ethernet}


async def test_a_password_that_was_changed_is_asked_for_from_then_on(sim: SimHandle) -> None:
    async with sim.bmc("n4") as client:
        path = "/redfish/v1/AccountService/Accounts/2"
        assert (await client.patch(path, json={"Password": "another one"})).status_code == 204
        assert (await client.get(SYSTEM)).status_code == 401
        assert (await client.get(SYSTEM, auth=(BMC_USER, "another one"))).status_code == 200


async def test_an_unreachable_bmc_drops_the_connection_and_comes_back(
    sim: SimHandle, bmc: httpx.AsyncClient
) -> None:
    await sim.fault("bmc_unreachable", "n2", count=2)
    for _ in range(2):
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await bmc.get(SYSTEM)
    assert (await bmc.get(SYSTEM)).status_code == 200


async def test_a_bmc_with_an_internal_error_says_so(sim: SimHandle, bmc: httpx.AsyncClient) -> None:
    await sim.fault("bmc_error_500", "n2", count=1)
    answer = await bmc.get(SYSTEM)
    assert answer.status_code == 500
    assert message_id(answer) == "InternalError"


async def test_a_slow_bmc_answers_late_in_simulated_time(
    sim: SimHandle, bmc: httpx.AsyncClient
) -> None:
    await sim.fault("bmc_slow", "n2", count=1, params={"seconds": 300})
    before = (await sim.control.get("/clock")).json()["now_s"]
    assert (await bmc.get(SYSTEM)).status_code == 200
    assert (await sim.control.get("/clock")).json()["now_s"] - before >= 300
