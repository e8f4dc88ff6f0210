"""What the relay does for operations: start workflows, start lost ones again, end stale holds.

PostgreSQL is the truth. An attempt is raised only where Temporal says that its workflow is closed
or unknown, never where Temporal cannot be reached. Source: DESIGN section 4.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, select, update
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from dflare.kit.clock import Clock
from dflare.kit.db import Database, assert_no_transaction
from dflare.kit.operation_calls import OperationRef
from dflare.kit.operations import change_operation, lock_operation
from dflare.kit.plan import RESTING_STATES
from dflare.kit.tables import KitTables
from dflare.kit.telemetry import log
from dflare.services.orchestrator import repository, workflow
from dflare.services.orchestrator.service import SCHEMA

_START_BATCH, _SWEEP_BATCH, _EXPIRE_BATCH = 50, 200, 500
_LEAST_TASK_S = 5.0
"""A long history must be read again within one task, on a busy machine too."""
_SETTLED = timedelta(seconds=2)
"""Age of an operation's last change from which the sweeper asks Temporal about it."""


def workflow_id(operation_id: str, attempt: int) -> str:
    """The id of the workflow of one attempt."""
    return f"{operation_id}/{attempt}"


@dataclass(frozen=True)
class WorkflowStarter:
    """Starts the workflow of every attempt that has none, in all ordering schemas."""

    database: Database
    client: Client
    kits: Mapping[str, KitTables]
    heartbeat_s: float = 10.0
    max_history: int = 4_000
    queue: str = SCHEMA

    async def start(self) -> int:
        """One pass; returns how many were started."""
        return sum([await self._start_of(kit) for kit in self.kits.values()])

    async def _start_of(self, kit: KitTables) -> int:
        table = kit.operation
        async with self.database.transaction(kit.schema) as session:
            rows = (
                await session.execute(
                    select(table.c.id, table.c.attempt)
                    .where(
                        table.c.started_attempt < table.c.attempt,
                        table.c.state.not_in(RESTING_STATES),
                    )
                    .order_by(table.c.id)
                    .limit(_START_BATCH)
                )
            ).all()
        for operation_id, attempt in rows:
            await self._start_one(kit, operation_id, attempt)
        return len(rows)

    async def _start_one(self, kit: KitTables, operation_id: str, attempt: int) -> None:
        assert_no_transaction("Temporal start_workflow")
        ref = OperationRef(
            operation_id=operation_id,
            ordering_service=kit.schema,
            attempt=attempt,
            heartbeat_s=self.heartbeat_s,
            max_history=self.max_history,
        )
        try:
            await self.client.start_workflow(
                workflow.NAME,
                ref,
                id=workflow_id(operation_id, attempt),
                task_queue=self.queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                # A killed worker may have held a task of the workflow's own as well.
                task_timeout=timedelta(seconds=max(self.heartbeat_s, _LEAST_TASK_S)),
                rpc_timeout=timedelta(seconds=10),
            )
        except WorkflowAlreadyStartedError:
            log.info("workflow_started_before", operation_id=operation_id, attempt=attempt)
        table = kit.operation
        async with self.database.transaction(kit.schema) as session:
            await session.execute(
                update(table)
                .where(table.c.id == operation_id, table.c.attempt == attempt)
                .values(started_attempt=attempt)
            )


@dataclass
class Sweeper:
    """Finds attempts whose workflow is gone and raises them, and holds whose time is up."""

    database: Database
    client: Client
    kits: Mapping[str, KitTables]
    clock: Clock
    settled: timedelta = field(default=_SETTLED)

    async def sweep(self) -> int:
        """One pass over all schemas; returns how many attempts were raised.

        Raises:
            RPCError: Temporal does not answer; nothing was concluded from that.
        """
        return sum([await self._sweep(kit) for kit in self.kits.values()])

    async def _sweep(self, kit: KitTables) -> int:
        rows = await self._running(kit)
        limit = asyncio.Semaphore(8)

        async def lost(row: RowMapping) -> bool:
            async with limit:
                return await self._is_lost(row["id"], row["attempt"])

        answers = await asyncio.gather(*(lost(row) for row in rows))
        raised = 0
        for row, gone in zip(rows, answers, strict=True):
            if gone:
                raised += await self._raise_attempt(kit, row["id"], row["attempt"])
        return raised

    async def _running(self, kit: KitTables) -> Sequence[RowMapping]:
        table = kit.operation
        async with self.database.transaction(kit.schema) as session:
            result = await session.execute(
                select(table.c.id, table.c.attempt)
                .where(
                    table.c.state.not_in(RESTING_STATES),
                    table.c.started_attempt == table.c.attempt,
                    # One that waits for capacity stands at attempt 0, and has no workflow yet.
                    table.c.attempt > 0,
                    table.c.since < self.clock.now() - self.settled,
                )
                .order_by(table.c.id)
                .limit(_SWEEP_BATCH)
            )
            return result.mappings().all()

    async def _is_lost(self, operation_id: str, attempt: int) -> bool:
        assert_no_transaction("Temporal describe")
        handle: Any = self.client.get_workflow_handle(workflow_id(operation_id, attempt))
        try:
            description = await handle.describe(rpc_timeout=timedelta(seconds=5))
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return True
            raise
        return description.status is not WorkflowExecutionStatus.RUNNING

    async def _raise_attempt(self, kit: KitTables, operation_id: str, attempt: int) -> int:
        async with self.database.transaction(kit.schema) as session:
            row = await lock_operation(session, kit, operation_id)
            if row["attempt"] != attempt or row["state"] in RESTING_STATES:
                return 0
            await change_operation(session, kit, row, self.clock.now(), attempt=attempt + 1)
        log.warning("operation_started_again", operation_id=operation_id, attempt=attempt + 1)
        return 1

    async def expire_holds(self) -> int:
        """End holds that nobody confirmed in time; returns how many.

        Such a hold is of an order whose gateway died before it stored the operation, or of one
        whose workflow could not start: that one takes the nodes again when it confirms.
        """
        now: datetime = self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            stale = await repository.expired(session, now, _EXPIRE_BATCH)
            await repository.end_allocations(session, stale, now, "nobody confirmed the hold")
        if stale:
            log.info("holds_expired", nodes=len(stale))
        return len(stale)
