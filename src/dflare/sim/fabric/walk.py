"""The ground-truth walk: who reaches whom, from the programmed state and the cables alone.

It is the judge of isolation, so where it cannot know it assumes that packets pass:

* Ethernet. A host's port is in the VLANs of the switch port that its cable ends in, if that has a
  link. A VLAN is local to its switch. It goes on over its VNI to every switch with the same VNI;
  over switch ports without a host, which count as cabled to each other: untagged frames of one
  meet untagged frames of all others, and so do frames of one tag (so VLAN 1 of unconfigured
  switches is one segment); and through a routed interface (SVI) with an address into its VRF.
  A VRF is local to its switch, except ``default``, which the underlay joins; it goes on where what
  one switch exports (route targets, or else the L3 VNI) another imports. A switch of whose ports
  every one has a host is taken to have uplinks that the file does not name.
* InfiniBand. Two ports reach each other when they share a key of 15 bits and at least one of them
  is a full member of it.
* Every host counts as powered. A host does not forward between its own ports: it is in every
  segment that one of its ports is in, and joins none of them.

ACLs are not looked at: what only an ACL keeps apart counts as reaching each other.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dflare.sim.config import Node
from dflare.sim.fabric.partitions import DEFAULT_PKEY, Membership, Partition
from dflare.sim.fabric.view import DEFAULT_VLAN, PortView, SwitchView

Technology = Literal["ethernet", "infiniband"]

_UNTAGGED = 0
_UNDERLAY = ("underlay",)


@dataclass(frozen=True, slots=True)
class InfinibandGroup:
    """A partition's hosts. A host with a full port is in ``full``, else it is in ``limited``."""

    pkey: int
    full: frozenset[str]
    limited: frozenset[str]

    @property
    def connects(self) -> bool:
        """Whether anybody reaches anybody through it."""
        return len(self.full) > 1 or bool(self.full and self.limited)

    def peers(self, host: str) -> frozenset[str]:
        """Whom ``host`` reaches through this partition."""
        if host in self.full:
            return (self.full | self.limited) - {host}
        return self.full if host in self.limited else frozenset()


@dataclass(frozen=True, slots=True)
class Reachability:
    """The walk's result: Ethernet segments and partitions, each with at least one connection."""

    ethernet_groups: tuple[frozenset[str], ...]
    infiniband_groups: tuple[InfinibandGroup, ...]

    def peers(self, host: str, technology: Technology) -> frozenset[str]:
        """Every other host that ``host`` reaches."""
        found: set[str] = set()
        if technology == "infiniband":
            for partition in self.infiniband_groups:
                found |= partition.peers(host)
        else:
            for group in self.ethernet_groups:
                if host in group:
                    found |= group
        return frozenset(found - {host})

    def reaches(self, one: str, other: str, technology: Technology) -> bool:
        """Whether the two reach each other; the relation is symmetric but not transitive."""
        return other in self.peers(one, technology)

    def document(self) -> dict[str, object]:
        """The JSON object of ``GET /truth/reachability``; hosts alone are left out."""
        return {
            "ethernet": [sorted(group) for group in self.ethernet_groups],
            "infiniband": [
                {"pkey": hex(g.pkey), "full": sorted(g.full), "limited": sorted(g.limited)}
                for g in self.infiniband_groups
            ],
        }


def walk(
    nodes: Sequence[Node],
    switches: Mapping[str, SwitchView],
    partitions: Mapping[int, Partition],
    default_membership: Membership,
) -> Reachability:
    """Who reaches whom now."""
    return Reachability(
        ethernet_groups=_ethernet(nodes, switches),
        infiniband_groups=_infiniband(nodes, partitions, default_membership),
    )


class _Segments:
    """Union-find over whatever names a piece of network."""

    def __init__(self) -> None:
        self._above: dict[Hashable, Hashable] = {}

    def root(self, piece: Hashable) -> Hashable:
        above = self._above
        at = piece
        while (up := above.get(at, at)) != at:
            above[at] = above.get(up, up)
            at = up
        return at

    def join(self, one: Hashable, other: Hashable) -> None:
        left, right = self.root(one), self.root(other)
        if left != right:
            self._above[left] = right


def _ethernet(
    nodes: Sequence[Node], switches: Mapping[str, SwitchView]
) -> tuple[frozenset[str], ...]:
    cabled = {(port.switch, port.switch_port) for node in nodes for port in node.ethernet}
    segments = _Segments()
    for name, view in switches.items():
        uplinks = [port for key, port in view.ports.items() if (name, key) not in cabled]
        _join_uplinks(segments, name, uplinks)
        for vlan, vni in view.vnis.items():
            segments.join(("vlan", name, vlan), ("vni", vni))
        for vlan, vrf in view.svis.items():
            segments.join(("vlan", name, vlan), ("vrf", name, vrf))
        segments.join(("vrf", name, "default"), _UNDERLAY)
    _join_vrfs(segments, switches)
    groups: defaultdict[Hashable, set[str]] = defaultdict(set)
    for node in nodes:
        for cable in node.ethernet:
            port = switches[cable.switch].ports[cable.switch_port]
            for piece in _pieces(cable.switch, port):
                groups[segments.root(piece)].add(node.name)
    return tuple(sorted((frozenset(g) for g in groups.values() if len(g) > 1), key=min))


def _join_uplinks(segments: _Segments, switch: str, uplinks: Sequence[PortView]) -> None:
    if not uplinks:
        segments.join(("vlan", switch, DEFAULT_VLAN), ("wire", _UNTAGGED))
    for port in uplinks:
        if not port.link_up:
            continue
        if port.untagged is not None:
            segments.join(("vlan", switch, port.untagged), ("wire", _UNTAGGED))
        for vlan in port.tagged:
            segments.join(("vlan", switch, vlan), ("wire", vlan))


def _join_vrfs(segments: _Segments, switches: Mapping[str, SwitchView]) -> None:
    """Join each VRF that exports a target with each that imports it."""
    exporters: defaultdict[str, list[Hashable]] = defaultdict(list)
    for name, view in switches.items():
        for vrf, l3 in view.l3.items():
            for target in l3.exports:
                exporters[target].append(("vrf", name, vrf))
    for name, view in switches.items():
        for vrf, l3 in view.l3.items():
            for target in l3.imports:
                for exporter in exporters.get(target, ()):
                    segments.join(("vrf", name, vrf), exporter)


def _pieces(switch: str, port: PortView) -> Iterable[Hashable]:
    if not port.link_up:
        return
    if port.vrf is not None:
        yield ("vrf", switch, port.vrf)
    for vlan in port.vlans:
        yield ("vlan", switch, vlan)


def _infiniband(
    nodes: Sequence[Node], partitions: Mapping[int, Partition], default: Membership
) -> tuple[InfinibandGroup, ...]:
    host_of = {port.guid: node.name for node in nodes for port in node.infiniband}
    groups: list[InfinibandGroup] = []
    for pkey in sorted(partitions):
        members = {
            guid: member.membership
            for guid, member in partitions[pkey].members.items()
            if guid in host_of
        }
        if pkey == DEFAULT_PKEY:
            members = dict.fromkeys(host_of, default) | members
        full = frozenset(host_of[guid] for guid, how in members.items() if how == "full")
        every = frozenset(host_of[guid] for guid in members)
        group = InfinibandGroup(pkey, full, every - full)
        if group.connects:
            groups.append(group)
    return tuple(groups)
