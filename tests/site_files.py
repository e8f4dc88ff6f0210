"""Writes what a platform under test starts from: its site and the simulator's file."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType

from dflare.embedded.layout import Layout
from dflare.embedded.ports import free_port
from dflare.site.document import NodeType, SiteDocument
from dflare.site.layout import LayoutOptions, PlannedNode, SimPorts, lay_out
from dflare.site.load import load_site
from dflare.site.render import render_data, write_private, write_site
from dflare.site.simulator_file import simulator_config
from dflare.site.synthetic import synthetic_site

FLEET = Path(__file__).parent / "data/alibaba-gpu-2023/openb_node_list_gpu_node.csv"
# Away from the default, so that a platform that runs on this machine is never in the way.
SYNTHETIC_BASE, FLEET_BASE = "127.60.0.0", "127.64.0.0"


@dataclass(frozen=True)
class PlatformWish:
    """What to start: ``nodes`` like servers, or what ``prepare`` writes into the data directory.

    ``times`` replaces durations of simulated hardware (seconds of the site's clock, ``speed`` of
    which pass in one of wall time); without it hardware answers at once and the speed is 1.
    ``environment`` goes to every process. ``more_kinds`` adds nodes that are alike but for the name
    and the price of their type: how many, and the price per node and hour, by that name. Without
    ``every_store`` what an order needs no object or series store for starts without them.
    """

    nodes: int = 16
    prepare: Callable[[Layout], SiteDocument] | None = None
    speed: float = 1
    times: Mapping[str, float] | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    cooldown_s: int = 1
    price_per_node_hour: str | None = None
    more_kinds: Mapping[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    every_store: bool = False

    def write(self, layout: Layout) -> SiteDocument:
        """Write both files; returns the site."""
        layout.create()
        return self.prepare(layout) if self.prepare else _write_synthetic(layout, self)


def import_whole_fleet(
    layout: Layout, prices: Mapping[str, str] = MappingProxyType({})
) -> SiteDocument:
    """The 1,213 servers of the list in ``tests/data``, by the program. Hardware answers at once.

    Two things in the document are changed before it is applied, as an operator may: the cooldown of
    identifiers, which at the site clock's speed of 1 would take five minutes, and ``prices`` per
    node and hour of the node types named there.
    """
    ports = chosen_ports()
    arguments = {
        "--output": layout.site_file,
        "--simulator-file": layout.simulator_file,
        "--address-base": FLEET_BASE,
        "--bmc-port": ports.bmc,
        "--nvue-port": ports.nvue,
        "--ufm-port": ports.ufm,
        "--control-port": ports.control,
        "--hardware-time": "zero",
    }
    options = [str(part) for pair in arguments.items() for part in pair]
    program = [sys.executable, "-m", "dflare.cli.main", "site", "import", str(FLEET)]
    subprocess.run([*program, *options], check=True, capture_output=True, timeout=60)
    document = load_site(layout.site_file)
    pools = document.pools.model_copy(update={"cooldown_s": 1})
    types = [
        _priced(one, prices[one.name]) if one.name in prices else one for one in document.node_types
    ]
    document = document.model_copy(update={"pools": pools, "node_types": tuple(types)})
    write_site(layout.site_file, document)
    return document


def _write_synthetic(layout: Layout, wish: PlatformWish) -> SiteDocument:
    ports = chosen_ports()
    options = LayoutOptions(
        name="demo",
        ports=ports,
        address_base=IPv4Address(SYNTHETIC_BASE),
        cooldown_s=wish.cooldown_s,
    )
    document = _with_kinds(synthetic_site(wish.nodes, options=options), wish, options)
    if wish.price_per_node_hour is not None:
        first, *others = document.node_types
        priced = (_priced(first, wish.price_per_node_hour), *others)
        document = document.model_copy(update={"node_types": priced})
    hardware_time = "normal" if wish.times else "zero"
    config = simulator_config(document, ports, speed=wish.speed, hardware_time=hardware_time)
    if wish.times:
        config["times"] = dict(wish.times)
    write_private(layout.simulator_file, render_data(config))
    write_site(layout.site_file, document)
    return document


def _with_kinds(document: SiteDocument, wish: PlatformWish, options: LayoutOptions) -> SiteDocument:
    if not wish.more_kinds:
        return document
    kind = document.node_types[0]
    planned = [PlannedNode(node.name, kind) for node in document.nodes]
    for name, (count, price) in wish.more_kinds.items():
        other = _priced(kind.model_copy(update={"name": name}), price)
        planned += [PlannedNode(f"{name}-{number}", other) for number in range(count)]
    return lay_out(planned, options)


def _priced(node_type: NodeType, price: str) -> NodeType:
    data = node_type.model_dump(mode="json") | {"price_per_node_hour": price}
    return NodeType.model_validate(data)


def chosen_ports() -> SimPorts:
    """Ports that are free now for the simulator's devices."""
    taken: list[int] = []
    for _ in range(4):
        taken.append(free_port(taken))
    return SimPorts(*taken)
