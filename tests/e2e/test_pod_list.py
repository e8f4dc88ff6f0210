"""The GPU-hours of a production fleet's task list pass through feed, ledger and invoice exactly.

Every task of ``openb_pod_list_default.csv`` that ran is a job of its QoS class's project, told to
metering as clusters tells it: by events that the relay numbers and metering's read model follows.
What is expected is computed from the list alone, in whole numbers.
"""

import csv
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest

from dflare.kit import outbox
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import advance, copy_events
from dflare.kit.outbox import Event
from dflare.services.auth.contract import ProjectRef
from dflare.services.clusters.contract import JobFacts, JobRun, JobState
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.metering import api
from dflare.services.metering.activities import JobsProjection
from dflare.services.metering.service import MeteringService
from stores import drop_database
from tenancy import OPERATOR, Tenancy, application, client, migrated_database

LIST = Path(__file__).parents[1] / "data/alibaba-gpu-2023/openb_pod_list_default.csv"
BEGIN = datetime(2023, 1, 1, tzinfo=UTC)
MONTHS = ("2023-01", "2023-02", "2023-03", "2023-04", "2023-05")
CLASSES = ("LS", "BE", "Burstable", "Guaranteed")
PROJECTS = {
    name: ProjectRef(f"proj_{name.lower()}", "work", f"org_{name.lower()}", name.lower())
    for name in CLASSES
}
CHUNK = 1_000


@dataclass(frozen=True)
class Task:
    """A task that ran; seconds since the beginning of the list, thousandths of a GPU."""

    name: str
    qos: str
    gpu_milli: int
    start_s: int
    end_s: int


def tasks() -> list[Task]:
    """Tasks that were given to a node: the others have no time of being scheduled."""
    with LIST.open(newline="") as file:
        return [
            Task(
                row["name"],
                row["qos"],
                int(row["num_gpu"]) * int(row["gpu_milli"]),
                int(row["scheduled_time"]),
                int(row["deletion_time"]),
            )
            for row in csv.DictReader(file)
            if row["scheduled_time"]
        ]


def told(every: Sequence[Task]) -> list[Event]:
    """The events of all tasks in the order of time: each begins, and later ends."""
    moments = [
        *((task.start_s, 1, task) for task in every),
        *((task.end_s, 2, task) for task in every),
    ]
    moments.sort(key=lambda moment: (moment[0], moment[1], moment[2].name))
    return [_event(task, version, at_s) for at_s, version, task in moments]


def _event(task: Task, version: int, at_s: int) -> Event:
    project, ended = PROJECTS[task.qos], version == 2
    run = JobRun(
        number=1,
        nodes=1,
        gpu_milli=task.gpu_milli,
        usage_from=BEGIN + timedelta(seconds=task.start_s),
        usage_to=BEGIN + timedelta(seconds=task.end_s) if ended else None,
    )
    facts = JobFacts(
        job_id=task.name,
        version=version,
        organization_id=project.organization_id,
        project_id=project.id,
        site_id="site_1",
        cluster_id="clu_openb",
        name=task.name,
        account="work",
        member=task.qos,
        scheduler_id=task.name,
        state=JobState.ENDED if ended else JobState.RUNNING,
        runs=(run,),
    )
    return Event(
        type="job.changed",
        resource_kind="job",
        resource_id=task.name,
        resource_version=version,
        at=BEGIN + timedelta(seconds=at_s),
        data=facts.model_dump(mode="json"),
        organization_id=project.organization_id,
        project_id=project.id,
        site_id="site_1",
    )


@dataclass
class Billed:
    """What the API says of each class: its months' invoices, and its runs."""

    invoices: dict[str, list[dict[str, Any]]]
    runs: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
async def billed(postgres_url: str) -> AsyncIterator[Billed]:
    url = await migrated_database(postgres_url, "clusters", "metering")
    database = Database(url, application="test-pod-list")
    await _tell(database, told(tasks()))
    tenancy = Tenancy(projects=tuple(PROJECTS.values()))
    clock = ManualClock(datetime(2023, 6, 1, tzinfo=UTC))
    service = MeteringService(database, clock, tenancy)
    app = application(tenancy, lambda principal: api.router(service, tenancy, principal))
    async with AsyncExitStack() as stack:
        caller = await stack.enter_async_context(client(app, OPERATOR))
        yield Billed(
            {name: [await _invoice(caller, name, month) for month in MONTHS] for name in CLASSES},
            {name: await _runs(caller, name) for name in CLASSES},
        )
    await database.dispose()
    drop_database(url)


