"""Reserving nodes for orders, and taking stand-ins: the ledger of who holds which node."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NotFoundError
from dflare.kit.ids import new_id
from dflare.kit.plan import Plan
from dflare.kit.telemetry import span
from dflare.services.auth.contract import Scope
from dflare.services.orchestrator import (
    repository,
    repository_reservations,
    repository_waiting,
)
from dflare.services.orchestrator.contract import (
    AllocationState,
    Placed,
    Reservation,
    Wishes,
)
from dflare.services.orchestrator.errors import (
    CapacityError,
    QuotaError,
    UnknownNodeTypeError,
    UnknownSiteError,
)
from dflare.services.orchestrator.placement_pools import (
    Placement,
    PoolRefusal,
    capacity_error,
    place_pools,
    wanted_by_type,
    wish_of,
)
from dflare.services.orchestrator.placement_queue import next_start
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.service_waiting import Queue, placement_of, queue_at
from dflare.services.orchestrator.tables import Allocation, WaitingOrder
from dflare.services.orchestrator.tables import Reservation as ReservationRow

SCHEMA = "orchestrator"
CREATE = "create_cluster"
_PREVIEW = "preview"

_SCOPE = Scope.system("the ledger of allocations")


@dataclass(frozen=True)
class OrchestratorService:
    """The synchronous part of the orchestrator, see ``contract.Orchestrator``."""

    database: Database
    clock: Clock

    async def reserve(self, operation_id: str, wishes: Wishes) -> Reservation:
        """Place, allocate, claim and count the quota in one transaction; idempotent by operation.

        An order that may wait is put into the queue of its site where it cannot be placed now.

        Raises:
            CapacityError, QuotaError, UnknownNodeTypeError, UnknownSiteError: nothing is held.
        """
        with span("orchestrator.reserve", operation_id=operation_id):
            async with self.database.transaction(SCHEMA) as session:
                await repository.lock_site(session, wishes.site_id)
                if held := await self._held_before(session, operation_id, wishes):
                    return held
                await _check_site(session, wishes)
                await _check_quota(session, wishes, lock=True)
                try:
                    placement = await _choose(session, operation_id, wishes, self.clock.now())
                except CapacityError:
                    if not wishes.wait:
                        raise
                    return await self._wait(session, operation_id, wishes)
                return await self._hold(session, operation_id, wishes, placement)

    async def release_hold(self, operation_id: str) -> None:
        """Give back at once what an order that is refused still holds; see the contract."""
        with span("orchestrator.release_hold", operation_id=operation_id):
            async with self.database.transaction(SCHEMA) as session:
                held = await repository.lock_holds(session, operation_id)
                await repository.end_allocations(
                    session, held, self.clock.now(), "the order was refused"
                )
                await repository_waiting.forget(session, [operation_id])

    async def preview(self, wishes: Wishes) -> Reservation:
        """The answer that ``reserve`` would give, with nothing held and no epoch raised."""
        async with self.database.transaction(SCHEMA) as session:
            await _check_site(session, wishes)
            await _check_quota(session, wishes, lock=False)
            try:
                placement = await _choose(session, _PREVIEW, wishes, self.clock.now())
            except CapacityError:
                if not wishes.wait:
                    raise
                queue = await queue_at(
                    session, wishes.site_id, self.clock.now(), new=(_PREVIEW, wishes)
                )
                return self._waits(wishes, queue.told()[_PREVIEW])
        placed = tuple(
            Placed("", one.node.node_id, one.node.name, one.pool, 0) for one in placement.chosen
        )
        return Reservation(placed, _plan(wishes), placement.explanation, self._expiry(wishes))

    def plan(self, saga: str) -> Plan:
        """The present plan of a saga.

        Raises:
            NotFoundError: there is no saga of that name.
        """
        try:
            return SAGAS[saga]
        except KeyError as error:
            raise NotFoundError(
                f"there is no saga {saga}", next_step=f"Sagas are: {', '.join(sorted(SAGAS))}."
            ) from error

    async def nodes_of(self, cluster_id: str) -> Sequence[Placed]:
        """The live allocations of a cluster, for the targets of its release."""
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.of_cluster(session, _SCOPE, cluster_id)
        return tuple(_placed(row) for row in rows)

    async def has_reserved(self, operation_id: str) -> bool:
        """Whether the operation is an order of nodes."""
        async with self.database.reading(SCHEMA) as session:
            return await repository.reservation(session, operation_id) is not None

    async def reserve_again(self, operation_id: str) -> Reservation:
        """Reserve what the operation wished for once more, for a retry.

        Raises:
            NotFoundError: the operation never reserved anything.
            CapacityError, QuotaError: as for ``reserve``.
        """
        async with self.database.transaction(SCHEMA) as session:
            row = await repository.reservation(session, operation_id)
        if row is None:
            raise NotFoundError(
                f"operation {operation_id} reserved no nodes", next_step="Order anew."
            )
        # Its operation was started before, so it is not one that can be left waiting.
        wishes = Wishes.model_validate(row.wishes).model_copy(update={"wait": False})
        return await self.reserve(operation_id, wishes)

    def _expiry(self, wishes: Wishes) -> datetime:
        return self.clock.now() + timedelta(seconds=wishes.ttl_s)

    async def _held_before(
        self, session: AsyncSession, operation_id: str, wishes: Wishes
    ) -> Reservation | None:
        rows = await repository.reserved(session, operation_id, live=True)
        row = await repository.reservation(session, operation_id)
        if waiting := await repository_waiting.waiting(session, operation_id):
            # Nodes that are held for it meanwhile are handed to its operation once that is stored.
            return self._waits(wishes, waiting.told)
        if row is None or not rows:
            return None
        return Reservation(
            tuple(_placed(one) for one in rows), _plan(wishes), row.explanation, row.expires_at
        )

    async def _wait(self, session: AsyncSession, operation_id: str, wishes: Wishes) -> Reservation:
        now = self.clock.now()
        queue = await queue_at(session, wishes.site_id, now, new=(operation_id, wishes))
        if len(queue.turns) > repository_waiting.MOST_WAITING:
            raise CapacityError(
                f"{len(queue.turns) - 1} orders wait already",
                next_step="Try again later.",
            )
        told = (await asyncio.to_thread(queue.told))[operation_id]
        session.add(
            WaitingOrder(
                operation_id=operation_id,
                site_id=wishes.site_id,
                organization_id=wishes.organization_id,
                project_id=wishes.project_id,
                wishes=wishes.model_dump(mode="json"),
                state=repository_waiting.WAITING,
                told=told,
                arrived_at=now,
            )
        )
        return self._waits(wishes, told)

    def _waits(self, wishes: Wishes, told: str) -> Reservation:
        return Reservation((), _plan(wishes), told, self._expiry(wishes), waits=True)

    async def place_next(self, site_id: str, stored: set[str]) -> str | None:
        """Hold nodes for the first order in turn that may start now; returns its operation.

        ``stored`` are the operations that are known to wait: an order whose operation was not
        stored yet has no turn.
        """
        async with self.database.transaction(SCHEMA) as session:
            await repository.lock_site(session, site_id)
            queue = await queue_at(session, site_id, self.clock.now(), only=stored)
            found = await asyncio.to_thread(next_start, queue.turns, queue.stock, queue.held_up)
            if found is None:
                return None
            order, placement = found
            row = await repository_waiting.waiting(session, order.operation_id)
            if row is None:
                return None
            wishes = Wishes.model_validate(row.wishes)
            try:
                await _check_quota(session, wishes, lock=True)
            except QuotaError:
                return None
            chosen = [one.node.node_id for one in placement.chosen]
            if await repository.no_longer_free(session, chosen):
                return None
            await self._hold(session, order.operation_id, wishes, placement)
            await repository_waiting.mark(session, order.operation_id, repository_waiting.PLACED)
            return order.operation_id

    async def _hold(
        self,
        session: AsyncSession,
        operation_id: str,
        wishes: Wishes,
        placement: Placement,
    ) -> Reservation:
        now, expires_at = self.clock.now(), self._expiry(wishes)
        chosen, explanation = placement.chosen, placement.explanation
        epochs = await repository.raise_epochs(session, [one.node.node_id for one in chosen])
        sizes = Counter(one.pool for one in chosen)
        slots = {
            pool: iter(await repository.free_slots(session, wishes.cluster_id, pool, count))
            for pool, count in sizes.items()
        }
        allocations = [
            Allocation(
                id=new_id("alloc"),
                version=1,
                state=AllocationState.HELD,
                node_id=one.node.node_id,
                node_name=one.node.name,
                node_type=one.node.node_type,
                gpus=one.node.gpus,
                site_id=wishes.site_id,
                organization_id=wishes.organization_id,
                project_id=wishes.project_id,
                cluster_id=wishes.cluster_id,
                pool=one.pool,
                slot=next(slots[one.pool]),
                reserved_by=operation_id,
                operation_id=operation_id,
                epoch=epochs[one.node.node_id],
                reason="",
                since=now,
                expires_at=expires_at,
                created_at=now,
            )
            for one in chosen
        ]
        await repository.add_allocations(session, allocations, now)
        await repository.store_reservation(
            session,
            ReservationRow(
                operation_id=operation_id,
                wishes=wishes.model_dump(mode="json"),
                explanation=explanation,
                expires_at=expires_at,
            ),
        )
        return Reservation(
            tuple(_placed(one) for one in allocations), _plan(wishes), explanation, expires_at
        )


def _plan(wishes: Wishes) -> Plan:
    return SAGAS[CREATE].with_params("baremetal.provision@1", cluster_id=wishes.cluster_id)


def _placed(row: Allocation) -> Placed:
    return Placed(row.id, row.node_id, row.node_name, row.pool, row.epoch, row.slot)


async def _check_site(session: AsyncSession, wishes: Wishes) -> None:
    site = await repository.site(session, wishes.site_id)
    if site is None:
        raise UnknownSiteError(
            f"there is no site {wishes.site_id}", next_step="List sites and name one of them."
        )
    for pool in wishes.pools:
        if pool.node_type not in site.node_types:
            raise UnknownNodeTypeError(
                f"site {site.name} has no node type {pool.node_type}",
                next_step=f"Its node types are: {', '.join(sorted(site.node_types))}.",
                node_types=list[JsonValue](sorted(site.node_types)),
            )


async def _check_quota(session: AsyncSession, wishes: Wishes, *, lock: bool) -> None:
    wanted = wanted_by_type(wishes.pools)
    limits = await repository.quota_limits(session, wishes.project_id)
    used = await repository.quota_used(session, wishes.project_id, wanted, lock=lock)
    for node_type, count in sorted(wanted.items()):
        limit, held = limits.get(node_type, 0), used.get(node_type, 0)
        if held + count > limit:
            raise QuotaError(
                f"{count} nodes of type {node_type} wanted; the project holds {held} of the "
                f"{limit} that its quota allows",
                next_step="Release nodes, order fewer, or ask an operator for a higher quota.",
                node_type=node_type,
                limit=limit,
                used=held,
                wanted=count,
            )


async def _choose(
    session: AsyncSession, operation_id: str, wishes: Wishes, now: datetime
) -> Placement:
    """Nodes for every pool, locked against a change of their state.

    Raises:
        CapacityError: too few are free, none that meet its wishes, or others wait for them.
    """
    if await repository_waiting.waiting_at(session, wishes.site_id):
        queue = await queue_at(session, wishes.site_id, now, new=(operation_id, wishes))
        return await _in_turn(session, operation_id, wishes, queue)
    return await _first_come(session, wishes, now)


async def _first_come(session: AsyncSession, wishes: Wishes, now: datetime) -> Placement:
    own = {
        one.node_id: one.node_type
        for one in await repository.of_cluster(session, _SCOPE, wishes.cluster_id)
        if one.state != AllocationState.RELEASING
    }
    wish = wish_of(await placement_of(session, wishes))
    barred = await repository_reservations.barred(
        session, wishes.site_id, wishes.project_id, now, wishes.ends_at
    )
    nodes = await repository.free_for(
        session, wishes.site_id, {*wanted_by_type(wishes.pools), *own.values()}, barred
    )
    near = [node for node in nodes if node.node_id in own]
    changed: set[str] = set()
    while True:
        free = [node for node in nodes if node.free and node.node_id not in changed]
        answer = place_pools(wishes.pools, free, near, wish)
        if isinstance(answer, PoolRefusal):
            raise capacity_error(wishes.pools, nodes, free, answer)
        late = await repository.no_longer_free(session, [one.node.node_id for one in answer.chosen])
        if not late:
            return answer
        changed |= late


async def _in_turn(
    session: AsyncSession, operation_id: str, wishes: Wishes, queue: Queue
) -> Placement:
    """The nodes of an order while others wait: only those that it may have in its turn."""
    placement = await asyncio.to_thread(queue.start_of, operation_id)
    if placement is not None:
        chosen = [one.node.node_id for one in placement.chosen]
        if not await repository.no_longer_free(session, chosen):
            return placement
    # Alone it may fail for its own sake, which is the better reason.
    await _first_come(session, wishes, queue.stock.now)
    others = len(queue.turns) - 1
    raise CapacityError(
        f"nodes are free, but {others} order{'s wait' if others > 1 else ' waits'} for them",
        next_step="Order with --queue to wait in turn, or order another type.",
        waiting=others,
    )
