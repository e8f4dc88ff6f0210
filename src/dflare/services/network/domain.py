"""States and rules of the network service that need no database."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dflare.kit.errors import ConflictError
from dflare.services.orchestrator.contract import AllocationState

ROUTE_TARGET_AS = 65_000
"""The private AS number of every tenant's route target, ``65000:<L3 VNI>``."""


class NetworkState(StrEnum):
    """Life of a cluster's network. Its identifiers are its own until ``released``."""

    ACTIVE = "active"
    DRAINING = "draining"
    RELEASED = "released"


_NETWORK_FOLLOWS: Mapping[NetworkState, frozenset[NetworkState]] = {
    NetworkState.ACTIVE: frozenset({NetworkState.DRAINING}),
    NetworkState.DRAINING: frozenset({NetworkState.RELEASED}),
    # The same cluster's order may be tried again; it gets identifiers anew.
    NetworkState.RELEASED: frozenset({NetworkState.ACTIVE}),
}


def check_network_transition(old: NetworkState, new: NetworkState) -> None:
    """The one transition function of networks.

    Raises:
        ConflictError: ``new`` does not follow ``old``.
    """
    if new not in _NETWORK_FOLLOWS[old]:
        raise ConflictError(f"a network that is {old} cannot become {new}")


class PortKind(StrEnum):
    """Which fabric a port belongs to."""

    ETHERNET = "ethernet"
    INFINIBAND = "infiniband"


class DeviceHealth(StrEnum):
    """How a device answers its reconciler. ``unsafe``: it answers, but in a way that does not keep
    tenants apart by itself, which the reason says."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNSAFE = "unsafe"
    REFUSING = "refusing"
    UNREACHABLE = "unreachable"


class IntentKind(StrEnum):
    """What a write does to a node's ports. A late ``open`` leaks, a late ``close`` only disturbs
    and is repaired: so only ``open`` keeps a node draining."""

    OPEN = "open"
    CLOSE = "close"


class PoolKind(StrEnum):
    """Kinds of identifiers. A subnet's value is its network address as a number."""

    VLAN = "vlan"
    VNI = "vni"
    PKEY = "pkey"
    SUBNET = "subnet"


LIVE = frozenset({AllocationState.HELD, AllocationState.CONFIRMED})
"""Allocations whose node may be attached to its cluster's network."""


@dataclass(frozen=True, slots=True)
class NodeEpoch:
    """Who holds a node, as orchestrator's newest event told."""

    node_id: str
    cluster_id: str
    allocation_id: str
    state: AllocationState
    epoch: int


@dataclass(frozen=True, slots=True)
class NetworkIds:
    """A network's identifiers; ``pkey`` is ``None`` at a site without InfiniBand."""

    network_id: str
    vrf: str
    vlan: int
    vni: int
    l3_vni: int
    subnet: str
    pkey: int | None


@dataclass(frozen=True, slots=True)
class WantedPort:
    """A declared port with what is desired of it and what the last read-back found.

    ``address`` names it on its device: a front port or a GUID. ``network`` is ``None`` for a closed
    port. ``stale``: the node's epoch is newer than that of the desired row, so the port may not be
    opened for it any more.
    """

    port_id: str
    address: str
    node_id: str
    network: NetworkIds | None
    allocation_id: str | None
    epoch: int
    version: int
    operation_id: str | None
    stale: bool
    seen: str | None
    matches: bool
    compared_version: int


@dataclass(frozen=True, slots=True)
class OpenIntent:
    """A write that may still take effect."""

    id: str
    node_id: str | None
    network_id: str | None
    kind: IntentKind
    epoch: int
    deadline: datetime
    jobs: tuple[str, ...]
    certain: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """A port held against what is desired of it: ``seen`` in words, and whether it is that."""

    port_id: str
    version: int
    seen: str
    matches: bool
