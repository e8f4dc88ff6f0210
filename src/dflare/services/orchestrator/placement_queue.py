"""Whose turn it is when nodes come free: a pure function of the waiting orders and the stock.

Orders wait in turn: the tenant that holds the fewest nodes first, then in the order of arrival.
One behind may start before one ahead only where that moves nobody's earliest start.
docs/adr/0010-waiting-orders.md has the rules and why.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from typing import Final

from dflare.services.orchestrator.contract import PoolWish
from dflare.services.orchestrator.placement import Wish, in_groups_that_hold
from dflare.services.orchestrator.placement_pools import (
    Placement,
    SiteNode,
    place_pools,
    wanted_by_type,
)

LOOKED_AT_MOST: Final = 64
"""How many orders are looked at in one pass: placing one takes some ten milliseconds."""

_OVERDUE: Final = timedelta(minutes=5)
"""What an order whose end is past is expected to take: it is being released."""
_OUT_OF_SERVICE: Final = frozenset({"quarantine", "failed", "maintenance", "declared"})


@dataclass(frozen=True)
class Waiting:
    """An order that waits, or asks now. ``near`` are nodes that its cluster has already.

    ``barred`` are nodes that are not for it whatever comes free, such as those reserved for
    others. ``ends_at`` is when it gives its nodes back at the latest, where that is known.
    """

    operation_id: str
    organization_id: str
    project_id: str
    pools: tuple[PoolWish, ...]
    arrived_at: datetime
    wish: Wish = field(default_factory=Wish)
    near: tuple[SiteNode, ...] = ()
    barred: frozenset[str] = frozenset()
    ends_at: datetime | None = None

    @property
    def size(self) -> int:
        """How many nodes it wants."""
        return sum(pool.count for pool in self.pools)


@dataclass(frozen=True)
class Stock:
    """All nodes of a site that are not retired, when those that are busy come back at the latest
    (where known, by id), and how many nodes each organization holds."""

    now: datetime
    nodes: Sequence[SiteNode]
    ends: Mapping[str, datetime] = field(default_factory=dict[str, datetime])
    held: Mapping[str, int] = field(default_factory=dict[str, int])

    def free_from(self, node: SiteNode) -> datetime | None:
        """When a node can be had: now, at its order's end, or ``None`` where that is not known."""
        if node.free:
            return self.now
        end = self.ends.get(node.node_id)
        return max(end, self.now + _OVERDUE) if end is not None and _serves(node) else None


def in_turn(orders: Iterable[Waiting], held: Mapping[str, int]) -> list[Waiting]:
    """The orders as their turns come.

    A turn goes to the organization with the fewest nodes, counting those that it holds and those
    of its orders that had their turn before; of equal ones to that whose order came first.
    """
    by_tenant: dict[str, Iterator[Waiting]] = {}
    grouped: dict[str, list[Waiting]] = defaultdict(list)
    for order in sorted(orders, key=lambda one: (one.arrived_at, one.operation_id)):
        grouped[order.organization_id].append(order)
    queue: list[tuple[int, datetime, str, Waiting]] = []
    for tenant, own in grouped.items():
        by_tenant[tenant] = iter(own)
        first = next(by_tenant[tenant])
        queue.append((held.get(tenant, 0), first.arrived_at, first.operation_id, first))
    heapify(queue)
    turns: list[Waiting] = []
    while queue:
        nodes, _, _, order = heappop(queue)
        turns.append(order)
        if following := next(by_tenant[order.organization_id], None):
            heappush(
                queue,
                (nodes + order.size, following.arrived_at, following.operation_id, following),
            )
    return turns


def earliest(order: Waiting, stock: Stock) -> datetime | None:
    """When the order could start if it were alone: now, at the end of orders whose ends are known,
    or ``None`` where these do not suffice."""
    ends = {at for node in stock.nodes if (at := stock.free_from(node)) is not None}
    times = sorted(ends | {stock.now})
    # More nodes never make a placement impossible, so the first time that suffices is searched.
    index = bisect_left(times, True, key=lambda at: _placed_at(order, stock, at) is not None)
    return times[index] if index < len(times) else None


@dataclass(frozen=True)
class Blocked:
    """An order that has its turn and cannot start: its earliest ``start``, where that is known, and
    where it is not, the nodes that it could use."""

    order: Waiting
    start: datetime | None
    useful: frozenset[str]


def blocked(order: Waiting, stock: Stock) -> Blocked:
    """What those behind an order have to leave to it."""
    start = earliest(order, stock)
    return Blocked(order, start, frozenset(() if start else _useful(order, stock)))


