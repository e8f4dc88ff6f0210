"""The generic saga kit: every step of any saga failed, repeated and cut at three points.

A caller describes its saga as a `SagaWorld`; `disturbances` lists what can be done to its plan, and
`SagaBench.run` carries an order out under one of them, with the real interpreter, Temporal and
PostgreSQL. What must come out is the caller's `expected`: by default the state and the snapshot of
an undisturbed run, or of a world that was never touched where the order was undone.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import pytest
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.client import Client
from temporalio.service import RPCError

from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.operation_activities import OperationActivities
from dflare.kit.plan import FINAL_STATES, OperationState, Plan, StepCall
from dflare.kit.settings import PlatformSettings
from dflare.kit.steps import CutPoint, Outcome, Step, StepRunner
from dflare.kit.tables import KitTables
from dflare.kit.temporal import build_worker, connect_for_workers, queue_of
from dflare.services.orchestrator.reconciler import WorkflowStarter, workflow_id
from dflare.services.orchestrator.workflow import OperationWorkflow

Kind = Literal[
    "cut_before_call",
    "cut_after_call",
    "cut_after_record",
    "repeat",
    "raise_once",
    "fail_one",
    "fail_all",
    "never_done",
    "taken",
]
RECOVERED: tuple[Kind, ...] = (
    "cut_before_call",
    "cut_after_call",
    "cut_after_record",
    "repeat",
    "raise_once",
)
FAILED: tuple[Kind, ...] = ("fail_one", "fail_all", "never_done")


class CutError(Exception):
    """The process is taken to have died here; Temporal gives the activity to another."""


@dataclass(frozen=True)
class Disturbance:
    """What happens to step `index` of the plan, or to its undo. An undo is seen only where the
    order fails, which `fail_at` brings about: there all targets fail."""

    kind: Kind
    index: int
    step: str
    undoing: bool = False
    fail_at: int | None = None

    def __str__(self) -> str:
        way = f" (undo, failing at {self.fail_at})" if self.undoing else ""
        return f"{self.index} {self.step}{way}: {self.kind}"


def rounds(
    plan: Plan, undos: Sequence[tuple[int, str]], fail_at: int | None
) -> Iterator[tuple[str, tuple[Disturbance, ...]]]:
    """Every cut, repeat and error at every step, and at each of ``undos`` of one that fails at
    ``fail_at``: so many rounds that every step has met each of them, by their names."""
    kinds = len(RECOVERED)
    for shift in range(kinds):
        forward = (
            Disturbance(RECOVERED[(i + shift) % kinds], i, step.name)
            for i, step in enumerate(plan.steps)
        )
        yield f"round {shift + 1}", tuple(forward)
    for shift in range(kinds) if undos else ():
        backward = (
            Disturbance(RECOVERED[(i + shift) % kinds], i, undo, undoing=True, fail_at=fail_at)
            for i, undo in undos
        )
        yield f"undo round {shift + 1}", tuple(backward)


def parted(scenarios: Iterable[Any], short: Callable[[Any], bool]) -> list[Any]:
    """Parameters of a test: those that are not ``short`` are left to the longer run."""
    return [
        scenario if short(scenario) else pytest.param(scenario, marks=pytest.mark.long)
        for scenario in scenarios
    ]


def first_round(scenario: Any) -> bool:
    """Whether it is a round, and the first of its saga: there every step meets one disturbance."""
    return scenario.name in {"round 1", "undo round 1"}


def disturbances(plan: Plan) -> Iterator[Disturbance]:
    """Everything that the kit does to a plan: each step and each undo."""
    for index, step in enumerate(plan.steps):
        for kind in (*RECOVERED, *FAILED):
            yield Disturbance(kind, index, step.name)
    commit = plan.commit_index
    last = len(plan.steps) - 1 if commit is None else commit
    for index, step in enumerate(plan.steps[: last + 1]):
        if step.undo is not None:
            for kind in RECOVERED:
                yield Disturbance(kind, index, step.undo, undoing=True, fail_at=last)


@dataclass(frozen=True)
class Final:
    """How an operation ended: its state and reason, the caller's snapshot, and how often the
    disturbance struck."""

    operation_id: str
    state: OperationState
    reason: str
    snapshot: Any
    hits: int


class SagaWorld(Protocol):
    """A saga under test, with the world that its steps act on.

    `snapshot` must mask what differs between two runs that are equal (ids, times).
    """

    plan: Plan
    site_id: str
    ordering_service: str
    kits: Mapping[str, KitTables]

    def steps(self) -> Sequence[Step[Any]]:
        """The implementations of every step, undo and side step of the plan."""
        ...

    async def order(self) -> str:
        """Store a new operation with `plan`; returns its id."""
        ...

    async def snapshot(self, operation_id: str) -> Any:
        """What the world looks like after the operation, as comparable data."""
        ...

    async def untouched(self) -> Any:
        """The snapshot of an operation that was undone wholly."""
        ...

    async def clean(self, operation_id: str) -> None:
        """Make the world ready for the next order, whatever the last one left."""
        ...


@dataclass
class Saboteur:
    """Does one disturbance, once; `hits` says whether there was anything to do it to. `take` is how
    an operator takes a node away from whatever acts on it."""

    database: Database
    kits: Mapping[str, KitTables]
    active: Disturbance | None = None
    take: Callable[[str], Awaitable[None]] | None = None
    hits: int = 0
    seen: list[StepCall] = field(default_factory=list)

    def begin(self, disturbance: Disturbance | None) -> None:
        self.active, self.hits, self.seen = disturbance, 0, []

    def matches(self, call: StepCall, *kinds: Kind) -> bool:
        active = self.active
        return (
            active is not None
            and active.kind in kinds
            and (call.index, call.step, call.undoing) == (active.index, active.step, active.undoing)
        )

    async def cut(self, point: CutPoint, call: StepCall) -> None:
        """The hook of `StepRunner`."""
        if point == "before_call":
            self.seen.append(call)
        if self.hits == 0 and self.matches(call, f"cut_{point}"):
            self.hits += 1
            raise CutError(point)
        if point == "before_call" and self.hits == 0 and self.matches(call, "taken"):
            self.hits += 1
            assert self.take is not None
            await self.take(min(call.targets))
        if point == "after_record" and self.hits == 0 and self.matches(call, "repeat"):
            self.hits += 1
            await self._forget(call)
            raise CutError("repeat with nothing recorded")

    async def _forget(self, call: StepCall) -> None:
        kit = self.kits[call.step.partition(".")[0]]
        table = kit.step_outcome
        async with self.database.transaction(kit.schema) as session:
            await session.execute(
                delete(table).where(
                    table.c.operation_id == call.operation_id, table.c.step == call.outcome_key
                )
            )

    def spoil(self, call: StepCall, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
        """Change what a step says after it acted: it may have half happened."""
        active = self.active
        if active is None or not outcomes:
            return outcomes
        if active.fail_at == call.index and not call.undoing and self._is_planned(call):
            return dict.fromkeys(outcomes, Outcome("failed", "sabotage"))
        if self.matches(call, "fail_all"):
            self.hits += 1
            return dict.fromkeys(outcomes, Outcome("failed", "sabotage"))
        if self.matches(call, "never_done"):
            self.hits += 1
            return dict.fromkeys(outcomes, Outcome("pending"))
        if self.matches(call, "fail_one") and self.hits == 0:
            self.hits += 1
            victim = min(outcomes)
            return {**outcomes, victim: Outcome("failed", "sabotage")}
        return outcomes

    def _is_planned(self, call: StepCall) -> bool:
        """Side steps such as replace carry the index of the step that failed."""
        return not call.step.endswith(("replace@1", "quarantine@1", "close@1"))


@dataclass
class Sabotaged:
    """A step whose outcomes the saboteur may spoil."""

    inner: Step[Any]
    saboteur: Saboteur

    @property
    def name(self) -> str:
        return self.inner.name

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Any:
        return await self.inner.load(session, call, targets)

    async def act(self, call: StepCall, loaded: Any, targets: list[str]) -> dict[str, Outcome]:
        if self.saboteur.hits == 0 and self.saboteur.matches(call, "raise_once"):
            self.saboteur.hits += 1
            raise ConnectionResetError("sabotage")
        return self.saboteur.spoil(call, await self.inner.act(call, loaded, targets))

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Any, outcomes: dict[str, Outcome]
    ) -> None:
        await self.inner.record(session, call, loaded, outcomes)


@dataclass
class HastyClock(SystemClock):
    """The clock of the interpreter's activities. Deadlines are 30 s away at least; where this
    clock is `behind`, the steps and the workflow see them pass sooner."""

    behind: timedelta = timedelta(0)

    def now(self) -> datetime:
        return super().now() - self.behind


@dataclass
class SagaBench:
    """Runs orders of one world under disturbances."""

    database: Database
    client: Client
    world: SagaWorld
    saboteur: Saboteur
    clock: HastyClock
    starter: WorkflowStarter

    async def run(self, disturbance: Disturbance | None = None) -> Final:
        """Order, carry out, and look; the world is cleaned for the next order."""
        self.saboteur.begin(disturbance)
        hasty = disturbance is not None and disturbance.kind == "never_done"
        self.clock.behind = timedelta(seconds=27 if hasty else 0)
        operation_id = await self.world.order()
        await self.starter.start()
        try:
            row = await self.ended(operation_id)
        except TimeoutError:
            await self.kill(operation_id)
            raise
        hits = self.saboteur.hits
        self.saboteur.begin(None)
        self.clock.behind = timedelta(0)
        final = Final(
            operation_id,
            OperationState(row["state"]),
            row["reason"],
            await self.world.snapshot(operation_id),
            hits,
        )
        await self.world.clean(operation_id)
        return final

    async def ended(
        self, operation_id: str, *states: OperationState, timeout_s: float = 60
    ) -> Mapping[str, Any]:
        """The operation's row once it has ended (or is in one of `states`)."""
        wanted = states or (*FINAL_STATES, OperationState.NEEDS_OPERATOR)
        async with asyncio.timeout(timeout_s):
            while True:
                row = await self.row(operation_id)
                if row["state"] in wanted:
                    return row
                await asyncio.sleep(0.02)

    async def row(self, operation_id: str) -> Mapping[str, Any]:
        kit = self.world.kits[self.world.ordering_service]
        async with self.database.transaction(kit.schema) as session:
            query = select(kit.operation).where(kit.operation.c.id == operation_id)
            return dict((await session.execute(query)).mappings().one())

    async def history_length(self, operation_id: str, attempt: int = 1) -> int:
        handle = self.client.get_workflow_handle(workflow_id(operation_id, attempt))
        return (await handle.describe()).history_length

    async def kill(self, operation_id: str, attempt: int = 1) -> None:
        """End the workflow as a lost Temporal would: without a word to anybody."""
        with contextlib.suppress(RPCError):
            await self.client.get_workflow_handle(workflow_id(operation_id, attempt)).terminate()


