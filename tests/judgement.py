"""Judges what tenants really got: a whole line of orders is lived through once and kept as a story.

Everything but the product's own answers comes from the simulator: boots, keys and contents of
disks, and the walk over the programmed fabric.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from typing import Any

from running_platform import PlatformHandle, Tenant

CENT = Decimal("0.01")
POOL_DEADLINE_S = 90
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Order:
    """What a tenant orders in the story.

    ``cents_from_log`` is how many cents at least the log alone must account for; such an order is
    given back at a moment at which the log says how many cents it costs. Zero asks for neither.
    """

    tenant: str
    node_type: str
    count: int
    cents_from_log: int = 0


@dataclass
class Tenancy:
    """One order's life. Times are UTC wall time, all of them out of the simulator's log.

    ``booted_at`` is when the tenant's system of each node came up; ``seen_ready_at`` the marker of
    the tenant that was told of the order's success; ``release_asked`` the markers right before and
    right after the request of release.
    """

    tenant: Tenant
    order: Order
    nodes: frozenset[str]
    secret: str
    seen_ready_at: datetime
    booted_at: dict[str, datetime] = field(default_factory=dict[str, datetime])
    release_asked: tuple[datetime, datetime] = (NEVER, NEVER)
    usage: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    invoices: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


@dataclass
class Story:
    """What was seen while the tenants had their nodes, and after they gave them back."""

    tenancies: list[Tenancy]
    prices: Mapping[str, Decimal]
    every_host: frozenset[str]
    reach_before: dict[str, Any]
    reach_during: dict[str, Any]
    hosts_during: dict[str, dict[str, Any]]
    secrets_during: dict[str, list[dict[str, str]]]
    reach_after: dict[str, Any] = field(default_factory=dict[str, Any])
    hosts_after: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    secrets_after: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    pools_during: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    pools_after: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    node_states_after: list[str] = field(default_factory=list[str])
    audit: dict[str, Any] = field(default_factory=dict[str, Any])


async def live_through(
    platform: PlatformHandle,
    orders: Sequence[Order],
    deadline_s: float = 120,
    long: Order | None = None,
) -> Story:
    """Order for all tenants at once, write secrets, release all at once, wait for the pools.

    ``long`` is taken before all others and given back after them.
    """
    reach_before = await platform.sim.reachability()
    prices = {t.name: t.price_per_node_hour for t in platform.document.node_types}
    every = [*([long] if long else []), *orders]
    tenants = [
        await platform.tenant(order.tenant, {order.node_type: order.count}) for order in every
    ]
    tenancies = [await _take(platform, tenants[0], long, deadline_s)] if long else []
    tenancies += await asyncio.gather(
        *(
            _take(platform, tenant, order, deadline_s)
            for tenant, order in zip(tenants[len(tenancies) :], orders, strict=True)
        )
    )
    await _note_boots(platform, tenancies)
    story = Story(
        tenancies=tenancies,
        prices=prices,
        every_host=frozenset(node.name for node in platform.document.nodes),
        reach_before=reach_before,
        reach_during=await platform.sim.reachability(),
        hosts_during=await platform.sim.hosts(),
        secrets_during={t.secret: await _keep_secret(platform, t) for t in tenancies},
        pools_during=await platform.pools(),
    )
    short = tenancies[1:] if long else tenancies
    await asyncio.gather(*(_give_back(platform, t, prices, deadline_s) for t in short))
    if long:
        # What has to be waited for in any case makes the long tenancy longer.
        await platform.until_available(len(story.every_host) - long.count)
        await _give_back(platform, tenancies[0], prices, deadline_s)
    story.reach_after = await platform.sim.reachability()
    story.hosts_after = await platform.sim.hosts()
    for tenancy in tenancies:
        story.secrets_after += await platform.sim.find(tenancy.secret)
        await _note_bill(platform, tenancy)
    story.audit = await platform.audit_usage()
    await platform.until_available(len(story.every_host))
    story.node_states_after = [node["state"] for node in await platform.nodes()]
    story.pools_after = await _until_free(platform)
    return story


async def _take(
    platform: PlatformHandle, tenant: Tenant, order: Order, deadline_s: float
) -> Tenancy:
    operation = await platform.order(tenant, "line", order.node_type, order.count)
    await platform.wait(operation, deadline_s=deadline_s)
    seen = datetime.fromisoformat(
        (await platform.sim.mark(f"{tenant.name} was told of its nodes"))["at_wall"]
    )
    cluster = await platform.cluster(tenant, "line")
    nodes = frozenset(node["name"] for node in cluster["nodes"])
    return Tenancy(tenant, order, nodes, f"secret of {tenant.name} {operation['id']}", seen)


async def _note_boots(platform: PlatformHandle, tenancies: Sequence[Tenancy]) -> None:
    """When each node's tenant system came up, and that it came up for this tenant."""
    for entry in await platform.sim.log(kind="system_started"):
        for tenancy in tenancies:
            of_tenant = entry["system"] == "tenant" and entry["subject"] in tenancy.nodes
            if of_tenant and entry["ssh_keys"] == [tenancy.tenant.public_key]:
                tenancy.booted_at[entry["subject"]] = datetime.fromisoformat(entry["at_wall"])