def start_now(order: Waiting, ahead: Sequence[Blocked], stock: Stock) -> Placement | None:
    """The nodes that the order gets now; ``None`` where it has to wait.

    It moves the earliest start of no order that is ``ahead``. Of one whose start is not known no
    node is taken that it could use, unless it cannot start with all nodes that serve: such an
    order is passed.
    """
    kept: set[str] = set()
    planned: list[tuple[Waiting, datetime]] = []
    for other in ahead:
        if other.start is None:
            kept |= other.useful
        elif order.ends_at is None or order.ends_at > other.start:
            planned.append((other.order, other.start))
    placement = _placed_at(order, stock, stock.now, kept)
    if placement is None or not planned:
        return placement
    taken = {one.node.node_id for one in placement.chosen}
    if all(_placed_at(other, stock, at, taken) is not None for other, at in planned):
        return placement
    for other, at in planned:
        plan = _placed_at(other, stock, at)
        assert plan is not None, "an order can start at its earliest start"
        kept |= {one.node.node_id for one in plan.chosen}
    return _placed_at(order, stock, stock.now, kept)


def next_start(
    turns: Sequence[Waiting], stock: Stock, held_up: Collection[str] = ()
) -> tuple[Waiting, Placement] | None:
    """The first order that may start now, with its nodes. ``held_up`` are operations that something
    else than nodes keeps from starting, such as a quota: they stop nobody."""
    ahead: list[Blocked] = []
    for order in turns[:LOOKED_AT_MOST]:
        if order.operation_id in held_up:
            continue
        placement = start_now(order, ahead, stock)
        if placement is not None:
            return order, placement
        ahead.append(blocked(order, stock))
    return None


def can_ever_start(order: Waiting, stock: Stock) -> bool:
    """Whether all nodes that serve now would suffice, if they were free."""
    return _place(order, [node for node in stock.nodes if _serves(node)]) is not None


def estimates(turns: Sequence[Waiting], stock: Stock) -> dict[str, datetime | None]:
    """When each order would start if all went in turn and every order ended when it is known to.

    ``None`` where that is not known: an order whose end is unknown never gives nodes back here.
    """
    free_from: dict[str, datetime | None] = {
        node.node_id: stock.free_from(node) for node in stock.nodes
    }
    found: dict[str, datetime | None] = {}
    for order in turns[:LOOKED_AT_MOST]:
        times = sorted({at for at in free_from.values() if at is not None})
        found[order.operation_id] = None
        for at in times:
            nodes = [n for n in stock.nodes if _is_by(free_from.get(n.node_id), at)]
            placement = _place(order, nodes)
            if placement is None:
                continue
            start = max(at, stock.now)
            found[order.operation_id] = start
            end = None if order.ends_at is None else max(order.ends_at, start)
            free_from |= {one.node.node_id: end for one in placement.chosen}
            break
    return found


def _is_by(free_from: datetime | None, at: datetime) -> bool:
    return free_from is not None and free_from <= at


def _placed_at(
    order: Waiting, stock: Stock, at: datetime, without: Collection[str] = ()
) -> Placement | None:
    nodes = [
        node
        for node in stock.nodes
        if node.node_id not in without and _is_by(stock.free_from(node), at)
    ]
    return _place(order, nodes)


def _place(order: Waiting, nodes: Sequence[SiteNode]) -> Placement | None:
    own = {node.node_id for node in order.near}
    usable = [n for n in nodes if n.node_id not in order.barred and n.node_id not in own]
    if not _enough(order, usable):
        return None
    placed = place_pools(order.pools, usable, order.near, order.wish)
    return placed if isinstance(placed, Placement) else None


def _enough(order: Waiting, nodes: Sequence[SiteNode]) -> bool:
    """Whether there are as many; cheaper than to try."""
    wanted = wanted_by_type(order.pools)
    for node in nodes:
        if wanted.get(node.node_type, 0) > 0:
            wanted[node.node_type] -= 1
    return not any(count > 0 for count in wanted.values())


def _serves(node: SiteNode) -> bool:
    return not node.cordoned and node.state not in _OUT_OF_SERVICE


def _useful(order: Waiting, stock: Stock) -> set[str]:
    """Nodes that the order could use once enough others are free; none where that can never be."""
    serving = [
        node
        for node in stock.nodes
        if _serves(node)
        and node.node_id not in order.barred
        and not {node.node_id, node.name} & order.wish.exclude
    ]
    if _place(order, serving) is None:
        return set()
    parts = [
        ([node.candidate for node in serving if node.node_type == node_type], count)
        for node_type, count in wanted_by_type(order.pools).items()
    ]
    near = [node.candidate for node in order.near]
    return {node.node_id for part in in_groups_that_hold(parts, near, order.wish) for node in part}
