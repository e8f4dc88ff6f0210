"""The platform's own numbers: ``GET /metrics`` for operators, and in the store where there is one.

What a process counts itself are its requests; the rest is read where it is true: outboxes that the
relay has not emptied, read models that are behind, Temporal's queues, operations and their steps.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, literal, select, union_all
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.service import RPCError

from dflare.apps.process import Process
from dflare.apps.wiring import SCHEMAS, Platform
from dflare.kit import feed_tables
from dflare.kit.errors import ProblemError
from dflare.kit.lease import Lease, new_holder, process_name
from dflare.kit.loop_lag import LoopLag
from dflare.kit.meters import Meters, histogram_lines, sample_line
from dflare.kit.series import SeriesStore
from dflare.kit.telemetry import log
from dflare.kit.temporal import queue_of
from dflare.services.metrics import repository
from dflare.services.metrics.domain_times import BOUNDS_S

KEPT_S = 2.0
"""How long what was read is told again: whoever asks more often gets the same."""
PUSH_EVERY_S = 15.0
QUEUE_TIMEOUT_S = 3.0
_QUEUES = {
    "workflow": TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    "activity": TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
}
_SITE_QUEUES = ("baremetal", "clusters", "network", "volumes")


@dataclass
class PlatformNumbers:
    """Numbers of the whole platform, read at most every ``KEPT_S``."""

    platform: Platform
    _read_at: float = float("-inf")
    _lines: Sequence[str] = ()
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def lines(self) -> Sequence[str]:
        """The samples, without a time."""
        async with self._reading:
            if time.monotonic() - self._read_at > KEPT_S:
                parts = {
                    "relay": self._relay(),
                    "projections": self._projections(),
                    "operations": self._operations(),
                    "queues": self._queues(),
                }
                found = await asyncio.gather(*(_told(name, part) for name, part in parts.items()))
                self._lines = [line for part in found for line in part]
                self._read_at = time.monotonic()
        return self._lines

    async def _relay(self) -> list[str]:
        """Events that the relay has not numbered, and how long the oldest waits."""
        questions = [
            select(literal(name), func.count(), func.min(kit.event.c.at)).where(
                ~kit.event.c.relayed
            )
            for name, kit in SCHEMAS.items()
        ]
        async with self.platform.database.across() as connection:
            rows = (await connection.execute(union_all(*questions))).all()
        now, found = self.platform.process.clock.now(), list[str]()
        for schema, count, oldest in rows:
            lag_s = max(0.0, (now - oldest).total_seconds()) if oldest else 0.0
            labels = {"schema": str(schema)}
            found.append(sample_line("dflare_relay_waiting_events", labels, count))
            found.append(sample_line("dflare_relay_lag_seconds", labels, lag_s))
        return found

    async def _projections(self) -> list[str]:
        """How many events each read model has yet to look at."""
        cursors = [
            select(kit.feed_cursor.c.consumer, kit.feed_cursor.c.position)
            for kit in SCHEMAS.values()
        ]
        async with self.platform.database.across() as connection:
            head = await connection.scalar(select(feed_tables.head.c.position)) or 0
            rows = (await connection.execute(union_all(*cursors))).all()
        # A cursor over events that are not for its read model is stored late.
        return [
            sample_line("dflare_projection_cursor_events", {"projection": str(name)}, head - at)
            for name, at in rows
        ]

    async def _operations(self) -> list[str]:
        async with self.platform.database.reading("metrics") as session:
            counts = await repository.operation_counts(session)
            times = await repository.step_times(session)
        found = [
            sample_line("dflare_operations", {"kind": kind, "state": state}, count)
            for kind, state, count in counts
        ]
        for row in times:
            labels = {"saga": row.saga, "step": row.step, "outcome": row.outcome}
            name = "dflare_operation_step_duration_seconds"
            found += histogram_lines(name, labels, BOUNDS_S, row.buckets, row.seconds)
        return found

    async def _queues(self) -> list[str]:
        """Tasks that wait in Temporal's queues; none where it does not answer."""
        names = [queue_of(service) for service in ("clusters", "orchestrator", "volumes")]
        for site_id in await self.platform.site_ids():
            names += [queue_of(service, site_id) for service in _SITE_QUEUES]
        pairs = [(name, kind) for name in names for kind in _QUEUES]
        counts = await asyncio.gather(*(self._backlog(*pair) for pair in pairs))
        return [
            sample_line("dflare_queue_waiting_tasks", {"queue": name, "kind": kind}, count)
            for (name, kind), count in zip(pairs, counts, strict=True)
            if count is not None
        ]

    async def _backlog(self, queue: str, kind: str) -> int | None:
        client = self.platform.process.temporal
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                told = await client.workflow_service.describe_task_queue(
                    DescribeTaskQueueRequest(
                        namespace=client.namespace,
                        task_queue=TaskQueue(name=queue),
                        task_queue_type=_QUEUES[kind],
                        report_stats=True,
                    )
                )
        except (RPCError, TimeoutError):
            return None
        return told.stats.approximate_backlog_count


async def _told(name: str, part: Awaitable[list[str]]) -> list[str]:
    """A part of the numbers; one that cannot be read keeps none of the others from being told."""
    try:
        lines, missing = await part, 0
    except Exception as error:
        log.warning("numbers_not_read", part=name, error=repr(error)[:300])
        lines, missing = [], 1
    return [*lines, sample_line("dflare_numbers_missing", {"part": name}, missing)]


def own_lines(meters: Meters, lag: LoopLag | None) -> Iterator[str]:
    """What this process counts of itself."""
    for name, value in (lag.report() if lag else {}).items():
        quantile = name.removesuffix("_ms")
        yield sample_line("dflare_loop_lag_seconds", {"quantile": quantile}, value / 1_000)
    yield from meters.lines()


async def push(process: Process, store: SeriesStore, say: Callable[[], Iterator[str]]) -> None:
    """Keep this process's numbers in the store, again and again until cancelled."""
    instance = process_name()
    while True:
        await asyncio.sleep(PUSH_EVERY_S)
        await _write(process, store, list(say()), {"instance": instance, "process": process.name})


async def push_platform(platform: Platform) -> None:
    """Keep the platform's numbers in the store; one process does it, by a lease."""
    numbers = PlatformNumbers(platform)
    holder = new_holder("numbers")
    lease = Lease(platform.database, "metrics/platform", holder, 3 * PUSH_EVERY_S)
    while True:
        await asyncio.sleep(PUSH_EVERY_S)
        try:
            if await lease.take():
                await _write(platform.process, platform.series, await numbers.lines(), {})
        except Exception as error:
            log.warning("own_numbers_not_read", error=repr(error)[:300])


async def _write(
    process: Process, store: SeriesStore, lines: Sequence[str], labels: dict[str, Any]
) -> None:
    at_ms = round(process.clock.now().timestamp() * 1000)
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    timed = [f"{with_labels(line, more)} {at_ms}" for line in lines]
    try:
        await store.write(timed)
    except ProblemError as error:
        log.warning("own_numbers_not_written", error=str(error)[:300])


def with_labels(line: str, more: str) -> str:
    """A sample with more labels; its own come first and stay."""
    head, brace, rest = line.rpartition("} ")
    return f"{head}{more.removeprefix(',') if head.endswith('{') else more}{brace}{rest}"
