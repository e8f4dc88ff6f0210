"""The interpreter's activities: how a workflow reads and moves the stored operation.

Every service that can be ordered registers these on its own queue. Each is one transaction that
checks the operation's attempt, so that a zombie workflow moves nothing.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity
from temporalio.exceptions import ApplicationError

from dflare.kit import operation_calls as calls
from dflare.kit.clock import HARDWARE_FLOOR_S, Clock, hardware_timeout_s
from dflare.kit.db import Database
from dflare.kit.errors import StaleAttemptError
from dflare.kit.operation_heartbeat import beating
from dflare.kit.operations import change_operation, lock_operation, set_step
from dflare.kit.plan import STALE_ATTEMPT, OperationState, Plan
from dflare.kit.tables import KitTables
from dflare.kit.telemetry import span


@dataclass(frozen=True)
class OperationActivities:
    """Bound to one ordering service's schema; ``speed`` is that of the site's clock."""

    database: Database
    kit: KitTables
    clock: Clock
    speed: float = 1.0

    def all(self) -> list[Callable[..., Awaitable[Any]]]:
        """The activities to register on the service's queue."""

        @activity.defn(name=calls.LOAD)
        async def load(ref: calls.OperationRef) -> calls.OperationView:
            return await _fenced(self.load(ref))

        @activity.defn(name=calls.BEGIN_STEP)
        async def begin_step(begin: calls.BeginStep) -> calls.StepBegun:
            return await _fenced(self.begin_step(begin))

        @activity.defn(name=calls.END_STEP)
        async def end_step(end: calls.EndStep) -> None:
            await _fenced(self.end_step(end))

        @activity.defn(name=calls.BEGIN_UNDO)
        async def begin_undo(begin: calls.BeginUndo) -> None:
            await _fenced(self.begin_undo(begin))

        @activity.defn(name=calls.DEADLINE)
        async def deadline(ask: calls.Deadline) -> datetime:
            return await _fenced(self.deadline(ask))

        @activity.defn(name=calls.RETARGET)
        async def retarget(change: calls.Retarget) -> None:
            await _fenced(self.retarget(change))

        @activity.defn(name=calls.FINISH)
        async def finish(end: calls.Finish) -> None:
            await _fenced(self.finish(end))

        return [load, begin_step, end_step, begin_undo, deadline, retarget, finish]

    async def load(self, ref: calls.OperationRef) -> calls.OperationView:
        """Read the operation and set it running, unless it is being undone."""
        with span("operation.load", operation_id=ref.operation_id, attempt=ref.attempt):
            async with self.database.transaction(self.kit.schema) as session:
                row = await self._lock(session, ref)
                if row["state"] == OperationState.PENDING:
                    row = await change_operation(
                        session, self.kit, row, self.clock.now(), state=OperationState.RUNNING
                    )
                messages = await self._messages(session, ref.operation_id)
        return calls.OperationView(
            plan=Plan.model_validate(row["plan"]),
            targets=tuple(row["targets"]),
            position=row["position"],
            undoing=row["state"] == OperationState.UNDOING,
            cancelled=row["cancel_requested"],
            reason=row["reason"],
            generation=row["generation"],
            organization_id=row["organization_id"],
            project_id=row["project_id"],
            site_id=row["site_id"],
            resource_id=row["resource_id"],
            trace=row["trace"],
            replacing={new: old for new, old in row["replacing"].items() if old},
            parked=tuple(target for target, old in row["replacing"].items() if not old),
            messages=messages,
        )

    async def _messages(self, session: AsyncSession, operation_id: str) -> tuple[str, ...]:
        step = self.kit.operation_step
        rows = await session.scalars(
            select(step.c.message)
            .where(step.c.operation_id == operation_id, step.c.state == "needs_operator")
            .order_by(step.c.index.desc())
        )
        return tuple(rows)

    async def _lock(self, session: AsyncSession, ref: calls.OperationRef) -> RowMapping:
        """The operation's row, locked, for a call that nothing newer has overtaken.

        An activity that was given to another worker may still be running: the other one notes,
        under the same lock, that it came later.
        """
        row = await lock_operation(session, self.kit, ref.operation_id, ref.attempt)
        if activity.in_activity():
            await self._overtake(session, ref)
        return row

    async def _overtake(self, session: AsyncSession, ref: calls.OperationRef) -> None:
        info, fence = activity.info(), self.kit.step_fence
        key = {
            "operation_id": ref.operation_id,
            "step": info.activity_type,
            "batch": f"{info.workflow_run_id}/{info.activity_id}",
        }
        if info.attempt > 1:
            values = {"attempt": ref.attempt, "activity_attempt": info.attempt}
            await session.execute(
                insert(fence)
                .values(**key, **values)
                .on_conflict_do_update(
                    index_elements=list(key),
                    set_=values,
                    where=fence.c.activity_attempt < info.attempt,
                )
            )
        newest = await session.scalar(select(fence.c.activity_attempt).filter_by(**key))
        if newest is not None and newest > info.attempt:
            raise StaleAttemptError(f"{info.activity_type}: attempt {info.attempt}, now {newest}")

    async def deadline(self, ask: calls.Deadline) -> datetime:
        """When so many seconds of the site's clock from now will have passed, in wall time."""
        return self._deadline_at(self.clock.now(), ask.site_seconds)

    def _deadline_at(self, start: datetime, site_seconds: float, targets: int = 0) -> datetime:
        timeout_s = hardware_timeout_s(site_seconds, self.speed, targets)
        return start + timedelta(seconds=timeout_s)

    async def begin_step(self, begin: calls.BeginStep) -> calls.StepBegun:
        """Mark a step as running (or undoing) and say what to do.

        A step that was begun before keeps its deadline, with a floor.
        """
        now = self.clock.now()
        async with self.database.transaction(self.kit.schema) as session:
            ref = begin.ref
            row = await self._lock(session, ref)
            steps = Plan.model_validate(row["plan"]).steps
            step = steps[begin.index]
            committed = any(s.commit for s in steps[: begin.index])
            if row["cancel_requested"] and not begin.undoing and not committed:
                return calls.StepBegun(action="cancel", deadline_at=now)
            running = "undoing" if begin.undoing else "running"
            started = await self._started_at(session, begin, running) or now
            await set_step(
                session,
                self.kit,
                ref.operation_id,
                begin.index,
                state=running,
                started_at=started,
                finished_at=None,
                total=_total(row, step.on),
            )
            state = OperationState.UNDOING if begin.undoing else OperationState.RUNNING
            values: dict[str, Any] = {"position": begin.index} if begin.undoing else {}
            await change_operation(session, self.kit, row, now, state=state, **values)
        deadline_s = step.undo_deadline_s if begin.undoing else step.deadline_s
        return calls.StepBegun(
            action="run",
            deadline_at=max(
                self._deadline_at(started, deadline_s, _total(row, step.on)),
                now + timedelta(seconds=HARDWARE_FLOOR_S),
            ),
        )

    async def _started_at(
        self, session: AsyncSession, begin: calls.BeginStep, running: str
    ) -> datetime | None:
        step = self.kit.operation_step
        return await session.scalar(
            select(step.c.started_at).where(
                step.c.operation_id == begin.ref.operation_id,
                step.c.index == begin.index,
                step.c.state == running,
            )
        )

    async def end_step(self, end: calls.EndStep) -> None:
        """Record progress or the end of a step."""
        now = self.clock.now()
        async with self.database.transaction(self.kit.schema) as session:
            ref = end.ref
            row = await self._lock(session, ref)
            await set_step(
                session,
                self.kit,
                ref.operation_id,
                end.index,
                state=end.state,
                done=end.done,
                failed=end.failed,
                message=end.message,
                finished_at=None if end.state == "running" else now,
            )
            values: dict[str, Any] = {"position": end.index + 1} if end.advance else {}
            await change_operation(session, self.kit, row, now, **values)

    async def begin_undo(self, begin: calls.BeginUndo) -> None:
        """Turn the operation around; its reason stays that of the first failure."""
        now = self.clock.now()
        async with self.database.transaction(self.kit.schema) as session:
            ref = begin.ref
            row = await self._lock(session, ref)
            if row["state"] != OperationState.UNDOING:
                await change_operation(
                    session,
                    self.kit,
                    row,
                    now,
                    state=OperationState.UNDOING,
                    position=begin.position,
                    reason=begin.reason,
                    replacing={},
                )

    async def retarget(self, change: calls.Retarget) -> None:
        """Replace targets. Repeating it changes nothing."""
        async with self.database.transaction(self.kit.schema) as session:
            ref = change.ref
            row = await self._lock(session, ref)
            kept = [t for t in row["targets"] if t not in change.removed]
            added = [t for t in change.added if t not in kept]
            await change_operation(
                session,
                self.kit,
                row,
                self.clock.now(),
                targets=kept + added,
                # A parked target stands for nobody.
                replacing={**change.replacing, **dict.fromkeys(change.parked, "")},
            )

    async def finish(self, end: calls.Finish) -> None:
        """End the operation, or hand it to an operator."""
        with span("operation.finish", operation_id=end.ref.operation_id, state=end.state):
            async with self.database.transaction(self.kit.schema) as session:
                ref = end.ref
                row = await self._lock(session, ref)
                await change_operation(
                    session,
                    self.kit,
                    row,
                    self.clock.now(),
                    state=end.state,
                    reason=end.reason,
                )


def _total(row: RowMapping, on: str) -> int:
    return len(row["targets"]) if on == "nodes" else 1


async def _fenced(call: Awaitable[Any]) -> Any:
    """Show signs of life; a stale attempt ends its workflow instead of being retried."""
    try:
        async with beating():
            return await call
    except StaleAttemptError as error:
        raise ApplicationError(str(error), type=STALE_ATTEMPT, non_retryable=True) from error
