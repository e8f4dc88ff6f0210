"""The Ethernet fabric's difference: what a switch should hold, what it holds, what to change."""

import ipaddress
import re
from collections.abc import Iterable

from dflare.drivers.ethernet.port import (
    EthernetSwitches,
    PortSeen,
    Segment,
    SwitchChange,
    SwitchSeen,
    VrfSeen,
)
from dflare.drivers.fabric.port import DeviceAccess, DeviceError
from dflare.services.network.domain import (
    ROUTE_TARGET_AS,
    IntentKind,
    Judged,
    NetworkIds,
    WantedPort,
)
from dflare.services.network.fabric import (
    DeviceView,
    FabricPlan,
    PortVersion,
    Touch,
    Written,
    in_ranges,
    operations_of,
    touches_of,
)

_OWN_VRF = re.compile(r"t(\d+)")


class EthernetFabric:
    """Implements ``Fabric`` over one driver of switches."""

    def __init__(self, driver: EthernetSwitches) -> None:
        self._driver = driver

    async def observe(self, access: DeviceAccess) -> SwitchSeen:
        """The whole switch."""
        return await self._driver.observe(access)

    def plan(
        self, view: DeviceView, seen: SwitchSeen, in_flight: frozenset[PortVersion]
    ) -> FabricPlan[SwitchChange]:
        """One revision's worth of changes."""
        wanted = _wanted(view.ports)
        changed: list[tuple[WantedPort, IntentKind]] = []
        refused: list[str] = []
        for port in view.ports:
            found = seen.ports.get(port.address)
            if found is None or (port.port_id, port.version) in in_flight or _is(port, found):
                continue
            if port.network is not None and port.stale:
                refused.append(port.port_id)
                continue
            changed.append((port, IntentKind.CLOSE if port.network is None else IntentKind.OPEN))
        live = _wanted(p for p in view.ports if not p.stale)
        waiting = _wanted(p for p in view.ports if (p.port_id, p.version) in in_flight)
        lacking = {
            vlan: segment
            for vlan, segment in live.items()
            if vlan not in waiting and not _holds(seen, segment)
        }
        stray_vlans = _stray_vlans(view, seen, wanted)
        stray_vrfs = _stray_vrfs(view, seen, wanted)
        wrong = [segment for segment in lacking.values() if _contradicts(seen, segment)]
        change = SwitchChange(
            ports={p.address: p.network.vlan if p.network else None for p, _ in changed},
            segments=tuple(lacking.values()),
            removed_vlans=tuple(sorted(stray_vlans | {s.vlan for s in wrong})),
            removed_vrfs=tuple(sorted(stray_vrfs | {s.vrf for s in wrong if s.vrf in seen.vrfs})),
            close_default=seen.default_vlan is not None,
        )
        return FabricPlan(
            change=change,
            needed=bool(change),
            touches=(*touches_of(changed), *_touches(view, lacking, change)),
            ports=frozenset((port.port_id, port.version) for port, _ in changed),
            operations=operations_of(port for port, _ in changed),
            refused=tuple(refused),
        )

    def judge(self, view: DeviceView, seen: SwitchSeen) -> list[Judged]:
        """A port of a network needs the network's segment on the switch too."""
        whole = {vlan: _holds(seen, segment) for vlan, segment in _wanted(view.ports).items()}
        judged: list[Judged] = []
        for port in view.ports:
            found = seen.ports.get(port.address)
            if found is None:
                judged.append(Judged(port.port_id, port.version, "no such port", False))
                continue
            words, matches = _words(found), _is(port, found)
            if port.network is not None and not (whole[port.network.vlan] and seen.overlay):
                matches = False
                words += ", network incomplete" if seen.overlay else ", overlay off"
            judged.append(Judged(port.port_id, port.version, words, matches))
        return judged

    def gone(self, view: DeviceView, seen: SwitchSeen) -> list[str]:
        """Networks without port, VLAN, gateway and VRF on the switch."""
        desired = {port.network.network_id for port in view.ports if port.network is not None}
        members = frozenset[int]().union(*(port.vlans for port in seen.ports.values()))
        return [
            network.network_id
            for network in view.lingering
            if network.network_id not in desired
            and network.vlan not in members
            and network.vlan not in seen.vlans
            and network.vlan not in seen.gateways
            and network.vrf not in seen.vrfs
        ]

    def hazard(self, seen: SwitchSeen) -> str:
        """Ports that nobody configured must be in no VLAN, and the underlay must be configured."""
        if not seen.overlay:
            return "VXLAN or EVPN is off: the day-zero configuration is gone"
        if seen.default_vlan is not None:
            return f"ports without configuration are members of VLAN {seen.default_vlan}"
        return ""

    async def write(self, access: DeviceAccess, change: SwitchChange, wait_s: float) -> Written:
        """One revision."""
        written = Written()
        try:
            written.add(await self._driver.ensure(access, change, wait_s))
        except DeviceError as error:
            written.fail(error)
        return written

    async def unfinished(self, access: DeviceAccess, jobs: Iterable[str]) -> frozenset[str]:
        """Revisions still on their way."""
        return await self._driver.unfinished(access, jobs)

    async def running(self, access: DeviceAccess) -> frozenset[str]:
        """Every revision on its way."""
        return await self._driver.running(access)


