"""What is done to growths and shrinks of the two kinds of cluster, and what one looks at then."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from real_cases import CLEAN, Scenario, look
from real_platform import ORDERED, Lane, RealPlatform
from sagakit import RECOVERED, Disturbance, first_round, parted, rounds
from sqlalchemy import func, select

from baremetal_site import OPERATOR, AllowAll
from dflare.kit import operation_control
from dflare.kit.clock import SystemClock
from dflare.kit.idempotency import request_key
from dflare.kit.plan import OperationState, Plan
from dflare.services.baremetal.tables import Node
from dflare.services.clusters.domain import cluster_id_of
from dflare.services.clusters.domain_scheduler import slot_name
from dflare.services.clusters.service_life import LifeService, ScaleOrder
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.clusters.tables import Drain, Member, NodePool
from dflare.services.orchestrator.sagas import SAGAS

ADDED = 2
BARE = ("grow", "shrink")
SLURM = ("grow slurm", "shrink slurm")
PLANS = {
    "grow": SAGAS["grow_cluster"],
    "shrink": SAGAS["shrink_cluster"],
    "grow slurm": SAGAS["grow_slurm_cluster"],
    "shrink slurm": SAGAS["shrink_slurm_cluster"],
}
SIZES = ((ORDERED, ORDERED + ADDED), (ORDERED + ADDED, ORDERED))
"""How many nodes the cluster has before and after a growth, and a shrink."""

Snapshot = dict[str, Any]


def plan_of(scenario: Scenario) -> Plan:
    return PLANS[scenario.saga]


def commit_of(saga: str) -> int:
    commit = PLANS[saga].commit_index
    assert commit is not None
    return commit


def scenarios(saga: str) -> Iterator[Scenario]:
    """Rounds of cuts, repeats and errors at every step, and at every undo of one that fails at its
    commit step; each step failed for all of its targets, and each that replaces them for one."""
    plan, commit = PLANS[saga], commit_of(saga)
    undos = [(i, step.undo) for i, step in enumerate(plan.steps[: commit + 1]) if step.undo]
    for name, disturbances in rounds(plan, undos, commit):
        yield Scenario(saga, name, disturbances)
    for i, step in enumerate(plan.steps):
        for kind in ("fail_all", "fail_one"):
            if kind == "fail_all" or step.replaceable or step.quarantine:
                disturbance = Disturbance(kind, i, step.name)
                yield Scenario(saga, str(disturbance), (disturbance,))


def parameters(sagas: Sequence[str]) -> list[Any]:
    """All scenarios as tests. One round disturbs every step and every undo; the other ways, and
    that each step fails of its own, are left to the longer run, since an order's same steps meet
    them in the shorter one."""
    return parted((s for saga in sagas for s in scenarios(saga)), first_round)


def expected(scenario: Scenario) -> OperationState:
    """How an operation ends, after a person let go on what waits for one."""
    if not scenario.disturbances:
        return OperationState.SUCCEEDED
    first = scenario.disturbances[0]
    if first.undoing:
        return OperationState.FAILED
    if first.kind in RECOVERED:
        return OperationState.SUCCEEDED
    step = plan_of(scenario).steps[first.index]
    if first.index > commit_of(scenario.saga):
        return OperationState.SUCCEEDED
    # Of the nodes that there are, only one can stand in for another.
    replaced = step.replaceable and first.kind == "fail_one"
    return OperationState.SUCCEEDED if replaced else OperationState.FAILED


@dataclass
class LifeCases:
    """Runs scenarios on the clusters of all lanes, side by side: a growth, then a shrink."""

    platform: RealPlatform
    life: LifeService
    sagas: tuple[str, str]
    results: dict[Scenario, asyncio.Future[None]] = field(default_factory=dict)
    _waiting: dict[str, deque[Scenario]] = field(default_factory=dict)

    def start(self, selected: Sequence[Scenario]) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        self.results = {one: loop.create_future() for one in selected}
        self._waiting = {saga: deque(s for s in selected if s.saga == saga) for saga in self.sagas}
        return asyncio.create_task(self._run())

    async def result(self, scenario: Scenario) -> None:
        """Wait for a scenario; raises what was wrong with it."""
        await asyncio.shield(self.results[scenario])

    async def _run(self) -> None:
        lanes = await asyncio.gather(
            *(self._lane(lane) for lane in self.platform.lanes), return_exceptions=True
        )
        for future in self.results.values():
            if not future.done():
                future.set_exception(AssertionError(f"not run: {lanes}"))
            # Tests that were not selected never ask.
            future.exception()

    async def _lane(self, lane: Lane) -> None:
        row = await self.platform.rest(await self.platform.order(lane))
        assert row["state"] == OperationState.SUCCEEDED, row["reason"]
        cluster_id, size = cluster_id_of(row["id"]), ORDERED
        before = await self._view(lane, cluster_id, ORDERED)
        views = {ORDERED: before}
        while any(self._waiting.values()):
            saga = self.sagas[size != ORDERED]
            queue = self._waiting[saga]
            scenario = queue.popleft() if queue else Scenario(saga, "undisturbed")
            size = await self._judged(lane, cluster_id, scenario, views)

    async def _judged(
        self, lane: Lane, cluster_id: str, scenario: Scenario, views: dict[int, Snapshot]
    ) -> int:
        """Carry a scenario out and answer its test; returns the size that the cluster has now. A
        lane whose cluster is not as it must be is used no more."""
        try:
            size = await self._carry_out(lane, cluster_id, scenario, views)
        except BaseException as error:
            if scenario in self.results:
                self.results[scenario].set_exception(error)
            raise
        if scenario in self.results:
            self.results[scenario].set_result(None)
        return size

    async def _carry_out(
        self, lane: Lane, cluster_id: str, scenario: Scenario, views: dict[int, Snapshot]
    ) -> int:
        before, after = SIZES[self.sagas.index(scenario.saga)]
        saboteurs = self.platform.saboteurs.begin(lane.project.id, scenario.disturbances)
        row = await self.platform.rest(await self._order(lane, cluster_id, after))
        self.platform.saboteurs.begin(lane.project.id, ())
        assert all(one.hits for one in saboteurs), f"{scenario}: a step was never reached"
        if row["state"] == OperationState.NEEDS_OPERATOR:
            failing = scenario.disturbances[0].index
            assert failing > commit_of(scenario.saga), row["reason"]
            clock = SystemClock()
            await operation_control.resume(self.platform.database, CLUSTERS, row["id"], clock)
            row = await self.platform.rest(row["id"])
        assert row["state"] == expected(scenario), f"{scenario}: {row['state']}: {row['reason']}"
        size = after if row["state"] == OperationState.SUCCEEDED else before
        view = await self._view(lane, cluster_id, size)
        assert view == views.setdefault(size, view), f"{scenario}: {row['reason']}"
        return size

    async def _order(self, lane: Lane, cluster_id: str, count: int) -> str:
        request = request_key(OPERATOR.subject, "PATCH pools", None, b"")
        _, operation = await self.life.scale(
            OPERATOR, lane.project, cluster_id, "main", ScaleOrder(count), request
        )
        return str(operation["id"])

    async def _view(self, lane: Lane, cluster_id: str, size: int) -> Snapshot:
        """All that a cluster of ``size`` has, once nothing moves any more; what is not its own must
        be as new, or in quarantine and shut out, and is cleaned then."""
        await self._settled(cluster_id)
        found = await look(self.platform, lane, cluster_id)
        for node in found["other_nodes"]:
            shut_out = (node[0], node[1], node[4]) == ("quarantine", "Off", "nobody")
            assert node == CLEAN or shut_out, found
        await self._clean(lane)
        await self._settled(cluster_id)
        found = await look(self.platform, lane, cluster_id)
        assert found["usage"] == found["ledger"]
        assert found["usage"].count("open") == size
        assert found["allocations"] == ["confirmed"] * size
        assert set(found["other_nodes"]) == {CLEAN}
        async with self.platform.database.transaction("clusters") as session:
            count = await session.scalar(
                select(NodePool.count).where(NodePool.cluster_id == cluster_id)
            )
            drains = await session.scalar(
                select(func.count()).select_from(Drain).where(Drain.cluster_id == cluster_id)
            )
        assert (found["cluster"], found["claims"], count, drains) == ("ready", 0, size, 0)
        assert not self.platform.drained(cluster_id) & await self._slots(cluster_id)
        return {name: found[name] for name in found if name not in {"usage", "ledger"}}

    async def _slots(self, cluster_id: str) -> set[str]:
        """The slots that nodes of the cluster stand in."""
        async with self.platform.database.transaction("clusters") as session:
            query = select(Member.pool, Member.slot).where(
                Member.cluster_id == cluster_id, Member.state == "confirmed"
            )
            return {slot_name(row.pool, row.slot) for row in await session.execute(query)}

    async def _settled(self, cluster_id: str) -> None:
        await self.platform.until_told()
        assert await self.platform.until_drained(cluster_id)

    async def _clean(self, lane: Lane) -> None:
        async with self.platform.database.transaction("baremetal") as session:
            query = select(Node.name, Node.state).where(Node.name.in_(lane.node_names))
            states = {row.name: row.state for row in await session.execute(query)}
        verbs = {"quarantine": "release-quarantine", "failed": "enrol"}
        for name, state in states.items():
            if state in verbs:
                operation_id = await self.platform.order_on_node(name, verbs[state])
                row = await self.platform.rest(operation_id, "baremetal")
                assert row["state"] == OperationState.SUCCEEDED, row["reason"]


@asynccontextmanager
async def life_cases(
    platform: RealPlatform, sagas: tuple[str, str], chosen: Sequence[Scenario]
) -> AsyncGenerator[LifeCases]:
    """The scenarios under way on all lanes."""
    # Every cut is a warning with a trace.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
    clusters = platform.clusters
    life = LifeService(
        platform.database, SystemClock(), AllowAll(), clusters.orchestrator, clusters
    )
    cases = LifeCases(platform, life, sagas)
    running = cases.start(chosen)
    yield cases
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
