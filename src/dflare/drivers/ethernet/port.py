"""What network needs of an Ethernet switch that carries tenants over VXLAN and EVPN.

Verbs are re-entrant and return what was observed or accepted, never what was asked for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dflare.drivers.fabric.port import DeviceAccess, Receipt


@dataclass(frozen=True, slots=True)
class Segment:
    """A tenant's network on one switch.

    ``vlan`` is local to the bridge and carried by ``vni``; ``gateway`` (``10.0.0.1/24``) routes it
    into ``vrf``, which other switches join over ``l3_vni`` with the explicit route target
    ``route_target`` alone: derived route targets are no isolation.
    """

    vlan: int
    vni: int
    vrf: str
    l3_vni: int
    route_target: str
    gateway: str


@dataclass(frozen=True, slots=True)
class SwitchChange:
    """Everything that one reconcile pass changes on a switch; applied as one revision.

    ``ports`` maps a front port to its VLAN, or to ``None``: closed, which is link down and member
    of no VLAN. ``removed_vlans`` and ``removed_vrfs`` go first, so that naming one among them and
    in ``segments`` too replaces it. ``close_default`` makes ports that nobody configured members
    of no VLAN.
    """

    ports: Mapping[str, int | None] = field(default_factory=dict[str, int | None])
    segments: tuple[Segment, ...] = ()
    removed_vlans: tuple[int, ...] = ()
    removed_vrfs: tuple[str, ...] = ()
    close_default: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to change."""
        return bool(
            self.ports
            or self.segments
            or self.removed_vlans
            or self.removed_vrfs
            or self.close_default
        )


@dataclass(frozen=True, slots=True)
class PortSeen:
    """A front port in force: its link, the VLANs that it is member of, tagged or not, and whether
    it routes by itself."""

    link_up: bool
    vlans: frozenset[int]
    routed: bool = False


@dataclass(frozen=True, slots=True)
class VrfSeen:
    """A VRF in force: its L3 VNIs and route targets."""

    l3_vnis: frozenset[int]
    exports: frozenset[str]
    imports: frozenset[str]


@dataclass(frozen=True, slots=True)
class SwitchSeen:
    """A whole switch in force.

    ``vlans`` maps a VLAN of the bridge to its VNIs, ``gateways`` a VLAN to its (VRF, addresses).
    ``default_vlan`` is that of ports which nobody configured, ``None`` where they are in none.
    ``overlay`` says whether VXLAN and EVPN are on.
    """

    ports: Mapping[str, PortSeen]
    vlans: Mapping[int, frozenset[int]]
    gateways: Mapping[int, tuple[str, frozenset[str]]]
    vrfs: Mapping[str, VrfSeen]
    default_vlan: int | None
    overlay: bool


class EthernetSwitches(Protocol):
    """A driver of one family of switches. All methods raise ``DeviceUnreachableError`` where the
    outcome is unknown and ``DeviceRefusedError`` where the switch said no."""

    async def observe(self, access: DeviceAccess) -> SwitchSeen:
        """What the hardware does now, front ports that nobody configured included."""
        ...

    async def ensure(self, access: DeviceAccess, change: SwitchChange, wait_s: float) -> Receipt:
        """Apply ``change`` as one revision and wait up to ``wait_s`` of wall time for its end."""
        ...

    async def unfinished(self, access: DeviceAccess, jobs: Iterable[str]) -> frozenset[str]:
        """Those of ``jobs`` (from receipts) that may still take effect."""
        ...

    async def running(self, access: DeviceAccess) -> frozenset[str]:
        """Every revision that is on its way now, whoever started it."""
        ...