async def check_disturbance(
    bench: SagaBench, undisturbed: Final, disturbance: Disturbance
) -> Final:
    """Run an order under `disturbance` and assert what DESIGN section 9 promises."""
    final = await bench.run(disturbance)
    world = bench.world
    check_final(world.plan, undisturbed, await world.untouched(), disturbance, final)
    return final


def check_final(
    plan: Plan, undisturbed: Final, untouched: Any, disturbance: Disturbance, final: Final
) -> None:
    """Assert what DESIGN section 9 promises of an order that went through `disturbance`."""
    assert final.hits > 0, f"{disturbance}: the step was never reached"
    if disturbance.kind in RECOVERED and not disturbance.undoing:
        assert final.state is undisturbed.state, f"{disturbance}: {final.reason}"
        _check_snapshot(disturbance, final, undisturbed.snapshot)
    elif _replaced(plan, disturbance):
        assert final.state is OperationState.SUCCEEDED, f"{disturbance}: {final.reason}"
        _check_snapshot(disturbance, final, undisturbed.snapshot)
    elif final.state in (OperationState.FAILED, OperationState.CANCELLED):
        _check_snapshot(disturbance, final, untouched)
    else:
        _check_went_on(plan, undisturbed, untouched, disturbance, final)


def _replaced(plan: Plan, disturbance: Disturbance) -> bool:
    """Whether one node failed that has to be replaced: the caller's world has others."""
    step = plan.steps[disturbance.index]
    one_failed = disturbance.kind in ("fail_one", "taken") and not disturbance.undoing
    return one_failed and step.replaceable


