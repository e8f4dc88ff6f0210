"""The walk tells truly who reaches whom, and fails open where nobody configured anything."""

from typing import Any

import pytest

from fabric_site import (
    BRIDGE,
    FabricSite,
    access,
    fabric_config,
    fabric_site,
    guid,
    ok,
    vlan_with_vni,
)

EVERYONE = [f"n{leaf}-{i}" for leaf in range(2) for i in range(3)]


def ethernet(site: FabricSite) -> list[list[str]]:
    groups = site.fabric.reachability_document()["ethernet"]
    assert isinstance(groups, list)
    return groups


def merged(*patches: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for patch in patches:
        for key, value in patch.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


async def close_vlan_1(site: FabricSite) -> None:
    """Park every host port in a VLAN of its own and take the uplinks out of the bridge."""
    for leaf in range(2):
        ports = [access(900 + i, f"swp{i + 1}") for i in range(3)]
        down = {"interface": {f"swp{n}": {"link": {"state": {"down": {}}}} for n in (4, 5)}}
        await site.configure(leaf, merged(*ports, down))


async def test_unconfigured_switches_let_every_host_reach_every_host() -> None:
    async with fabric_site() as site:
        assert ethernet(site) == [EVERYONE]


async def test_a_vlan_without_a_vni_spans_only_its_switch() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        assert ethernet(site) == []
        for leaf in range(2):
            await site.configure(leaf, access(100, "swp1", "swp2"))
        assert ethernet(site) == [["n0-0", "n0-1"], ["n1-0", "n1-1"]]


async def test_a_vni_joins_vlans_of_different_numbers_on_different_switches() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        await site.configure(0, merged(access(100, "swp1"), vlan_with_vni(100, 5000)))
        await site.configure(1, merged(access(222, "swp3"), vlan_with_vni(222, 5000)))
        await site.configure(1, merged(access(100, "swp1"), vlan_with_vni(100, 6000)))
        assert ethernet(site) == [["n0-0", "n1-2"]]


async def test_a_vni_reaches_nobody_where_vxlan_or_evpn_is_off() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        for leaf in range(2):
            await site.configure(leaf, merged(access(100, "swp1"), vlan_with_vni(100, 5000)))
        assert ethernet(site) == [["n0-0", "n1-0"]]
        await site.configure(1, {"nve": {"vxlan": {"enable": "off"}}})
        assert ethernet(site) == []
        await site.configure(1, {"nve": {"vxlan": {"enable": "on"}}, "evpn": {"enable": "off"}})
        assert ethernet(site) == []


async def test_a_port_that_is_down_reaches_nobody() -> None:
    async with fabric_site() as site:
        await site.configure(0, {"interface": {"swp1": {"link": {"state": {"down": {}}}}}})
        assert ethernet(site) == [[name for name in EVERYONE if name != "n0-0"]]


async def test_an_uplink_in_a_tenants_vlan_leaks_into_every_other_switchs_vlan_1() -> None:
    async with fabric_site() as site:
        await site.configure(0, access(100, "swp1"))
        others = [name for name in EVERYONE if name != "n0-0"]
        assert ethernet(site) == [others]
        await site.configure(0, access(100, "swp4"))
        assert ethernet(site) == [EVERYONE]


async def test_vlan_1_stays_on_its_switch_once_every_uplink_is_down_or_routed() -> None:
    async with fabric_site() as site:
        down = {"interface": {f"swp{n}": {"link": {"state": {"down": {}}}} for n in (4, 5)}}
        await site.configure(0, down)
        apart = [["n0-0", "n0-1", "n0-2"], ["n1-0", "n1-1", "n1-2"]]
        assert ethernet(site) == apart
        await site.configure(0, {"interface": {"swp4": None}})
        assert ethernet(site) == [EVERYONE]
        await site.configure(0, {"interface": {"swp4": {"ip": {"address": {"10.9.0.0/31": {}}}}}})
        assert ethernet(site) == apart


async def test_trunked_uplinks_carry_a_vlan_to_switches_that_trunk_it_too() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        trunk = {"untagged": "none", "vlan": {"100": {}}}
        uplink = {
            "interface": {
                "swp4": {"link": {"state": {"up": {}}}, "bridge": {"domain": {BRIDGE: trunk}}}
            }
        }
        await site.configure(0, merged(access(100, "swp1"), uplink))
        await site.configure(1, access(100, "swp1"))
        assert ethernet(site) == []
        await site.configure(1, uplink)
        assert ethernet(site) == [["n0-0", "n1-0"]]


async def test_a_trunk_host_reaches_the_vlans_that_it_carries() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        trunk = {
            "interface": {
                "swp1": {
                    "bridge": {
                        "domain": {
                            BRIDGE: {"access": None, "untagged": 900, "vlan": {"901-902": {}}}
                        }
                    }
                }
            }
        }
        await site.configure(0, trunk)
        walk = site.fabric.walk()
        assert walk.peers("n0-0", "ethernet") == {"n0-1", "n0-2"}
        assert walk.peers("n0-1", "ethernet") == {"n0-0"}
        member = {
            "interface": {
                "swp1": {
                    "bridge": {"domain": {BRIDGE: {"access": None, "untagged": None, "vlan": None}}}
                }
            }
        }
        await site.configure(0, merged(member, vlan_with_vni(901, 77)))
        assert site.fabric.walk().peers("n0-0", "ethernet") == {"n0-1"}


def svi(vlan: int, vrf: str | None, address: str = "10.0.0.1/24") -> dict[str, Any]:
    ip: dict[str, Any] = {"address": {address: {}}}
    if vrf is not None:
        ip["vrf"] = vrf
    return {"interface": {f"vlan{vlan}": {"ip": ip}}}


async def test_svis_of_one_vrf_route_between_its_vlans_and_no_others() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        red = {"vrf": {"red": {}, "blue": {}}}
        await site.configure(0, merged(red, svi(900, "red"), svi(901, "red"), svi(902, "blue")))
        assert ethernet(site) == [["n0-0", "n0-1"]]
        await site.configure(0, {"interface": {"vlan901": {"ip": {"address": None}}}})
        assert ethernet(site) == []


async def test_svis_that_nobody_put_in_a_vrf_meet_in_the_default_one_across_switches() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        await site.configure(0, svi(900, None))
        await site.configure(1, svi(901, None))
        assert ethernet(site) == [["n0-0", "n1-1"]]


def l3(vrf: str, vni: int, targets: tuple[str, str] | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"evpn": {"enable": "on", "vni": {str(vni): {}}}}
    if targets is not None:
        exported, imported = targets
        body["router"] = {
            "bgp": {
                "route-export": {"to-evpn": {"route-target": {exported: {}}}},
                "route-import": {"from-evpn": {"route-target": {imported: {}}}},
            }
        }
    return {"vrf": {vrf: body}}


async def test_the_l3_vni_and_not_the_vrfs_name_joins_switches() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        await site.configure(0, merged(l3("red", 9001), svi(900, "red")))
        await site.configure(1, merged(l3("red", 9002), svi(901, "red")))
        assert ethernet(site) == []
        await site.configure(1, {"vrf": {"red": {"evpn": {"vni": {"9001": {}, "9002": None}}}}})
        assert ethernet(site) == [["n0-0", "n1-1"]]


async def test_explicit_route_targets_decide_whose_routes_a_vrf_imports() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        await site.configure(0, merged(l3("red", 9001, ("1:1", "1:1")), svi(900, "red")))
        await site.configure(1, merged(l3("red", 9001, ("1:2", "1:2")), svi(901, "red")))
        assert ethernet(site) == []
        leak = l3("red", 9001, ("1:2", "1:1"))
        await site.configure(1, leak)
        assert ethernet(site) == [["n0-0", "n1-1"]]


async def test_a_switch_reset_to_the_factory_opens_its_ports_again() -> None:
    async with fabric_site() as site:
        await close_vlan_1(site)
        await site.configure(0, merged(access(100, "swp1"), vlan_with_vni(100, 5000)))
        await site.configure(1, merged(access(100, "swp1"), vlan_with_vni(100, 5000)))
        await site.fabric.reset_switch("leaf0", "factory")
        assert ethernet(site) == [["n0-0", "n0-1", "n0-2"]]


async def test_a_switch_whose_ports_all_have_hosts_still_has_uplinks() -> None:
    async with fabric_site(fabric_config(uplinks=0)) as site:
        assert ethernet(site) == [EVERYONE]


async def test_unconfigured_infiniband_ports_all_reach_each_other() -> None:
    async with fabric_site() as site:
        (group,) = site.fabric.walk().infiniband_groups
        assert (group.pkey, group.full, group.limited) == (0x7FFF, frozenset(EVERYONE), frozenset())


async def test_limited_default_membership_isolates_and_full_members_reach_limited_ones() -> None:
    async with fabric_site(fabric_config(default_membership="limited")) as site:
        assert site.fabric.walk().infiniband_groups == ()
        await ok(site.member("0x12", [guid(0), guid(3)]))
        await ok(site.member("0x12", [guid(1), guid(2)], membership="limited"))
        walk = site.fabric.walk()
        assert walk.reaches("n0-0", "n1-0", "infiniband")
        assert walk.reaches("n0-1", "n0-0", "infiniband")
        assert not walk.reaches("n0-1", "n0-2", "infiniband")
        assert not walk.reaches("n0-0", "n1-2", "infiniband")
        document = site.fabric.reachability_document()
        assert document["infiniband"] == [
            {"pkey": "0x12", "full": ["n0-0", "n1-0"], "limited": ["n0-1", "n0-2"]}
        ]


async def test_any_rail_of_a_host_counts() -> None:
    async with fabric_site(fabric_config(default_membership="limited")) as site:
        await ok(site.member("0x12", [guid(0, 0), guid(1, 1)]))
        assert site.fabric.walk().peers("n0-0", "infiniband") == {"n0-1"}


async def test_a_port_taken_out_of_0x7fff_falls_back_to_the_default_membership() -> None:
    async with fabric_site() as site:
        await ok(
            site.member(
                "0x7fff", [guid(n, r) for n in range(6) for r in range(2)], membership="limited"
            )
        )
        assert site.fabric.walk().infiniband_groups == ()
        await ok(site.ufm.delete(f"/resources/pkeys/0x7fff/guids/{guid(0)}"))
        assert site.fabric.walk().peers("n0-0", "infiniband") == frozenset(EVERYONE) - {"n0-0"}
        site.fabric.set_default_membership("limited")
        assert site.fabric.walk().infiniband_groups == ()


@pytest.mark.parametrize("size", [(80, 16)], ids=["1280 nodes"])
async def test_a_large_site_of_many_tenants_is_told_apart(size: tuple[int, int]) -> None:
    leaves, per_leaf = size
    config = fabric_config(leaves, per_leaf, rails=4, uplinks=48, default_membership="limited")
    tenants = 8
    async with fabric_site(config) as site:
        for leaf in range(leaves):
            patches = [access(100 + i % tenants, f"swp{i + 1}") for i in range(per_leaf)]
            vnis = [vlan_with_vni(100 + t, 5000 + t) for t in range(tenants)]
            switch = site.fabric.switches[f"leaf{leaf}"]
            assert (await site.configure(leaf, merged(*patches, *vnis)))["state"] == "applied"
            assert switch.view.vnis[100] == 5000
        for tenant in range(tenants):
            guids = [
                guid(leaf * per_leaf + i, rail)
                for leaf in range(leaves)
                for i in range(tenant, per_leaf, tenants)
                for rail in range(4)
            ]
            await ok(site.member(hex(0x100 + tenant), guids, index0=True))
        walk = site.fabric.walk()
        assert len(walk.ethernet_groups) == tenants
        assert len(walk.infiniband_groups) == tenants
        for group, partition in zip(walk.ethernet_groups, walk.infiniband_groups, strict=True):
            assert len(group) == leaves * per_leaf // tenants
            assert {int(name.split("-")[1]) % tenants for name in group} == {partition.pkey - 0x100}
            assert partition.full == group
