"""How near the best possible a packed order lies, against sites that are solved exactly."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.placement import large_site, optimum, small_site, spanned
from hypothesis import given, settings
from hypothesis import strategies as st

from dflare.services.orchestrator.placement import Candidate, place
from dflare.services.orchestrator.placement_tree import LEVELS, grouped


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_no_order_touches_more_blocks_than_the_optimum_nor_many_more_of_anything(
    seed: int, count: int
) -> None:
    nodes = small_site(seed)
    choice = place(nodes, count)
    if choice is None:
        assert count > len(nodes)
        return
    got, best = spanned(choice.nodes), optimum(nodes, count)
    # From the top: the optimum is the least of these tuples, so nothing may be below it.
    assert best <= got
    assert got[0] == best[0]
    assert all(have - least <= 1 for have, least in zip(got[:-1], best[:-1], strict=True))


def test_at_least_99_of_100_orders_of_small_sites_are_at_the_optimum_of_all_levels() -> None:
    at_best: list[bool] = []
    for seed in range(60):
        nodes = small_site(seed)
        for count in range(1, len(nodes) + 1):
            choice = place(nodes, count)
            assert choice is not None
            at_best.append(spanned(choice.nodes) == optimum(nodes, count))
    assert len(at_best) > 500
    assert sum(at_best) / len(at_best) >= 0.99


def test_fuller_blocks_are_exchanged_for_others_where_that_saves_racks() -> None:
    def nodes_of(block: str, *racks: int) -> list[Candidate]:
        return [
            Candidate(f"{block}r{rack}n{n}", f"{block}r{rack}n{n}", f"r{rack}", block, None)
            for rack, size in enumerate(racks)
            for n in range(size)
        ]

    # Two blocks are needed. The fullest has its ten nodes in ten racks, the others in one each.
    nodes = [*nodes_of("a", *[1] * 10), *nodes_of("b", 9), *nodes_of("c", 9)]
    choice = place(nodes, 12)
    assert choice is not None
    assert {node.block for node in choice.nodes} == {"b", "c"}
    assert spanned(choice.nodes)[:3] == optimum(nodes, 12)[:3] == (2, 2, 2)


def test_a_free_site_gives_a_large_order_the_fewest_groups_of_every_level() -> None:
    choice = place(large_site(1, domains=True), 512)
    assert choice is not None
    assert spanned(choice.nodes) == (2, 16, 64, 64)
    for level in LEVELS:
        assert {len(nodes) for nodes in grouped(choice.nodes, level).values()} == {
            512 // len({level(node) for node in choice.nodes})
        }
