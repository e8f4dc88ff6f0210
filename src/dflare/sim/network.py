"""The border between the hosts and the fabric: two small protocols and what crosses them."""

from dataclasses import dataclass
from typing import Literal, Protocol

from starlette.types import ASGIApp

from dflare.sim.config import Node, SimConfig
from dflare.sim.faults import FaultPlan


@dataclass(frozen=True, slots=True)
class PortState:
    """A switch's front port as it is in force: link and the switch-local VLANs it is member of."""

    link_up: bool
    vlans: frozenset[int]


class FabricSide(Protocol):
    """What the process and the hosts need of the fabric (``dflare.sim.fabric.Fabric``)."""

    def port_state(self, switch: str, port: str) -> PortState:
        """The effective state of one front port.

        Raises:
            KeyError: there is no such switch or port.
        """
        ...

    def nvue_app(self) -> ASGIApp:
        """One app for every switch; ``scope["server"][0]`` is the address of the switch meant."""
        ...

    def ufm_app(self) -> ASGIApp:
        """The InfiniBand manager's app."""
        ...

    def reachability_document(self) -> dict[str, object]:
        """What ``GET /truth/reachability`` answers, from the programmed state alone."""
        ...

    async def reset_switch(self, name: str, to: Literal["factory", "previous"]) -> None:
        """Let the switch come back with its factory or its previous configuration.

        Raises:
            KeyError: there is no such switch.
        """
        ...

    async def stop(self) -> None:
        """End every task of the fabric."""
        ...


class HostNetwork(Protocol):
    """What a host knows of the network: whether it has a way out."""

    def ethernet_up(self, host_name: str, port_name: str) -> bool:
        """Whether that Ethernet port has a link."""
        ...

    def infiniband_up(self, host_name: str, port_name: str) -> bool:
        """Whether that InfiniBand port has a link."""
        ...

    def has_path(self, host_name: str) -> bool:
        """Whether the first port with a link and a VLAN exists: the way of the agent's traffic."""
        ...


class PortSource(Protocol):
    """The part of ``FabricSide`` that hosts look at."""

    def port_state(self, switch: str, port: str) -> PortState:
        """See ``FabricSide.port_state``."""
        ...


class CabledNetwork:
    """``HostNetwork`` over the cables of the file and the fabric's port states."""

    def __init__(self, config: SimConfig, fabric: PortSource, faults: FaultPlan) -> None:
        self._nodes: dict[str, Node] = {node.name: node for node in config.nodes}
        self._fabric = fabric
        self._faults = faults

    def ethernet_up(self, host_name: str, port_name: str) -> bool:
        """Whether the switch's end of that port's cable has a link."""
        for port in self._nodes[host_name].ethernet:
            if port.name == port_name and not self._lost(host_name, port_name):
                return self._fabric.port_state(port.switch, port.switch_port).link_up
        return False

    def infiniband_up(self, host_name: str, port_name: str) -> bool:
        """Whether that InfiniBand port has a link: its cable is never unplugged but by a fault."""
        return not self._lost(host_name, port_name)

    def _lost(self, host_name: str, port_name: str) -> bool:
        return bool(self._faults.standing("link_down", f"{host_name}/{port_name}"))

    def has_path(self, host_name: str) -> bool:
        """Whether any port has a link and is a member of any VLAN (agent protocol, "Path")."""
        for port in self._nodes[host_name].ethernet:
            if self._lost(host_name, port.name):
                continue
            state = self._fabric.port_state(port.switch, port.switch_port)
            if state.link_up and state.vlans:
                return True
        return False
