"""Orders through a queue on a clock that jumps from event to event.

The queue is first come, first served with EASY backfill: where the first order does not fit, the
earliest time at which it will is known from the ends of those that run (the trace's durations are
taken as known); a later order may start before it where it fits now and either ends by then or
leaves the first order's nodes free. Who chooses the nodes is a driver, so that a function and a
whole platform are replayed alike.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from typing import Protocol

from bench.replay_trace import Order
from dflare.services.orchestrator.placement import Candidate


class Driver(Protocol):
    """Gives an order its nodes and takes them back.

    ``place`` returns the names of exactly ``order.nodes`` nodes that no other order has, or
    ``None`` where it cannot now: it is asked again at the next event. ``release`` returns once the
    nodes can be placed again. Neither is asked twice at a time; the clock stands meanwhile.
    """

    async def place(self, order: Order) -> Sequence[str] | None:
        """Choose nodes for an order that fits by count."""
        ...

    async def release(self, order: Order) -> None:
        """Take back what ``place`` gave."""
        ...


@dataclass(frozen=True)
class Started:
    """An order that was placed. ``free``: the nodes that were free just before.

    ``promised_s``: the start that was reserved for it when it first stood at the head and did not
    fit; ``None`` if it never did.
    """

    order: Order
    at_s: int
    nodes: tuple[Candidate, ...]
    free: tuple[Candidate, ...]
    promised_s: int | None

    @property
    def waited_s(self) -> int:
        """From submission to start."""
        return self.at_s - self.order.submitted_s


@dataclass
class Replay:
    """What happened. ``busy``: (time, nodes in use from then on). ``unplaced``: a driver never
    gave them nodes. ``node_seconds``: use by organization, counted node by node at its release."""

    started: list[Started] = field(default_factory=list)
    refused: list[Order] = field(default_factory=list)
    unplaced: list[Order] = field(default_factory=list)
    busy: list[tuple[int, int]] = field(default_factory=list)
    node_seconds: dict[str, int] = field(default_factory=dict)


async def replay(
    orders: Sequence[Order], fleet: Sequence[Candidate], driver: Driver, *, queue: bool = True
) -> Replay:
    """Run all orders to their end; with ``queue`` false an order that cannot start is refused.

    Raises:
        ValueError: the driver gave a node twice, an unknown one, or too many or too few.
    """
    run = _Run({node.name: node for node in fleet}, driver, queue=queue)
    arrivals = deque(sorted(orders, key=lambda order: (order.submitted_s, order.name)))
    while arrivals or run.ends:
        events = [order.submitted_s for order in islice(arrivals, 1)]
        events += [end_s for end_s, _ in run.ends[:1]]
        now = min(events)
        await run.release_until(now)
        while arrivals and arrivals[0].submitted_s == now:
            run.submit(arrivals.popleft())
        await run.start(now)
    run.result.unplaced = list(run.waiting)
    return run.result


class _Run:
    """The ledger of one replay: it believes no driver, and counts nodes itself."""

    def __init__(self, fleet: Mapping[str, Candidate], driver: Driver, *, queue: bool) -> None:
        self.result = Replay()
        self.waiting: list[Order] = []
        self.ends: list[tuple[int, str]] = []
        self._fleet = fleet
        self._driver = driver
        self._queue = queue
        self._running: dict[str, Order] = {}
        self._held: dict[str, tuple[str, int]] = {}
        self._promised: dict[str, int] = {}

    @property
    def _free(self) -> int:
        return len(self._fleet) - len(self._held)

    def submit(self, order: Order) -> None:
        """Let it wait; an order that the whole fleet could not hold is refused at once."""
        if order.nodes > len(self._fleet):
            self.result.refused.append(order)
        else:
            self.waiting.append(order)

    async def release_until(self, now: int) -> None:
        """End what is over."""
        while self.ends and self.ends[0][0] <= now:
            _, name = heappop(self.ends)
            order = self._running.pop(name)
            await self._driver.release(order)
            for node in [node for node, (holder, _) in self._held.items() if holder == name]:
                _, since = self._held.pop(node)
                used = self.result.node_seconds
                used[order.organization] = used.get(order.organization, 0) + now - since
            self._note(now)

    async def start(self, now: int) -> None:
        """Place what may start: first the head of the queue, then what delays it not."""
        while self.waiting and await self._place(self.waiting[0], now):
            self.waiting.pop(0)
        if not self._queue:
            for order in list(self.waiting):
                if not await self._place(order, now):
                    self.result.refused.append(order)
            self.waiting.clear()
        elif self.waiting:
            await self._backfill(now)

    async def _backfill(self, now: int) -> None:
        head, *others = self.waiting
        reserved_s, spare = self._reserve(head, now)
        self._promised.setdefault(head.name, reserved_s)
        for order in others:
            ends_before = now + order.duration_s <= reserved_s
            if not ends_before and order.nodes > spare:
                continue
            if await self._place(order, now):
                self.waiting.remove(order)
                if not ends_before:
                    spare -= order.nodes

    def _reserve(self, head: Order, now: int) -> tuple[int, int]:
        """When the head will fit, and how many nodes will be free beside it then."""
        free = self._free
        if free >= head.nodes:
            # Only a driver that refuses what fits by count comes here.
            return now, free - head.nodes
        for end_s, name in sorted(self.ends):
            free += self._running[name].nodes
            if free >= head.nodes:
                # Others that end at the same moment only add to what is spare.
                return end_s, free - head.nodes
        raise AssertionError("an order larger than the fleet was refused at its submission")

    async def _place(self, order: Order, now: int) -> bool:
        if order.nodes > self._free:
            return False
        names = await self._driver.place(order)
        if names is None:
            return False
        free = tuple(node for name, node in self._fleet.items() if name not in self._held)
        if len(names) != order.nodes or len(set(names)) != len(names):
            raise ValueError(f"order {order.name} of {order.nodes} got {sorted(names)}")
        for name in names:
            if name in self._held or name not in self._fleet:
                raise ValueError(f"order {order.name} got {name}, which is not free")
            self._held[name] = order.name, now
        self._running[order.name] = order
        heappush(self.ends, (now + order.duration_s, order.name))
        nodes = tuple(self._fleet[name] for name in names)
        promised = self._promised.get(order.name)
        self.result.started.append(Started(order, now, nodes, free, promised))
        self._note(now)
        return True

    def _note(self, now: int) -> None:
        self.result.busy.append((now, len(self._held)))
