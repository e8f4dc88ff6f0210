"""700 real multi-node jobs replayed as orders against 549 real servers, by placement function.

Prints how many orders were placed, waited or were refused, waits by size, use of the nodes over
time, and how many leaves and blocks an order spans with the product's placement, first fit, best
fit and at random. Orders and queue are the same for all of them (``replay_trace``,
``replay_queue``), and everything but the times follows from the seed.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Final

from bench.replay_choices import BestFit, FirstFit, Product, Random
from bench.replay_queue import Driver, Replay, Started, replay
from bench.replay_trace import (
    GPUS_A_NODE,
    JITTER_S,
    Arrivals,
    Order,
    compress,
    g2_nodes,
    read_jobs,
)
from bench.report import percentile, table
from dflare.services.orchestrator.placement import Candidate
from dflare.services.orchestrator.placement_tree import Key, block_of, rack_of, rail_block_of

DEMAND: Final = 1.3
SEEDS: Final = (1, 2, 3, 4, 5)
SIZES: Final = ((1, 1), (2, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 549))
SLICES: Final = 10
LEVELS: Final[tuple[tuple[str, Callable[[Candidate], Key]], ...]] = (
    ("blocks", block_of),
    ("rail blocks (8 InfiniBand leaves each)", rail_block_of),
    ("racks (one Ethernet leaf each)", rack_of),
)
DRIVERS: Final[dict[str, Callable[[Sequence[Candidate], int], Driver]]] = {
    "product": lambda fleet, _: Product(fleet),
    "best fit": lambda fleet, _: BestFit(fleet),
    "first fit": lambda fleet, _: FirstFit(fleet),
    "random": Random,
}


@dataclass(frozen=True)
class Span:
    """Groups of one level over all orders: what they span, the least that the nodes free at their
    start allowed, and the least on an empty fleet; orders that were at the least of their start."""

    spanned: int
    least_then: int
    least_empty: int
    at_least: int
    orders: int


def span_of(
    started: Sequence[Started], fleet: Sequence[Candidate], key: Callable[[Candidate], Key]
) -> Span:
    """Count over the orders of two nodes and more."""
    several = [one for one in started if one.order.nodes > 1]
    spanned = [len(set(map(key, one.nodes))) for one in several]
    least = [fewest(one.free, one.order.nodes, key) for one in several]
    return Span(
        sum(spanned),
        sum(least),
        sum(fewest(fleet, one.order.nodes, key) for one in several),
        sum(have == best for have, best in zip(spanned, least, strict=True)),
        len(several),
    )


def fewest(nodes: Sequence[Candidate], count: int, key: Callable[[Candidate], Key]) -> int:
    """The fewest groups that hold ``count`` of the nodes."""
    needed = 0
    for _, size in Counter(map(key, nodes)).most_common():
        if count <= 0:
            break
        count -= size
        needed += 1
    return needed


def ordered_gpu_seconds(orders: Sequence[Order]) -> dict[str, int]:
    """What orders use by organization, from the trace alone: whole nodes for their duration."""
    total: Counter[str] = Counter()
    for order in orders:
        total[order.organization] += order.nodes * GPUS_A_NODE * order.duration_s
    return dict(total)


def used_gpu_seconds(result: Replay) -> dict[str, int]:
    """What was used by organization, from the ledger of nodes that the replay kept."""
    return {name: seconds * GPUS_A_NODE for name, seconds in result.node_seconds.items()}


def utilisation(result: Replay, fleet: int, begin_s: int, end_s: int) -> float:
    """Share of the fleet's time in use between two moments."""
    used, busy, since = 0, 0, begin_s
    for at_s, nodes in [*result.busy, (end_s, 0)]:
        at = min(max(at_s, begin_s), end_s)
        used += busy * (at - since)
        busy, since = nodes, at
    return used / (fleet * (end_s - begin_s))


def run() -> None:
    """Print the tables; with ``--platform`` those of the same orders through the whole platform."""
    if "--platform" in sys.argv:
        # Only this way needs what starts a platform.
        from bench import replay_platform

        replay_platform.run()
        return
    asyncio.run(_run())


async def _run() -> None:
    fleet, jobs = g2_nodes(), read_jobs()
    arrivals = {seed: compress(jobs, len(fleet), DEMAND, seed) for seed in SEEDS}
    first = arrivals[SEEDS[0]]
    began = time.perf_counter()
    queued = await replay(first.orders, fleet, Product(fleet))
    took_s = time.perf_counter() - began
    unqueued = await replay(first.orders, fleet, Product(fleet), queue=False)
    print(_outcomes(first, fleet, queued, unqueued, took_s))
    print(_waits(queued))
    print(_use(first, fleet, queued))
    print(await _spans(arrivals, fleet))
    print(_bill(first, queued))


