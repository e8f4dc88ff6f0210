"""How a workflow calls steps: in batches side by side, with retries, deadlines and a short history.

Part of the interpreter that knows neither plans nor undo. Safe inside a workflow.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.exceptions import TimeoutError as ActivityTimeoutError

from dflare.kit.operation_calls import OperationRef, OperationView
from dflare.kit.operation_results import Result
from dflare.kit.plan import (
    BATCH_SIZE,
    STALE_ATTEMPT,
    STORE_UNAVAILABLE,
    StepCall,
    StepReport,
)

PARALLEL_BATCHES = 32
DEADLINE = "deadline"

_KIT_TIMEOUT = timedelta(seconds=30)
_ACTIVITY_TIMEOUT = timedelta(seconds=300)
_GRACE = timedelta(seconds=60)
_FIRST, _LONGEST = timedelta(seconds=0.2), timedelta(seconds=10)
_FOREVER = RetryPolicy(initial_interval=_FIRST, maximum_interval=_LONGEST)
_TEN_TIMES = RetryPolicy(initial_interval=_FIRST, maximum_interval=_LONGEST, maximum_attempts=10)

Progress = Callable[[Result], Awaitable[None]]


class HistoryFullError(Exception):
    """There is more to do, but the history is long: continue as new."""


@dataclass(frozen=True)
class StepLine:
    """A step to call: one of the plan, its undo, or a side step.

    A ``patient`` one retries transient faults until its deadline, others ten times.
    """

    name: str
    index: int
    per_site: bool
    deadline_at: datetime
    params: dict[str, str]
    undoing: bool = False
    patient: bool = False

    @property
    def service(self) -> str:
        """The acting service."""
        return self.name.partition(".")[0]


class StepCaller:
    """Calls activities for one attempt of an operation."""

    def __init__(self, ref: OperationRef) -> None:
        self._ref = ref
        self._calls = 0
        self._slots = asyncio.Semaphore(PARALLEL_BATCHES)

    async def kit(self, name: str, argument: Any, answer: type[Any] | None = None) -> Any:
        """One of the ordering service's own activities; a store that is down is waited for."""
        return await workflow.execute_activity(
            name,
            argument,
            result_type=answer,
            task_queue=self._ref.ordering_service,
            start_to_close_timeout=_KIT_TIMEOUT,
            heartbeat_timeout=timedelta(seconds=self._ref.heartbeat_s),
            retry_policy=_FOREVER,
        )

    async def call(
        self,
        view: OperationView,
        line: StepLine,
        targets: Sequence[str],
        progress: Progress | None = None,
    ) -> Result:
        """Call a step until each target is done or failed; ``progress`` hears of each batch.

        Raises:
            HistoryFullError: targets are left to wait for.
            ActivityError: of type ``STALE_ATTEMPT``; this attempt is superseded.
        """
        result = Result(len(targets))
        batches = [targets[i : i + BATCH_SIZE] for i in range(0, len(targets), BATCH_SIZE)]
        await asyncio.gather(
            *(self._batch(view, line, tuple(batch), result, progress) for batch in batches)
        )
        if result.pending:
            raise HistoryFullError
        result.sort(targets)
        return result

    def leave_if_long(self) -> None:
        """Between steps.

        Raises:
            HistoryFullError: the history is long.
        """
        if self._is_long():
            raise HistoryFullError

    def _is_long(self) -> bool:
        return workflow.info().get_current_history_length() > self._ref.max_history

    async def _batch(
        self,
        view: OperationView,
        line: StepLine,
        todo: tuple[str, ...],
        result: Result,
        progress: Progress | None,
    ) -> None:
        excuse = DEADLINE
        while todo:
            # A slot is given back after each call, so that a batch which waits for its hardware
            # does not keep others from beginning.
            async with self._slots:
                started = workflow.now()
                if started >= line.deadline_at:
                    result.expire(todo, excuse)
                    return
                if self._is_long():
                    result.pending.extend(todo)
                    return
                try:
                    report = await self._activity(view, line, todo)
                except ActivityError as error:
                    if cause_of(error) == STALE_ATTEMPT:
                        raise
                    excuse = _reason(error)
                    if not line.patient and cause_of(error) != STORE_UNAVAILABLE:
                        result.fail(todo, excuse)
                        return
                else:
                    result.add(report)
                    todo = report.pending
            if progress is not None:
                await progress(result)
            if todo and workflow.now() - started < timedelta(seconds=1):
                await workflow.sleep(1)

    async def _activity(
        self, view: OperationView, line: StepLine, targets: tuple[str, ...]
    ) -> StepReport:
        self._calls += 1
        ref = self._ref
        call = StepCall(
            operation_id=ref.operation_id,
            ordering_service=ref.ordering_service,
            attempt=ref.attempt,
            generation=view.generation,
            step=line.name,
            index=line.index,
            undoing=line.undoing,
            batch=f"{ref.continued}.{self._calls}",
            organization_id=view.organization_id,
            project_id=view.project_id,
            site_id=view.site_id,
            resource_id=view.resource_id,
            targets=targets,
            params=line.params,
            deadline_at=line.deadline_at,
            trace=view.trace,
        )
        return await workflow.execute_activity(
            line.name,
            call,
            result_type=StepReport,
            task_queue=f"{line.service}.{view.site_id}" if line.per_site else line.service,
            schedule_to_close_timeout=line.deadline_at - workflow.now() + _GRACE,
            start_to_close_timeout=_ACTIVITY_TIMEOUT,
            heartbeat_timeout=timedelta(seconds=ref.heartbeat_s),
            retry_policy=_FOREVER if line.patient else _TEN_TIMES,
        )


def cause_of(error: ActivityError) -> str | None:
    """The type of the application error behind a failed activity."""
    return error.cause.type if isinstance(error.cause, ApplicationError) else None


def _reason(error: ActivityError) -> str:
    if isinstance(error.cause, ActivityTimeoutError):
        return f"{DEADLINE}: {error.activity_type} did not answer in time"
    return str(error.cause or error)[:300]