async def _keep_secret(platform: PlatformHandle, tenancy: Tenancy) -> list[dict[str, str]]:
    for node in sorted(tenancy.nodes):
        await platform.sim.secret(node, tenancy.secret)
    return await platform.sim.find(tenancy.secret)


async def _give_back(
    platform: PlatformHandle, tenancy: Tenancy, prices: Mapping[str, Decimal], deadline_s: float
) -> None:
    if tenancy.order.cents_from_log:
        await asyncio.sleep(seconds_to_a_certain_bill(tenancy, prices, datetime.now(UTC)))
    before = await platform.sim.mark(f"{tenancy.tenant.name} asks for release")
    operation = await platform.release(tenancy.tenant, "line")
    after = await platform.sim.mark(f"{tenancy.tenant.name} has asked for release")
    tenancy.release_asked = (
        datetime.fromisoformat(before["at_wall"]),
        datetime.fromisoformat(after["at_wall"]),
    )
    await platform.wait(operation, deadline_s=deadline_s)


async def _note_bill(platform: PlatformHandle, tenancy: Tenancy) -> None:
    """Usage and invoice of every month that the tenancy touches."""
    earliest = min(tenancy.booted_at.values(), default=tenancy.seen_ready_at)
    for month in sorted({f"{at:%Y-%m}" for at in (earliest, tenancy.release_asked[1])}):
        async with asyncio.timeout(30):
            # The ledger follows the events; it is whole when every node's interval has an end.
            while True:
                usage = await platform.usage(tenancy.tenant, month)
                if len(usage) == len(tenancy.nodes) and all(one["usage_to"] for one in usage):
                    break
                await asyncio.sleep(0.1)
        tenancy.usage[month] = usage
        tenancy.invoices[month] = await platform.invoice(tenancy.tenant, month)


async def _until_free(platform: PlatformHandle) -> dict[str, dict[str, int]]:
    async with asyncio.timeout(POOL_DEADLINE_S):
        while True:
            pools = await platform.pools()
            if all(kind["free"] == kind["total"] for kind in pools.values()):
                return pools
            await asyncio.sleep(0.5)


# --- judgement ---------------------------------------------------------------------------------


def peers(reachability: Mapping[str, Any], technology: str, host: str) -> frozenset[str]:
    """Every other host that ``host`` reaches by a technology (the simulator's document)."""
    found: set[str] = set()
    for group in reachability[technology]:
        if technology == "ethernet":
            found |= set(group) if host in group else set()
        elif host in group["full"]:
            found |= {*group["full"], *group["limited"]}
        elif host in group["limited"]:
            found |= set(group["full"])
    return frozenset(found - {host})


def assert_isolated(story: Story) -> None:
    """Each tenant's nodes reach each other in every technology that they have, and nothing else
    reaches or is reached."""
    company = {node: t.nodes for t in story.tenancies for node in t.nodes}
    assert len(company) == sum(t.order.count for t in story.tenancies), "a node has two tenants"
    for technology in ("ethernet", "infiniband"):
        for host in story.every_host:
            reached = peers(story.reach_during, technology, host)
            assert reached == company.get(host, frozenset()) - {host}, (technology, host)


