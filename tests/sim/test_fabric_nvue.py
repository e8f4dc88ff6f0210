"""The NVUE switch keeps its promises at the wire (CumulusNetworks/docs, "NVUE API", 5.13)."""

import httpx
import pytest

from dflare.sim.config import HardwareTimes
from dflare.sim.network import PortState
from fabric_site import (
    APPLY,
    AUTH,
    BRIDGE,
    access,
    ended,
    fabric_config,
    fabric_site,
    new_revision,
    ok,
    vlan_with_vni,
)

SLOW = HardwareTimes(switch_apply_s=30)
PORT = f"/interface/swp1/bridge/domain/{BRIDGE}"


async def test_a_new_revision_is_pending_in_the_documented_shape() -> None:
    async with fabric_site() as site, site.nvue() as client:
        answer = await client.post("/revision")
        assert answer.status_code == 200
        assert answer.json() == {
            "1": {"state": "pending", "transition": {"issue": {}, "progress": ""}}
        }
        assert await ok(client.get("/revision/1")) == answer.json()["1"]
        assert next(iter(await ok(client.post("/revision")))) == "2"


async def test_an_unconfigured_front_port_is_up_in_vlan_1() -> None:
    async with fabric_site() as site, site.nvue() as client:
        assert site.fabric.port_state("leaf0", "swp1") == PortState(True, frozenset({1}))
        assert "swp1" not in await ok(client.get("/interface", params={"rev": "applied"}))
        shown = await ok(client.get("/interface/swp1", params={"rev": "operational"}))
        assert shown["link"]["state"] == {"up": {}}
        assert shown["bridge"]["domain"][BRIDGE] == {"access": 1}


async def test_a_patch_changes_nothing_until_it_is_applied() -> None:
    async with fabric_site() as site, site.nvue() as client:
        revision = await new_revision(client)
        body = {"bridge": {"domain": {BRIDGE: {"access": 100}}}}
        answer = await ok(client.patch("/interface/swp1", params={"rev": revision}, json=body))
        assert answer == {"type": "swp", **body}
        assert await ok(client.get(PORT, params={"rev": revision})) == {"access": 100}
        assert await ok(client.get(PORT)) == {"access": 1}
        answer = await ok(client.patch(f"/revision/{revision}", json=APPLY))
        assert answer == {"state": "apply", "transition": {"issue": {}, "progress": ""}}
        assert (await ended(client, revision))["state"] == "applied"
        assert await ok(client.get(PORT)) == {"access": 100}
        assert await ok(client.get(PORT, params={"rev": "applied"})) == {"access": 100}
        assert site.fabric.port_state("leaf0", "swp1").vlans == {100}


async def test_an_apply_takes_its_simulated_time_and_shows_its_way() -> None:
    async with fabric_site(fabric_config(times=SLOW)) as site, site.nvue() as client:
        revision = await new_revision(client)
        await ok(client.patch("/", params={"rev": revision}, json=access(100, "swp1")))
        started_s = site.clock.now_s()
        await ok(client.patch(f"/revision/{revision}", json=APPLY))
        document = await ok(client.get(f"/revision/{revision}"))
        assert document["state"] in {"apply", "readying", "reloading"}
        assert site.fabric.port_state("leaf0", "swp1").vlans == {1}
        assert (await ended(client, revision))["state"] == "applied"
        assert site.clock.now_s() - started_s >= 30


async def test_null_removes_a_key_and_the_port_fails_open_again() -> None:
    async with fabric_site() as site, site.nvue() as client:
        await site.configure(0, access(100, "swp1"))
        assert site.fabric.port_state("leaf0", "swp1").vlans == {100}
        await site.configure(0, {"interface": {"swp1": None}})
        assert site.fabric.port_state("leaf0", "swp1").vlans == {1}
        gone = await client.get("/interface/swp1", params={"rev": "applied"})
        assert gone.status_code == 404


async def test_delete_removes_a_path_of_a_revision_with_204() -> None:
    async with fabric_site() as site, site.nvue() as client:
        await site.configure(0, access(100, "swp1", "swp2"))
        revision = await new_revision(client)
        answer = await client.delete("/interface/swp1", params={"rev": revision})
        assert (answer.status_code, answer.content) == (204, b"")
        await ok(client.patch(f"/revision/{revision}", json=APPLY))
        assert site.fabric.port_state("leaf0", "swp1").vlans == {1}
        assert site.fabric.port_state("leaf0", "swp2").vlans == {100}