def segment_of(network: NetworkIds) -> Segment:
    """A network as every switch of it holds it; the gateway is the subnet's first host."""
    subnet = ipaddress.ip_network(network.subnet)
    return Segment(
        vlan=network.vlan,
        vni=network.vni,
        vrf=network.vrf,
        l3_vni=network.l3_vni,
        route_target=f"{ROUTE_TARGET_AS}:{network.l3_vni}",
        gateway=f"{subnet.network_address + 1}/{subnet.prefixlen}",
    )


def vrf_of(l3_vni: int) -> str:
    """The name of a tenant's VRF: as unique as its L3 VNI, and at most 15 characters."""
    return f"t{l3_vni}"


def _wanted(ports: Iterable[WantedPort]) -> dict[int, Segment]:
    networks = {p.network.network_id: p.network for p in ports if p.network is not None}
    return {network.vlan: segment_of(network) for network in networks.values()}


def _is(port: WantedPort, found: PortSeen) -> bool:
    if port.network is None:
        return not found.link_up and not found.vlans and not found.routed
    return found.link_up and found.vlans == frozenset({port.network.vlan}) and not found.routed


def _words(found: PortSeen) -> str:
    vlans = ",".join(str(vlan) for vlan in sorted(found.vlans)[:8])
    if len(found.vlans) > 8:
        vlans += f",… ({len(found.vlans)})"
    parts = ["up" if found.link_up else "down", f"VLAN {vlans}" if vlans else "no VLAN"]
    return ", ".join([*parts, "routed"] if found.routed else parts)


def _vrf_seen(segment: Segment) -> VrfSeen:
    target = frozenset({segment.route_target})
    return VrfSeen(frozenset({segment.l3_vni}), target, target)


def _holds(seen: SwitchSeen, segment: Segment) -> bool:
    return (
        seen.vlans.get(segment.vlan) == frozenset({segment.vni})
        and seen.gateways.get(segment.vlan) == (segment.vrf, frozenset({segment.gateway}))
        and seen.vrfs.get(segment.vrf) == _vrf_seen(segment)
    )


def _contradicts(seen: SwitchSeen, segment: Segment) -> bool:
    """Whether a merge would leave something wrong beside what is right."""
    gateway = (segment.vrf, frozenset({segment.gateway}))
    return (
        seen.vlans.get(segment.vlan, frozenset({segment.vni})) - {segment.vni} != frozenset()
        or seen.gateways.get(segment.vlan, gateway) != gateway
        or seen.vrfs.get(segment.vrf, _vrf_seen(segment)) != _vrf_seen(segment)
    )


def _stray_vlans(view: DeviceView, seen: SwitchSeen, wanted: dict[int, Segment]) -> set[int]:
    """VLANs of the platform's own that nothing desired belongs to, and any VLAN that carries one
    of its VNIs under a number that it must not have."""
    stray = {
        vlan
        for vlan in seen.vlans.keys() | seen.gateways.keys()
        if vlan not in wanted and in_ranges(vlan, view.pools.vlan)
    }
    stray |= {
        vlan
        for vlan, vnis in seen.vlans.items()
        if vlan not in wanted and any(in_ranges(vni, view.pools.vni) for vni in vnis)
    }
    lingering = {network.vlan for network in view.lingering} - wanted.keys()
    return stray | (lingering & (seen.vlans.keys() | seen.gateways.keys()))


def _stray_vrfs(view: DeviceView, seen: SwitchSeen, wanted: dict[int, Segment]) -> set[str]:
    kept = {segment.vrf for segment in wanted.values()}
    lingering = {network.vrf for network in view.lingering}
    return {
        name
        for name in seen.vrfs.keys() - kept
        if name in lingering
        or ((own := _OWN_VRF.fullmatch(name)) and in_ranges(int(own[1]), view.pools.vni))
    }


def _touches(
    view: DeviceView, lacking: dict[int, Segment], change: SwitchChange
) -> Iterable[Touch]:
    """Intents for what belongs to no port: a network's segment, and removals."""
    opened = {p.network.network_id for p in view.ports if p.network and p.network.vlan in lacking}
    for network_id in sorted(opened):
        yield Touch(IntentKind.OPEN, network_id=network_id)
    if change.removed_vlans or change.removed_vrfs or change.close_default:
        yield Touch(IntentKind.CLOSE)
