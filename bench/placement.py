"""The placement function: time for 512 of 4,096 nodes, and distance from the optimum.

The optimum is found by trying every set of racks, so the sites are small. It is what the function
promises, from the top: the fewest blocks, of those the fewest rail blocks, then racks, then NVLink
domains.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median

from bench.report import table
from dflare.services.orchestrator.placement import Candidate, Same, Shape, Wish, place
from dflare.services.orchestrator.placement_tree import LEVELS, domain_of, grouped, rack_of

LEVEL_NAMES = ("blocks", "rail blocks", "racks", "NVLink domains")
SMALL_SITES = 400
REPEATS = 9


def spanned(nodes: Sequence[Candidate]) -> tuple[int, ...]:
    """How many groups of each level the nodes stand in."""
    return tuple(len({level(node) for node in nodes}) for level in LEVELS)


def optimum(candidates: Sequence[Candidate], count: int) -> tuple[int, ...]:
    """The least of ``spanned`` that ``count`` of the candidates can have, by trying every set of
    racks. Groups must be nested; there are at least ``count`` candidates, in at most 16 racks."""
    racks = list(grouped(candidates, rack_of).values())
    assert len(racks) <= 16, "every set of racks is tried"
    best: tuple[int, ...] | None = None
    for chosen in range(1, 1 << len(racks)):
        nodes = [node for bit, rack in enumerate(racks) if chosen >> bit & 1 for node in rack]
        if len(nodes) < count:
            continue
        upper = spanned(nodes)[:-1]
        if best is None or upper <= best[:-1]:
            cost = (*upper, _fewest(Counter(map(domain_of, nodes)), count))
            best = cost if best is None else min(best, cost)
    assert best is not None, "there are enough candidates"
    return best


def _fewest(sizes: Counter[tuple[str, ...]], count: int) -> int:
    needed = 0
    for _, size in sizes.most_common():
        if count <= 0:
            break
        count -= size
        needed += 1
    return needed


def small_site(seed: int) -> list[Candidate]:
    """At most 3 blocks of 2 rail blocks of 2 racks of 6 nodes, each rack as full as it falls."""
    draw = random.Random(seed)
    nodes: list[Candidate] = []
    for block in range(draw.randint(1, 3)):
        for unit in range(draw.randint(1, 2)):
            for rack in range(draw.randint(1, 2)):
                size = draw.choice([0, 1, 2, 2, 3])
                for number in range(draw.randint(0, 6)):
                    where = f"b{block}u{unit}r{rack}"
                    nodes.append(
                        Candidate(
                            node_id=f"{where}n{number}",
                            name=f"{where}n{number}",
                            rack=f"u{unit}r{rack}",
                            block=f"b{block}",
                            nvlink_domain=f"{where}d{number // size}" if size else None,
                            rail_block=f"b{block}u{unit}",
                        )
                    )
    return nodes


def large_site(free: float, *, domains: bool = False, seed: int = 1) -> list[Candidate]:
    """The free ones (a share) of 4,096 nodes: 16 blocks of 8 rail blocks of 4 racks of 8."""
    draw = random.Random(seed)
    return [
        Candidate(
            node_id=f"b{block:02}r{rack:02}n{number}",
            name=f"b{block:02}r{rack:02}n{number}",
            rack=f"r{rack:02}",
            block=f"b{block:02}",
            nvlink_domain=f"b{block:02}r{rack:02}" if domains else None,
            rail_block=f"b{block:02}u{rack // 4}",
        )
        for block in range(16)
        for rack in range(32)
        for number in range(8)
        if draw.random() < free
    ]


def run() -> None:
    """Print the tables."""
    print(_speed())
    print(_distance())


def _speed() -> str:
    cases: list[tuple[str, list[Candidate], Wish]] = [
        ("all 4,096 free", large_site(1), Wish()),
        ("all free, an NVLink domain a rack", large_site(1, domains=True), Wish()),
        ("9 of 10 free, scattered", large_site(0.9), Wish()),
        ("half free, scattered", large_site(0.5), Wish()),
        ("1 of 5 free, scattered", large_site(0.2), Wish()),
        ("all free, spread", large_site(1), Wish(Shape.SPREAD)),
        ("all free, in the same rail block", large_site(1), Wish(same=Same.RAIL_BLOCK)),
    ]
    rows: list[list[object]] = []
    for name, nodes, wish in cases:
        count = 32 if wish.same else 512
        wall: list[float] = []
        cpu: list[float] = []
        for _ in range(REPEATS):
            began, began_cpu = time.perf_counter(), time.process_time()
            choice = place(nodes, count, wish=wish)
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
        assert choice is not None, "the sites have enough free nodes"
        blocks, rails, racks, _ = spanned(choice.nodes)
        rows.append(
            [
                f"{count}, {name}",
                f"{len(nodes):,}",
                f"{median(cpu) * 1e3:.1f} ms",
                f"{median(wall) * 1e3:.1f} ms",
                f"{max(wall) * 1e3:.1f} ms",
                f"{blocks} / {rails} / {racks}",
            ]
        )
    return table(
        "Placement of 512 of 4,096 nodes (aim < 50 ms)",
        [
            "order",
            "free nodes",
            f"CPU, median of {REPEATS}",
            "wall, median",
            "wall, worst",
            "blocks / rail blocks / racks",
        ],
        rows,
    )


def _distance() -> str:
    exact = 0
    over: Counter[str] = Counter()
    worst: Counter[str] = Counter()
    orders = 0
    for seed in range(SMALL_SITES):
        nodes = small_site(seed)
        for count in range(1, len(nodes) + 1):
            choice = place(nodes, count)
            assert choice is not None, "no more are ordered than are free"
            best, got = optimum(nodes, count), spanned(choice.nodes)
            orders += 1
            exact += got == best
            for name, have, least in zip(LEVEL_NAMES, got, best, strict=True):
                over[name] += have > least
                worst[name] = max(worst[name], have - least)
    rows: list[list[object]] = [
        [name, f"{over[name]} ({over[name] / orders:.2%})", worst[name]] for name in LEVEL_NAMES
    ]
    rows.append(["**all levels at the optimum**", f"{exact} ({exact / orders:.2%})", ""])
    return table(
        f"Distance from the optimum: every order size on {SMALL_SITES} small sites "
        f"({orders:,} orders)",
        ["level", "orders with more than the optimum has", "most above"],
        rows,
    )