async def test_the_whole_configuration_can_be_replaced() -> None:
    async with fabric_site() as site, site.nvue() as client:
        await site.configure(0, access(100, "swp1"))
        revision = await new_revision(client)
        await client.delete("/", params={"rev": revision})
        await ok(client.patch("/", params={"rev": revision}, json=access(7, "swp2")))
        await ok(client.patch(f"/revision/{revision}", json=APPLY))
        applied = await ok(client.get("/", params={"rev": "applied"}))
        assert list(applied) == ["interface"]
        assert list(applied["interface"]) == ["swp2"]


async def test_set_and_unset_payloads_are_understood() -> None:
    async with fabric_site() as site, site.nvue() as client:
        await site.configure(0, {"set": access(100, "swp1", "swp2")})
        await site.configure(0, {"unset": access(100, "swp1")})
        assert await ok(client.get(PORT, params={"rev": "applied"})) == {}
        assert site.fabric.port_state("leaf0", "swp2").vlans == {100}


async def test_a_key_with_a_slash_is_percent_encoded_in_a_path() -> None:
    async with fabric_site() as site, site.nvue() as client:
        address = {"interface": {"vlan10": {"ip": {"address": {"10.1.0.1/24": {}}}}}}
        await site.configure(0, address)
        path = "/interface/vlan10/ip/address/10.1.0.1%2F24"
        assert await ok(client.get(path, params={"rev": "applied"})) == {}
        assert (await ok(client.get("/interface/vlan10", params={"rev": "applied"})))["vlan"] == 10


async def test_setting_a_link_down_removes_up() -> None:
    async with fabric_site() as site, site.nvue() as client:
        await site.configure(0, {"interface": {"swp1": {"link": {"state": {"up": {}}}}}})
        await site.configure(0, {"interface": {"swp1": {"link": {"state": {"down": {}}}}}})
        state = "/interface/swp1/link/state"
        assert await ok(client.get(state, params={"rev": "applied"})) == {"down": {}}
        assert await ok(client.get(state)) == {"down": {}}
        assert site.fabric.port_state("leaf0", "swp1").link_up is False


@pytest.mark.parametrize(
    ("patch", "word"),
    [
        ({"interfaces": {}}, "interfaces"),
        ({"interface": {"swp1": {"link": {"state": {"off": {}}}}}}, "link.state"),
        ({"interface": {"swp1": {"bridge": {"domain": {BRIDGE: {"access": 5000}}}}}}, "access"),
        ({"interface": {"swp1": {"bridge": {"domain": {BRIDGE: {"vlans": 5}}}}}}, "vlans"),
        ({"interface": {"nonsense": {}}}, "nonsense"),
        (vlan_with_vni(10, 0), "vni"),
        (vlan_with_vni(10, 2**24), "vni"),
        (vlan_with_vni(4095, 10), "vlan"),
        ({"vrf": {"a-name-that-is-too-long": {}}}, "vrf"),
    ],
)
async def test_what_the_schema_lacks_is_refused(patch: dict[str, object], word: str) -> None:
    async with fabric_site() as site, site.nvue() as client:
        revision = await new_revision(client)
        answer = await client.patch("/", params={"rev": revision}, json=patch)
        assert answer.status_code == 400
        assert answer.json()["title"] == "Bad Request"
        assert word in answer.json()["detail"]
        diff = {"rev": "applied", "diff": revision}
        assert await ok(client.get("/", params=diff)) == {}


@pytest.mark.parametrize(
    "patch",
    [
        {"bridge": {"domain": {BRIDGE: {"vlan": {n: {"vni": {"77": {}}} for n in ("10", "11")}}}}},
        {"interface": {"vlan10": {"ip": {"vrf": "nowhere"}}}},
        {
            **vlan_with_vni(10, 77),
            "vrf": {"red": {"evpn": {"enable": "on", "vni": {"77": {}}}}},
        },
    ],
    ids=["vni twice", "unknown vrf", "vni of a vlan and a vrf"],
)
async def test_a_configuration_that_contradicts_itself_ends_invalid(
    patch: dict[str, object],
) -> None:
    async with fabric_site() as site, site.nvue() as client:
        document = await site.configure(0, patch)
        assert document["state"] == "invalid"
        issue = document["transition"]["issue"]["0"]
        assert (issue["code"], issue["severity"]) == ("config_invalid", "error")
        assert issue["data"].keys() == {"location", "reason"}
        assert await ok(client.get("/", params={"rev": "applied", "diff": "startup"})) == {}
        assert "vlan10" not in await ok(client.get("/interface"))