def assert_no_reach(reachability: Mapping[str, Any]) -> None:
    """Nobody reaches anybody."""
    assert reachability["ethernet"] == []
    assert reachability["infiniband"] == []


def assert_keys(story: Story) -> None:
    """Each tenant's key, and no other, is on its nodes' disks and lets into the running system;
    nodes without a tenant have none and are off."""
    for tenancy in story.tenancies:
        assert set(tenancy.booted_at) == tenancy.nodes
        for name in tenancy.nodes:
            truth = story.hosts_during[name]
            assert truth["ssh_keys_on_disk"] == [tenancy.tenant.public_key], name
            assert truth["ssh_keys_running"] == [tenancy.tenant.public_key], name
            assert (truth["system"], truth["power"]) == ("tenant", "On"), name
    taken = frozenset[str]().union(*(t.nodes for t in story.tenancies))
    for name in story.every_host - taken:
        truth = story.hosts_during[name]
        assert (truth["ssh_keys_on_disk"], truth["power"]) == ([], "Off"), name


def assert_secrets_stood(story: Story) -> None:
    """Each secret stood on every disk and in the memory of its tenant's nodes, and nowhere else;
    without this the later search could find nothing and mean nothing."""
    for tenancy in story.tenancies:
        places = story.secrets_during[tenancy.secret]
        assert {place["host"] for place in places} == tenancy.nodes
        for name in tenancy.nodes:
            on = {place["place"] for place in places if place["host"] == name}
            disks = {f"disk {disk['name']}" for disk in story.hosts_during[name]["disks"]}
            assert disks | {"memory"} <= on, name


def assert_clean(story: Story) -> None:
    """After the release: no secret anywhere, blank disks without keys, power off, nobody reaches
    anybody, every node can be ordered again."""
    assert story.secrets_after == []
    assert_no_reach(story.reach_after)
    for name in frozenset[str]().union(*(t.nodes for t in story.tenancies)):
        truth = story.hosts_after[name]
        assert all(disk["blank"] for disk in truth["disks"]), name
        assert truth["ssh_keys_on_disk"] == [], name
        assert (truth["power"], truth["tpm_owned"], truth["bios"]) == ("Off", False, {}), name
        assert truth["virtual_media"] == {}, name
    assert story.node_states_after == ["available"] * len(story.every_host)


def assert_identifiers_returned(story: Story) -> None:
    """Identifiers were taken while the tenants had their networks, and all are free again."""
    for kind, values in story.pools_during.items():
        assert values["allocated"] >= len(story.tenancies), kind
    for kind, values in story.pools_after.items():
        assert values["free"] == values["total"], kind


def assert_usage_is_true(tenancy: Tenancy) -> None:
    """Each node's billed interval begins after its tenant's systems were up by the simulator's log
    and before the test saw the order succeed, and ends between the two markers of the request."""
    intervals = {one["allocation_id"]: one for month in tenancy.usage.values() for one in month}
    assert sorted(one["node_name"] for one in intervals.values()) == sorted(tenancy.nodes)
    for one in intervals.values():
        begin, end = _interval(one)
        assert max(tenancy.booted_at.values()) <= begin <= tenancy.seen_ready_at
        assert tenancy.release_asked[0] <= end <= tenancy.release_asked[1]


def assert_invoice_is_exact(tenancy: Tenancy, prices: Mapping[str, Decimal]) -> None:
    """Each invoice equals, to the cent, exact arithmetic over the intervals and the site's prices;
    and lies within what the simulator's log alone allows."""
    for month, invoice in tenancy.invoices.items():
        first, last = _bounds(month)
        expected: dict[tuple[str, str], Decimal] = {}
        for one in tenancy.usage[month]:
            begin, end = _interval(one)
            seconds = _seconds(max(begin, first), min(end, last))
            key = (one["cluster_id"], one["node_type"])
            expected[key] = expected.get(key, Decimal(0)) + seconds
        lines = {(line["cluster_id"], line["node_type"]): line for line in invoice["lines"]}
        assert set(lines) == set(expected)
        for key, seconds in expected.items():
            price = prices[key[1]]
            assert Decimal(lines[key]["price_per_node_hour"]) == price
            assert Decimal(lines[key]["node_seconds"]) == seconds
            assert Decimal(lines[key]["amount"]) == _money(seconds, price)
        total = sum((Decimal(line["amount"]) for line in invoice["lines"]), Decimal(0))
        assert {Decimal(amount) for amount in invoice["totals"].values()} == {total}
    _assert_within_log(tenancy, prices)


