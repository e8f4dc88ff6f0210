"""What the InfiniBand manager discovers: hosts and their ports, which never change.

Source: UFM Enterprise REST API Guide 6.22, "Ports REST API" and "Systems REST API".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from dflare.sim.config import Node
from dflare.sim.fabric.tree import Json


@dataclass(frozen=True, slots=True)
class Inventory:
    """The fabric's ports, which never change: rendered once. ``guids`` are the ports by host."""

    ports: bytes
    systems: bytes
    guids: Mapping[str, tuple[str, ...]]


def inventory(nodes: Sequence[Node]) -> Inventory:
    """What the manager discovers of ``nodes``; all count as powered, so every port is up."""
    ports: list[Json] = []
    systems: list[Json] = []
    guids: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if not node.infiniband:
            continue
        system = node.infiniband[0].guid
        guids[node.name] = tuple(port.guid for port in node.infiniband)
        names: list[Json] = [f"{port.guid}_1" for port in node.infiniband]
        systems.append(
            {
                "system_name": node.name,
                "name": system,
                "guid": system,
                "system_guid": system,
                "type": "host",
                "vendor": "Mellanox",
                "technology": "InfiniBand",
                "severity": "Info",
                "state": "active",
                "ports": names,
            }
        )
        for port in node.infiniband:
            ports.append(
                {
                    "name": f"{port.guid}_1",
                    "guid": port.guid,
                    "number": 1,
                    "dname": port.name,
                    "lid": len(ports) + 1,
                    "mtu": 4096,
                    "physical_state": "Link Up",
                    "logical_state": "Active",
                    "active_speed": "NDR",
                    "active_width": "4x",
                    "severity": "Info",
                    "systemID": system,
                    "system_name": node.name,
                    "node_description": f"{node.name} {port.name}",
                    "peer_node_name": port.switch,
                    "peer_port_dname": port.switch_port,
                    "peer_node_description": port.switch,
                }
            )
    return Inventory(orjson.dumps(ports), orjson.dumps(systems), guids)
