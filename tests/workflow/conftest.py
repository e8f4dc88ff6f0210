"""Fixtures of workflow tests: a database with the schemas, and the kit's own small world."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# The kit and the fake world are imported by name from the tests beside them.
sys.path.insert(0, str(Path(__file__).parent))

from sagakit import SagaBench, saga_bench

from dflare.kit.db import Database
from lab import LabWorld, prepare_lab


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    await prepare_lab(database_url)
    database = Database(database_url, application="test")
    yield database
    await database.dispose()


@pytest.fixture(scope="module")
async def world(database: Database) -> LabWorld:
    world = LabWorld(database)
    await world.declare(nodes=24)
    return world


@pytest.fixture(scope="module")
async def bench(
    database: Database, temporal_address: str, world: LabWorld
) -> AsyncIterator[SagaBench]:
    async with saga_bench(database, temporal_address, world) as bench:
        yield bench
