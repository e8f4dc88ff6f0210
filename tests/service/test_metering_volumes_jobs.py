"""Promises of what volumes cost and of what jobs had: ledgers, prices and invoices."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest

from dflare.kit.feed import FeedEntry
from dflare.services.auth.contract import ProjectRef
from dflare.services.baremetal.contract import NodeTypeFacts, PoolFacts, SiteDeclared
from dflare.services.clusters.contract import JobFacts, JobRun, JobState
from dflare.services.metering.activities import (
    JobsProjection,
    PricesProjection,
    VolumesProjection,
)
from dflare.services.metering.tables import JobEntry, VolumeEntry, VolumePrice
from dflare.services.volumes.contract import VolumeUsage
from metering_world import PROJECT, Meter, event, metering_world
from tenancy import BLUE, MEMBER, NOW, RED, STRANGER

MONTH = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
async def meter(postgres_url: str) -> AsyncIterator[Meter]:
    async with metering_world(postgres_url) as world:
        yield world


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def volume(
    version: int,
    start: datetime,
    end: datetime | None = None,
    *,
    interval: str = "vint_1",
    size_gib: int = 100,
    project: ProjectRef = RED,
) -> FeedEntry:
    facts = VolumeUsage(
        interval_id=interval,
        version=version,
        volume_id="vol_1",
        organization_id=project.organization_id,
        project_id=project.id,
        site_id="site_1",
        size_gib=size_gib,
        usage_from=start,
        usage_to=end,
    )
    return event("volume.usage_changed", facts.model_dump(mode="json"), version)


def job(version: int, *runs: JobRun, number: int = 1, **other: Any) -> FeedEntry:
    facts: dict[str, Any] = {
        "organization_id": RED.organization_id,
        "project_id": RED.id,
        "site_id": "site_1",
        "cluster_id": "clu_1",
        "name": "train",
        "account": "training",
        "member": "ada",
        "scheduler_id": str(number),
        "state": JobState.RUNNING,
        **other,
    }
    found = JobFacts(job_id=f"job_{number}", version=version, runs=runs, **facts)
    return event("job.changed", found.model_dump(mode="json"), version)


def run(
    number: int, start: datetime, end: datetime | None = None, *, gpu_milli: int = 8000
) -> JobRun:
    return JobRun(number=number, nodes=1, gpu_milli=gpu_milli, usage_from=start, usage_to=end)


def declared(version: int, price: str | None, at: datetime) -> FeedEntry:
    node_type = NodeTypeFacts(
        name="g8",
        vendor="dell",
        gpu_model=None,
        gpus=8,
        infiniband_rails=8,
        price_per_node_hour="1",
    )
    facts = SiteDeclared(
        site_id="site_1",
        name="hall",
        currency="EUR",
        switches=(),
        ufm=None,
        pools=PoolFacts(vlan=(), vni=(), pkey=(), prefixes=(), subnet_length=26, cooldown_s=1),
        node_types=(node_type,),
        volume_price_per_gib_hour=price,
    )
    return event("site.declared", facts.model_dump(mode="json"), version, at)


async def test_the_ledger_of_volumes_ends_the_same_whatever_order_and_repetition_it_saw(
    meter: Meter,
) -> None:
    life = (volume(1, NOW), volume(2, NOW, NOW + hours(1)), volume(3, NOW, NOW + hours(2)))
    for number, order in enumerate(permutations(life)):
        own = [
            event(one.type, {**one.data, "interval_id": f"vint_{number}"}, one.resource_version)
            for one in order
        ]
        await meter.fold(VolumesProjection(), *own[:2])
        await meter.fold(VolumesProjection(), *own[1:])
        await meter.fold(VolumesProjection(), own[0])
    entries = await meter.rows(VolumeEntry)
    assert len(entries) == 6
    assert {(e.version, e.usage_to) for e in entries} == {(3, NOW + hours(2))}


async def test_a_volume_is_billed_by_the_gib_and_hour_of_its_month_at_each_of_its_sizes(
    meter: Meter,
) -> None:
    await meter.fold(PricesProjection(), declared(1, "0.001", MONTH - hours(1000)))
    await meter.fold(
        VolumesProjection(),
        volume(2, MONTH - hours(5), MONTH + hours(10), interval="vint_1", size_gib=100),
        volume(1, MONTH + hours(10), interval="vint_2", size_gib=200),
        volume(1, MONTH, interval="vint_3", project=BLUE),
    )
    meter.clock.at = MONTH + hours(20)
    november = await meter.get("/invoices/2026-11")
    (line,) = november["volumes"]
    assert Decimal(line["gib_seconds"]) == (100 * 10 + 200 * 10) * 3600
    assert (line["amount"], line["price_per_gib_hour"]) == ("3.00", "0.001")
    assert (november["totals"], november["notes"]) == ({"EUR": "3.00"}, [])
    assert (await meter.get("/invoices/2026-10"))["totals"] == {"EUR": "0.50"}


async def test_a_price_of_volumes_bills_what_comes_after_it_and_nothing_before(
    meter: Meter,
) -> None:
    history = [
        declared(1, None, MONTH),
        declared(2, None, MONTH + hours(1)),
        declared(3, "1", MONTH + hours(2)),
        declared(4, "1.0", MONTH + hours(3)),
        declared(5, None, MONTH + hours(4)),
    ]
    await meter.fold(PricesProjection(), *history)
    await meter.fold(PricesProjection(), *history)
    steps = sorted(await meter.rows(VolumePrice), key=lambda step: step.valid_from)
    assert [step.price_per_gib_hour for step in steps] == [None, Decimal(1), None]
    await meter.fold(VolumesProjection(), volume(2, MONTH, MONTH + hours(10), size_gib=1))
    invoice = await meter.get("/invoices/2026-11")
    assert {line["price_per_gib_hour"]: line["amount"] for line in invoice["volumes"]} == {
        "0": "0.00",
        "1": "2.00",
    }
    assert invoice["totals"] == {"EUR": "2.00"}


async def test_a_site_without_a_price_of_volumes_bills_them_at_nothing_and_says_so(
    meter: Meter,
) -> None:
    await meter.fold(PricesProjection(), declared(1, None, MONTH))
    await meter.fold(VolumesProjection(), volume(1, MONTH))
    invoice = await meter.get("/invoices/2026-11")
    assert invoice["totals"] == {"EUR": "0.00"}
    assert invoice["notes"] == ["Site site_1 declares no price for volumes: they are billed at 0."]


async def test_a_volume_that_costs_nothing_because_its_price_is_zero_needs_no_note(
    meter: Meter,
) -> None:
    await meter.fold(PricesProjection(), declared(1, "0", MONTH))
    await meter.fold(VolumesProjection(), volume(1, MONTH))
    invoice = await meter.get("/invoices/2026-11")
    assert (invoice["totals"], invoice["notes"]) == ({"EUR": "0.00"}, [])


async def test_the_ledger_of_jobs_ends_the_same_whatever_order_and_repetition_it_saw(
    meter: Meter,
) -> None:
    first, again = run(1, NOW, NOW + hours(1)), run(2, NOW + hours(2))
    life = (job(1), job(2, run(1, NOW)), job(3, first), job(4, first, again))
    for number, order in enumerate(permutations(life)):
        own = [
            event(one.type, {**one.data, "job_id": f"job_{number}"}, one.resource_version)
            for one in order
        ]
        await meter.fold(JobsProjection(), *own[:2])
        await meter.fold(JobsProjection(), *own[1:])
        await meter.fold(JobsProjection(), own[0])
    entries = await meter.rows(JobEntry)
    assert len(entries) == 48
    assert {(e.run, e.version, e.usage_from, e.usage_to) for e in entries} == {
        (1, 4, NOW, NOW + hours(1)),
        (2, 4, NOW + hours(2), None),
    }


async def test_every_run_of_a_job_counts_and_parts_of_a_gpu_are_exact(meter: Meter) -> None:
    third = MONTH + timedelta(microseconds=333_333)
    await meter.fold(
        JobsProjection(),
        job(2, run(1, MONTH, MONTH + hours(1)), run(2, MONTH + hours(2), MONTH + hours(3))),
        job(1, run(1, MONTH, third, gpu_milli=1), number=2),
        job(1, run(1, MONTH, MONTH + hours(1), gpu_milli=460), number=3, member=""),
    )
    lines = {line["member"]: line for line in (await meter.get("/invoices/2026-11"))["jobs"]}
    assert Decimal(lines["ada"]["gpu_seconds"]) == Decimal("57600.000333333")
    assert (lines["ada"]["runs"], lines["ada"]["account"]) == (3, "training")
    assert Decimal(lines[""]["gpu_seconds"]) == 1656


async def test_a_job_that_runs_over_the_end_of_a_month_is_told_in_both(meter: Meter) -> None:
    await meter.fold(JobsProjection(), job(1, run(1, MONTH - hours(1))))
    meter.clock.at = MONTH + hours(2)
    told = [
        Decimal((await meter.get(f"/invoices/{month}"))["jobs"][0]["gpu_seconds"])
        for month in ("2026-10", "2026-11")
    ]
    assert told == [8 * 3600, 16 * 3600]


async def test_runs_and_intervals_of_volumes_come_in_pages(meter: Meter) -> None:
    await meter.fold(
        JobsProjection(), *(job(1, run(1, NOW), run(2, NOW), number=n) for n in range(3))
    )
    await meter.fold(VolumesProjection(), *(volume(1, NOW, interval=f"vint_{n}") for n in range(5)))
    seen: dict[str, list[Any]] = {"jobs": [], "volumes": []}
    for kind, names in (("jobs", ("job_id", "run")), ("volumes", ("interval_id",))):
        cursor: dict[str, str] = {}
        for _ in range(6):
            page = await meter.get(f"/usage/{kind}", month="2026-11", limit=2, **cursor)
            seen[kind] += [tuple(one[name] for name in names) for one in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
    assert seen["jobs"] == [(f"job_{n}", r) for n in range(3) for r in (1, 2)]
    assert seen["volumes"] == [(f"vint_{n}",) for n in range(5)]


async def test_strangers_hear_of_neither_jobs_nor_volumes(meter: Meter) -> None:
    await meter.fold(JobsProjection(), job(1, run(1, NOW)))
    await meter.fold(VolumesProjection(), volume(1, NOW))
    for path in ("/usage/jobs?month=2026-11", "/usage/volumes?month=2026-11"):
        stranger = await meter.clients[STRANGER.subject].get(PROJECT + path)
        member = await meter.clients[MEMBER.subject].get(PROJECT + path)
        assert (stranger.status_code, len(member.json()["items"])) == (404, 1), path


async def test_a_cursor_of_another_list_is_refused(meter: Meter) -> None:
    await meter.fold(VolumesProjection(), *(volume(1, NOW, interval=f"vint_{n}") for n in range(3)))
    page = await meter.get("/usage/volumes", month="2026-11", limit=1)
    response = await meter.clients[MEMBER.subject].get(
        f"{PROJECT}/usage/jobs", params={"month": "2026-11", "cursor": page["next_cursor"]}
    )
    assert (response.status_code, "without `cursor`" in response.text) == (422, True)
