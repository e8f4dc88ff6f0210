"""The same orders through the whole platform: real processes, the simulated servers, a real bill.

``BENCH_ORDERS`` of the 700 jobs, in the order of their arrival, are ordered from the 549 G2 servers
by their organizations, with ``wait_for_capacity``; arrivals and durations are the trace's, divided
so that all arrive within ``BENCH_SECONDS``, and nobody stays longer than that. Every order is
released after its duration. At the end nothing may be lost or doubled, and the GPU-hours of every
organization lie between the two numbers that the simulator's log gives. A machine that is too small
for 549 servers takes ``BENCH_NODES`` of them, and the orders that fit there.
"""

import asyncio
import csv
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Any, Final

from bench.replay_trace import FLEET_CSV, GPUS_A_NODE, Order, compress, read_jobs
from bench.report import percentile, seconds, table
from dflare.embedded.layout import Layout
from dflare.site.document import SiteDocument
from dflare.site.fleet import import_fleet
from dflare.site.layout import LayoutOptions
from dflare.site.render import render_data, write_private, write_site
from dflare.site.simulator_file import simulator_config
from running_platform import FINAL, PlatformHandle, Tenant, brief, running_platform, token_of
from site_files import FLEET_BASE, PlatformWish, chosen_ports

KIND: Final = "g2-8"
DEMAND: Final = 1.3
SEED: Final = 1
FLEET: Final = int(os.environ.get("BENCH_NODES", "549"))
ORDERS: Final = int(os.environ.get("BENCH_ORDERS", "700"))
ARRIVE_WITHIN_S: Final = float(os.environ.get("BENCH_SECONDS", "1800"))
DEADLINE_S: Final = float(os.environ.get("BENCH_DEADLINE_S", "10800"))
LOOK_S: Final = 1.0
PATIENCE_S: Final = 600.0
"""How long an answer may take on a machine that everything else of the replay shares."""
LOGIN_S: Final = 600.0
"""Tokens live for a quarter of an hour."""


@dataclass(frozen=True)
class Lived:
    """An order that was had and given back. Times are the simulator's: it was ready before
    ``ready`` was marked, and its release was asked for between ``asking`` and ``asked``."""

    order: Order
    tenant: Tenant
    cluster_id: str
    nodes: frozenset[str]
    waited_s: float
    submitted: datetime
    ready: datetime
    asking: datetime
    asked: datetime


def g2_fleet(layout: Layout) -> SiteDocument:
    """The 549 G2 servers of eight GPUs as a site whose hardware answers at once."""
    with FLEET_CSV.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["gpu"]) == ("G2", "8")]
    listed = layout.root / "g2.csv"
    with listed.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:FLEET])
    ports = chosen_ports()
    options = LayoutOptions(ports=ports, address_base=IPv4Address(FLEET_BASE), cooldown_s=1)
    document = import_fleet(listed, options)
    config = simulator_config(document, ports, speed=1, hardware_time="zero")
    write_private(layout.simulator_file, render_data(config))
    write_site(layout.site_file, document)
    return document


def run() -> None:
    """Print the tables; exit code 1 where something was lost, doubled or billed wrongly."""
    asyncio.run(_run())


async def _run() -> None:
    arrivals = compress(read_jobs(), 549, DEMAND, SEED).orders
    orders = [order for order in arrivals if order.nodes <= FLEET][:ORDERS]
    async with running_platform(PlatformWish(prepare=g2_fleet)) as platform:
        await platform.apply_site(deadline_s=600)
        names = sorted({order.organization for order in orders})
        fleet = len(platform.document.nodes)
        # What waits is held against the quota too, and here the queue alone is to say no.
        quota = {KIND: sum(order.nodes for order in orders)}
        tenants = {name: await platform.tenant(_word(name), quota) for name in names}
        began = time.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            lived = await _live(platform, tenants, orders)
        took_s = time.monotonic() - began
        await platform.until_available(fleet, deadline_s=300)
        ledger = await _ledger(
            platform, list(tenants.values()), sum(len(one.nodes) for one in lived)
        )
        boots = await platform.sim.log(kind="system_started")
        audit = await platform.audit_usage(deadline_s=300)
        reach = await platform.sim.reachability()
    faults = [
        *lost_or_doubled(lived, ledger, boots),
        *wrong_hours(lived, ledger, boots),
        *([f"the audit found {audit['findings']}"] if audit["state"] != "clean" else []),
        *(["somebody reaches somebody"] if reach["ethernet"] or reach["infiniband"] else []),
    ]
    print(_outcomes(lived, took_s, audit))
    print(_bill(lived, ledger, boots))
    if faults:
        raise SystemExit("\n".join(faults))
    print("Nothing was lost, nothing doubled; every bill lies within what the log allows.")


