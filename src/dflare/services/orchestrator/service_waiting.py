"""The queue of orders that wait for capacity, as it stands within one transaction."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.auth.contract import Scope
from dflare.services.orchestrator import (
    repository,
    repository_reservations,
    repository_waiting,
)
from dflare.services.orchestrator.contract import AllocationState, PlacementWish, Wishes
from dflare.services.orchestrator.placement_pools import Placement, wanted_by_type, wish_of
from dflare.services.orchestrator.placement_queue import (
    LOOKED_AT_MOST,
    Stock,
    Waiting,
    blocked,
    can_ever_start,
    estimates,
    in_turn,
    start_now,
)

_SCOPE = Scope.system("the queue of orders that wait for capacity")
_QUOTA = "the project's quota is used up"
_UNKNOWN = "when is unknown: no end is known of the orders that hold the nodes"
_FAR = "when is unknown: too many orders have their turns before it"
_NEVER = "it cannot start with the nodes that serve now"


@dataclass(frozen=True)
class Queue:
    """The orders at a site as their turns come. ``held_up`` say what else keeps some waiting."""

    turns: Sequence[Waiting]
    stock: Stock
    held_up: dict[str, str]

    def start_of(self, operation_id: str) -> Placement | None:
        """The nodes that an order gets now, or ``None`` where it waits for those ahead of it."""
        index = next(i for i, one in enumerate(self.turns) if one.operation_id == operation_id)
        if index >= LOOKED_AT_MOST:
            return None
        ahead = [
            blocked(one, self.stock)
            for one in self.turns[:index]
            if one.operation_id not in self.held_up
        ]
        return start_now(self.turns[index], ahead, self.stock)

    def told(self) -> dict[str, str]:
        """What each order is told: its position, and when it starts as far as that is known."""
        able = [one for one in self.turns if one.operation_id not in self.held_up]
        starts = estimates(able, self.stock)
        return {
            order.operation_id: f"waits for capacity: position {index}, "
            + self._when(order, starts)
            for index, order in enumerate(self.turns, start=1)
        }

    def _when(self, order: Waiting, starts: dict[str, datetime | None]) -> str:
        if reason := self.held_up.get(order.operation_id):
            return reason
        if order.operation_id not in starts:
            return _FAR
        start = starts[order.operation_id]
        if start is not None:
            return _about(start - self.stock.now)
        return _UNKNOWN if can_ever_start(order, self.stock) else _NEVER


async def queue_at(
    session: AsyncSession,
    site_id: str,
    now: datetime,
    new: tuple[str, Wishes] | None = None,
    only: set[str] | None = None,
) -> Queue:
    """The queue of a site, under its lock, with an order that asks now where one is given.

    ``only`` narrows it to operations that are known to be stored.
    """
    rows = await repository_waiting.waiting_at(session, site_id)
    asking = [
        (row.operation_id, Wishes.model_validate(row.wishes), row.arrived_at)
        for row in rows
        if only is None or row.operation_id in only
    ]
    if new is not None:
        asking.append((*new, now))
    holdings = await repository_waiting.holdings(session, _SCOPE, site_id)
    types = {pool.node_type for _, wishes, _ in asking for pool in wishes.pools}
    nodes = await repository.site_nodes(session, site_id, types)
    by_id = {node.node_id: node for node in nodes}
    orders: list[Waiting] = []
    barred: dict[tuple[str, datetime | None], frozenset[str]] = {}
    for operation_id, wishes, arrived_at in asking:
        near = tuple(
            by_id[one.node_id]
            for one in holdings
            if one.cluster_id == wishes.cluster_id
            and one.state != AllocationState.RELEASING
            and one.node_id in by_id
        )
        for_whom = (wishes.project_id, wishes.ends_at)
        if for_whom not in barred:
            barred[for_whom] = await repository_reservations.barred(
                session, site_id, wishes.project_id, now, wishes.ends_at
            )
        # Only a cluster that has nodes can have a wish from before.
        placement = await placement_of(session, wishes) if near else wishes.placement
        orders.append(
            Waiting(
                operation_id,
                wishes.organization_id,
                wishes.project_id,
                wishes.pools,
                arrived_at,
                wish=wish_of(placement),
                near=near,
                barred=barred[for_whom],
                ends_at=wishes.ends_at,
            )
        )
    stock = Stock(
        now,
        nodes,
        {one.node_id: one.ends_at for one in holdings if one.ends_at is not None},
        Counter(one.organization_id for one in holdings),
    )
    return Queue(in_turn(orders, stock.held), stock, await _over_quota(session, orders))


async def _over_quota(session: AsyncSession, orders: Sequence[Waiting]) -> dict[str, str]:
    """The orders that their project's quota would not allow now."""
    held_up: dict[str, str] = {}
    projects = {order.project_id for order in orders}
    types = {pool.node_type for order in orders for pool in order.pools}
    limits = {one: await repository.quota_limits(session, one) for one in projects}
    used = {one: await repository.quota_used(session, one, types, lock=False) for one in projects}
    for order in orders:
        for node_type, count in wanted_by_type(order.pools).items():
            held = used[order.project_id].get(node_type, 0)
            if held + count > limits[order.project_id].get(node_type, 0):
                held_up[order.operation_id] = _QUOTA
    return held_up


async def placement_of(session: AsyncSession, wishes: Wishes) -> PlacementWish | None:
    """The order's own wish, or that which its cluster's first nodes were ordered with."""
    if wishes.placement is not None:
        return wishes.placement
    first = await repository.first_reservation(session, wishes.cluster_id)
    return Wishes.model_validate(first.wishes).placement if first else None


def _about(left: timedelta) -> str:
    """A time to wait in words; coarser the longer it is, so that it seldom changes."""
    minutes = left.total_seconds() / 60
    if minutes < 1:
        return "less than a minute"
    if minutes <= 10:
        return f"about {round(minutes)} min"
    if minutes <= 120:
        return f"about {-(-int(minutes) // 5) * 5} min"
    return f"about {round(minutes / 60)} h"