def _assert_within_log(tenancy: Tenancy, prices: Mapping[str, Decimal]) -> None:
    """The bill is no less than from the order's success to the marker before the request of
    release, and no more than from the boot of its last node to the marker after it."""
    price = prices[tenancy.order.node_type]
    least, most = log_bounds(tenancy, *tenancy.release_asked)
    billed = _billed(tenancy)
    assert billed > 0, "nothing was billed, so nothing was judged"
    # One cent a month for rounding.
    slack = CENT * len(tenancy.invoices)
    assert _money(least, price) - slack <= billed <= _money(most, price) + slack


def assert_log_alone_gives_the_bill(tenancy: Tenancy, prices: Mapping[str, Decimal]) -> None:
    """The invoice is the one number of cents that the simulator's log and the price allow: however
    the hand-over lies between boot and the tenant's marker, and the end of usage between the two
    markers of the release, the bill is the same."""
    price = prices[tenancy.order.node_type]
    least, most = (_money(one, price) for one in log_bounds(tenancy, *tenancy.release_asked))
    assert least == most, f"the log allows {least} to {most}: it does not say what is to be paid"
    enough = tenancy.order.cents_from_log * CENT
    assert least >= enough > 0, "too little for a cent to tell anything"
    assert len(tenancy.invoices) == 1, "a month ended in the middle: each of two bills is rounded"
    assert _billed(tenancy) == least


def assert_audited_clean(story: Story) -> None:
    """The product's own audit compared every tenant's node with its allocation, and agrees."""
    nodes = sum(len(tenancy.nodes) for tenancy in story.tenancies)
    assert (story.audit["state"], story.audit["findings"]) == ("clean", 0), story.audit
    assert story.audit["allocations"] == story.audit["entries"] == nodes


def log_bounds(tenancy: Tenancy, asked: datetime, had_asked: datetime) -> tuple[Decimal, Decimal]:
    """The fewest and the most node-seconds that the log allows for a release asked for between
    two moments. An order is handed over whole, so none of its nodes is before the last is up."""
    least = _seconds(tenancy.seen_ready_at, asked) * len(tenancy.nodes)
    most = _seconds(max(tenancy.booted_at.values()), had_asked) * len(tenancy.nodes)
    return least, most


def seconds_to_a_certain_bill(
    tenancy: Tenancy, prices: Mapping[str, Decimal], now: datetime
) -> float:
    """How long to wait with the request of release until what the log leaves open lies in the
    middle of one cent, after at least the cents that the order asks for."""
    per_s = prices[tenancy.order.node_type] * len(tenancy.nodes) / 3600
    least, most = log_bounds(tenancy, now, now)
    middle = (least + most) / 2 * prices[tenancy.order.node_type] / 3600
    wanted = max(
        (middle / CENT).to_integral_value(ROUND_CEILING), Decimal(tenancy.order.cents_from_log)
    )
    return float((wanted * CENT - middle) / per_s)


def _billed(tenancy: Tenancy) -> Decimal:
    return sum(
        (Decimal(amount) for i in tenancy.invoices.values() for amount in i["totals"].values()),
        Decimal(0),
    )


def _interval(one: Mapping[str, Any]) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(one["usage_from"]), datetime.fromisoformat(one["usage_to"])


def _seconds(begin: datetime, end: datetime) -> Decimal:
    span = end - begin
    whole = Decimal(span.days * 86_400 + span.seconds)
    return whole + Decimal(span.microseconds) / 1_000_000


def _money(seconds: Decimal, price_per_hour: Decimal) -> Decimal:
    return (seconds * price_per_hour / 3600).quantize(CENT, ROUND_HALF_UP)


def _bounds(month: str) -> tuple[datetime, datetime]:
    year, number = map(int, month.split("-"))
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return datetime(year, number, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)
