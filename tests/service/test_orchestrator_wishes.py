"""Placement wishes of orders, from the contract to the nodes that they get."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError

from dflare.apps.migrate import locations
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.services.orchestrator.contract import (
    PlacementWish,
    PoolWish,
    Reservation,
    Same,
    Shape,
    Wishes,
)
from dflare.services.orchestrator.errors import CapacityError
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
    """Two rail blocks of two racks of four nodes."""
    fleet = Fleet(database, racks_per_rail_block=2)
    await fleet.declare(16)
    return fleet


async def _reserve(fleet: Fleet, count: int, **values: Any) -> Reservation:
    return await fleet.service.reserve(new_id("op"), fleet.wishes(count, **values))


def _numbers(reservation: Reservation) -> set[int]:
    return {int(one.node_name[1:]) for one in reservation.placed}


async def test_a_spread_order_gets_a_node_of_every_rack_and_says_so(fleet: Fleet) -> None:
    wish = PlacementWish(shape=Shape.SPREAD)
    reservation = await _reserve(fleet, 4, placement=wish)
    assert {number // 4 for number in _numbers(reservation)} == {0, 1, 2, 3}
    assert "spread, at most 1 of the order in a rack" in reservation.explanation


async def test_an_order_without_wishes_stays_in_one_rail_block(fleet: Fleet) -> None:
    await _reserve(fleet, 3)
    reservation = await _reserve(fleet, 7)
    assert len({number // 8 for number in _numbers(reservation)}) == 1
    assert "1 rail block" in reservation.explanation


async def test_excluded_nodes_are_not_given_and_a_refusal_names_the_wish(fleet: Fleet) -> None:
    names = tuple(f"n{number:04}" for number in range(8))
    reservation = await _reserve(fleet, 4, placement=PlacementWish(exclude=names))
    assert _numbers(reservation) <= set(range(8, 16))
    with pytest.raises(CapacityError) as refused:
        await _reserve(fleet, 6, placement=PlacementWish(exclude=names))
    assert refused.value.facts["unmet"] == ["exclude"]
    assert "without the exclusions" in (refused.value.next_step or "")


async def test_an_order_that_fits_no_rail_block_is_told_what_it_could_have(fleet: Fleet) -> None:
    with pytest.raises(CapacityError) as refused:
        await _reserve(fleet, 9, placement=PlacementWish(same=Same.RAIL_BLOCK))
    facts = refused.value.facts
    assert (facts["unmet"], facts["most"], facts["free"]) == (["same"], 8, 16)
    assert "9 of 16 free nodes" in str(facts["alternatives"])


async def test_all_pools_of_an_order_lie_in_the_one_group_that_it_wishes(fleet: Fleet) -> None:
    # The first rail block is the fuller one after this, but holds no order of seven.
    await _reserve(fleet, 3)
    wishes = fleet.wishes(2, placement=PlacementWish(same=Same.RAIL_BLOCK))
    pools = (*wishes.pools, PoolWish(pool="large", node_type="g8", count=5))
    reservation = await fleet.service.reserve(
        new_id("op"), wishes.model_copy(update={"pools": pools})
    )
    assert _numbers(reservation) <= set(range(8, 16))
    assert [one.pool for one in reservation.placed] == ["main"] * 2 + ["large"] * 5


async def test_a_stand_in_keeps_to_the_wish_of_its_order(fleet: Fleet) -> None:
    operation = new_id("op")
    wishes = fleet.wishes(7, placement=PlacementWish(same=Same.RAIL_BLOCK))
    placed = await fleet.service.reserve(operation, wishes)
    await fleet.run("orchestrator.confirm@1", operation, wishes.cluster_id, ids(placed))
    one, two = ids(placed)[:2]
    report = await fleet.run("orchestrator.replace@1", operation, wishes.cluster_id, [one])
    stand_in = int(report.results[one][-4:])
    assert stand_in // 8 == _numbers(placed).pop() // 8
    # The rail block is used up: none of the eight free nodes of the other one is taken.
    report = await fleet.run("orchestrator.replace@1", operation, wishes.cluster_id, [two])
    assert report.failed == {two: "none of the 8 free nodes of type g8 meets the order's wishes"}


async def test_nodes_that_join_a_cluster_are_placed_as_its_first_were(fleet: Fleet) -> None:
    wishes = fleet.wishes(6, placement=PlacementWish(same=Same.RAIL_BLOCK))
    first = await fleet.service.reserve(new_id("op"), wishes)
    grown = await _reserve(fleet, 2, cluster_id=wishes.cluster_id)
    assert {number // 8 for number in _numbers(grown) | _numbers(first)} == {
        _numbers(first).pop() // 8
    }
    with pytest.raises(CapacityError):
        await _reserve(fleet, 1, cluster_id=wishes.cluster_id)


async def test_nodes_that_join_a_cluster_are_near_it(fleet: Fleet) -> None:
    wishes = fleet.wishes(2)
    first = await fleet.service.reserve(new_id("op"), wishes)
    grown = await _reserve(fleet, 2, cluster_id=wishes.cluster_id)
    assert len({number // 4 for number in _numbers(grown) | _numbers(first)}) == 1


@pytest.mark.parametrize("same", [Same.LEAF, Same.NVLINK_DOMAIN])
def test_a_contradictory_wish_is_refused_where_it_is_written(same: Same) -> None:
    with pytest.raises(ValidationError, match="spread goes over racks"):
        PlacementWish(shape=Shape.SPREAD, same=same)


async def test_a_preview_explains_the_wish_and_refuses_as_the_order_would(fleet: Fleet) -> None:
    wishes: Wishes = fleet.wishes(4, placement=PlacementWish(same=Same.LEAF))
    preview = await fleet.service.preview(wishes)
    assert "all in the same leaf, as wished" in preview.explanation
    too_many = fleet.wishes(5, placement=PlacementWish(same=Same.LEAF))
    with pytest.raises(CapacityError, match="wishes for pool main cannot be met"):
        await fleet.service.preview(too_many)
