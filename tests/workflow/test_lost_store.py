"""Temporal loses its whole store, or cannot be reached: no operation is lost by it."""

import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sagakit import saga_bench

from dflare.embedded.ports import free_port
from dflare.embedded.stores import running_temporal
from dflare.kit.clock import SystemClock
from dflare.kit.settings import PlatformSettings
from dflare.kit.temporal import connect
from dflare.services.orchestrator.reconciler import Sweeper, WorkflowStarter
from lab import LAB_KIT, LabWorld

KITS = {"lab": LAB_KIT}


@pytest.fixture(scope="module")
def empty_temporal() -> Iterator[str]:
    """Another Temporal with an empty store: what is left after a loss."""
    directory = Path(tempfile.mkdtemp(prefix="dflare-temporal-"))
    directory.chmod(0o755)
    with running_temporal(directory) as address:
        yield address
    shutil.rmtree(directory, ignore_errors=True)


def settings(world: LabWorld, address: str) -> PlatformSettings:
    return PlatformSettings(
        postgres_url=world.database.url, temporal_address=address, secret_key_file=""
    )


async def test_an_order_whose_workflow_was_lost_with_the_store_is_started_again(
    world: LabWorld, temporal_address: str, empty_temporal: str
) -> None:
    lost = await connect(settings(world, temporal_address))
    operation_id = await world.order()
    assert await WorkflowStarter(world.database, lost, KITS).start() == 1

    async with saga_bench(world.database, empty_temporal, world) as bench:
        sweeper = Sweeper(world.database, bench.client, KITS, SystemClock(), settled=timedelta(0))
        assert await sweeper.sweep() == 1
        assert await bench.starter.start() == 1
        row = await bench.ended(operation_id)

    assert (row["state"], row["attempt"]) == ("succeeded", 2)
    assert (await world.snapshot(operation_id))["own_nodes"] == [(True, True)] * 3
    await world.clean(operation_id)


async def test_an_unreachable_temporal_raises_no_attempt(
    world: LabWorld, temporal_address: str
) -> None:
    there = await connect(settings(world, temporal_address))
    operation_id = await world.order()
    assert await WorkflowStarter(world.database, there, KITS).start() == 1
    nowhere = await connect(settings(world, f"127.0.0.1:{free_port()}"))
    sweeper = Sweeper(world.database, nowhere, KITS, SystemClock(), settled=timedelta(0))

    with pytest.raises((RuntimeError, OSError)):
        await sweeper.sweep()

    async with saga_bench(world.database, temporal_address, world) as bench:
        row = await bench.ended(operation_id)
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    await world.clean(operation_id)
