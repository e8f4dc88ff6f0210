"""The one actor on the jobs of a site's clusters: submits what members asked for, follows the
scheduler's own accounting, and keeps what jobs wrote.

A submission cannot be repeated safely at the scheduler. So a job is claimed in a transaction before
it is submitted, and one whose claim ended without an answer is looked for by its comment first.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Protocol

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.scheduler.port import (
    JobRecord,
    JobScript,
    NoSuchClusterError,
    SchedulerError,
    SchedulerHostDriver,
    SchedulerNotReadyError,
    SchedulerRefusedError,
)
from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.lease import Lease
from dflare.kit.telemetry import log
from dflare.services.clusters import domain_jobs, repository_jobs
from dflare.services.clusters.contract import JobState
from dflare.services.clusters.repository_jobs import Followed
from dflare.services.clusters.tables import KIT
from dflare.services.clusters.tables_jobs import Job, JobOutput, JobsFollowed

SCHEMA = "clusters"
LOOK_EVERY_S = 1.0
BUSY_EVERY_S = 2.0
IDLE_EVERY_S = 10.0
"""How often the accounting of a cluster is read while jobs of it have not ended, and otherwise."""
AFTER_FAILURE_S = 5.0
CLAIM_S = 90.0
"""Longer than the driver waits for a submission, with the host's own time for it."""
LEASE_S = 20.0
OVERLAP = timedelta(minutes=10)
"""Accounting is read again from so long before it was last read: its clock is the host's, and it
hears late of jobs when its database was away."""
AT_ONCE = 8
BATCH = 200
OUTPUT_PIECE = 64 * 1024
OUTPUT_MOST = 1024 * 1024
OUTPUT_EVERY = timedelta(seconds=5)
OUTPUT_KEPT = timedelta(days=30)
DROP_EVERY = timedelta(hours=1)

_COMMENT = "dflare:"
_MARKED = ("squeue", "--noheader", "--states=all", "--format=%F|%k")
_STATES = ("squeue", "--noheader", "--states=all", "--format=%F|%T")
_LIVING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", *domain_jobs.AGAIN)
_MARKED_BEFORE = (
    "sacct",
    "--allusers",
    "--allocations",
    "--noheader",
    "--parsable2",
    "--starttime=now-7days",
    "--format=JobID,SubmitLine",
)


class Hosts(Protocol):
    """Finds the driver of the host that runs a cluster's scheduler."""

    async def of_cluster(self, cluster_id: str) -> SchedulerHostDriver:
        """Raises ``NoSuchClusterError`` where the cluster has none."""
        ...


