"""Switches that speak NVUE over REST (Cumulus Linux 5.x).

Source: CumulusNetworks/docs, Cumulus Linux 5.13, "NVUE API", "VLAN-aware Bridge Mode", "VXLAN
Devices", "Inter-subnet Routing", "Virtual Routing and Forwarding - VRF". A closed port has its link
down and is no member of the bridge, whose own untagged VLAN is ``none``: otherwise a port without
configuration is a member of VLAN 1. Only ``rev=operational`` tells what the hardware does.
"""

import time
from collections.abc import Iterable, Iterator

from dflare.drivers.ethernet.port import PortSeen, Segment, SwitchChange, SwitchSeen, VrfSeen
from dflare.drivers.fabric.port import (
    DeviceAccess,
    DeviceRefusedError,
    DeviceUnreachableError,
    Receipt,
)
from dflare.drivers.fabric.rest import DeviceRest, Json, Reply, branch, polled

_ROOT = "/nvue_v1/"
_REVISION = "/nvue_v1/revision"
_BRIDGE = "br_default"
_SEEN_VLAN = 1
_APPLIED = frozenset({"applied", "inactive"})
_FAILED = frozenset({"invalid", "ays_fail", "confirm_fail"})
_APPLY: Json = {"state": "apply", "auto-prompt": {"ays": "ays_yes"}}
_ON = frozenset({"on", "enabled"})


class NvueSwitches:
    """Implements ``EthernetSwitches``."""

    def __init__(self, rest: DeviceRest) -> None:
        self._rest = rest

    async def observe(self, access: DeviceAccess) -> SwitchSeen:
        """What the hardware does now."""
        return _seen((await self._call(access, "GET", _ROOT, rev="operational")).body)

    async def ensure(self, access: DeviceAccess, change: SwitchChange, wait_s: float) -> Receipt:
        """One revision: removals, then what is to be there, then apply."""
        try:
            revision = await self._prepared(access, change)
        except DeviceUnreachableError as error:
            # A revision that nobody applies does nothing, whatever of it reached the switch.
            raise DeviceUnreachableError(str(error), harmless=True) from error
        await self._call(access, "PATCH", f"{_REVISION}/{revision}", body=_APPLY)
        try:
            return await self._ended(access, revision, wait_s)
        except DeviceUnreachableError:
            return Receipt(jobs=(revision,))

    async def unfinished(self, access: DeviceAccess, jobs: Iterable[str]) -> frozenset[str]:
        """Revisions that are still on their way; one that is gone or pending is not."""
        waiting: set[str] = set()
        for revision in jobs:
            if _under_way(await self._state(access, revision)):
                waiting.add(revision)
        return frozenset(waiting)

    async def running(self, access: DeviceAccess) -> frozenset[str]:
        """Revisions that somebody asked to apply and that have not ended."""
        revisions = branch((await self._call(access, "GET", _REVISION)).body)
        return frozenset(
            revision
            for revision, shown in revisions.items()
            if _under_way(branch(shown).get("state"))
        )

    async def _prepared(self, access: DeviceAccess, change: SwitchChange) -> str:
        made = (await self._call(access, "POST", _REVISION)).body
        if not isinstance(made, dict) or len(made) != 1:
            raise DeviceUnreachableError(f"{access.name}: no revision was made: {made!r}")
        revision = next(iter(made))
        for patch in _patches(change):
            await self._call(access, "PATCH", _ROOT, body=patch, rev=revision)
        return revision

    async def _ended(self, access: DeviceAccess, revision: str, wait_s: float) -> Receipt:
        until, attempt = time.monotonic() + wait_s, 0
        while True:
            reply = await self._call(access, "GET", f"{_REVISION}/{revision}")
            state = branch(reply.body).get("state")
            if reply.status == 404 or state in _APPLIED:
                # A switch that came back from a reset knows no revision: the read-back judges.
                return Receipt()
            if state in _FAILED:
                issue = branch(reply.body, "transition").get("issue")
                raise DeviceRefusedError(f"{access.name}: revision {revision} {state}: {issue}")
            left = until - time.monotonic()
            if left <= 0:
                return Receipt(jobs=(revision,))
            await polled(left, attempt)
            attempt += 1

    async def _state(self, access: DeviceAccess, revision: str) -> Json:
        reply = await self._call(access, "GET", f"{_REVISION}/{revision}")
        return None if reply.status == 404 else branch(reply.body).get("state")

    async def _call(
        self, access: DeviceAccess, method: str, path: str, *, body: Json = None, **query: str
    ) -> Reply:
        reply = await self._rest.call(access, "nvue", method, path, query=query, body=body)
        if reply.status == 404 and not path.startswith(f"{_REVISION}/"):
            raise DeviceRefusedError(f"{access.name}: {method} {path}: 404")
        return reply


def _under_way(state: Json) -> bool:
    return state is not None and state not in _APPLIED | _FAILED | {"pending"}