async def test_two_concurrent_revisions_both_take_effect() -> None:
    async with fabric_site(fabric_config(times=SLOW)) as site, site.nvue() as client:
        first, second = await new_revision(client), await new_revision(client)
        await ok(client.patch("/", params={"rev": first}, json=access(100, "swp1")))
        await ok(client.patch("/", params={"rev": second}, json=access(200, "swp2")))
        await ok(client.patch(f"/revision/{first}", json={"state": "apply"}))
        await ok(client.patch(f"/revision/{second}", json={"state": "apply"}))
        assert (await ended(client, second))["state"] == "applied"
        assert (await ok(client.get(f"/revision/{first}")))["state"] == "inactive"
        assert site.fabric.port_state("leaf0", "swp1").vlans == {100}
        assert site.fabric.port_state("leaf0", "swp2").vlans == {200}


async def test_a_revision_that_contradicts_a_later_apply_asks_and_gives_up() -> None:
    async with fabric_site() as site, site.nvue() as client:
        stale = await new_revision(client)
        await ok(client.patch("/", params={"rev": stale}, json=access(100, "swp1")))
        await site.configure(0, access(200, "swp1"))
        await ok(client.patch(f"/revision/{stale}", json={"state": "apply"}))
        document = await ended(client, stale)
        assert document["state"] == "ays_fail"
        assert document["transition"]["issue"]["0"]["code"] == "client_timeout"
        assert site.fabric.port_state("leaf0", "swp1").vlans == {200}
        await ok(client.patch(f"/revision/{stale}", json=APPLY))
        assert (await ended(client, stale))["state"] == "applied"
        assert site.fabric.port_state("leaf0", "swp1").vlans == {100}


async def test_a_confirmed_apply_rolls_back_when_nobody_confirms() -> None:
    async with fabric_site() as site, site.nvue() as client:
        for answer, state, vlans in (
            ("confirm_yes", "applied", {100}),
            (None, "confirm_fail", {100}),
        ):
            revision = await new_revision(client)
            vlan = 100 if answer else 200
            await ok(client.patch("/", params={"rev": revision}, json=access(vlan, "swp1")))
            body = {**APPLY, "state-controls": {"confirm": 60}}
            await ok(client.patch(f"/revision/{revision}", json=body))
            while (await ok(client.get(f"/revision/{revision}")))["state"] != "confirm":
                await site.clock.sleep(1)
            assert site.fabric.port_state("leaf0", "swp1").vlans == {vlan}
            if answer:
                await ok(client.patch(f"/revision/{revision}", json={"state": answer}))
            assert (await ended(client, revision))["state"] == state
            assert site.fabric.port_state("leaf0", "swp1").vlans == vlans


async def test_an_applied_revision_cannot_be_changed_or_applied_again() -> None:
    async with fabric_site() as site, site.nvue() as client:
        revision = await new_revision(client)
        await ok(client.patch(f"/revision/{revision}", json=APPLY))
        change = await client.patch("/", params={"rev": revision}, json=access(5, "swp1"))
        again = await client.patch(f"/revision/{revision}", json=APPLY)
        assert (change.status_code, again.status_code) == (409, 409)
        unknown = await client.patch("/", params={"rev": "999"}, json={})
        without = await client.patch("/", json={})
        assert (unknown.status_code, without.status_code) == (404, 400)


async def test_save_and_diff_answer_as_documented() -> None:
    async with fabric_site() as site, site.nvue() as client:
        auto_save = {"system": {"config": {"auto-save": {"enable": "off"}}}}
        await site.configure(0, {**auto_save, **access(100, "swp1")})
        diff = {"rev": "startup", "diff": "applied"}
        assert "swp1" in await ok(client.get("/interface", params=diff))
        back = {"rev": "applied", "diff": "startup"}
        assert await ok(client.get("/interface", params=back)) == {"swp1": None}
        save = {"state": "save", "auto-prompt": {"ays": "ays_yes"}}
        assert (await ok(client.patch("/revision/applied", json=save)))["state"] == "save"
        assert await ok(client.get("/interface", params=diff)) == {}


