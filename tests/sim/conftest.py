"""A simulator and an agent's platform that a module's tests share."""

from collections.abc import AsyncIterator

import pytest

from agent_platform import AgentPlatform, agent_platform
from simulator import SimHandle, data_center, simulator


@pytest.fixture(scope="module")
async def sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    """Eight hosts whose hardware answers at once."""
    async with simulator(tmp_path_factory.mktemp("sim"), data_center(8)) as handle:
        yield handle


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[AgentPlatform]:
    """Boot media, an image and the agent's calls."""
    async with agent_platform() as made:
        yield made