def _patches(change: SwitchChange) -> Iterator[Json]:
    """The root patches of a change. A merge patch cannot replace an object, so removals go ahead
    of what is set."""
    if change.removed_vlans or change.removed_vrfs:
        yield {
            "bridge": {
                "domain": {_BRIDGE: {"vlan": {str(vlan): None for vlan in change.removed_vlans}}}
            },
            "interface": {f"vlan{vlan}": None for vlan in change.removed_vlans},
            "vrf": dict.fromkeys(change.removed_vrfs),
        }
    domain: dict[str, Json] = {}
    if change.close_default:
        domain["untagged"] = "none"
    if change.segments:
        domain["vlan"] = {str(s.vlan): {"vni": {str(s.vni): {}}} for s in change.segments}
    interfaces: dict[str, Json] = {name: _port(vlan) for name, vlan in change.ports.items()}
    interfaces |= {f"vlan{s.vlan}": _gateway(s) for s in change.segments}
    patch: dict[str, Json] = {}
    if domain:
        patch["bridge"] = {"domain": {_BRIDGE: domain}}
    if interfaces:
        patch["interface"] = interfaces
    if change.segments:
        patch["vrf"] = {s.vrf: _vrf(s) for s in change.segments}
    if patch:
        yield patch


def _port(vlan: int | None) -> Json:
    # ``null`` unsets what would make the port carry more than its one VLAN.
    if vlan is None:
        return {
            "type": "swp",
            "link": {"state": {"down": {}}},
            "bridge": {"domain": {_BRIDGE: None}},
            "ip": None,
        }
    member: Json = {"access": vlan, "untagged": None, "vlan": None}
    return {
        "type": "swp",
        "link": {"state": {"up": {}}},
        "bridge": {"domain": {_BRIDGE: member}},
        "ip": None,
    }


def _gateway(segment: Segment) -> Json:
    return {
        "type": "svi",
        "vlan": segment.vlan,
        "ip": {"vrf": segment.vrf, "address": {segment.gateway: {}}},
    }


def _vrf(segment: Segment) -> Json:
    target: Json = {segment.route_target: {}}
    return {
        "evpn": {"enable": "on", "vni": {str(segment.l3_vni): {}}},
        "router": {
            "bgp": {
                "enable": "on",
                "address-family": {
                    "ipv4-unicast": {
                        "enable": "on",
                        "redistribute": {"connected": {"enable": "on"}},
                        "route-export": {"to-evpn": {"enable": "on"}},
                    }
                },
                "route-export": {"to-evpn": {"route-target": target}},
                "route-import": {"from-evpn": {"route-target": target}},
            }
        },
    }


def _seen(tree: Json) -> SwitchSeen:
    bridge = branch(tree, "bridge", "domain", _BRIDGE)
    untagged = bridge.get("untagged", _SEEN_VLAN)
    interfaces = branch(tree, "interface")
    return SwitchSeen(
        ports={
            name: _port_seen(body)
            for name, body in interfaces.items()
            if branch(body).get("type") == "swp"
        },
        vlans={
            int(vlan): frozenset(
                int(vlan) if vni == "auto" else int(vni) for vni in branch(body, "vni")
            )
            for vlan, body in branch(bridge, "vlan").items()
        },
        gateways=_gateways(interfaces),
        vrfs={
            name: _vrf_seen(body)
            for name, body in branch(tree, "vrf").items()
            if name not in {"default", "mgmt"}
        },
        default_vlan=None if untagged == "none" else int(str(untagged)),
        overlay=_enabled(tree, "nve", "vxlan") and _enabled(tree, "evpn"),
    )


def _enabled(tree: Json, *path: str) -> bool:
    part = branch(tree, *path)
    return part.get("enable", part.get("state")) in _ON


def _port_seen(body: Json) -> PortSeen:
    link_up = "down" not in branch(body, "link", "state")
    member = branch(body, "bridge", "domain", _BRIDGE)
    vlans: set[int] = set()
    for key in ("access", "untagged"):
        value = member.get(key)
        if value is not None and value != "none":
            vlans.add(int(str(value)))
    for text in branch(member, "vlan"):
        first, _, last = text.partition("-")
        vlans.update(range(int(first), int(last or first) + 1))
    vrf = branch(body, "ip").get("vrf")
    routed = bool(branch(body, "ip", "address")) or isinstance(vrf, str)
    return PortSeen(link_up, frozenset(vlans), routed)


def _gateways(interfaces: dict[str, Json]) -> dict[int, tuple[str, frozenset[str]]]:
    found: dict[int, tuple[str, frozenset[str]]] = {}
    for name, body in interfaces.items():
        if branch(body).get("type") != "svi":
            continue
        vlan = branch(body).get("vlan", name.removeprefix("vlan"))
        vrf = branch(body, "ip").get("vrf", "default")
        found[int(str(vlan))] = (str(vrf), frozenset(branch(body, "ip", "address")))
    return found


def _vrf_seen(body: Json) -> VrfSeen:
    bgp = branch(body, "router", "bgp")
    return VrfSeen(
        l3_vnis=frozenset(int(v) for v in branch(body, "evpn", "vni") if v != "auto"),
        exports=frozenset(branch(bgp, "route-export", "to-evpn", "route-target")),
        imports=frozenset(branch(bgp, "route-import", "from-evpn", "route-target")),
    )
