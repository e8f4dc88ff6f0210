"""Promises of the ledger, prices, quotas and invoices."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import permutations

import pytest
from sqlalchemy import select

from dflare.kit.feed import FeedEntry
from dflare.services.auth.contract import ProjectRef
from dflare.services.baremetal.contract import NodeTypeFacts, PoolFacts, SiteDeclared
from dflare.services.metering.activities import LedgerProjection, PricesProjection, projections
from dflare.services.metering.contract import QuotaLimit
from dflare.services.metering.tables import KIT, LedgerEntry, Price
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState
from metering_world import PROJECT, Meter, event, metering_world
from tenancy import (
    BLUE,
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    STRANGER,
    VIEWER,
)


@pytest.fixture
async def meter(postgres_url: str) -> AsyncIterator[Meter]:
    async with metering_world(postgres_url) as world:
        yield world


def allocation(
    version: int,
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    number: int = 1,
    project: ProjectRef = RED,
) -> FeedEntry:
    state = AllocationState.CONFIRMED if start else AllocationState.HELD
    facts = AllocationFacts(
        allocation_id=f"alloc_{number:03}",
        version=version,
        state=AllocationState.RELEASING if end else state,
        node_id=f"node_{number}",
        node_name=f"n{number}",
        node_type="g8",
        gpus=8,
        site_id="site_1",
        organization_id=project.organization_id,
        project_id=project.id,
        cluster_id="clu_1",
        pool="default",
        operation_id="op_1",
        epoch=1,
        usage_from=start,
        usage_to=end,
    )
    return event("allocation.changed", facts.model_dump(mode="json"), version)


def declared(version: int, price: str, at: datetime, currency: str = "EUR") -> FeedEntry:
    node_type = NodeTypeFacts(
        name="g8",
        vendor="dell",
        gpu_model=None,
        gpus=8,
        infiniband_rails=8,
        price_per_node_hour=price,
    )
    facts = SiteDeclared(
        site_id="site_1",
        name="hall",
        currency=currency,
        switches=(),
        ufm=None,
        pools=PoolFacts(vlan=(), vni=(), pkey=(), prefixes=(), subnet_length=26, cooldown_s=1),
        node_types=(node_type,),
    )
    return event("site.declared", facts.model_dump(mode="json"), version, at)


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


LIFE = (
    allocation(1),
    allocation(2, NOW),
    allocation(3, NOW, NOW + hours(2)),
    allocation(4, NOW, NOW + hours(2)),
)


async def test_the_ledger_ends_the_same_whatever_order_and_repetition_it_saw(
    meter: Meter,
) -> None:
    for number, order in enumerate(permutations(LIFE), start=1):
        own = [
            event(one.type, {**one.data, "allocation_id": f"alloc_{number}"}, one.resource_version)
            for one in order
        ]
        await meter.fold(LedgerProjection(), *own[:2])
        await meter.fold(LedgerProjection(), *own[1:])
        await meter.fold(LedgerProjection(), own[0])
    entries = await meter.rows(LedgerEntry)
    assert len(entries) == 24
    assert {(e.version, e.usage_from, e.usage_to) for e in entries} == {(4, NOW, NOW + hours(2))}


async def test_what_was_never_handed_over_is_never_in_the_ledger(meter: Meter) -> None:
    await meter.fold(LedgerProjection(), allocation(1), allocation(2))
    assert await meter.rows(LedgerEntry) == []


async def test_prices_are_steps_of_those_declarations_that_change_them(meter: Meter) -> None:
    history = [
        declared(1, "10", NOW),
        declared(2, "10.00", NOW + hours(1)),
        declared(3, "12", NOW + hours(2)),
        declared(4, "12", NOW + hours(3), "USD"),
    ]
    await meter.fold(PricesProjection(), *history)
    await meter.fold(PricesProjection(), *history)
    steps = sorted(await meter.rows(Price), key=lambda price: price.valid_from)
    assert [(s.valid_from, s.price_per_node_hour, s.currency) for s in steps] == [
        (NOW, Decimal(10), "EUR"),
        (NOW + hours(2), Decimal(12), "EUR"),
        (NOW + hours(3), Decimal(12), "USD"),
    ]


async def test_a_price_declared_by_a_clock_that_is_behind_still_counts(meter: Meter) -> None:
    await meter.fold(PricesProjection(), declared(1, "10", NOW))
    await meter.fold(PricesProjection(), declared(2, "11", NOW - hours(1)))
    await meter.fold(PricesProjection(), declared(3, "12", NOW))
    steps = sorted(await meter.rows(Price), key=lambda price: price.valid_from)
    assert [s.price_per_node_hour for s in steps] == [Decimal(10), Decimal(11), Decimal(12)]
    assert [s.site_version for s in steps] == [1, 2, 3]
    assert steps[-1].valid_from - NOW < timedelta(seconds=1)


async def test_an_invoice_is_the_usage_of_its_month_alone(meter: Meter) -> None:
    month = datetime(2026, 11, 1, tzinfo=NOW.tzinfo)
    await meter.fold(PricesProjection(), declared(1, "10", month - hours(1000)))
    await meter.fold(
        LedgerProjection(),
        # From October into November, within November, up to the very end of October.
        allocation(2, month - hours(5), month + hours(3), number=1),
        allocation(2, month + hours(10), month + hours(12), number=2),
        allocation(2, month - hours(9), month, number=3),
        allocation(2, month, month + hours(100), number=4, project=BLUE),
    )
    november = await meter.get("/invoices/2026-11")
    assert november["totals"] == {"EUR": "50.00"}
    (line,) = november["lines"]
    assert (Decimal(line["node_seconds"]), line["amount"]) == (Decimal(5 * 3600), "50.00")
    assert Decimal(line["gpu_seconds"]) == 8 * 5 * 3600
    assert (await meter.get("/invoices/2026-10"))["totals"] == {"EUR": "140.00"}
    assert (await meter.get("/invoices/2026-12"))["lines"] == []


async def test_usage_that_runs_is_billed_until_now_and_never_ahead(meter: Meter) -> None:
    await meter.fold(LedgerProjection(), allocation(2, NOW - hours(3)))
    unpriced = await meter.get("/invoices/2026-11")
    assert unpriced["totals"] == {"-": "0.00"}, "what nobody priced stands there to be seen"
    await meter.fold(PricesProjection(), declared(1, "10", NOW - hours(1000)))
    first = await meter.get("/invoices/2026-11")
    assert (first["state"], first["totals"]) == ("draft", {"EUR": "30.00"})
    meter.clock.at += hours(1)
    assert (await meter.get("/invoices/2026-11"))["totals"] == {"EUR": "40.00"}
    assert (await meter.get("/invoices/2026-12"))["lines"] == []
    await meter.fold(LedgerProjection(), allocation(3, NOW - hours(3), NOW))
    assert (await meter.get("/invoices/2026-11"))["totals"] == {"EUR": "30.00"}


async def test_totals_are_the_sums_of_the_lines_as_printed(meter: Meter) -> None:
    await meter.fold(
        PricesProjection(), declared(1, "0.005", NOW - hours(10)), declared(2, "0.015", NOW)
    )
    await meter.fold(LedgerProjection(), allocation(2, NOW - hours(1), NOW + hours(1)))
    meter.clock.at += hours(5)
    invoice = await meter.get("/invoices/2026-11")
    assert [line["amount"] for line in invoice["lines"]] == ["0.01", "0.02"]
    assert invoice["totals"] == {"EUR": "0.03"}


async def test_the_ledger_behind_an_invoice_comes_in_pages(meter: Meter) -> None:
    await meter.fold(LedgerProjection(), *(allocation(2, NOW, number=n) for n in range(5)))
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page = await meter.get(
            "/usage", month="2026-11", limit=2, **({"cursor": cursor} if cursor else {})
        )
        seen += [one["node_name"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert (seen, cursor) == ([f"n{n}" for n in range(5)], None)


async def test_a_quota_is_an_event_with_a_rising_version_and_an_audit_row(meter: Meter) -> None:
    operator = meter.clients[OPERATOR.subject]
    for version, nodes in enumerate((16, 0, 32), start=1):
        response = await operator.put(f"{PROJECT}/quotas/g8", json={"nodes": nodes})
        assert (response.status_code, response.headers["etag"]) == (200, f'"{version}"')
    async with meter.database.transaction("metering") as session:
        query = select(KIT.event).where(KIT.event.c.type == "quota.changed")
        rows = (await session.execute(query.order_by(KIT.event.c.ordinal))).mappings().all()
        audits = (await session.execute(select(KIT.audit))).mappings().all()
    assert [row["resource_version"] for row in rows] == [1, 2, 3]
    limits = [QuotaLimit.model_validate(row["data"]) for row in rows]
    assert [limit.nodes for limit in limits] == [16, 0, 32]
    assert {(limit.project_id, limit.organization_id) for limit in limits} == {
        (RED.id, RED.organization_id)
    }
    assert [(row["action"], row["detail"]) for row in audits] == [
        ("quota:set", {"nodes": nodes}) for nodes in (16, 0, 32)
    ]
    (shown,) = (await meter.get("/quotas"))["items"]
    assert (shown["nodes"], shown["version"], shown["updated_by"]) == (32, 3, OPERATOR.subject)


async def test_quotas_set_at_once_have_versions_without_a_gap(meter: Meter) -> None:
    operator = meter.clients[OPERATOR.subject]
    await asyncio.gather(
        *(operator.put(f"{PROJECT}/quotas/g8", json={"nodes": n}) for n in range(8))
    )
    async with meter.database.transaction("metering") as session:
        query = select(KIT.event.c.resource_version, KIT.event.c.data).where(
            KIT.event.c.type == "quota.changed"
        )
        rows = (await session.execute(query.order_by(KIT.event.c.ordinal))).all()
    assert [row[0] for row in rows] == list(range(1, 9))
    (shown,) = (await meter.get("/quotas"))["items"]
    assert shown["nodes"] == rows[-1][1]["nodes"], "the last event is the state"


async def test_only_operators_give_capacity_and_strangers_see_nothing(meter: Meter) -> None:
    codes = {
        caller.subject: (
            await meter.clients[caller.subject].put(f"{PROJECT}/quotas/g8", json={"nodes": 9})
        ).status_code
        for caller in (MEMBER, VIEWER, STRANGER)
    }
    assert codes == {MEMBER.subject: 403, VIEWER.subject: 403, STRANGER.subject: 404}
    for path in ("/quotas", "/invoices/2026-11", "/usage?month=2026-11"):
        response = await meter.clients[STRANGER.subject].get(PROJECT + path)
        assert response.status_code == 404, path
    assert (await meter.get("/quotas"))["items"] == []


@pytest.mark.parametrize("nodes", [-1, 1_000_001, "many", 1.5, None])
async def test_a_quota_that_cannot_be_is_refused(meter: Meter, nodes: object) -> None:
    response = await meter.clients[OPERATOR.subject].put(
        f"{PROJECT}/quotas/g8", json={"nodes": nodes}
    )
    assert response.status_code == 422
    assert "nodes" in response.json()["detail"]


async def test_a_month_that_is_none_is_refused_with_its_form(meter: Meter) -> None:
    for path in ("/invoices/9999-12", "/invoices/november", "/usage?month=2026-1"):
        response = await meter.clients[MEMBER.subject].get(PROJECT + path)
        assert (response.status_code, "YYYY-MM" in response.text) == (422, True), path


def test_the_read_models_are_those_that_the_contract_names() -> None:
    assert {kind for one in projections() for kind in one.types} == {
        "allocation.changed",
        "job.changed",
        "registry.usage",
        "site.declared",
        "volume.usage_changed",
    }
