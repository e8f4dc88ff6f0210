"""The sagas of Slurm clusters on the whole platform: every step and every undo cut, repeated and
failed at once with those of the others; the steps that bare clusters have not, failed and taken.

The scheduler host is one on the wire whose nodes register at once; a real Slurm goes through the
undisturbed saga in ``tests/e2e/test_slurm.py``.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
from real_cases import (
    PLANS,
    SLURM_PLANS,
    UNDISTURBED,
    Cases,
    Scenario,
    check_handed_over,
    failures,
    in_rounds,
    nothing_left,
    taken,
)
from real_platform import ORDERED, real_platform
from sagakit import first_round, parted, selected

from scheduler_wire import wire_host

CREATE, DELETE = SLURM_PLANS
_KNOWN = {
    name
    for plan in PLANS.values()
    for step in plan.steps
    for name in (step.name, step.undo)
    if name
}


def _own(scenario: Scenario) -> bool:
    return any(one.step not in _KNOWN for one in scenario.disturbances)


SCENARIOS = [
    *parted((one for saga in SLURM_PLANS for one in in_rounds(saga)), first_round),
    *(one for saga in SLURM_PLANS for one in (*failures(saga), *taken(saga)) if _own(one)),
]


@pytest.fixture(scope="module")
async def cases(
    request: pytest.FixtureRequest,
    database_url: str,
    temporal_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Cases]:
    """The scenarios of all selected tests, under way on all lanes."""
    # Every cut is a warning with a trace.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("platform")
    chosen = selected(request, "scenario")
    async with (
        wire_host(folder) as host,
        real_platform(database_url, temporal_address, folder, host) as platform,
    ):
        cases = Cases(platform, chosen, (CREATE, DELETE))
        running = cases.start()
        yield cases
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_an_undisturbed_order_runs_slurm_and_its_release_leaves_nothing(
    cases: Cases,
) -> None:
    created, deleted = await cases.undisturbed(CREATE), await cases.undisturbed(DELETE)

    check_handed_over(created.snapshot)
    assert created.snapshot["scheduler"] == "runs"
    lane = cases.platform.lanes[0]
    assert deleted.snapshot == nothing_left(lane, "deleted", billed=ORDERED)
    await cases.result(UNDISTURBED[CREATE])
    await cases.result(UNDISTURBED[DELETE])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_a_disturbed_operation_ends_as_an_undisturbed_one_or_undone(
    cases: Cases, scenario: Scenario
) -> None:
    await cases.result(scenario)


async def test_every_scenario_left_its_nodes_as_new(cases: Cases) -> None:
    await cases.ended()

    assert cases.spoiled == []