def _check_snapshot(disturbance: Disturbance, final: Final, expected: Any) -> None:
    assert final.snapshot == expected, (
        f"{disturbance}: {final.reason}\n  is {final.snapshot}\n  must be {expected}"
    )


def _check_went_on(
    plan: Plan, undisturbed: Final, untouched: Any, disturbance: Disturbance, final: Final
) -> None:
    commit = plan.commit_index
    step = plan.steps[disturbance.index]
    if final.state is OperationState.NEEDS_OPERATOR:
        assert commit is not None, f"{disturbance}: {final.reason}"
        if disturbance.index <= commit:
            assert not plan.takes_back(disturbance.index), f"{disturbance}: {final.reason}"
            _check_snapshot(disturbance, final, untouched)
    else:
        assert final.state is OperationState.SUCCEEDED
        assert step.replaceable or step.quarantine, f"{disturbance}: nothing could replace it"
        if step.replaceable:
            _check_snapshot(disturbance, final, undisturbed.snapshot)


@dataclass(frozen=True)
class SagaWorkers:
    """Workers of every queue that a world's plan needs, in this process, to be started at will."""

    bench: SagaBench
    settings: PlatformSettings
    by_queue: Mapping[str, Sequence[Any]]

    @asynccontextmanager
    async def serving(
        self, *, only: str | None = None, but: str | None = None
    ) -> AsyncIterator[SagaBench]:
        """Serve all queues, or `only` one, or all `but` one, until the block ends."""
        async with contextlib.AsyncExitStack() as stack:
            for queue, activities in self.by_queue.items():
                if queue == but or only not in (None, queue):
                    continue
                workflows = [OperationWorkflow] if queue == "orchestrator" else []
                worker = build_worker(
                    self.bench.client,
                    queue,
                    self.settings,
                    activities=activities,
                    workflows=workflows,
                )
                await stack.enter_async_context(worker)
            yield self.bench