@dataclass
class JobReconciler:
    """``run`` until cancelled; ``look`` is one pass over the clusters that are due. ``holder``
    names this process among all."""

    database: Database
    clock: Clock
    hosts: Hosts
    holder: str
    _not_before: dict[str, datetime] = field(default_factory=dict[str, datetime])
    _leases: dict[str, Lease] = field(default_factory=dict[str, Lease])
    _dropped: dict[str, datetime] = field(default_factory=dict[str, datetime])

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                pause_s = LOOK_EVERY_S
                try:
                    await self.look()
                except Exception as error:
                    log.exception("jobs_look_failed", error=str(error))
                    pause_s = AFTER_FAILURE_S
                await asyncio.sleep(pause_s)
        finally:
            for lease in self._leases.values():
                await asyncio.shield(lease.give_back())

    async def look(self) -> None:
        """One pass over every site whose lease can be had."""
        async with self.database.reading(SCHEMA) as session:
            every = await repository_jobs.followed(session)
        now = self.clock.now()
        sites: defaultdict[str, list[Followed]] = defaultdict(list)
        for one in every:
            if one.waiting or one.gone or self._not_before.get(one.cluster_id, now) <= now:
                sites[one.site_id].append(one)
        for site_id, clusters in sites.items():
            lease = self._leases.setdefault(
                site_id, Lease(self.database, f"jobs/{site_id}", self.holder, LEASE_S)
            )
            if not await lease.take():
                continue
            for start in range(0, len(clusters), AT_ONCE):
                await asyncio.gather(*map(self._follow, clusters[start : start + AT_ONCE]))
                await lease.take()
            await self._drop_old_outputs(site_id)

    async def _follow(self, cluster: Followed) -> None:
        """Everything about one cluster; a host that does not answer is asked again later."""
        now = self.clock.now()
        if cluster.gone:
            await self._close(cluster)
            return
        pause_s = BUSY_EVERY_S if cluster.busy else IDLE_EVERY_S
        try:
            driver = await self.hosts.of_cluster(cluster.cluster_id)
            if cluster.waiting and not cluster.frozen:
                await self._submit_waiting(cluster, driver)
            since = cluster.until - OVERLAP if cluster.until else None
            records = await driver.jobs(cluster.cluster_id, since)
            await self._record(cluster, records, now)
            await self._ask_of_waiting(cluster, driver)
            await self._read_outputs(cluster, driver)
        except (SchedulerError, TimeoutError) as error:
            quiet = isinstance(error, NoSuchClusterError | SchedulerNotReadyError)
            say = log.debug if quiet else log.warning
            say("jobs_wait", cluster_id=cluster.cluster_id, error=str(error)[:300])
            pause_s = AFTER_FAILURE_S
        self._not_before[cluster.cluster_id] = now + timedelta(seconds=pause_s)

    async def _submit_waiting(self, cluster: Followed, driver: SchedulerHostDriver) -> None:
        async with self.database.reading(SCHEMA) as session:
            due = await repository_jobs.due(session, cluster.cluster_id, self.clock.now(), AT_ONCE)
        for job_id in due:
            await self._submit(job_id, driver)

    async def _submit(self, job_id: str, driver: SchedulerHostDriver) -> None:
        """Submit one job, or find that it was submitted before."""
        claimed = await self._claim(job_id)
        if claimed is None:
            return
        job, again = claimed
        number = await _find_marked(driver, job) if again else None
        try:
            number = number or await driver.submit(job.cluster_id, _script_of(job))
        except SchedulerRefusedError as error:
            await self._change(job_id, partial(_refuse, reason=str(error)))
            return
        except SchedulerNotReadyError:
            await self._change(job_id, _unclaim, tell=False)
            raise
        await self._change(job_id, partial(_submitted, number=number))

    async def _claim(self, job_id: str) -> tuple[Job, bool] | None:
        """The job, from now on this worker's to submit, and whether somebody tried before."""
        now = self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            job = await repository_jobs.lock(session, job_id)
            again = job.state == JobState.SUBMITTING
            if again and job.claimed_until is not None and job.claimed_until >= now:
                return None
            if not again and job.state != JobState.PENDING:
                return None
            domain_jobs.move(job, JobState.SUBMITTING, now)
            job.claimed_until = now + timedelta(seconds=CLAIM_S)
        return job, again

    async def _change(
        self, job_id: str, change: Callable[[Job, datetime], None], *, tell: bool = True
    ) -> None:
        now = self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            job = await repository_jobs.lock(session, job_id)
            if job.state != JobState.SUBMITTING:
                return
            change(job, now)
            if tell:
                job.version += 1
                await session.flush()
                await outbox.emit(session, KIT, [domain_jobs.job_event(job, now)])

    async def _record(self, cluster: Followed, records: Sequence[JobRecord], now: datetime) -> None:
        """Take what accounting says into the rows, and remember until when it was read."""
        left = iter(domain_jobs.by_job(records).items())
        whole = True
        while batch := dict(islice(left, BATCH)):
            async with self.database.transaction(SCHEMA) as session:
                whole = await self._record_batch(session, cluster, batch, now) and whole
        if whole:
            statement = insert(JobsFollowed).values(cluster_id=cluster.cluster_id, until=now)
            async with self.database.transaction(SCHEMA) as session:
                await session.execute(
                    statement.on_conflict_do_update(
                        index_elements=["cluster_id"], set_={"until": now}
                    )
                )

    async def _record_batch(
        self,
        session: AsyncSession,
        cluster: Followed,
        batch: dict[str, list[JobRecord]],
        now: datetime,
    ) -> bool:
        """Whether all of the batch was taken in: a job of an unknown number may be one that is
        being submitted, and waits until that is known."""
        known = await repository_jobs.lock_numbers(session, cluster.cluster_id, list(batch))
        unknown = [number for number in batch if number not in known]
        hold_back = bool(unknown) and await repository_jobs.is_submitting(
            session, cluster.cluster_id
        )
        changed: list[Job] = []
        for number, records in batch.items():
            job = known.get(number)
            if job is None:
                if hold_back:
                    continue
                job = _direct_job(cluster, number, records, now)
                session.add(job)
                await session.flush()
            had = len(job.runs)
            if domain_jobs.fold(job, records, now):
                changed.append(job)
            if 0 < had < len(job.runs):
                # A job that runs again writes its output anew.
                await repository_jobs.drop_output(session, job)
        await session.flush()
        await outbox.emit(session, KIT, [domain_jobs.job_event(job, now) for job in changed])
        return not hold_back

    async def _ask_of_waiting(self, cluster: Followed, driver: SchedulerHostDriver) -> None:
        """Jobs that were queued again may be cancelled before they run, of which accounting does
        not hear: the controller is asked."""
        async with self.database.reading(SCHEMA) as session:
            jobs = await repository_jobs.waiting_again(session, cluster.cluster_id, BATCH)
        if not jobs:
            return
        said = await driver.run(cluster.cluster_id, _STATES)
        if said.code:
            return
        words = dict(line.strip().split("|", 1) for line in said.stdout.splitlines() if "|" in line)
        now = self.clock.now()
        for seen in jobs:
            word = words.get(seen.scheduler_id or "", "")
            if word in _LIVING:
                continue
            async with self.database.transaction(SCHEMA) as session:
                job = await repository_jobs.lock(session, seen.id)
                if job.version == seen.version:
                    domain_jobs.give_up(job, word, now)
                    await session.flush()
                    await outbox.emit(session, KIT, [domain_jobs.job_event(job, now)])

    async def _read_outputs(self, cluster: Followed, driver: SchedulerHostDriver) -> None:
        before = self.clock.now() - OUTPUT_EVERY
        async with self.database.reading(SCHEMA) as session:
            jobs = await repository_jobs.unread(session, cluster.cluster_id, before, AT_ONCE)
        for job in jobs:
            try:
                content = await driver.output(
                    job.cluster_id, job.scheduler_id or "", job.output_bytes, OUTPUT_PIECE
                )
            except SchedulerRefusedError:
                # Nobody knows any more where it wrote; what was read is all there will be.
                content = b""
            await self._keep_output(job, content)

    async def _keep_output(self, seen: Job, content: bytes) -> None:
        """Add a piece behind what is kept, unless another worker has."""
        now = self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            job = await repository_jobs.lock(session, seen.id)
            if job.output_bytes != seen.output_bytes:
                return
            job.output_checked_at = now
            if content:
                session.add(JobOutput(job_id=job.id, first=job.output_bytes, content=content))
                job.output_bytes += len(content)
            if job.output_bytes >= OUTPUT_MOST:
                job.output_state = "truncated"
            elif len(content) < OUTPUT_PIECE and seen.state == JobState.ENDED:
                job.output_state = "complete"

    async def _close(self, cluster: Followed) -> None:
        """End the jobs of a cluster of whose scheduler nothing is left."""
        now = self.clock.now()
        until = cluster.until or now
        async with self.database.transaction(SCHEMA) as session:
            jobs = await repository_jobs.lock_open(session, cluster.cluster_id, BATCH)
            for job in jobs:
                domain_jobs.close(job, until, now, "its cluster was released")
            await session.flush()
            await outbox.emit(session, KIT, [domain_jobs.job_event(job, now) for job in jobs])

    async def _drop_old_outputs(self, site_id: str) -> None:
        now = self.clock.now()
        if now - self._dropped.get(site_id, now - DROP_EVERY) < DROP_EVERY:
            return
        async with self.database.transaction(SCHEMA) as session:
            await repository_jobs.drop_outputs(session, site_id, now - OUTPUT_KEPT)
        self._dropped[site_id] = now


