"""Laying servers out in racks and cabling them, by the rules that docs/how-to/site.md states.

Everything follows from the order of the servers, so the same list gives the same site (passwords
apart): addresses, MACs, GUIDs and ports are counted, not drawn.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from itertools import groupby
from typing import Final

from pydantic import SecretStr

from dflare.site.document import (
    Bmc,
    Credential,
    EthernetFabric,
    EthernetPort,
    EthernetSwitch,
    Fabrics,
    Image,
    InfinibandFabric,
    InfinibandPort,
    Node,
    NodeType,
    Pools,
    PrefixPool,
    Rack,
    SchedulerHost,
    ServerVendor,
    SiteDocument,
)
from dflare.site.values import NumberRange

NODES_IN_RAIL_RACK: Final = 8
NODES_IN_OTHER_RACK: Final = 32
RACKS_IN_ROW: Final = 10
RACKS_IN_BLOCK: Final = 40
RACKS_IN_SCALABLE_UNIT: Final = 4
RAILS: Final = 8
SPINES_IN_BLOCK: Final = 2
SWITCH_PORTS: Final = tuple(f"swp{number}" for number in range(1, 65))
NODES_AT_MOST: Final = 16_000

_ADDRESSES_IN_THIRD_BYTE: Final = 250
_BYTE_STEP: Final = 1 << 16
_LOOPBACK_BASE: Final = IPv4Address("127.20.0.0")


@dataclass(frozen=True)
class SimPorts:
    """TCP ports of the simulated devices and of the simulator's own control interface.

    ``scheduler`` is that of the scheduler host, or None for the fabric manager's number: each has
    an address of its own.
    """

    bmc: int = 8443
    nvue: int = 8765
    ufm: int = 8444
    control: int = 8470
    scheduler: int | None = None

    @property
    def scheduler_host(self) -> int:
        """The port of the scheduler host."""
        return self.ufm if self.scheduler is None else self.scheduler


def random_password() -> str:
    """Return a fresh password of 144 random bits."""
    return secrets.token_urlsafe(18)


@dataclass(frozen=True)
class LayoutOptions:
    """What the operator may choose about a site that is laid out by rules.

    ``address_base``: first of three neighbouring /16 for BMCs, switches and the two managers (of
    the InfiniBand fabric and of Slurm clusters);
    the default lies on the loopback network, where the simulator listens. ``vendors``: servers take
    them in turn. ``ethernet_ports``: cables of a server to the leaf of its rack.
    """

    name: str = "fleet"
    region: str = "local"
    description: str = ""
    ports: SimPorts = field(default_factory=SimPorts)
    address_base: IPv4Address = _LOOPBACK_BASE
    vendors: tuple[ServerVendor, ...] = (ServerVendor.DELL,)
    ethernet_ports: int = 1
    cooldown_s: int = 300
    new_password: Callable[[], str] = random_password

    def __post_init__(self) -> None:
        if not self.vendors:
            raise ValueError("vendors is empty: name at least one")
        if self.ethernet_ports not in (1, 2):
            raise ValueError("ethernet_ports must be 1 or 2: a leaf has 64 ports for 32 servers")
        if int(self.address_base) % _BYTE_STEP:
            raise ValueError(f"address_base {self.address_base} must end in .0.0")


@dataclass(frozen=True)
class PlannedNode:
    """A server to be placed: its name and type."""

    name: str
    type: NodeType


@dataclass(frozen=True)
class _PlannedRack:
    name: str
    nodes: tuple[PlannedNode, ...]
    unit: int | None


def lay_out(planned: Sequence[PlannedNode], options: LayoutOptions) -> SiteDocument:
    """Build the site of ``planned`` servers, in their order, those with InfiniBand rails first.

    Raises:
        ValueError: no server, or more than 16,000.
    """
    if not 0 < len(planned) <= NODES_AT_MOST:
        raise ValueError(f"a site has 1 to {NODES_AT_MOST:,} servers, not {len(planned):,}")
    racks = list(_fill_racks(planned))
    accounts = ["bmc", "nvue", *(["ufm"] if any(rack.unit for rack in racks) else []), "scheduler"]
    return SiteDocument(
        name=options.name,
        region=options.region,
        description=options.description,
        credentials={
            ref: Credential(username="dflare", password=SecretStr(options.new_password()))
            for ref in accounts
        },
        pools=_pools(options),
        fabrics=_fabrics(racks, options),
        scheduler_hosts=(_scheduler_host(options),),
        images=(Image(name="base", builtin="base"),),
        node_types=_types(planned),
        racks=tuple(_rack(number, rack) for number, rack in enumerate(racks)),
        nodes=tuple(_nodes(racks, options)),
    )


def _fill_racks(planned: Sequence[PlannedNode]) -> Iterator[_PlannedRack]:
    """Fill racks with servers of one GPU model; four racks with rails make a scalable unit."""
    number = unit = 0
    by_rails = sorted(planned, key=lambda node: node.type.infiniband_rails == 0)
    for (railed, _), group in groupby(by_rails, key=_kind_of_rack):
        nodes = tuple(group)
        size = NODES_IN_RAIL_RACK if railed else NODES_IN_OTHER_RACK
        for place, start in enumerate(range(0, len(nodes), size)):
            number += 1
            if railed and place % RACKS_IN_SCALABLE_UNIT == 0:
                unit += 1
            yield _PlannedRack(
                f"rack-{number:03d}", nodes[start : start + size], unit if railed else None
            )


def _kind_of_rack(node: PlannedNode) -> tuple[bool, str]:
    return node.type.infiniband_rails > 0, node.type.gpu.model if node.type.gpu else ""


def _types(planned: Sequence[PlannedNode]) -> tuple[NodeType, ...]:
    found = {node.type.name: node.type for node in planned}
    return tuple(found[name] for name in sorted(found))


def _pools(options: LayoutOptions) -> Pools:
    """Pools that fit the defaults of the devices.

    VLANs end below 3725-3999, which Cumulus Linux keeps for itself; a /20 holds 4,094 servers.
    """
    return Pools(
        vlans=(NumberRange(100, 3699),),
        vnis=(NumberRange(10_000, 29_999),),
        pkeys=(NumberRange(0x0010, 0x7FFE),),
        prefixes=(PrefixPool(cidr=IPv4Network("10.64.0.0/10"), subnet_prefix_length=20),),
        cooldown_s=options.cooldown_s,
    )


def _rack(number: int, rack: _PlannedRack) -> Rack:
    return Rack(
        name=rack.name,
        row=f"row-{number // RACKS_IN_ROW + 1:02d}",
        block=f"block-{number // RACKS_IN_BLOCK + 1}",
    )


def _fabrics(racks: Sequence[_PlannedRack], options: LayoutOptions) -> Fabrics:
    named: list[tuple[str, str | None]] = [(_leaf(rack), rack.name) for rack in racks]
    for block in range(-(-len(racks) // RACKS_IN_BLOCK)):
        named += [(f"spine-{block + 1}-{n + 1}", None) for n in range(SPINES_IN_BLOCK)]
    switches = tuple(
        EthernetSwitch(
            name=name,
            address=f"{_address(options, 1, index)}:{options.ports.nvue}",
            role="leaf" if rack else "spine",
            ports=SWITCH_PORTS,
            rack=rack,
        )
        for index, (name, rack) in enumerate(named)
    )
    units = max((rack.unit or 0 for rack in racks), default=0)
    infiniband = (
        InfinibandFabric(
            name="ufm-1",
            address=f"{_address(options, 2, 0)}:{options.ports.ufm}",
            credentials_ref="ufm",
            switches=tuple(
                _rail_switch(unit, rail) for unit in range(1, units + 1) for rail in range(RAILS)
            ),
        )
        if units
        else None
    )
    return Fabrics(
        ethernet=EthernetFabric(credentials_ref="nvue", switches=switches), infiniband=infiniband
    )


def _scheduler_host(options: LayoutOptions) -> SchedulerHost:
    address = f"https://{_address(options, 2, 1)}:{options.ports.scheduler_host}"
    return SchedulerHost(name="head-0", address=address, credentials_ref="scheduler")


def _nodes(racks: Sequence[_PlannedRack], options: LayoutOptions) -> Iterator[Node]:
    index = 0
    in_unit: dict[int, int] = {}
    for rack in racks:
        for place, planned in enumerate(rack.nodes):
            vendor = options.vendors[index % len(options.vendors)]
            infiniband: tuple[InfinibandPort, ...] = ()
            if rack.unit:
                in_unit[rack.unit] = port = in_unit.get(rack.unit, 0) + 1
                infiniband = _rails(planned.type.infiniband_rails, index, rack.unit, port)
            yield Node(
                name=planned.name,
                type=planned.type.name,
                rack=rack.name,
                position=place + 1,
                vendor=None if vendor == planned.type.vendor else vendor,
                serial=_serial(options.name, planned.name),
                bmc=Bmc(
                    address=f"{_address(options, 0, index)}:{options.ports.bmc}",
                    credentials_ref="bmc",
                ),
                ethernet=_cables(rack, place, index, options.ethernet_ports),
                infiniband=infiniband,
            )
            index += 1


def _cables(rack: _PlannedRack, place: int, index: int, count: int) -> tuple[EthernetPort, ...]:
    """Port p of the server in place n goes to leaf port n, and n + 32 for the second one."""
    return tuple(
        EthernetPort(
            name=f"eth{number}",
            mac=_pairs(f"02df{index:06x}{number:02x}"),
            switch=_leaf(rack),
            port=SWITCH_PORTS[place + number * NODES_IN_OTHER_RACK],
        )
        for number in range(count)
    )


def _rails(count: int, index: int, unit: int, port: int) -> tuple[InfinibandPort, ...]:
    return tuple(
        InfinibandPort(
            name=f"mlx5_{rail}",
            guid=f"02df0000{index:06x}{rail:02x}",
            rail=rail,
            switch=_rail_switch(unit, rail),
            port=str(port),
        )
        for rail in range(count)
    )


def _leaf(rack: _PlannedRack) -> str:
    return f"leaf-{rack.name.removeprefix('rack-')}"


def _rail_switch(unit: int, rail: int) -> str:
    return f"ib-{unit:02d}-rail-{rail}"


def _address(options: LayoutOptions, kind: int, index: int) -> IPv4Address:
    """Address ``index`` of a kind (0 BMCs, 1 switches, 2 managers); last bytes are 1 to 250."""
    third, fourth = divmod(index, _ADDRESSES_IN_THIRD_BYTE)
    return options.address_base + kind * _BYTE_STEP + third * 256 + fourth + 1


def _serial(site: str, node: str) -> str:
    return "DF" + sha256(f"{site}/{node}".encode()).hexdigest()[:12].upper()


def _pairs(digits: str) -> str:
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))
