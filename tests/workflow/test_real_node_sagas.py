"""Cleaning and enrolment of nodes: every step failed, repeated and cut, on the whole platform."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from real_cases import CLEAN, look_at_nodes
from real_platform import RealPlatform, real_platform
from sagakit import Disturbance, parted, rounds, selected
from sqlalchemy import select

from dflare.kit import operation_control
from dflare.kit.clock import SystemClock
from dflare.kit.plan import OperationState, Plan
from dflare.services.baremetal.tables import KIT as BAREMETAL
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.tables import Claim

AT_ONCE = 6
VERBS = {"clean_node": "release-quarantine", "enrol_nodes": "enrol"}
SHUT_OUT = ("quarantine", "Off", None, "blank", "nobody")
SET_ASIDE = ("failed", "Off", None, "blank", "nobody")


@dataclass(frozen=True)
class Scenario:
    """One operation on one node with everything that is done to it."""

    saga: str
    name: str
    disturbances: tuple[Disturbance, ...] = ()

    @property
    def plan(self) -> Plan:
        return SAGAS[self.saga]

    @property
    def failing(self) -> int | None:
        """The index of the step that fails, if one does."""
        one = self.disturbances[0] if self.disturbances else None
        return one.index if one and one.kind == "fail_all" else one.fail_at if one else None

    def __str__(self) -> str:
        return f"{self.saga} {self.name}"


def scenarios(saga: str) -> Iterator[Scenario]:
    """Undisturbed; rounds of cuts, repeats and errors at every step and at every undo of one that
    fails where that turns it around for the last time; each step failed."""
    plan = SAGAS[saga]
    turning = max(i for i, s in enumerate(plan.steps[: _commit(plan) + 1]) if not s.quarantine)
    undos = [(i, s.undo) for i, s in enumerate(plan.steps[: turning + 1]) if s.undo]
    yield Scenario(saga, "undisturbed")
    for name, disturbances in rounds(plan, undos, turning):
        yield Scenario(saga, name, disturbances)
    for i, step in enumerate(plan.steps):
        yield Scenario(saga, f"{i} {step.name} fails", (Disturbance("fail_all", i, step.name),))


def _commit(plan: Plan) -> int:
    assert plan.commit_index is not None
    return plan.commit_index


SCENARIOS = parted(
    (scenario for saga in VERBS for scenario in scenarios(saga)),
    lambda scenario: not scenario.name.endswith(("round 3", "round 4", "round 5")),
)


@dataclass
class Nodes:
    """Runs scenarios side by side, each on a node that no other one has meanwhile."""

    platform: RealPlatform
    free: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    running: dict[Scenario, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, selected: list[Scenario]) -> None:
        names = [name for lane in self.platform.lanes for name in lane.node_names]
        for name in names[:AT_ONCE]:
            self.free.put_nowait(name)
        self.running = {one: asyncio.create_task(self._run(one)) for one in selected}

    async def _run(self, scenario: Scenario) -> None:
        name = await self.free.get()
        await check(self.platform, scenario, name)
        # A node that was not left as new is given to nobody else.
        self.free.put_nowait(name)


async def look(platform: RealPlatform, name: str) -> tuple[str | None, ...]:
    await platform.until_told()
    return (await look_at_nodes(platform, [name], set()))[name]


async def claims(platform: RealPlatform, name: str) -> list[str]:
    async with platform.database.transaction("orchestrator") as session:
        query = select(Claim.operation_id).where(
            Claim.node_id == platform.node_ids[name], Claim.ended_at.is_(None)
        )
        return list(await session.scalars(query))


async def carry_out(platform: RealPlatform, name: str, verb: str) -> dict[str, Any]:
    operation_id = await platform.order_on_node(name, verb)
    return await platform.rest(operation_id, "baremetal")


async def check(platform: RealPlatform, scenario: Scenario, name: str) -> None:
    """Order it, assert what must come out, and bring the node back into the pool."""
    before = CLEAN
    if scenario.saga == "clean_node":
        await platform.take(platform.node_ids[name])
        before = SHUT_OUT
    assert await look(platform, name) == before
    saboteurs = platform.saboteurs.begin(platform.node_ids[name], scenario.disturbances)
    row = await carry_out(platform, name, VERBS[scenario.saga])
    platform.saboteurs.begin(platform.node_ids[name], ())
    assert all(one.hits for one in saboteurs), "a disturbance was never reached"

    if row["state"] == OperationState.NEEDS_OPERATOR:
        assert scenario.failing is not None, row["reason"]
        assert scenario.failing > _commit(scenario.plan), row["reason"]
        await operation_control.resume(platform.database, BAREMETAL, row["id"], SystemClock())
        row = await platform.rest(row["id"], "baremetal")
    state, node = expected(scenario, before)
    assert (row["state"], await look(platform, name)) == (state, node), row["reason"]
    assert await claims(platform, name) == []
    if node != CLEAN:
        again = await carry_out(platform, name, VERBS[scenario.saga])
        assert again["state"] == OperationState.SUCCEEDED, again["reason"]
        assert await look(platform, name) == CLEAN


def expected(
    scenario: Scenario, before: tuple[str | None, ...]
) -> tuple[OperationState, tuple[str | None, ...]]:
    """How the operation ends, and the node with it."""
    failing = scenario.failing
    if failing is None or failing > _commit(scenario.plan):
        return OperationState.SUCCEEDED, CLEAN
    if scenario.plan.steps[failing].quarantine:
        return OperationState.SUCCEEDED, SET_ASIDE
    return OperationState.FAILED, before


@pytest.fixture(scope="module")
async def nodes(
    request: pytest.FixtureRequest,
    database_url: str,
    temporal_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Nodes]:
    """The scenarios of all selected tests, under way."""
    # Every cut is a warning with a trace.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("platform")
    chosen = selected(request, "scenario")
    async with real_platform(database_url, temporal_address, folder) as platform:
        nodes = Nodes(platform)
        nodes.start(chosen)
        yield nodes
        for task in nodes.running.values():
            task.cancel()
        await asyncio.gather(*nodes.running.values(), return_exceptions=True)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_a_disturbed_operation_on_a_node_ends_as_an_undisturbed_one_or_sets_it_aside(
    nodes: Nodes, scenario: Scenario
) -> None:
    await asyncio.shield(nodes.running[scenario])