async def saga_workers(
    database: Database, temporal_address: str, world: SagaWorld, **starter: Any
) -> SagaWorkers:
    """Workers for a world's plan, none started; `starter` says how its workflows are started."""
    settings = PlatformSettings(
        postgres_url=database.url,
        temporal_address=temporal_address,
        secret_key_file="",
        sticky_queue_s=0.5,
    )
    client = await connect_for_workers(settings)
    saboteur = Saboteur(database, world.kits)
    clock = HastyClock()
    by_queue: dict[str, list[Any]] = defaultdict(list)
    for step in world.steps():
        service = step.name.partition(".")[0]
        runner = StepRunner(database, world.kits[service], SystemClock(), cut=saboteur.cut)
        activity = runner.activity(Sabotaged(step, saboteur))
        by_queue[queue_of(service)].append(activity)
        by_queue[queue_of(service, world.site_id)].append(activity)
    ordering = world.kits[world.ordering_service]
    # At this speed of the site's clock only the floor of 30 s is left of every deadline.
    kit_activities = OperationActivities(database, ordering, clock, speed=1e6).all()
    by_queue[world.ordering_service] += kit_activities
    by_queue.setdefault("orchestrator", [])
    kits = {ordering.schema: ordering}
    starting = WorkflowStarter(database, client, kits, **{"heartbeat_s": 5, **starter})
    bench = SagaBench(database, client, world, saboteur, clock, starting)
    return SagaWorkers(bench, settings, by_queue)


@asynccontextmanager
async def saga_bench(
    database: Database, temporal_address: str, world: SagaWorld
) -> AsyncIterator[SagaBench]:
    """All workers of a world's plan, until the block ends."""
    workers = await saga_workers(database, temporal_address, world)
    async with workers.serving() as bench:
        yield bench


def selected(request: pytest.FixtureRequest, parameter: str) -> list[Any]:
    """The values of a parameter of all tests of the module that were selected to run."""
    return [
        item.callspec.params[parameter]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == request.path
        and hasattr(item, "callspec")
    ]
