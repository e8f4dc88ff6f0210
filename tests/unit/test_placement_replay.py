"""Real orders through placement: nothing lost, nothing doubled, nothing late, all accounted for."""

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import pytest
from bench.replay import (
    DRIVERS,
    LEVELS,
    fewest,
    ordered_gpu_seconds,
    span_of,
    used_gpu_seconds,
    utilisation,
)
from bench.replay_choices import FirstFit, Product
from bench.replay_queue import Replay, replay
from bench.replay_trace import TRACE_CSVS, Arrivals, Order, compress, g2_nodes, read_jobs
from hypothesis import given, settings
from hypothesis import strategies as st

from dflare.services.orchestrator.placement import Candidate

FLEET = g2_nodes()
SMALL = FLEET[:160]


def rows_of_the_trace() -> list[dict[str, str]]:
    return [row for path in TRACE_CSVS for row in csv.DictReader(path.read_text().splitlines())]


def slice_of_the_trace(seed: int = 1) -> Arrivals:
    """Every eighth job, on 160 nodes."""
    return compress(read_jobs()[::8], len(SMALL), 1.3, seed)


def in_use(result: Replay, at_s: int) -> Counter[str]:
    """How many orders have each node at a moment, from the starts alone."""
    return Counter(
        node.name
        for one in result.started
        if one.at_s <= at_s < one.at_s + one.order.duration_s
        for node in one.nodes
    )


def test_every_job_of_the_trace_is_one_order_with_room_for_its_gpus() -> None:
    rows = rows_of_the_trace()
    orders = {order.name: order for order in read_jobs()}
    assert len(rows) == len(orders) == 700
    for row in rows:
        order = orders[row["job_name"]]
        workers, gpus = int(row["worker_num"]), Decimal(row["gpu_request"])
        assert order.nodes == workers if gpus == 8 else 0 <= order.nodes * 8 - workers * gpus < 8
        assert order.nodes >= 1
    assert sum(order.nodes > 1 for order in orders.values()) == 656


def test_the_fleet_is_the_549_g2_servers_in_racks_of_8_and_rail_blocks_of_32() -> None:
    assert len(FLEET) == len({node.name for node in FLEET}) == 549
    racks = Counter((node.block, node.rack) for node in FLEET)
    units = Counter(node.rail_block for node in FLEET)
    assert Counter(racks.values()) == {8: 68, 5: 1}
    assert Counter(units.values()) == {32: 17, 5: 1}


def test_arrivals_come_as_close_as_they_must_for_the_demand_and_no_job_changes() -> None:
    jobs = read_jobs()
    arrivals = compress(jobs, len(FLEET), 1.3, 1)
    assert 1.3 < arrivals.demand < 1.33
    assert arrivals.factor > 1
    assert sorted((one.name, one.nodes, one.duration_s) for one in arrivals.orders) == sorted(
        (one.name, one.nodes, one.duration_s) for one in jobs
    )
    with pytest.raises(ValueError, match="never want"):
        compress(jobs[:3], 10**6, 1.3, 1)


@pytest.mark.parametrize("name", list(DRIVERS))
@pytest.mark.parametrize("queue", [True, False])
async def test_no_node_is_given_twice_and_every_order_is_accounted_for(
    name: str, queue: bool
) -> None:
    arrivals = slice_of_the_trace()
    result = await replay(arrivals.orders, SMALL, DRIVERS[name](SMALL, 1), queue=queue)

    accounted = [one.order for one in result.started] + result.refused
    assert sorted(order.name for order in accounted) == sorted(o.name for o in arrivals.orders)
    assert result.unplaced == []
    for one in result.started:
        assert len({node.name for node in one.nodes}) == one.order.nodes
        assert max(in_use(result, one.at_s).values()) == 1
    if queue:
        assert [order for order in result.refused if order.nodes <= len(SMALL)] == []
        assert sum(one.waited_s > 0 for one in result.started) > 0
    else:
        assert all(one.waited_s == 0 for one in result.started)
        assert result.refused


@pytest.mark.parametrize("name", list(DRIVERS))
async def test_gpu_hours_by_organization_are_those_of_the_trace_to_the_second(name: str) -> None:
    arrivals = slice_of_the_trace()
    result = await replay(arrivals.orders, SMALL, DRIVERS[name](SMALL, 1))
    placed = [one.order for one in result.started]
    rows = {row["job_name"]: row for row in rows_of_the_trace()}
    wanted: Counter[str] = Counter()
    for order in placed:
        row = rows[order.name]
        eighths = Decimal(row["gpu_request"]) * int(row["worker_num"]) / 8
        nodes = int(eighths) + (eighths % 1 > 0)
        wanted[row["organization"]] += nodes * 8 * int(float(row["duration"]))
    assert used_gpu_seconds(result) == ordered_gpu_seconds(placed) == wanted
    assert len(wanted) > 5