def _script_of(job: Job) -> JobScript:
    return JobScript(
        content=job.script or "",
        name=job.name,
        options=(*job.options, f"--comment={_COMMENT}{job.id}"),
        account=job.account,
        wckey=job.member,
        environment=job.environment,
    )


async def _find_marked(driver: SchedulerHostDriver, job: Job) -> str | None:
    """The number of a job that was submitted without our hearing of it, if it was: the controller
    knows it for some minutes after its end, accounting keeps the line that submitted it."""
    mark = f"{_COMMENT}{job.id}"
    for argv in (_MARKED, _MARKED_BEFORE):
        said = await driver.run(job.cluster_id, argv)
        if said.code:
            raise SchedulerError(f"{argv[0]}: {said.stderr.strip()[:300]}")
        for line in said.stdout.splitlines():
            number, _, rest = line.partition("|")
            if {mark, f"--comment={mark}"} & set(rest.split()):
                return number.partition("_")[0]
    return None


def _refuse(job: Job, now: datetime, reason: str) -> None:
    domain_jobs.move(job, JobState.REFUSED, now, reason)
    job.claimed_until = None


def _unclaim(job: Job, now: datetime) -> None:
    """The scheduler took nothing: whoever is next need not wait for the claim's end. Whether an
    earlier try was heard of stays open, so the job stays claimed."""
    job.claimed_until = now - timedelta(microseconds=1)


def _submitted(job: Job, now: datetime, number: str) -> None:
    domain_jobs.move(job, JobState.SUBMITTED, now)
    job.scheduler_id, job.claimed_until = number, None


def _direct_job(cluster: Followed, number: str, records: Sequence[JobRecord], now: datetime) -> Job:
    """A job that nobody submitted here: it is the project's all the same."""
    first = records[0]
    return Job(
        id=new_id("job"),
        organization_id=cluster.organization_id,
        project_id=cluster.project_id,
        site_id=cluster.site_id,
        cluster_id=cluster.cluster_id,
        name=first.name,
        account=first.account or cluster.account,
        member=first.wckey,
        direct=True,
        script=None,
        options=[],
        environment={},
        state=JobState.SUBMITTED,
        reason="",
        since=now,
        scheduler_id=number,
        scheduler_state="",
        runs=[],
        output_bytes=0,
        output_state="",
        created_by="",
        submitted_by="",
        created_at=first.submitted_at or now,
        version=0,
    )
