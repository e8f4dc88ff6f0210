"""The numbers that nodes have in their pools: dense, never shared, kept by stand-ins."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from dflare.apps.migrate import locations
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.services.orchestrator.contract import AllocationState, PoolWish
from orchestrator_fleet import Fleet, ids


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    wanted = ("feed", "trace", "orchestrator")
    await upgrade_all(database_url, {name: locations()[name] for name in wanted})
    database = Database(database_url, application="test")
    yield database
    await database.dispose()


@pytest.fixture
async def fleet(database: Database) -> Fleet:
    fleet = Fleet(database)
    await fleet.declare(8)
    return fleet


async def _slots(fleet: Fleet, cluster_id: str) -> dict[str, list[int]]:
    slots: dict[str, list[int]] = {}
    for one in await fleet.allocations(cluster_id=cluster_id):
        if one.state in (AllocationState.HELD, AllocationState.CONFIRMED):
            slots.setdefault(one.pool, []).append(one.slot)
    return {pool: sorted(numbers) for pool, numbers in slots.items()}


async def test_every_pool_numbers_its_nodes_from_zero(fleet: Fleet) -> None:
    wishes = fleet.wishes(3)
    pools = (*wishes.pools, PoolWish(pool="extra", node_type="g8", count=2))
    wishes = wishes.model_copy(update={"pools": pools})
    reservation = await fleet.service.reserve(new_id("op"), wishes)
    assert [(one.pool, one.slot) for one in reservation.placed] == [
        ("main", 0),
        ("main", 1),
        ("main", 2),
        ("extra", 0),
        ("extra", 1),
    ]
    assert await _slots(fleet, wishes.cluster_id) == {"main": [0, 1, 2], "extra": [0, 1]}


async def test_nodes_that_join_a_pool_get_the_lowest_numbers_that_are_free(fleet: Fleet) -> None:
    operation, wishes = new_id("op"), fleet.wishes(3)
    first = await fleet.service.reserve(operation, wishes)
    nodes = ids(first)
    await fleet.run("orchestrator.confirm@1", operation, wishes.cluster_id, nodes)
    middle = [one.node_id for one in first.placed if one.slot == 1]
    await fleet.run("orchestrator.release@1", new_id("op"), wishes.cluster_id, middle)
    grown = await fleet.service.reserve(new_id("op"), fleet.wishes(2, cluster_id=wishes.cluster_id))
    assert [one.slot for one in grown.placed] == [1, 3]


async def test_a_stand_in_has_the_number_of_the_node_that_it_replaces(fleet: Fleet) -> None:
    operation, wishes = new_id("op"), fleet.wishes(3)
    first = await fleet.service.reserve(operation, wishes)
    await fleet.run("orchestrator.confirm@1", operation, wishes.cluster_id, ids(first))
    two = [one for one in first.placed if one.slot > 0]
    report = await fleet.run(
        "orchestrator.replace@1", operation, wishes.cluster_id, [one.node_id for one in two]
    )
    live = {
        one.node_id: one.slot
        for one in await fleet.allocations(cluster_id=wishes.cluster_id)
        if one.state == AllocationState.CONFIRMED
    }
    assert {live[report.results[one.node_id]] for one in two} == {1, 2}
    assert [live[report.results[one.node_id]] for one in two] == [one.slot for one in two]


async def test_nodes_that_are_taken_again_keep_their_numbers(fleet: Fleet) -> None:
    operation, wishes = new_id("op"), fleet.wishes(4)
    first = await fleet.service.reserve(operation, wishes)
    fleet.clock.at += timedelta(seconds=121)
    assert await fleet.sweeper.expire_holds() >= 4
    # A step's targets may come in any order and in several batches.
    for batch in (ids(first)[:2][::-1], ids(first)[2:][::-1]):
        await fleet.run("orchestrator.confirm@1", operation, wishes.cluster_id, batch)
    again = {
        one.node_id: one.slot
        for one in await fleet.allocations(cluster_id=wishes.cluster_id)
        if one.state == AllocationState.CONFIRMED
    }
    assert again == {one.node_id: one.slot for one in first.placed}
