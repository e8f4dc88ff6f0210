"""Whose turn it is, as properties: fair among tenants, and nobody's earliest start is moved."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflare.services.orchestrator.contract import PoolWish, Same
from dflare.services.orchestrator.placement import Wish
from dflare.services.orchestrator.placement_pools import Placement, SiteNode
from dflare.services.orchestrator.placement_queue import (
    Stock,
    Waiting,
    blocked,
    can_ever_start,
    earliest,
    estimates,
    in_turn,
    next_start,
    start_now,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(minutes: int) -> datetime:
    return NOW + timedelta(minutes=minutes)


def node(
    number: int, *, busy: bool = False, kind: str = "g8", state: str = "available"
) -> SiteNode:
    return SiteNode(
        node_id=f"node_{number:03}",
        name=f"n{number:03}",
        node_type=kind,
        gpus=8,
        rack=f"r{number // 2}",
        block=f"b{number // 4}",
        nvlink_domain=None,
        rail_block=None,
        state="active" if busy else state,
        cordoned=False,
        busy=busy,
    )


def order(
    name: str,
    count: int,
    *,
    tenant: str = "red",
    arrived: int = 0,
    ends: int | None = None,
    wish: Wish | None = None,
    kind: str = "g8",
) -> Waiting:
    return Waiting(
        operation_id=name,
        organization_id=tenant,
        project_id=f"prj_{tenant}",
        pools=(PoolWish(pool="default", node_type=kind, count=count),),
        arrived_at=at(arrived),
        wish=wish or Wish(),
        ends_at=None if ends is None else at(ends),
    )


def stock(free: int, busy: dict[int, int | None] | None = None, **held: int) -> Stock:
    """``free`` nodes, and busy ones numbered on, each with its end in minutes, if known."""
    busy = busy or {}
    nodes = [node(n) for n in range(free)] + [node(n, busy=True) for n in busy]
    ends = {node(n).node_id: at(end) for n, end in busy.items() if end is not None}
    return Stock(NOW, nodes, ends, held)


def started(placement: Placement | None) -> int:
    return 0 if placement is None else len(placement.chosen)


def test_turns_go_to_the_tenant_with_the_fewest_nodes_then_to_who_came_first() -> None:
    orders = [
        order("red-1", 4, tenant="red", arrived=0),
        order("red-2", 1, tenant="red", arrived=1),
        order("blue-1", 2, tenant="blue", arrived=2),
        order("blue-2", 2, tenant="blue", arrived=3),
        order("green-1", 1, tenant="green", arrived=4),
    ]
    names = [one.operation_id for one in in_turn(orders, {"red": 3, "blue": 0, "green": 8})]
    # Blue holds 0, then 2 with its first order; red holds 3; blue 4 < red 7 < green 8.
    assert names == ["blue-1", "blue-2", "red-1", "red-2", "green-1"]


def test_a_tenant_that_orders_much_does_not_keep_another_from_its_turn() -> None:
    flood = [order(f"red-{n:02}", 1, tenant="red", arrived=n) for n in range(50)]
    late = order("blue", 1, tenant="blue", arrived=99)
    names = [one.operation_id for one in in_turn([*flood, late], {})]
    assert names.index("blue") == 1


def test_an_order_that_fits_starts_at_once() -> None:
    assert started(start_now(order("a", 3), [], stock(4))) == 3


def test_without_known_ends_nobody_takes_what_the_order_ahead_could_use() -> None:
    here = stock(4, {4: None, 5: None})
    large = blocked(order("large", 6), here)
    assert large.start is None
    assert start_now(order("small", 1, arrived=1), [large], here) is None
    assert start_now(order("brief", 1, arrived=1, ends=1), [large], here) is None


def test_an_order_that_could_not_start_with_all_nodes_that_serve_is_passed() -> None:
    here = stock(4, {4: None})
    too_large = order("large", 9)
    assert not can_ever_start(too_large, here)
    assert started(start_now(order("small", 2), [blocked(too_large, here)], here)) == 2


def test_an_order_passes_one_that_waits_for_other_nodes() -> None:
    here = Stock(NOW, [*(node(n) for n in range(4)), node(8, kind="b200", busy=True)])
    other = blocked(order("other", 1, kind="b200"), here)
    assert started(start_now(order("small", 4), [other], here)) == 4
    # One that wants a single block leaves to the others what is in blocks that cannot hold it.
    here = stock(6, {6: None, 7: None})
    one_block = blocked(
        order("block", 4, wish=Wish(same=Same.BLOCK, exclude=frozenset({"n000"}))), here
    )
    assert started(start_now(order("small", 4, arrived=1), [one_block], here)) == 4
    assert start_now(order("small", 5, arrived=1), [one_block], here) is None


def test_a_brief_order_runs_before_the_start_of_the_one_ahead() -> None:
    here = stock(2, {2: 30, 3: 60})
    large = blocked(order("large", 4), here)
    assert large.start == at(60)
    assert started(start_now(order("brief", 2, ends=60), [large], here)) == 2
    assert start_now(order("long", 1, ends=61), [large], here) is None
    assert start_now(order("endless", 1), [large], here) is None


def test_an_order_may_keep_nodes_that_the_one_ahead_does_not_need_at_its_start() -> None:
    here = stock(3, {3: 30, 4: 30})
    large = blocked(order("large", 4), here)
    assert started(start_now(order("endless", 1), [large], here)) == 1
    assert start_now(order("endless", 2), [large], here) is None


def test_one_that_is_held_up_by_something_else_than_nodes_stops_nobody() -> None:
    turns = [order("over-quota", 2), order("next", 2, arrived=1)]
    found = next_start(turns, stock(2), {"over-quota"})
    assert found is not None
    assert found[0].operation_id == "next"


def test_estimates_follow_the_turns_and_are_honest_about_what_is_not_known() -> None:
    turns = [
        order("first", 3, ends=50),
        order("second", 2, arrived=1, ends=90),
        order("third", 4, arrived=2),
        order("fourth", 1, arrived=3),
    ]
    found = estimates(turns, stock(1, {1: 10, 2: 20, 3: 70}))
    assert found == {"first": at(20), "second": at(50), "third": at(90), "fourth": None}
    assert estimates(turns[:1], stock(1, {1: None, 2: None})) == {"first": None}


@st.composite
def situations(draw: st.DrawFn) -> tuple[Stock, list[Waiting]]:
    size = draw(st.integers(1, 12))
    nodes, ends = [], {}
    for number in range(size):
        state = draw(st.sampled_from(["free", "free", "known", "unknown", "quarantine"]))
        if state == "quarantine":
            nodes.append(node(number, state="quarantine"))
            continue
        nodes.append(node(number, busy=state != "free"))
        if state == "known":
            ends[nodes[-1].node_id] = at(draw(st.integers(-5, 60)))
    orders = [
        order(
            f"op_{index}",
            draw(st.integers(1, size + 1)),
            tenant=draw(st.sampled_from(["red", "blue", "green"])),
            arrived=index,
            ends=draw(st.none() | st.integers(1, 90)),
            wish=Wish(
                same=draw(st.sampled_from([None, None, Same.LEAF, Same.BLOCK])),
                exclude=frozenset(
                    draw(st.lists(st.sampled_from([n.name for n in nodes]), max_size=2))
                ),
            ),
        )
        for index in range(draw(st.integers(1, 6)))
    ]
    held = {tenant: draw(st.integers(0, 9)) for tenant in ("red", "blue", "green")}
    return Stock(NOW, nodes, ends, held), orders


def _with(here: Stock, started: Waiting, placement: Placement) -> Stock:
    taken = {one.node.node_id for one in placement.chosen}
    nodes = [replace(n, busy=True, state="active") if n.node_id in taken else n for n in here.nodes]
    ends = dict(here.ends)
    if started.ends_at is not None:
        ends |= dict.fromkeys(taken, started.ends_at)
    return replace(here, nodes=nodes, ends=ends)


@settings(max_examples=400, deadline=None)
@given(situations())
def test_no_start_moves_the_earliest_start_of_an_order_ahead_of_it(
    situation: tuple[Stock, list[Waiting]],
) -> None:
    here, orders = situation
    while found := next_start(turns := in_turn(orders, here.held), here):
        taken, placement = found
        chosen = {one.node.node_id for one in placement.chosen}
        assert chosen <= {n.node_id for n in here.nodes if n.free}
        after = _with(here, taken, placement)
        for other in turns[: turns.index(taken)]:
            before = blocked(other, here)
            if before.start is None:
                assert not before.useful & chosen
            else:
                later = earliest(other, after)
                assert later is not None
                assert later <= before.start
        here, orders = after, [one for one in orders if one is not taken]
    # Nothing is left idle that the first in turn could have.
    if turns:
        assert earliest(turns[0], here) != NOW


@settings(max_examples=200, deadline=None)
@given(situations())
def test_every_order_has_one_turn_and_those_of_a_tenant_come_as_they_arrived(
    situation: tuple[Stock, list[Waiting]],
) -> None:
    here, orders = situation
    turns = in_turn(orders, here.held)
    assert sorted(one.operation_id for one in turns) == sorted(one.operation_id for one in orders)
    for tenant in here.held:
        own = [one.arrived_at for one in turns if one.organization_id == tenant]
        assert own == sorted(own)


@pytest.mark.parametrize("count", [1, 4])
def test_an_order_without_nodes_to_come_is_never_estimated(count: int) -> None:
    quarantined = Stock(NOW, [node(n, state="quarantine") for n in range(4)])
    assert estimates([order("a", count)], quarantined) == {"a": None}
    assert not can_ever_start(order("a", count), quarantined)
