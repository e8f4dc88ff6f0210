"""Real jobs as orders: the 700 jobs of the 2026 trace, and the 549 G2 servers they are replayed on.

How a job becomes an order: its organization is the tenant; n workers of 8 GPUs are n nodes; workers
of fewer GPUs share nodes, so that all GPUs asked for fit (183 workers of one GPU: 23 nodes, whole,
as bare servers are ordered). Its duration is the time from hand-over to release.
"""

import csv
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Final

from dflare.services.orchestrator.placement import Candidate, rail_block_named
from dflare.site.fleet import import_fleet

DATA: Final = Path(__file__).parents[1] / "tests/data"
FLEET_CSV: Final = DATA / "alibaba-gpu-2023/openb_node_list_gpu_node.csv"
TRACE_CSVS: Final = tuple(
    DATA / "alibaba-gpu-2026" / name for name in ("heaviest_jobs.csv", "short_heavy_jobs.csv")
)
GPUS_A_NODE: Final = 8
# Submissions of the trace fall on few moments once compressed; each is moved by up to this much.
JITTER_S: Final = 3600
_FACTOR_STEPS: Final = 20
_FACTOR_AT_MOST: Final = 100


@dataclass(frozen=True)
class Order:
    """``nodes`` whole servers for ``duration_s`` from hand-over, wanted at ``submitted_s``.

    ``gpus`` is what the job asked for, which may be less than its nodes have.
    """

    name: str
    organization: str
    nodes: int
    gpus: Decimal
    duration_s: int
    submitted_s: int


@dataclass(frozen=True)
class Arrivals:
    """Orders by arrival, the factor that time between them was divided by, and the mean demand.

    ``demand``: nodes wanted at once if every order began when submitted, as a share of the fleet,
    mean from the first to the last arrival.
    """

    orders: tuple[Order, ...]
    factor: float
    demand: float


def read_jobs(paths: Sequence[Path] = TRACE_CSVS) -> list[Order]:
    """Every job of the tables as an order, in the time of the trace.

    Raises:
        ValueError: a job stands twice, or a number is not what its column says.
    """
    orders: dict[str, Order] = {}
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                order = _order(row)
                if order.name in orders:
                    raise ValueError(f"{path.name}: job {order.name} stands twice")
                orders[order.name] = order
    return sorted(orders.values(), key=lambda order: (order.submitted_s, order.name))


def _order(row: dict[str, str]) -> Order:
    gpus = Decimal(row["gpu_request"]) * int(row["worker_num"])
    return Order(
        name=row["job_name"],
        organization=row["organization"],
        nodes=math.ceil(gpus / GPUS_A_NODE),
        gpus=gpus,
        duration_s=_whole(row["duration"]),
        submitted_s=_whole(row["submit_time"]),
    )


def _whole(written: str) -> int:
    value = Decimal(written)
    if value != int(value):
        raise ValueError(f"{written} is no whole number of seconds")
    return int(value)


def g2_nodes() -> list[Candidate]:
    """The 549 G2 servers of the 2023 fleet, where ``dflare site import`` puts them."""
    document = import_fleet(FLEET_CSV)
    blocks = {rack.name: rack.block for rack in document.racks}
    models = {one.name: one.gpu.model for one in document.node_types if one.gpu}
    return [
        Candidate(
            node_id=node.name,
            name=node.name,
            rack=node.rack,
            block=blocks[node.rack],
            nvlink_domain=None,
            rail_block=rail_block_named({port.rail: port.switch for port in node.infiniband}),
        )
        for node in document.nodes
        if models.get(node.type) == "G2" and node.infiniband
    ]


def compress(jobs: Sequence[Order], fleet: int, least: float, seed: int) -> Arrivals:
    """Bring submissions together until the mean demand on ``fleet`` nodes passes ``least``.

    Raises:
        ValueError: it does not pass it however close they come.
    """
    for step in range(_FACTOR_STEPS * _FACTOR_AT_MOST):
        factor = 1 + step / _FACTOR_STEPS
        draw = random.Random(seed)
        moved = [
            replace(job, submitted_s=int(job.submitted_s / factor) + draw.randrange(JITTER_S))
            for job in jobs
        ]
        moved.sort(key=lambda order: (order.submitted_s, order.name))
        demand = mean_demand(moved) / fleet
        if demand > least:
            return Arrivals(tuple(moved), factor, demand)
    raise ValueError(f"these jobs never want {least:.0%} of {fleet} nodes")


def mean_demand(orders: Sequence[Order]) -> float:
    """Nodes wanted at once if nobody had to wait, mean from the first to the last arrival."""
    first, last = orders[0].submitted_s, orders[-1].submitted_s
    wanted = sum(
        order.nodes * (min(order.submitted_s + order.duration_s, last) - order.submitted_s)
        for order in orders
    )
    return wanted / max(1, last - first)