async def _tell(database: Database, events: Sequence[Event]) -> None:
    """Into the outbox of clusters, numbered by the relay's hand, followed by metering."""
    projection = JobsProjection()
    for start in range(0, len(events), CHUNK):
        async with database.transaction("clusters") as session:
            await outbox.emit(session, CLUSTERS, events[start : start + CHUNK])
        while await copy_events(database, CLUSTERS):
            pass
        while await advance(database, projection):
            pass


async def _invoice(caller: httpx.AsyncClient, name: str, month: str) -> dict[str, Any]:
    answer = await caller.get(f"/projects/{PROJECTS[name].id}/invoices/{month}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _runs(caller: httpx.AsyncClient, name: str) -> list[dict[str, Any]]:
    """Every run, once: one that passes the end of a month is in the lists of both."""
    found: dict[str, dict[str, Any]] = {}
    for month in MONTHS:
        cursor: str | None = None
        while True:
            params = {"month": month, "limit": "500", **({"cursor": cursor} if cursor else {})}
            answer = await caller.get(f"/projects/{PROJECTS[name].id}/usage/jobs", params=params)
            assert answer.status_code == 200, answer.text
            found |= {one["job_id"]: one for one in answer.json()["items"]}
            cursor = answer.json()["next_cursor"]
            if cursor is None:
                break
    return list(found.values())


def _lines(billed: Billed, name: str) -> Iterator[dict[str, Any]]:
    for invoice in billed.invoices[name]:
        yield from invoice["jobs"]


def test_the_list_is_the_published_one() -> None:
    every = tasks()
    assert len(every) == 7255
    assert Counter(task.qos for task in every) == {
        "LS": 4193,
        "BE": 2957,
        "Burstable": 98,
        "Guaranteed": 7,
    }
    assert any(task.gpu_milli % 1000 for task in every), "parts of GPUs are what this is about"


def test_the_gpu_hours_of_every_class_are_those_of_the_list_to_the_last_digit(
    billed: Billed,
) -> None:
    gpu_milliseconds: Counter[str] = Counter()
    for task in tasks():
        gpu_milliseconds[task.qos] += task.gpu_milli * (task.end_s - task.start_s)
    invoiced = {
        name: sum(
            (Fraction(Decimal(line["gpu_seconds"])) for line in _lines(billed, name)), start=0
        )
        for name in CLASSES
    }
    assert invoiced == {name: Fraction(gpu_milliseconds[name], 1000) for name in CLASSES}
    hours = {name: Decimal(gpu_milliseconds[name]) / 3_600_000 for name in CLASSES}
    assert hours["LS"] == Decimal("41413.360025")
    assert hours["BE"] == Decimal("1311.6358")
    assert round(hours["Burstable"], 6) == Decimal("7459.200556")
    assert round(hours["Guaranteed"], 6) == Decimal("1286.477778")


def test_every_task_that_ran_is_one_run_of_the_ledger_with_its_own_times(billed: Billed) -> None:
    for name in CLASSES:
        ledger = {
            one["job_id"]: (
                one["gpu_milli"],
                datetime.fromisoformat(one["usage_from"]),
                datetime.fromisoformat(one["usage_to"]),
            )
            for one in billed.runs[name]
        }
        own = {
            task.name: (
                task.gpu_milli,
                BEGIN + timedelta(seconds=task.start_s),
                BEGIN + timedelta(seconds=task.end_s),
            )
            for task in tasks()
            # An interval without length is in no month.
            if task.qos == name and task.end_s > task.start_s
        }
        assert {key: ledger.get(key) for key in own} == own
        assert all(ledger[key][1] == ledger[key][2] for key in ledger.keys() - own.keys())


def test_what_jobs_had_adds_nothing_to_what_is_paid(billed: Billed) -> None:
    for name in CLASSES:
        assert [invoice["totals"] for invoice in billed.invoices[name]] == [{}] * len(MONTHS)
        assert {line["member"] for line in _lines(billed, name)} == {name}
