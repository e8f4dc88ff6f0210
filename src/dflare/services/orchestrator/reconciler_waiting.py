"""What the relay does for orders that wait: place them as nodes come free, start their operations,
and keep telling them where they stand.

Everything stands in rows, and each of the three transactions of a start (hold the nodes, give them
to the operation, forget that it waited) finds out whether those before it were done already. A
relay that is killed between them leaves work for the next one. docs/adr/0010-waiting-orders.md.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import RowMapping, select, update

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.operations import change_operation, lock_operation
from dflare.kit.plan import OperationState, Plan
from dflare.kit.tables import KitTables
from dflare.kit.telemetry import log
from dflare.services.orchestrator import repository, repository_waiting
from dflare.services.orchestrator.repository_waiting import PLACED, WAITING
from dflare.services.orchestrator.service import SCHEMA, OrchestratorService
from dflare.services.orchestrator.service_waiting import queue_at
from dflare.services.orchestrator.tables import WaitingOrder

BEGIN = "clusters.begin@1"
"""The step that keeps with the cluster why it got its nodes (param ``placement``)."""

_STORED_WITHIN = timedelta(seconds=120)
"""An order whose operation is not stored by then was given up by its gateway."""
_LOOK_AGAIN = timedelta(seconds=5)
"""A site that looks the same is looked at again after this, for what the look does not show."""


@dataclass(frozen=True)
class _Look:
    """What placing depends on, as cheap to read as can be."""

    seen: int
    at: float


@dataclass
class WaitingOrders:
    """The queues of all sites."""

    database: Database
    kits: Mapping[str, KitTables]
    clock: Clock
    _looks: dict[str, _Look] = field(default_factory=dict[str, _Look])

    @property
    def service(self) -> OrchestratorService:
        """The ledger that nodes are held in."""
        return OrchestratorService(self.database, self.clock)

    async def place(self) -> int:
        """One pass over all sites; returns how many orders were started."""
        async with self.database.transaction(SCHEMA) as session:
            rows = await repository_waiting.all_waiting(session)
        if not rows:
            self._looks.clear()
            return 0
        operations = await self._operations([row.operation_id for row in rows])
        started = 0
        by_site: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            known = operations.get(row.operation_id)
            if row.state == PLACED:
                started += await self._start(row)
            elif known is None:
                if self.clock.now() - row.arrived_at > _STORED_WITHIN:
                    await self._give_up(row.operation_id, "its order was never stored")
            elif _waits(known[1]):
                by_site[row.site_id].add(row.operation_id)
            else:
                await self._give_up(row.operation_id, "its operation waits no longer")
        for site_id, stored in by_site.items():
            started += await self._place_at(site_id, stored)
        return started

    async def _place_at(self, site_id: str, stored: set[str]) -> int:
        look = await self._look(site_id, stored)
        if look is None:
            return 0
        started = 0
        while operation_id := await self.service.place_next(site_id, stored):
            stored.discard(operation_id)
            async with self.database.transaction(SCHEMA) as session:
                row = await repository_waiting.waiting(session, operation_id)
            if row is not None:
                started += await self._start(row)
        await self._tell(site_id, stored)
        self._looks[site_id] = look
        return started

    async def _look(self, site_id: str, stored: set[str]) -> _Look | None:
        """``None`` where nothing changed since the last look."""
        async with self.database.transaction(SCHEMA) as session:
            queue = await queue_at(session, site_id, self.clock.now(), only=stored)
        stock = queue.stock
        seen = hash(
            (
                frozenset(stored),
                frozenset(queue.held_up),
                frozenset(node.node_id for node in stock.nodes if node.free),
                frozenset(stock.ends.items()),
            )
        )
        at = asyncio.get_running_loop().time()
        last = self._looks.get(site_id)
        if last and last.seen == seen and at - last.at < _LOOK_AGAIN.total_seconds():
            return None
        return _Look(seen, at)

    async def _start(self, row: WaitingOrder) -> int:
        """Give the nodes that are held to the operation, which begins its first attempt."""
        async with self.database.transaction(SCHEMA) as session:
            held = await repository.reserved(session, row.operation_id, live=True)
            reservation = await repository.reservation(session, row.operation_id)
            if not held or reservation is None:
                # Nobody came in time: the hold ended, and the order takes its turn again.
                await repository_waiting.mark(session, row.operation_id, WAITING)
                return 0
        ordered = sorted(held, key=lambda one: (one.pool, one.slot))
        targets = [one.node_id for one in ordered]
        found = (await self._operations([row.operation_id])).get(row.operation_id)
        if found is None or not await self._begin(
            found[0], row.operation_id, targets, reservation.explanation
        ):
            await self._give_up(row.operation_id, "it was cancelled as it was placed")
            return 0
        async with self.database.transaction(SCHEMA) as session:
            await repository_waiting.forget(session, [row.operation_id])
        log.info("waiting_order_started", operation_id=row.operation_id, nodes=len(targets))
        return 1

    async def _begin(
        self, kit: KitTables, operation_id: str, targets: Sequence[str], explanation: str
    ) -> bool:
        """Whether the operation goes on with these nodes, now or since an earlier try."""
        async with self.database.transaction(kit.schema) as session:
            row = await lock_operation(session, kit, operation_id)
            if not _waits(row):
                return bool(row["targets"])
            plan = Plan.model_validate(row["plan"]).with_params(BEGIN, placement=explanation)
            step = kit.operation_step
            on_nodes = [i for i, planned in enumerate(plan.steps) if planned.on == "nodes"]
            await session.execute(
                update(step)
                .where(step.c.operation_id == operation_id, step.c.index.in_(on_nodes))
                .values(total=len(targets))
            )
            await change_operation(
                session,
                kit,
                row,
                self.clock.now(),
                targets=list(targets),
                plan=plan.model_dump(mode="json"),
                reason="",
                attempt=1,
            )
        return True

    async def _give_up(self, operation_id: str, why: str) -> None:
        await self.service.release_hold(operation_id)
        log.info("waiting_order_gone", operation_id=operation_id, why=why)

    async def _tell(self, site_id: str, stored: set[str]) -> None:
        """Tell those that still wait where they stand, where that changed."""
        if not stored:
            return
        async with self.database.transaction(SCHEMA) as session:
            queue = await queue_at(session, site_id, self.clock.now(), only=stored)
            before = {
                row.operation_id: row.told
                for row in await repository_waiting.waiting_at(session, site_id)
            }
        told = await asyncio.to_thread(queue.told)
        operations = await self._operations(list(told))
        for operation_id, text in told.items():
            found = operations.get(operation_id)
            if found is None or before.get(operation_id) == found[1]["reason"] == text:
                continue
            await self._tell_one(found[0], operation_id, text)

    async def _tell_one(self, kit: KitTables, operation_id: str, text: str) -> None:
        async with self.database.transaction(kit.schema) as session:
            row = await lock_operation(session, kit, operation_id)
            if _waits(row) and row["reason"] != text:
                await change_operation(session, kit, row, self.clock.now(), reason=text)
        async with self.database.transaction(SCHEMA) as session:
            await repository_waiting.tell(session, operation_id, text)

    async def _operations(
        self, operation_ids: Sequence[str]
    ) -> dict[str, tuple[KitTables, RowMapping]]:
        """Operations with the schema that each stands in; those not stored yet are left out."""
        found: dict[str, tuple[KitTables, RowMapping]] = {}
        for kit in self.kits.values():
            table = kit.operation
            async with self.database.transaction(kit.schema) as session:
                result = await session.execute(select(table).where(table.c.id.in_(operation_ids)))
                found |= {row["id"]: (kit, row) for row in result.mappings()}
        return found


def _waits(row: RowMapping) -> bool:
    return row["attempt"] == 0 and row["state"] == OperationState.PENDING
