"""Steps: what an acting service implements, and the one runner that makes it safe to repeat.

A step loads in one transaction, acts with none open, and records what it observed in another. The
runner skips targets with a recorded outcome, fences off zombies, heartbeats, and gives tests their
three points to cut at. Source: DESIGN sections 4.7 and 4.8.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, Protocol, TypeVar

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity
from temporalio.exceptions import ApplicationError

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import StaleAttemptError
from dflare.kit.operation_heartbeat import beating
from dflare.kit.operations import save_outcomes
from dflare.kit.plan import STALE_ATTEMPT, STORE_UNAVAILABLE, StepCall, StepReport
from dflare.kit.tables import KitTables
from dflare.kit.telemetry import span

Loaded = TypeVar("Loaded")

CutPoint = Literal["before_call", "after_call", "after_record"]
CutHook = Callable[[CutPoint, StepCall], Awaitable[None]]

PATIENCE_S = 45.0
"""Wall seconds for which one activity asks again for its pending targets."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0


@dataclass(frozen=True)
class Outcome:
    """What was observed of one target. ``pending`` is not recorded and is asked for again.

    ``observed`` is kept with the outcome; ``result`` is an id handed back to the interpreter.
    ``shared`` says of a failure that its reason is not the target's own, such as a pool of the site
    that is exhausted: a stand-in would fail too.
    """

    state: Literal["done", "failed", "pending"]
    reason: str = ""
    observed: dict[str, Any] = field(default_factory=dict[str, Any])
    result: str = ""
    shared: bool = False


DONE = Outcome("done")


class Step(Protocol, Generic[Loaded]):
    """One verb of an acting service."""

    @property
    def name(self) -> str:
        """Its name in plans, such as ``network.attach@1``."""
        ...

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Read (and, where intent must precede the act, write) in a transaction of the schema."""
        ...

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Do it to the outside world, with no transaction open, re-entrantly.

        Returns an outcome for every target and comes back before ``call.deadline_at``; stragglers
        are ``pending``. It may raise for a transient fault of the whole batch.
        """
        ...

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Write what was observed to the service's own rows, in the outcomes' transaction."""
        ...


@dataclass(frozen=True)
class StepRunner:
    """Runs the steps of one service as Temporal activities.

    ``cut`` is called at the three points of DESIGN section 9; tests raise there.
    """

    database: Database
    kit: KitTables
    clock: Clock
    cut: CutHook | None = None

    def activity(self, step: Step[Any]) -> Callable[[StepCall], Awaitable[StepReport]]:
        """The Temporal activity of ``step``."""

        @activity.defn(name=step.name)
        async def run_step(call: StepCall) -> StepReport:
            try:
                async with beating():
                    return await self.run_patiently(step, call, activity.info().attempt)
            except StaleAttemptError as error:
                raise ApplicationError(
                    str(error), type=STALE_ATTEMPT, non_retryable=True
                ) from error

        return run_step

    async def run_patiently(
        self, step: Step[Any], call: StepCall, activity_attempt: int
    ) -> StepReport:
        """Run ``step`` and ask again for pending targets, until the deadline or for ``PATIENCE_S``.

        Waiting in here rather than in the workflow keeps histories short.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PATIENCE_S
        pause_s = _FIRST_PAUSE_S
        report = await self.run(step, call, activity_attempt)
        while report.pending and self.clock.now() < call.deadline_at and loop.time() < give_up_at:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
            again = call.model_copy(update={"targets": report.pending})
            report = _merged(report, await self.run(step, again, activity_attempt))
        return report

    async def run(self, step: Step[Any], call: StepCall, activity_attempt: int) -> StepReport:
        """Run ``step`` once for ``call``; what the activity does, callable without Temporal.

        Raises:
            StaleAttemptError: a newer attempt of the operation or of the activity exists.
        """
        with span(
            f"step {step.name}",
            operation_id=call.operation_id,
            carrier=dict(call.trace) or None,
            batch=call.batch,
            targets=len(call.targets),
            attempt=call.attempt,
            activity_attempt=activity_attempt,
        ):
            async with self._transaction() as session:
                await self._raise_fence(session, call, activity_attempt)
                finished = await self._finished(session, call)
                todo = [target for target in call.targets if target not in finished]
                loaded = await step.load(session, call, todo) if todo else None
            await self._cut("before_call", call)
            outcomes = await step.act(call, loaded, todo) if todo else {}
            await self._cut("after_call", call)
            if outcomes:
                await self._record(step, call, activity_attempt, loaded, outcomes)
            await self._cut("after_record", call)
            return _report(call, {**finished, **outcomes})

    async def _cut(self, point: CutPoint, call: StepCall) -> None:
        if self.cut is not None:
            await self.cut(point, call)

    async def _record(
        self,
        step: Step[Any],
        call: StepCall,
        activity_attempt: int,
        loaded: Any,
        outcomes: dict[str, Outcome],
    ) -> None:
        async with self._transaction() as session:
            await self._check_fence(session, call, activity_attempt)
            await step.record(session, call, loaded, outcomes)
            await save_outcomes(
                session,
                self.kit,
                [
                    _outcome_row(call, target, outcome, self.clock.now())
                    for target, outcome in outcomes.items()
                    if outcome.state != "pending"
                ],
            )

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[AsyncSession]:
        try:
            async with self.database.transaction(self.kit.schema) as session:
                yield session
        except (OSError, OperationalError, InterfaceError, PoolTimeoutError) as error:
            raise ApplicationError(
                f"the database does not answer: {str(error)[:300]}", type=STORE_UNAVAILABLE
            ) from error

    async def _raise_fence(
        self, session: AsyncSession, call: StepCall, activity_attempt: int
    ) -> None:
        """Announce this attempt: older ones of the operation and of the activity record nothing.

        A batch's fence is new at its first call, and the operation's is old but at its first, so
        that mostly one statement does for each.
        """
        mine = (call.attempt, activity_attempt)
        if not await self._insert_fence(session, call, _batch_fence(call), mine):
            await self._raise_one(session, call, _batch_fence(call), mine)
        # Without a lock first: two batches that both shared the row could not raise it.
        if await self._stale(session, call, activity_attempt, lock=False):
            operation = (call.attempt, 0)
            if not await self._insert_fence(session, call, _OPERATION_FENCE, operation):
                await self._raise_one(session, call, _OPERATION_FENCE, operation)
        await self._check_fence(session, call, activity_attempt)

    async def _insert_fence(
        self, session: AsyncSession, call: StepCall, key: Mapping[str, str], mine: tuple[int, int]
    ) -> bool:
        fence = self.kit.step_fence
        inserted = await session.execute(
            insert(fence)
            .values(
                operation_id=call.operation_id, **key, attempt=mine[0], activity_attempt=mine[1]
            )
            .on_conflict_do_nothing()
            .returning(fence.c.attempt)
        )
        return inserted.first() is not None

    async def _raise_one(
        self, session: AsyncSession, call: StepCall, key: Mapping[str, str], mine: tuple[int, int]
    ) -> None:
        """Raise a fence that is older. Only then is the row locked, so that the batches of one
        attempt never wait for each other."""
        fence = self.kit.step_fence
        attempt, activity_attempt = mine
        await session.execute(
            update(fence)
            .filter_by(operation_id=call.operation_id, **key)
            .where(
                (fence.c.attempt < attempt)
                | ((fence.c.attempt == attempt) & (fence.c.activity_attempt < activity_attempt))
            )
            .values(attempt=attempt, activity_attempt=activity_attempt)
        )

    async def _stale(
        self, session: AsyncSession, call: StepCall, activity_attempt: int, *, lock: bool
    ) -> str | None:
        """Why this attempt may not record, or ``None``; a lock holds off newer ones until the
        transaction ends."""
        fence = self.kit.step_fence
        batch = _batch_fence(call)
        query = (
            select(fence.c.batch, fence.c.attempt, fence.c.activity_attempt)
            .where(
                fence.c.operation_id == call.operation_id,
                ((fence.c.step == batch["step"]) & (fence.c.batch == batch["batch"]))
                | ((fence.c.step == "") & (fence.c.batch == "")),
            )
            .order_by(fence.c.batch)
        )
        rows = await session.execute(query.with_for_update(read=True) if lock else query)
        found = [tuple(row) for row in rows]
        wanted = [("", call.attempt, 0), (call.batch, call.attempt, activity_attempt)]
        return None if found == wanted else f"{wanted} is superseded by {found}"

    async def _check_fence(
        self, session: AsyncSession, call: StepCall, activity_attempt: int
    ) -> None:
        if why := await self._stale(session, call, activity_attempt, lock=True):
            raise StaleAttemptError(f"{call.step}: {why}")

    async def _finished(self, session: AsyncSession, call: StepCall) -> Mapping[str, Outcome]:
        table = self.kit.step_outcome
        rows = await session.execute(
            select(table.c.target, table.c.state, table.c.reason, table.c.observed).where(
                table.c.operation_id == call.operation_id,
                table.c.step == call.outcome_key,
                table.c.target.in_(call.targets),
            )
        )
        return {
            row.target: Outcome(
                row.state,
                row.reason,
                row.observed,
                row.observed.get("_result", ""),
                row.observed.get("_shared", False),
            )
            for row in rows
        }