def _outcomes(
    arrivals: Arrivals, fleet: Sequence[Candidate], queued: Replay, unqueued: Replay, took_s: float
) -> str:
    days = (arrivals.orders[-1].submitted_s - arrivals.orders[0].submitted_s) / 86_400
    rows: list[list[object]] = []
    for name, result in (("waits (`--queue`)", queued), ("does not wait", unqueued)):
        waited = sum(one.waited_s > 0 for one in result.started)
        refused = len(result.refused) + len(result.unplaced)
        rows.append([name, len(result.started), waited, refused])
    placed = table(
        f"Replay: {len(arrivals.orders)} real jobs as orders of {len(fleet)} nodes",
        ["an order that does not fit", "placed", "of these waited", "refused"],
        rows,
    )
    return (
        f"{placed}\nTime between arrivals was divided by {arrivals.factor:.2f}, and each arrival "
        f"moved by up to {JITTER_S} s (seed {SEEDS[0]}): {days:.1f} days with a mean demand of "
        f"{arrivals.demand:.0%}. The replay with waiting took {took_s:.1f} s.\n"
    )


def _waits(result: Replay) -> str:
    rows: list[list[object]] = []
    for least, most in SIZES:
        waits = [one.waited_s / 3600 for one in result.started if least <= one.order.nodes <= most]
        if waits:
            rows.append(
                [
                    f"{least}" if least == most else f"{least} to {most}",
                    len(waits),
                    sum(wait > 0 for wait in waits),
                    *(f"{percentile(waits, share):.1f} h" for share in (0.5, 0.9)),
                    f"{max(waits):.1f} h",
                ]
            )
    return table(
        "Replay: wait by size of the order",
        ["nodes", "orders", "waited", "median", "p90", "longest"],
        rows,
    )


def _use(arrivals: Arrivals, fleet: Sequence[Candidate], result: Replay) -> str:
    first, last = arrivals.orders[0].submitted_s, arrivals.orders[-1].submitted_s
    edges = [first + (last - first) * step // SLICES for step in range(SLICES + 1)]
    rows: list[list[object]] = [
        [
            f"day {(begin - first) / 86_400:.1f} to {(end - first) / 86_400:.1f}",
            f"{utilisation(result, len(fleet), begin, end):.1%}",
            _queue_length(result, end),
        ]
        for begin, end in pairwise(edges)
    ]
    rows.append(["**all arrivals**", f"{utilisation(result, len(fleet), first, last):.1%}", ""])
    return table(
        "Replay: nodes in use over time", ["time", "in use", "orders waiting at its end"], rows
    )


def _queue_length(result: Replay, at_s: int) -> int:
    return sum(one.order.submitted_s <= at_s < one.at_s for one in result.started)


async def _spans(arrivals: dict[int, Arrivals], fleet: Sequence[Candidate]) -> str:
    rows: list[list[object]] = []
    results = {
        name: [await replay(one.orders, fleet, make(fleet, seed)) for seed, one in arrivals.items()]
        for name, make in DRIVERS.items()
    }
    for level, key in LEVELS:
        for name, several in results.items():
            span = span_of([one for result in several for one in result.started], fleet, key)
            rows.append(
                [
                    level,
                    name,
                    f"{span.spanned / span.orders:.2f}",
                    f"{span.least_then / span.orders:.2f}",
                    f"{span.least_empty / span.orders:.2f}",
                    f"{span.spanned / span.least_then:.2f}",
                    f"{span.at_least / span.orders:.1%}",
                ]
            )
    return table(
        f"Replay: groups spanned by an order of several nodes, mean over seeds "
        f"{SEEDS[0]} to {SEEDS[-1]}",
        [
            "level",
            "placement",
            "spanned",
            "fewest of the free nodes",
            "fewest of an empty fleet",
            "spanned / fewest of the free",
            "orders at the fewest",
        ],
        rows,
    )


def _bill(arrivals: Arrivals, result: Replay) -> str:
    ordered, used = ordered_gpu_seconds(arrivals.orders), used_gpu_seconds(result)
    asked: Counter[str] = Counter()
    for order in arrivals.orders:
        asked[order.organization] += int(order.gpus * order.duration_s)
    rows: list[list[object]] = [
        [name, _hours(asked[name]), _hours(ordered[name]), _hours(used[name])]
        for name in sorted(ordered, key=lambda name: -ordered[name])
    ]
    every = [_hours(sum(column.values())) for column in (asked, ordered, used)]
    rows.append(["**all**", *every])
    return table(
        "Replay: GPU-hours by organization",
        [
            "organization",
            "GPUs that jobs asked for",
            "whole nodes, from the trace",
            "used, from the replay's ledger of nodes",
        ],
        rows,
    )


def _hours(gpu_seconds: int) -> str:
    return f"{Decimal(gpu_seconds) / 3600:,.2f}"