async def test_the_same_seed_gives_the_same_replay_and_another_seed_another() -> None:
    one, two = slice_of_the_trace(3), slice_of_the_trace(3)
    assert one == two != slice_of_the_trace(4)
    results = [await replay(a.orders, SMALL, DRIVERS["random"](SMALL, 3)) for a in (one, two)]
    assert results[0] == results[1]
    other = await replay(one.orders, SMALL, DRIVERS["random"](SMALL, 4))
    assert [s.nodes for s in other.started] != [s.nodes for s in results[0].started]


async def test_who_chooses_the_nodes_changes_no_wait_but_the_product_spans_the_fewest() -> None:
    arrivals = slice_of_the_trace()
    results = {
        name: await replay(arrivals.orders, SMALL, make(SMALL, 1)) for name, make in DRIVERS.items()
    }
    waits = [[(s.order.name, s.at_s) for s in result.started] for result in results.values()]
    assert all(one == waits[0] for one in waits)
    for _, key in LEVELS:
        spans = {name: span_of(r.started, SMALL, key) for name, r in results.items()}
        assert all(span.least_empty <= span.least_then <= span.spanned for span in spans.values())
        assert spans["product"].spanned == min(span.spanned for span in spans.values())
    assert fewest(SMALL, 32, LEVELS[1][1]) == 1


async def test_use_over_time_adds_up_to_what_was_used() -> None:
    result = await replay(slice_of_the_trace().orders, SMALL, Product(SMALL))
    end_s = max(at_s for at_s, _ in result.busy)
    used = utilisation(result, len(SMALL), 0, end_s) * len(SMALL) * end_s
    assert round(used) == sum(result.node_seconds.values())
    assert max(nodes for _, nodes in result.busy) <= len(SMALL)


orders = st.lists(
    st.tuples(st.integers(1, 14), st.integers(1, 50), st.integers(0, 60)), max_size=25
).map(
    lambda drawn: [
        Order(f"{n:02}", "o", nodes, Decimal(nodes * 8), duration_s, at_s)
        for n, (nodes, duration_s, at_s) in enumerate(drawn)
    ]
)


@given(orders)
@settings(max_examples=200, deadline=None)
async def test_backfill_never_delays_the_order_at_the_head(drawn: list[Order]) -> None:
    fleet = FLEET[:12]
    result = await replay(drawn, fleet, FirstFit(fleet))
    assert {order.name for order in result.refused} == {o.name for o in drawn if o.nodes > 12}
    assert len(result.started) + len(result.refused) == len(drawn)
    for one in result.started:
        assert one.promised_s is None or one.at_s <= one.promised_s
        assert one.waited_s >= 0


async def test_a_small_order_passes_the_head_only_where_it_delays_it_not() -> None:
    fleet = FLEET[:10]

    def order(name: str, nodes: int, duration_s: int, at_s: int) -> Order:
        return Order(name, "o", nodes, Decimal(nodes * 8), duration_s, at_s)

    # The head needs 8 from 100 s on, so two nodes are spare for as long as anybody likes, and the
    # other free ones only until then.
    result = await replay(
        [
            order("runs", 6, 100, 0),
            order("head", 8, 10, 1),
            order("spare", 2, 500, 2),
            order("too-long", 2, 99, 3),
            order("in-time", 2, 90, 4),
        ],
        fleet,
        FirstFit(fleet),
    )
    starts = {one.order.name: one.at_s for one in result.started}
    assert starts == {"runs": 0, "spare": 2, "in-time": 4, "head": 100, "too-long": 110}


@pytest.mark.parametrize(
    ("given_names", "message"),
    [
        (lambda nodes: [nodes[0].name] * 2, "got"),
        (lambda nodes: [nodes[0].name], "got"),
        (lambda nodes: [nodes[0].name, "unheard-of"], "unheard-of, which is not free"),
    ],
)
async def test_a_driver_that_gives_what_it_may_not_is_caught(given_names, message: str) -> None:
    class Wrong:
        async def place(self, order: Order) -> Sequence[str] | None:
            return given_names(FLEET)

        async def release(self, order: Order) -> None:
            raise AssertionError("nothing was placed")

    with pytest.raises(ValueError, match=message):
        await replay([Order("a", "o", 2, Decimal(16), 10, 0)], FLEET, Wrong())


async def test_an_order_that_a_driver_never_places_is_told_apart_from_a_refused_one() -> None:
    class Never:
        async def place(self, order: Order) -> Sequence[str] | None:
            return None

        async def release(self, order: Order) -> None:
            raise AssertionError("nothing was placed")

    fleet: list[Candidate] = FLEET[:4]
    fits, large = (Order(str(n), "o", n, Decimal(n * 8), 10, 0) for n in (2, 9))
    result = await replay([fits, large], fleet, Never())
    assert (result.unplaced, result.refused, result.started) == ([fits], [large], [])
