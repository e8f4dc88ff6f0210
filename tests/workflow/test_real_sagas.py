"""Every step of the two real sagas failed, repeated and cut, on the whole platform."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
from real_cases import (
    PLANS,
    UNDISTURBED,
    Cases,
    Scenario,
    check_handed_over,
    failures,
    in_rounds,
    nothing_left,
    singly,
    taken,
)
from real_platform import ORDERED, real_platform
from sagakit import parted, selected

SCENARIOS = [
    *(one for saga in PLANS for kind in (in_rounds, failures) for one in kind(saga)),
    *parted(
        (one for saga in PLANS for one in taken(saga)),
        lambda one: one.disturbances[0].step == "baremetal.provision@1",
    ),
]
SINGLY = [scenario for saga in PLANS for scenario in singly(saga)]


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
    async with real_platform(database_url, temporal_address, folder) as platform:
        cases = Cases(platform, chosen)
        running = cases.start()
        yield cases
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_an_undisturbed_order_is_handed_over_and_its_release_leaves_nothing(
    cases: Cases,
) -> None:
    created, deleted = await cases.undisturbed("create"), await cases.undisturbed("delete")

    check_handed_over(created.snapshot)
    lane = cases.platform.lanes[0]
    assert deleted.snapshot == nothing_left(lane, "deleted", billed=ORDERED)
    await cases.result(UNDISTURBED["create"])
    await cases.result(UNDISTURBED["delete"])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_a_disturbed_operation_ends_as_an_undisturbed_one_or_undone(
    cases: Cases, scenario: Scenario
) -> None:
    await cases.result(scenario)


@pytest.mark.long
@pytest.mark.parametrize("scenario", SINGLY, ids=str)
async def test_each_disturbance_on_its_own(cases: Cases, scenario: Scenario) -> None:
    await cases.result(scenario)


async def test_every_scenario_left_its_nodes_as_new(cases: Cases) -> None:
    await cases.ended()

    assert cases.spoiled == []
