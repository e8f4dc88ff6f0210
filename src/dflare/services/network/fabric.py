"""What the reconciler needs of a fabric, whichever it is: observe, plan, judge, write.

Planning and judging are pure; ``ethernet.py`` and ``infiniband.py`` implement them. Each wraps the
driver ports of its kind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from dflare.drivers.fabric.port import (
    DeviceAccess,
    DeviceError,
    DeviceUnreachableError,
    Receipt,
)
from dflare.services.baremetal.contract import PoolFacts
from dflare.services.network.domain import (
    IntentKind,
    Judged,
    NetworkIds,
    OpenIntent,
    WantedPort,
)

Seen = TypeVar("Seen")
Change = TypeVar("Change")

PortVersion = tuple[str, int]


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Everything desired of one device, read in one transaction.

    ``lingering`` are the networks that the device may still hold something of.
    """

    device_id: str
    site_id: str
    name: str
    health: str
    reason: str
    desired_version: int
    frozen: bool
    pools: PoolFacts
    ports: Sequence[WantedPort]
    lingering: Sequence[NetworkIds]
    intents: Sequence[OpenIntent]


@dataclass(frozen=True, slots=True)
class Touch:
    """What a plan does to one node (or to the device itself): it becomes one intent."""

    kind: IntentKind
    node_id: str | None = None
    network_id: str | None = None
    allocation_id: str | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class FabricPlan(Generic[Change]):
    """The difference between desired and seen.

    ``ports`` are the ports that it changes; ``operations`` the orders on whose behalf it does so;
    ``refused`` the ports that are not opened because the epoch of their row is an older one.
    """

    change: Change
    needed: bool
    touches: tuple[Touch, ...]
    ports: frozenset[PortVersion]
    operations: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(slots=True)
class Written:
    """What became of a plan's calls. ``certain`` is false where one may have effects that nobody
    can ask for; ``error`` is the first failure."""

    jobs: list[str] = field(default_factory=list[str])
    certain: bool = True
    error: DeviceError | None = None

    def add(self, receipt: Receipt) -> None:
        """Count a call that the device accepted."""
        self.jobs.extend(receipt.jobs)
        self.certain = self.certain and receipt.certain

    def fail(self, error: DeviceError) -> None:
        """Count a call that failed; unless it says otherwise it may still have an effect."""
        self.error = self.error or error
        if isinstance(error, DeviceUnreachableError) and not error.harmless:
            self.certain = False

    @property
    def unreachable(self) -> bool:
        """Whether further calls are pointless now."""
        return isinstance(self.error, DeviceUnreachableError)


class Fabric(Protocol, Generic[Seen, Change]):
    """One kind of fabric, for the reconciler."""

    async def observe(self, access: DeviceAccess) -> Seen:
        """The whole device as it is in force."""
        ...

    def plan(
        self, view: DeviceView, seen: Seen, in_flight: frozenset[PortVersion]
    ) -> FabricPlan[Change]:
        """What to write. Ports ``in_flight`` wait for a job that was sent for them already."""
        ...

    def judge(self, view: DeviceView, seen: Seen) -> list[Judged]:
        """Every declared port held against what is desired of it."""
        ...

    def gone(self, view: DeviceView, seen: Seen) -> list[str]:
        """Those lingering networks that nothing is desired of and nothing is seen of."""
        ...

    def hazard(self, seen: Seen) -> str:
        """What makes the device unsafe as it is, or an empty string."""
        ...

    async def write(self, access: DeviceAccess, change: Change, wait_s: float) -> Written:
        """Send the change, batched as the device can take it; never raises a ``DeviceError``."""
        ...

    async def unfinished(self, access: DeviceAccess, jobs: Iterable[str]) -> frozenset[str]:
        """Those of ``jobs`` that may still take effect."""
        ...

    async def running(self, access: DeviceAccess) -> frozenset[str]:
        """Every job of the device, whoever started it."""
        ...


def touches_of(changed: Iterable[tuple[WantedPort, IntentKind]]) -> tuple[Touch, ...]:
    """One touch for each node and kind."""
    found: dict[tuple[str, IntentKind], Touch] = {}
    for port, kind in changed:
        found[port.node_id, kind] = Touch(
            kind=kind,
            node_id=port.node_id,
            network_id=port.network.network_id if port.network else None,
            allocation_id=port.allocation_id,
            epoch=port.epoch,
        )
    return tuple(found.values())


def operations_of(changed: Iterable[WantedPort]) -> tuple[str, ...]:
    """The orders behind the changed ports, each once."""
    return tuple(dict.fromkeys(port.operation_id for port in changed if port.operation_id))


def in_ranges(value: int, ranges: Iterable[tuple[int, int]]) -> bool:
    """Whether one of the inclusive ranges holds ``value``."""
    return any(first <= value <= last for first, last in ranges)