async def test_wrong_credentials_and_unknown_devices_get_nothing() -> None:
    async with fabric_site() as site:
        transport = httpx.ASGITransport(site.nvue_app)
        async with httpx.AsyncClient(transport=transport) as client:
            url = "https://127.31.0.1:8765/nvue_v1/revision"
            for auth in (None, (AUTH[0], "wrong")):
                answer = await client.post(url, auth=auth)
                assert answer.status_code == 401
                assert "Basic" in answer.headers["www-authenticate"]
            elsewhere = await client.get("https://127.31.9.9:8765/nvue_v1/", auth=AUTH)
            assert elsewhere.status_code == 404
        assert site.fabric.switches["leaf0"].revisions == {}


async def test_a_dropped_write_shows_in_operational_only_and_a_later_apply_mends_it() -> None:
    async with fabric_site() as site, site.nvue() as client:
        site.faults.add("nvue_drops_write", "leaf0/swp1", count=1)
        assert (await site.configure(0, access(100, "swp1", "swp2")))["state"] == "applied"
        assert await ok(client.get(PORT, params={"rev": "applied"})) == {"access": 100}
        assert await ok(client.get(PORT)) == {"access": 1}
        assert site.fabric.port_state("leaf0", "swp1").vlans == {1}
        assert site.fabric.port_state("leaf0", "swp2").vlans == {100}
        assert [e.subject for e in site.log.entries("port_write_dropped")] == ["leaf0/swp1"]
        await site.configure(0, access(100, "swp1"))
        assert await ok(client.get(PORT)) == {"access": 100}


async def test_an_apply_that_a_fault_fails_is_invalid_and_can_be_tried_again() -> None:
    async with fabric_site() as site, site.nvue() as client:
        site.faults.add("nvue_apply_fails", "leaf0", count=1, params={"reason": "disk full"})
        revision = await new_revision(client)
        await ok(client.patch("/", params={"rev": revision}, json=access(100, "swp1")))
        await ok(client.patch(f"/revision/{revision}", json=APPLY))
        document = await ended(client, revision)
        assert document["state"] == "invalid"
        assert "disk full" in document["transition"]["issue"]["0"]["message"]
        assert site.fabric.port_state("leaf0", "swp1").vlans == {1}
        await ok(client.patch(f"/revision/{revision}", json=APPLY))
        assert (await ended(client, revision))["state"] == "applied"


async def test_a_slow_switch_takes_longer() -> None:
    async with fabric_site() as site:
        site.faults.add("nvue_slow", "leaf0", count=1, params={"seconds": 120})
        before_s = site.clock.now_s()
        await site.configure(0, access(100, "swp1"))
        assert site.clock.now_s() - before_s >= 120


async def test_a_reset_switch_comes_back_open_or_with_its_previous_configuration() -> None:
    async with fabric_site() as site, site.nvue() as client:
        await site.configure(0, access(100, "swp1"))
        await site.configure(0, access(200, "swp1"))
        await site.fabric.reset_switch("leaf0", "previous")
        assert await ok(client.get(PORT)) == {"access": 100}
        assert await ok(client.get("/revision")) == {}
        await site.fabric.reset_switch("leaf0", "factory")
        assert await ok(client.get(PORT)) == {"access": 1}
        assert await ok(client.get("/", params={"rev": "applied"})) == {}
        site.faults.add("switch_reset", "leaf1", count=1)
        async with site.nvue(1) as other:
            revision = await new_revision(other)
            await ok(other.patch("/", params={"rev": revision}, json=access(300, "swp1")))
            await ok(other.patch(f"/revision/{revision}", json=APPLY))
            assert (await other.get(f"/revision/{revision}")).status_code == 404
        assert site.fabric.port_state("leaf1", "swp1").vlans == {1}
        resets = [(e.subject, e.facts["to"]) for e in site.log.entries("switch_reset")]
        assert resets == [("leaf0", "previous"), ("leaf0", "factory"), ("leaf1", "factory")]


async def test_the_truth_log_tells_which_host_moved_where() -> None:
    async with fabric_site() as site:
        await site.configure(0, {**access(100, "swp1"), **vlan_with_vni(100, 1000)})
        (moved,) = site.log.entries("port_moved")
        assert moved.subject == "leaf0/swp1"
        assert moved.facts["host"] == "n0-0"
        assert (moved.facts["was_vlans"], moved.facts["vlans"]) == ([1], [100])
        (overlay,) = site.log.entries("overlay_changed")
        assert overlay.facts["vnis"] == {"100": 1000}
