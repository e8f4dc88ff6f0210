"""Wishes of an order: what is chosen, and what is said where one cannot be met."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dflare.services.orchestrator.placement import (
    Candidate,
    Choice,
    Refusal,
    Same,
    Shape,
    Wish,
    choose,
    place,
    rail_block_named,
)
from dflare.services.orchestrator.placement_tree import (
    Key,
    block_of,
    domain_of,
    rack_of,
    rail_block_of,
)

GROUP = {
    Same.NVLINK_DOMAIN: domain_of,
    Same.LEAF: rack_of,
    Same.RAIL_BLOCK: rail_block_of,
    Same.BLOCK: block_of,
}


def node(block: int, unit: int, rack: int, number: int, *, rails: bool = True) -> Candidate:
    """Two racks with four nodes in two NVLink domains make a rail block."""
    name = f"b{block}u{unit}r{rack}n{number}"
    return Candidate(
        node_id=f"node_{name}",
        name=name,
        rack=f"u{unit}r{rack}",
        block=f"b{block}",
        nvlink_domain=f"b{block}u{unit}r{rack}d{number // 2}",
        rail_block=f"b{block}u{unit}" if rails else None,
    )


def full_site(blocks: int = 2, units: int = 2) -> list[Candidate]:
    return [
        node(block, unit, rack, number)
        for block in range(blocks)
        for unit in range(units)
        for rack in range(2)
        for number in range(4)
    ]


def chosen(answer: Choice | Refusal) -> Choice:
    assert isinstance(answer, Choice), answer
    return answer


def refused(answer: Choice | Refusal) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


def groups(nodes: tuple[Candidate, ...], same: Same) -> set[Key]:
    return {GROUP[same](one) for one in nodes}


sites = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1), st.integers(0, 3)),
    max_size=40,
    unique=True,
).map(lambda places: [node(*place) for place in places])
wishes = st.builds(
    Wish,
    same=st.sampled_from([None, *Same]),
    exclude=st.frozensets(
        st.sampled_from([one.name for one in full_site(3)] + ["node_b0u0r0n0", "unheard-of"]),
        max_size=12,
    ),
) | st.builds(
    Wish, shape=st.just(Shape.SPREAD), same=st.sampled_from([None, Same.RAIL_BLOCK, Same.BLOCK])
)


@given(sites, st.integers(1, 20), wishes)
@settings(max_examples=400, deadline=None)
def test_what_is_chosen_meets_every_wish_and_a_refusal_is_never_given_where_it_could(
    nodes: list[Candidate], count: int, wish: Wish
) -> None:
    answer = choose(nodes, count, wish=wish)

    allowed = [one for one in nodes if not {one.name, one.node_id} & wish.exclude]
    room = len(allowed)
    if wish.same:
        room = max(Counter(map(GROUP[wish.same], allowed)).values(), default=0)
    if isinstance(answer, Choice):
        assert len(set(answer.nodes)) == len(answer.nodes) == count
        assert set(answer.nodes) <= set(allowed)
        if wish.same:
            assert len(groups(answer.nodes, wish.same)) == 1
    else:
        assert room < count
        assert answer.most == room
        assert (answer.wanted, answer.free) == (count, len(nodes))


@given(sites, st.integers(1, 20), wishes)
@settings(max_examples=400, deadline=None)
def test_a_refusal_names_the_wishes_in_the_way_and_a_choice_without_them(
    nodes: list[Candidate], count: int, wish: Wish
) -> None:
    answer = choose(nodes, count, wish=wish)
    if isinstance(answer, Choice):
        return
    assert bool(answer.unmet) == bool(answer.alternatives) == (len(nodes) >= count)
    for alternative in answer.alternatives:
        assert set(alternative.without) <= set(answer.unmet)
        less = Wish(
            wish.shape,
            None if "same" in alternative.without else wish.same,
            frozenset[str]() if "exclude" in alternative.without else wish.exclude,
        )
        assert set(chosen(choose(nodes, count, wish=less)).nodes) == set(alternative.choice.nodes)


@given(sites, st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_a_spread_order_has_no_rack_with_more_nodes_than_it_needs_to(
    nodes: list[Candidate], count: int
) -> None:
    answer = choose(nodes, count, wish=Wish(Shape.SPREAD))
    if isinstance(answer, Refusal):
        return
    free = Counter(map(rack_of, nodes))
    # The lowest ceiling that has room for the whole order.
    ceiling = next(c for c in range(1, 9) if sum(min(c, n) for n in free.values()) >= count)
    taken = Counter(map(rack_of, answer.nodes))
    assert max(taken.values()) == ceiling
    assert len(taken) == min(count, len(free))


@pytest.mark.parametrize("same", list(Same))
def test_a_wish_for_one_group_takes_the_smallest_that_holds_it(same: Same) -> None:
    nodes = [one for one in full_site() if one.name not in ("b1u1r1n3", "b1u0r0n0")]
    answer = chosen(choose(nodes, 1, wish=Wish(same=same)))
    fewest = min(Counter(map(GROUP[same], nodes)).values())
    assert Counter(map(GROUP[same], nodes))[GROUP[same](answer.nodes[0])] == fewest


def test_a_wish_for_one_group_says_what_fits_and_what_would_be_possible_without_it() -> None:
    answer = refused(choose(full_site(), 6, wish=Wish(same=Same.LEAF)))
    assert answer.unmet == ("same",)
    assert answer.most == 4
    assert answer.explanation == (
        "6 nodes wanted, 32 are free; the leaf with the most free nodes has 4; "
        "without the wish for one leaf: 6 of 32 free nodes in 2 racks (u0r0, u0r1) of "
        "1 rail block (b0u0) of 1 block (b0); 3 NVLink domains taken whole, 0 in part"
    )


def test_excluded_nodes_are_named_by_name_or_id_and_a_refusal_says_how_many_they_are() -> None:
    nodes = full_site(1, 1)
    wish = Wish(exclude=frozenset({"b0u0r0n0", "node_b0u0r0n1"}))
    assert {one.name for one in nodes} - {
        one.name for one in chosen(choose(nodes, 6, wish=wish)).nodes
    } == {"b0u0r0n0", "b0u0r0n1"}
    answer = refused(choose(nodes, 7, wish=wish))
    assert (answer.unmet, answer.most) == (("exclude",), 6)
    assert "2 of the free nodes are excluded, 6 are left" in answer.explanation


def test_two_wishes_that_only_together_stand_in_the_way_are_both_named() -> None:
    nodes = full_site(1, 2)
    excluded = frozenset(one.name for one in nodes[:10])
    answer = refused(choose(nodes, 8, wish=Wish(same=Same.RAIL_BLOCK, exclude=excluded)))
    assert answer.unmet == ("exclude",)
    answer = refused(choose(nodes, 12, wish=Wish(same=Same.RAIL_BLOCK, exclude=excluded)))
    assert answer.unmet == ("exclude", "same")
    assert [one.without for one in answer.alternatives] == [("same", "exclude")]


def test_too_few_nodes_are_no_wishs_fault() -> None:
    answer = refused(choose(full_site(1, 1), 9, wish=Wish(same=Same.BLOCK)))
    assert (answer.unmet, answer.alternatives) == ((), ())
    assert answer.explanation.startswith("9 nodes wanted, 8 are free, 1 are missing")


def test_one_rail_block_is_refused_where_no_rails_are_known_rather_than_guessed() -> None:
    nodes = [node(0, 0, 0, number, rails=False) for number in range(4)]
    answer = refused(choose(nodes, 2, wish=Wish(same=Same.RAIL_BLOCK)))
    assert answer.most == 0
    assert "no free node is known to stand in a rail block" in answer.explanation


@pytest.mark.parametrize("same", list(Same))
def test_a_stand_in_for_an_order_in_one_group_comes_from_that_group_or_not_at_all(
    same: Same,
) -> None:
    nodes = full_site()
    near, free = [nodes[16]], [*nodes[:16], *nodes[17:]]
    wish = Wish(same=same)
    answer = chosen(choose(free, 1, near, wish))
    assert groups(answer.nodes, same) == {GROUP[same](near[0])}

    elsewhere = [one for one in free if GROUP[same](one) != GROUP[same](near[0])]
    gone = refused(choose(elsewhere, 1, near, wish))
    assert (gone.most, gone.unmet) == (0, ("same",))
    assert "that the order has nodes in has 0 more free" in gone.explanation


def test_an_order_that_lies_in_two_groups_already_cannot_be_in_one() -> None:
    nodes = full_site()
    answer = refused(choose(nodes[2:-1], 1, [nodes[0], nodes[-1]], Wish(same=Same.BLOCK)))
    assert "the order has nodes in 2 blocks already" in answer.explanation


def test_a_stand_in_of_a_spread_order_goes_to_a_rack_without_the_order() -> None:
    nodes = full_site(1, 2)
    near = [one for one in nodes if one.name[-1] == "0" and one.rack != "u1r0"]
    # The rack without the order has the fewest free nodes, so that room is no reason to take it.
    free = [one for one in nodes if one not in near and one.name not in ("b0u1r0n0", "b0u1r0n1")]
    answer = chosen(choose(free, 1, near, Wish(Shape.SPREAD)))
    assert answer.nodes[0].rack == "u1r0"
    assert "spread, at most 1 of the order in a rack" in answer.explanation


@pytest.mark.parametrize("same", [Same.LEAF, Same.NVLINK_DOMAIN])
def test_a_spread_within_one_rack_is_a_contradiction(same: Same) -> None:
    with pytest.raises(ValueError, match="spread goes over racks"):
        Wish(Shape.SPREAD, same)


@pytest.mark.parametrize("count", [0, -3])
def test_an_order_of_no_nodes_is_a_mistake_of_the_caller(count: int) -> None:
    with pytest.raises(ValueError, match="at least one node"):
        choose(full_site(), count)


def test_place_is_choose_without_the_reasons() -> None:
    assert place(full_site(), 6, wish=Wish(same=Same.LEAF)) is None
    assert place(full_site(), 6) == choose(full_site(), 6)


def test_a_rail_block_is_the_same_only_where_every_rail_is_on_the_same_switch() -> None:
    one = rail_block_named({0: "ib-1-rail-0", 1: "ib-1-rail-1"})
    assert one == rail_block_named({1: "ib-1-rail-1", 0: "ib-1-rail-0"})
    others = [{0: "ib-1-rail-0"}, {0: "ib-1-rail-0", 1: "ib-2-rail-1"}, {}]
    assert one not in [rail_block_named(other) for other in others]
    assert rail_block_named({}) is None
    answer = chosen(choose([Candidate("n", "n", "r", "b", None, one)], 1))
    assert "1 rail block (ib-1-rail-0 to ib-1-rail-1)" in answer.explanation