def _word(organization: str) -> str:
    """An organization's name as the platform takes it."""
    return "o-" + "".join(c if c.isalnum() else "-" for c in organization.lower()).strip("-")


async def _live(
    platform: PlatformHandle, tenants: Mapping[str, Tenant], orders: Sequence[Order]
) -> list[Lived]:
    """Live through all orders, each at its time."""
    first, last = orders[0].submitted_s, orders[-1].submitted_s
    factor = max(1.0, (last - first) / ARRIVE_WITHIN_S)
    begin = time.monotonic()
    logins = asyncio.create_task(_stay_logged_in(platform, list(tenants.values())))

    async def live(number: int, order: Order) -> Lived:
        await asyncio.sleep(begin + (order.submitted_s - first) / factor - time.monotonic())
        return await _order(platform, tenants[order.organization], number, order, factor)

    try:
        async with asyncio.TaskGroup() as group:
            lives = [group.create_task(live(*one)) for one in enumerate(orders)]
    finally:
        logins.cancel()
    return [life.result() for life in lives]


async def _stay_logged_in(platform: PlatformHandle, tenants: Iterable[Tenant]) -> None:
    while True:
        await asyncio.sleep(LOGIN_S)
        await platform.log_in()
        for tenant in tenants:
            name = tenant.name
            login = (f"{name}-user@{name}", f"a long password of {name}")
            token = await asyncio.to_thread(token_of, platform.url, *login)
            tenant.http.headers["Authorization"] = f"Bearer {token}"


async def _order(
    platform: PlatformHandle, tenant: Tenant, number: int, order: Order, factor: float
) -> Lived:
    body = {
        "name": f"j{number}",
        "ssh_keys": ["key"],
        "pools": [{"node_type": KIND, "count": order.nodes}],
        "wait_for_capacity": True,
    }
    path = f"/v1/projects/{tenant.project_id}/clusters"
    submitted = await _mark(platform, f"j{number} is ordered")
    accepted = await platform.repeated(tenant.http, "POST", path, body, deadline_s=PATIENCE_S)
    operation = await _ended(platform, accepted)
    ready = await _mark(platform, f"j{number} is ready")
    cluster = await platform.cluster(tenant, f"j{number}")
    await asyncio.sleep(min(order.duration_s / factor, ARRIVE_WITHIN_S))
    asking = await _mark(platform, f"j{number} is to be released")
    named = f"{path}/j{number}"
    release = await platform.repeated(tenant.http, "DELETE", named, None, deadline_s=PATIENCE_S)
    asked = await _mark(platform, f"j{number} was asked to be released")
    await _ended(platform, release)
    nodes = frozenset(node["name"] for node in cluster["nodes"])
    waited_s = _waited_s(operation)
    return Lived(order, tenant, cluster["id"], nodes, waited_s, submitted, ready, asking, asked)


def _waited_s(operation: Mapping[str, Any]) -> float:
    """From the order to its first step: an order that fits begins at once."""
    started = [step["started_at"] for step in operation["steps"] if step["started_at"]]
    begin = datetime.fromisoformat(operation["created_at"])
    return (datetime.fromisoformat(min(started)) - begin).total_seconds()


