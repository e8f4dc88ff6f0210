"""Growing and shrinking: every step failed, repeated and cut, on the whole platform."""

from collections.abc import AsyncIterator

import pytest
from life_cases import BARE, LifeCases, life_cases, parameters
from real_cases import Scenario
from real_platform import real_platform
from sagakit import selected

SCENARIOS = parameters(BARE)


@pytest.fixture(scope="module")
async def cases(
    request: pytest.FixtureRequest,
    database_url: str,
    temporal_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[LifeCases]:
    """The scenarios of all selected tests, under way on all lanes."""
    folder = tmp_path_factory.mktemp("platform")
    chosen = selected(request, "scenario")
    async with (
        real_platform(database_url, temporal_address, folder) as platform,
        life_cases(platform, BARE, chosen) as cases,
    ):
        yield cases


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_a_disturbed_resize_ends_as_an_undisturbed_one_or_leaves_the_cluster_as_it_was(
    cases: LifeCases, scenario: Scenario
) -> None:
    await cases.result(scenario)
