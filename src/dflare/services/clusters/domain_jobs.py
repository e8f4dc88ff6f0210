"""What a scheduler's accounting says of a job, folded into its row. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from dflare.drivers.scheduler.port import JobRecord
from dflare.kit.outbox import Event
from dflare.services.clusters.contract import JobFacts, JobRun, JobState
from dflare.services.clusters.tables_jobs import Job

MILLI = 1_000
"""Thousandths in a GPU: accounting counts whole ones."""

OPEN = (JobState.PENDING, JobState.SUBMITTING, JobState.SUBMITTED, JobState.RUNNING)
WITH_SCHEDULER = (JobState.SUBMITTED, JobState.RUNNING)
OUR_OPTIONS = ("--account", "--wckey", "--comment", "--parsable", "--job-name")
"""Options of sbatch that say for whom and how a job is submitted, and so are not a member's. Its
short and abbreviated forms count too (sbatch(1), getopt)."""
_SHORT = ("-A", "-J")
_WAITING = "PENDING"
AGAIN = ("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
"""Last words on a run whose job waits for its next one, of which accounting hears when it may begin
(sacct(1), Job state codes)."""
_NUMBER = re.compile(r"\d+")

_ALLOWED: Mapping[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.SUBMITTING, JobState.REFUSED}),
    JobState.SUBMITTING: frozenset({JobState.SUBMITTED, JobState.REFUSED}),
    JobState.SUBMITTED: frozenset({JobState.RUNNING, JobState.ENDED}),
    # A scheduler queues a job again whose node died, and one that has ended where it is told to.
    JobState.RUNNING: frozenset({JobState.SUBMITTED, JobState.ENDED}),
    JobState.ENDED: frozenset({JobState.SUBMITTED, JobState.RUNNING}),
    JobState.REFUSED: frozenset(),
}


def move(job: Job, new: JobState, now: datetime, reason: str = "") -> None:
    """The one transition function of jobs; the caller raises the version of the locked row.

    Raises:
        ValueError: ``new`` does not follow the present state, which is a defect.
    """
    old = JobState(job.state)
    if new is not old:
        if new not in _ALLOWED[old]:
            raise ValueError(f"job {job.id} is {old} and cannot become {new}")
        job.since = now
    job.state, job.reason = new, reason


def not_a_members(option: str) -> bool:
    """Whether an option of sbatch is one of those that say for whom a job is."""
    name = option.partition("=")[0]
    if not name.startswith("--"):
        return any(name.startswith(short) for short in _SHORT)
    return len(name) > 2 and any(own.startswith(name) for own in OUR_OPTIONS)


def by_job(records: Iterable[JobRecord]) -> dict[str, list[JobRecord]]:
    """Records by the number of their job, oldest first. Tasks of an array, and the parts of a
    heterogeneous job, are runs of one job."""
    found: defaultdict[str, list[JobRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda one: (len(one.record_id), one.record_id)):
        number = _NUMBER.match(record.job_id)
        if number:
            found[number[0]].append(record)
    return dict(found)


def fold(job: Job, records: Sequence[JobRecord], now: datetime) -> bool:
    """Take what accounting says of a job into its locked row; whether anything is new. ``records``
    are those that changed lately, oldest first, at least every one that has not ended."""
    before = (job.state, job.scheduler_state, job.exit_code, job.runs, job.reason)
    last = records[-1]
    if last.state in AGAIN and job.state == JobState.ENDED:
        # The controller has told since how it ended, of which accounting never hears.
        return False
    state = _state_of(records)
    ended = state is JobState.ENDED
    word = last.state if ended and last.state != "COMPLETED" else ""
    move(job, state, now, f"Slurm says {word}" if word else "")
    job.scheduler_state, job.exit_code = last.state, last.exit_code if ended else None
    job.runs = _merged(job.runs, records)
    job.name = job.name or last.name
    if (job.state, job.scheduler_state, job.exit_code, job.runs, job.reason) == before:
        return False
    job.version += 1
    return True


def give_up(job: Job, word: str, now: datetime) -> None:
    """End a job that waited to run again and never will, by the controller's word."""
    move(job, JobState.ENDED, now, f"Slurm says {word}" if word else "Slurm knows it no longer")
    job.scheduler_state = word or job.scheduler_state
    job.version += 1


