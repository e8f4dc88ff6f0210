"""What a switch's configuration makes its hardware do: the compiled form that the walk reads.

Everything that nobody configured fails open, as it does in the field: a front port that the
configuration does not name is up and an access member of VLAN 1.
"""

from dataclasses import dataclass, field

from dflare.sim.fabric.model import BRIDGE, is_on
from dflare.sim.fabric.tree import Json, Tree, branch, find

DEFAULT_VLAN = 1


@dataclass(frozen=True, slots=True)
class PortView:
    """A front port in force.

    ``untagged`` is the VLAN of frames without a tag (``None``: they are dropped), ``tagged`` the
    VLANs that it carries with tags. ``vrf`` is set on a routed port, which is in no VLAN.
    """

    link_up: bool = True
    untagged: int | None = DEFAULT_VLAN
    tagged: frozenset[int] = frozenset()
    vrf: str | None = None

    @property
    def vlans(self) -> frozenset[int]:
        """Every VLAN of which the port is a member."""
        return self.tagged if self.untagged is None else self.tagged | {self.untagged}


@dataclass(frozen=True, slots=True)
class L3Vni:
    """A VRF's way to other switches: what it exports and what it imports.

    Without configured route targets FRR derives them from the VNI, so the VNI is what joins.
    """

    vni: int
    exports: frozenset[str]
    imports: frozenset[str]


@dataclass(frozen=True, slots=True)
class SwitchView:
    """A switch in force: ports by name, VNI by VLAN, VRF by routed VLAN, L3 VNI by VRF."""

    ports: dict[str, PortView] = field(default_factory=dict[str, PortView])
    vnis: dict[int, int] = field(default_factory=dict[int, int])
    svis: dict[int, str] = field(default_factory=dict[int, str])
    l3: dict[str, L3Vni] = field(default_factory=dict[str, L3Vni])


def compiled(config: Tree, front_ports: tuple[str, ...]) -> SwitchView:
    """The view of a switch with ``front_ports`` under ``config``.

    VLANs and VRFs reach other switches only while ``nve.vxlan`` and ``evpn`` are enabled.
    """
    bridge = branch(config, "bridge", "domain", BRIDGE)
    native = _native(bridge)
    known = frozenset(int(vlan) for vlan in branch(bridge, "vlan"))
    bgp_ports = branch(config, "vrf", "default", "router", "bgp", "neighbor").keys()
    interfaces = branch(config, "interface")
    ports = {
        name: _port(interfaces.get(name), native, known, name in bgp_ports) for name in front_ports
    }
    overlay = is_on(_enabled(config, "nve", "vxlan")) and is_on(_enabled(config, "evpn"))
    return SwitchView(
        ports=ports,
        vnis=_vnis(bridge) if overlay else {},
        svis=_svis(interfaces),
        l3=_l3(config) if overlay else {},
    )


def _enabled(config: Tree, *path: str) -> Json:
    enable = find(config, (*path, "enable"))
    return find(config, (*path, "state")) if enable is None else enable


def _native(bridge: Tree) -> int | None:
    untagged = bridge.get("untagged", DEFAULT_VLAN)
    return None if untagged == "none" else int(str(untagged))


def _port(config: Json, native: int | None, known: frozenset[int], underlay: bool) -> PortView:
    link_up = "down" not in branch(config, "link", "state")
    domains = branch(config, "bridge", "domain")
    if BRIDGE not in domains:
        vrf = find(config, ("ip", "vrf"))
        if underlay or branch(config, "ip", "address") or isinstance(vrf, str):
            return PortView(link_up, None, frozenset(), vrf if isinstance(vrf, str) else "default")
        return PortView(link_up, native)
    member = branch(domains, BRIDGE)
    access = member.get("access")
    if access is not None:
        return PortView(link_up, int(str(access)))
    # A member without `access` is a trunk, and a trunk without a list carries every VLAN of the
    # bridge ("VLAN-aware Bridge Mode", VLAN pruning).
    carried = branch(member, "vlan")
    tagged = known if not carried or "all" in carried else _expanded(carried)
    own = member.get("untagged", native)
    untagged = None if own is None or own == "none" else int(str(own))
    return PortView(link_up, untagged, tagged - ({untagged} if untagged is not None else set()))


def _expanded(ranges: Tree) -> frozenset[int]:
    vlans: set[int] = set()
    for text in ranges:
        first, _, last = text.partition("-")
        vlans.update(range(int(first), int(last or first) + 1))
    return frozenset(vlans)


def _vnis(bridge: Tree) -> dict[int, int]:
    vnis: dict[int, int] = {}
    for vlan, body in branch(bridge, "vlan").items():
        for vni in branch(body, "vni"):
            vnis[int(vlan)] = int(vlan) if vni == "auto" else int(vni)
    return vnis


def _svis(interfaces: Tree) -> dict[int, str]:
    """VRF by VLAN of every SVI that routes: one that has an address and is not down."""
    svis: dict[int, str] = {}
    for interface in interfaces.values():
        if find(interface, ("type",)) != "svi" or "down" in branch(interface, "link", "state"):
            continue
        addressed = branch(interface, "ip", "address") or branch(interface, "ip", "vrr", "address")
        if addressed:
            vlan = find(interface, ("vlan",))
            svis[int(str(vlan))] = str(find(interface, ("ip", "vrf")) or "default")
    return svis


def _l3(config: Tree) -> dict[str, L3Vni]:
    found: dict[str, L3Vni] = {}
    for name, vrf in branch(config, "vrf").items():
        evpn = branch(vrf, "evpn")
        vnis = [vni for vni in branch(evpn, "vni") if vni != "auto"]
        if not vnis or find(evpn, ("enable",)) in {"off", "disabled"}:
            continue
        vni = int(vnis[0])
        bgp = branch(vrf, "router", "bgp")
        derived = frozenset({f"vni:{vni}"})
        found[name] = L3Vni(
            vni=vni,
            exports=_targets(bgp, "route-export", "to-evpn") or derived,
            imports=_targets(bgp, "route-import", "from-evpn") or derived,
        )
    return found


def _targets(bgp: Tree, direction: str, family: str) -> frozenset[str]:
    return frozenset(
        f"rt:{target}"
        for target in branch(bgp, direction, family, "route-target")
        if target != "auto"
    )
