"""Writes what a platform under test starts from: its site and the simulator's file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from dflare.embedded.layout import Layout
from dflare.embedded.ports import free_port
from dflare.site.document import SiteDocument
from dflare.site.layout import LayoutOptions, SimPorts
from dflare.site.render import render_data, write_private, write_site
from dflare.site.simulator_file import simulator_config
from dflare.site.synthetic import synthetic_site


@dataclass(frozen=True)
class PlatformWish:
    """What to start. ``document`` is the site, or else ``nodes`` like servers are laid out.

    ``times`` replaces durations of simulated hardware (seconds of the site's clock); without it
    hardware answers at once. ``environment`` goes to every process.
    """

    nodes: int = 16
    document: SiteDocument | None = None
    speed: float = 1
    times: Mapping[str, float] | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    cooldown_s: int = 1
    price_per_node_hour: str | None = None


def chosen_ports() -> SimPorts:
    """Free ports for the simulated devices."""
    taken: list[int] = []
    for _ in range(4):
        taken.append(free_port(taken))
    return SimPorts(*taken)


def write_files(layout: Layout, wish: PlatformWish) -> SiteDocument:
    layout.create()
    document, ports = wish.document, chosen_ports()
    if document is None:
        options = LayoutOptions(
            name="demo",
            ports=ports,
            # Away from the default, so that a platform on this machine is never in the way.
            address_base=IPv4Address("127.60.0.0"),
            cooldown_s=wish.cooldown_s,
        )
        document = synthetic_site(wish.nodes, options=options)
    else:
        ports = _ports_of(document)
    if wish.price_per_node_hour is not None:
        data = json.loads(json.dumps([t.model_dump(mode="json") for t in document.node_types]))
        for node_type in data:
            node_type["price_per_node_hour"] = wish.price_per_node_hour
        document = document.model_copy(
            update={
                "node_types": tuple(
                    type(document.node_types[0]).model_validate(node_type) for node_type in data
                )
            }
        )
    config = simulator_config(
        document, ports, speed=wish.speed, hardware_time="normal" if wish.times else "zero"
    )
    if wish.times:
        config["times"] = dict(wish.times)
    write_private(layout.simulator_file, render_data(config))
    write_site(layout.site_file, document)
    return document


def _ports_of(document: SiteDocument) -> SimPorts:
    """The ports that a laid-out document names, and a free one for the control interface."""
    infiniband = document.fabrics.infiniband
    ports = [
        int(address.rpartition(":")[2])
        for address in (
            document.nodes[0].bmc.address,
            document.fabrics.ethernet.switches[0].address,
            infiniband.address if infiniband else ":1",
        )
    ]
    return SimPorts(*ports, control=free_port(ports))