_OPERATION_FENCE: Mapping[str, str] = {"step": "", "batch": ""}
"""Key of the fence that all steps of an operation share in a schema."""


def _batch_fence(call: StepCall) -> Mapping[str, str]:
    return {"step": call.outcome_key, "batch": call.batch}


def _merged(first: StepReport, later: StepReport) -> StepReport:
    return StepReport(
        done=first.done + later.done,
        pending=later.pending,
        failed={**first.failed, **later.failed},
        results={**first.results, **later.results},
        shared=first.shared + later.shared,
    )


def _outcome_row(call: StepCall, target: str, outcome: Outcome, now: datetime) -> dict[str, Any]:
    observed = dict(outcome.observed)
    if outcome.result:
        observed["_result"] = outcome.result
    if outcome.shared:
        observed["_shared"] = True
    return {
        "operation_id": call.operation_id,
        "step": call.outcome_key,
        "target": target,
        "state": outcome.state,
        "reason": outcome.reason,
        "observed": observed,
        "at": now,
    }


def _report(call: StepCall, outcomes: Mapping[str, Outcome]) -> StepReport:
    by_state = {
        state: tuple(t for t in call.targets if outcomes[t].state == state)
        for state in ("done", "pending", "failed")
    }
    return StepReport(
        done=by_state["done"],
        pending=by_state["pending"],
        failed={target: outcomes[target].reason for target in by_state["failed"]},
        results={t: outcomes[t].result for t in by_state["done"] if outcomes[t].result},
        shared=tuple(t for t in by_state["failed"] if outcomes[t].shared),
    )