async def _ended(platform: PlatformHandle, operation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The operation once it succeeded, asked for seldom enough not to be a load of its own."""
    while True:
        await asyncio.sleep(LOOK_S)
        seen = await platform.operation(operation["id"])
        if seen is not None and seen["state"] in FINAL:
            if seen["state"] != "succeeded":
                raise SystemExit(brief(seen))
            return seen


async def _mark(platform: PlatformHandle, text: str) -> datetime:
    return datetime.fromisoformat((await platform.sim.mark(text))["at_wall"])


async def _ledger(
    platform: PlatformHandle, tenants: Iterable[Tenant], count: int
) -> dict[str, list[dict[str, Any]]]:
    """Every interval by cluster, once there are ``count`` and all have an end."""
    found: dict[str, dict[str, Any]] = {}

    async def whole() -> bool:
        for tenant in tenants:
            for month in _months():
                found.update(
                    (one["allocation_id"], one) for one in await platform.usage(tenant, month)
                )
        return len(found) >= count and all(one["usage_to"] for one in found.values())

    await platform.until(whole, 120)
    by_cluster: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in found.values():
        by_cluster[one["cluster_id"]].append(one)
    return by_cluster


def _months() -> list[str]:
    """This month, and the one before for a run that passes its end."""
    now = datetime.now(UTC)
    before = (now.year, now.month - 1) if now.month > 1 else (now.year - 1, 12)
    return [f"{before[0]}-{before[1]:02}", f"{now:%Y-%m}"]


def lost_or_doubled(
    lived: Sequence[Lived],
    ledger: Mapping[str, Sequence[Mapping[str, Any]]],
    boots: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Every order has the nodes that it asked for, each once; no node has two orders at a time; and
    the simulator booted exactly these, for the tenants that they are billed to."""
    faults: list[str] = []
    for one in lived:
        billed = Counter(interval["node_name"] for interval in ledger.get(one.cluster_id, ()))
        if billed != Counter(one.nodes) or len(one.nodes) != one.order.nodes:
            faults.append(
                f"{one.order.name}: {one.order.nodes} nodes, billed {sum(billed.values())}"
            )
    if extra := set(ledger) - {one.cluster_id for one in lived}:
        faults.append(f"billed, and never ordered: {sorted(extra)}")
    every = [interval for intervals in ledger.values() for interval in intervals]
    by_node: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for interval in every:
        by_node[interval["node_name"]].append(interval)
    for name, intervals in by_node.items():
        intervals.sort(key=lambda interval: interval["usage_from"])
        faults += [
            f"{name} is billed twice at {later['usage_from']}"
            for earlier, later in pairwise(intervals)
            if _time(later["usage_from"]) < _time(earlier["usage_to"])
        ]
    tenant_boots = Counter(
        (boot["subject"], boot["ssh_keys"][0]) for boot in boots if boot["system"] == "tenant"
    )
    wanted = Counter((node, one.tenant.public_key) for one in lived for node in one.nodes)
    if tenant_boots != wanted:
        faults.append(f"booted otherwise than ordered: {(tenant_boots - wanted) or wanted}")
    return faults


@dataclass(frozen=True)
class Hours:
    """GPU-seconds of an organization: the least and the most that the simulator's log allows, and
    what the ledger has."""

    least: Decimal
    ledger: Decimal
    most: Decimal


def _hours(
    lived: Sequence[Lived],
    ledger: Mapping[str, Sequence[Mapping[str, Any]]],
    boots: Sequence[Mapping[str, Any]],
) -> dict[str, Hours]:
    """By organization. An order is handed over whole, so none of its nodes counts before the last
    one has booted, and all of them until its release is asked for."""
    booted: defaultdict[tuple[str, str], list[datetime]] = defaultdict(list)
    for boot in boots:
        if boot["system"] == "tenant":
            booted[boot["subject"], boot["ssh_keys"][0]].append(_time(boot["at_wall"]))
    found: dict[str, Hours] = {}
    for one in lived:
        key, gpus = one.tenant.public_key, len(one.nodes) * GPUS_A_NODE
        last = max(
            at for node in one.nodes for at in booted[node, key] if one.submitted <= at <= one.ready
        )
        billed = sum(
            (
                _between(_time(i["usage_from"]), _time(i["usage_to"]))
                for i in ledger[one.cluster_id]
            ),
            Decimal(0),
        )
        before = found.get(one.order.organization, Hours(Decimal(0), Decimal(0), Decimal(0)))
        found[one.order.organization] = Hours(
            before.least + gpus * _between(one.ready, one.asking),
            before.ledger + GPUS_A_NODE * billed,
            before.most + gpus * _between(last, one.asked),
        )
    return found


def wrong_hours(
    lived: Sequence[Lived],
    ledger: Mapping[str, Sequence[Mapping[str, Any]]],
    boots: Sequence[Mapping[str, Any]],
) -> list[str]:
    return [
        f"{name}: {hours.ledger} GPU-seconds billed, {hours.least} to {hours.most} by the log"
        for name, hours in _hours(lived, ledger, boots).items()
        if not hours.least <= hours.ledger <= hours.most
    ]


def _outcomes(lived: Sequence[Lived], took_s: float, audit: Mapping[str, Any]) -> str:
    waits = [one.waited_s for one in lived]
    return table(
        f"Replay through the whole platform: {len(lived)} orders of {FLEET} servers, time 0",
        ["orders", "nodes", "took", "wait p50", "p90", "longest", "allocations audited"],
        [
            [
                len(lived),
                sum(len(one.nodes) for one in lived),
                seconds(took_s),
                *(seconds(percentile(waits, share)) for share in (0.5, 0.9)),
                seconds(max(waits)),
                f"{audit['allocations']} ({audit['state']})",
            ]
        ],
    )


def _bill(
    lived: Sequence[Lived],
    ledger: Mapping[str, Sequence[Mapping[str, Any]]],
    boots: Sequence[Mapping[str, Any]],
) -> str:
    rows: list[list[object]] = [
        [name, *(f"{gpu_seconds / 3600:,.4f}" for gpu_seconds in vars(hours).values())]
        for name, hours in sorted(_hours(lived, ledger, boots).items())
    ]
    return table(
        "Replay through the whole platform: GPU-hours by organization",
        ["organization", "least by the simulator's log", "ledger", "most by the log"],
        rows,
    )


def _between(begin: datetime, end: datetime) -> Decimal:
    """Exact seconds."""
    return Decimal(max((end - begin) // timedelta(microseconds=1), 0)) / 1_000_000


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