def close(job: Job, seen_until: datetime, now: datetime, reason: str) -> None:
    """End a job whose scheduler is gone. What still ran is counted until it was last seen: no
    longer than its nodes, whose usage ended when their release was ordered."""
    if JobState(job.state) in WITH_SCHEDULER:
        move(job, JobState.ENDED, now, reason)
    else:
        move(job, JobState.REFUSED, now, reason)
    job.runs = [
        run if run["usage_to"] else {**run, "usage_to": _until(run, seen_until)} for run in job.runs
    ]
    job.version += 1


def _until(run: dict[str, Any], seen_until: datetime) -> str:
    return max(datetime.fromisoformat(run["usage_from"]), seen_until).isoformat()


def _state_of(records: Sequence[JobRecord]) -> JobState:
    living = [record for record in records if record.ended_at is None]
    if any(_ran(record) for record in living):
        return JobState.RUNNING
    waits = living or records[-1].state in AGAIN
    return JobState.SUBMITTED if waits else JobState.ENDED


def _ran(record: JobRecord) -> bool:
    return record.started_at is not None and record.state != _WAITING


def _merged(runs: Sequence[dict[str, Any]], records: Sequence[JobRecord]) -> list[dict[str, Any]]:
    """The runs with what is new of them; a run keeps its number."""
    merged = {run["record_id"]: run for run in runs}
    for record in records:
        if not _ran(record):
            continue
        known = merged.get(record.record_id)
        run = _run(record, known["number"] if known else len(merged) + 1)
        merged[record.record_id] = {
            "record_id": record.record_id,
            **run.model_dump(mode="json"),
        }
    return sorted(merged.values(), key=lambda run: run["number"])


def _run(record: JobRecord, number: int) -> JobRun:
    assert record.started_at is not None, "only what ran is a run"
    # Elapsed time leaves suspensions out, in which others may have the GPUs.
    end = record.started_at + timedelta(seconds=record.elapsed_s)
    return JobRun(
        number=number,
        nodes=record.node_count,
        gpu_milli=record.gpus * MILLI,
        usage_from=record.started_at,
        usage_to=end if record.ended_at is not None else None,
    )


def runs_of(job: Job) -> list[JobRun]:
    """The runs of a row."""
    return [
        JobRun.model_validate({key: value for key, value in run.items() if key != "record_id"})
        for run in job.runs
    ]


def gpu_seconds(runs: Iterable[JobRun], now: datetime) -> Decimal:
    """What runs had of GPUs until ``now``, exact."""
    used = sum(
        run.gpu_milli
        * max(((run.usage_to or now) - run.usage_from) // timedelta(microseconds=1), 0)
        for run in runs
    )
    return Decimal(used) / (MILLI * 1_000_000)


def job_event(job: Job, now: datetime) -> Event:
    """``job.changed`` for a locked row whose version was raised."""
    facts = JobFacts(
        job_id=job.id,
        version=job.version,
        organization_id=job.organization_id,
        project_id=job.project_id,
        site_id=job.site_id,
        cluster_id=job.cluster_id,
        name=job.name,
        account=job.account,
        member=job.member,
        scheduler_id=job.scheduler_id,
        state=JobState(job.state),
        runs=tuple(runs_of(job)),
    )
    return Event(
        type="job.changed",
        resource_kind="job",
        resource_id=job.id,
        resource_version=job.version,
        at=now,
        data=facts.model_dump(mode="json"),
        organization_id=job.organization_id,
        project_id=job.project_id,
        site_id=job.site_id,
    )
