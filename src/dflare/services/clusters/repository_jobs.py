"""Queries of jobs; those of callers start from the caller's scope."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.errors import NotFoundError
from dflare.services.auth.contract import Scope
from dflare.services.clusters.contract import ClusterState, JobState
from dflare.services.clusters.domain_jobs import AGAIN, OPEN
from dflare.services.clusters.domain_scheduler import GONE
from dflare.services.clusters.tables import Cluster, Scheduler, SchedulerHost
from dflare.services.clusters.tables_jobs import Job, JobOutput, JobsFollowed


@dataclass(frozen=True)
class Followed:
    """A cluster whose jobs are followed. ``busy``: some have not ended; ``waiting``: some are to be
    submitted; ``gone``: nothing is left of its scheduler."""

    cluster_id: str
    site_id: str
    organization_id: str
    project_id: str
    account: str
    frozen: bool
    gone: bool
    busy: bool
    waiting: bool
    until: datetime | None


async def followed(session: AsyncSession) -> list[Followed]:
    """Clusters with a scheduler that lives, or with jobs that have not ended."""
    of_cluster = Job.cluster_id == Scheduler.cluster_id
    busy = exists().where(of_cluster, Job.state.in_(OPEN))
    waiting = exists().where(of_cluster, Job.state.in_([JobState.PENDING, JobState.SUBMITTING]))
    gone = (Scheduler.state == GONE) | (Cluster.state == ClusterState.DELETED)
    query = (
        select(
            Scheduler.cluster_id,
            Scheduler.site_id,
            Cluster.organization_id,
            Cluster.project_id,
            Scheduler.account,
            func.coalesce(SchedulerHost.frozen, False),
            gone,
            busy,
            waiting,
            JobsFollowed.until,
        )
        .join(Cluster, Cluster.id == Scheduler.cluster_id)
        .outerjoin(
            SchedulerHost,
            (SchedulerHost.site_id == Scheduler.site_id) & (SchedulerHost.name == Scheduler.host),
        )
        .outerjoin(JobsFollowed, JobsFollowed.cluster_id == Scheduler.cluster_id)
        .where((Scheduler.state != "") | busy, ~gone | busy)
        .order_by(Scheduler.cluster_id)
    )
    return [Followed(*row) for row in (await session.execute(query)).all()]


async def due(session: AsyncSession, cluster_id: str, now: datetime, limit: int) -> Sequence[str]:
    """Jobs to submit, oldest first: those that nobody has claimed, or whose claim is over."""
    query = select(Job.id).where(
        Job.cluster_id == cluster_id,
        (Job.state == JobState.PENDING)
        | ((Job.state == JobState.SUBMITTING) & (Job.claimed_until < now)),
    )
    return (await session.scalars(query.order_by(Job.id).limit(limit))).all()


async def lock(session: AsyncSession, job_id: str) -> Job:
    """A job, locked."""
    return await session.get_one(Job, job_id, with_for_update=True)


async def lock_numbers(
    session: AsyncSession, cluster_id: str, numbers: Sequence[str]
) -> dict[str, Job]:
    """Jobs by the scheduler's number, locked in the order of their ids."""
    query = (
        select(Job)
        .where(Job.cluster_id == cluster_id, Job.scheduler_id.in_(numbers))
        .order_by(Job.id)
        .with_for_update()
    )
    return {job.scheduler_id or "": job for job in await session.scalars(query)}


async def lock_open(session: AsyncSession, cluster_id: str, limit: int) -> Sequence[Job]:
    """Jobs that have not ended, locked."""
    query = (
        select(Job)
        .where(Job.cluster_id == cluster_id, Job.state.in_(OPEN))
        .order_by(Job.id)
        .limit(limit)
        .with_for_update()
    )
    return (await session.scalars(query)).all()


async def is_submitting(session: AsyncSession, cluster_id: str) -> bool:
    """Whether a job may be with the scheduler under a number that is not known yet."""
    query = select(exists().where(Job.cluster_id == cluster_id, Job.state == JobState.SUBMITTING))
    return bool(await session.scalar(query))


async def waiting_again(session: AsyncSession, cluster_id: str, limit: int) -> Sequence[Job]:
    """Jobs that are to run again, of which accounting may never tell more."""
    query = select(Job).where(
        Job.cluster_id == cluster_id,
        Job.state == JobState.SUBMITTED,
        Job.scheduler_state.in_(AGAIN),
    )
    return (await session.scalars(query.order_by(Job.id).limit(limit))).all()


async def unread(session: AsyncSession, cluster_id: str, before: datetime, limit: int) -> list[Job]:
    """Jobs submitted here whose output is to be read: those that ended, and those that run and
    were not read since ``before``."""
    ended = Job.state == JobState.ENDED
    late = Job.output_checked_at.is_(None) | (Job.output_checked_at < before)
    query = select(Job).where(
        Job.cluster_id == cluster_id,
        ~Job.direct,
        Job.output_state == "",
        ended | ((Job.state == JobState.RUNNING) & late),
    )
    order = (Job.output_checked_at.asc().nulls_first(), Job.id)
    return list((await session.scalars(query.order_by(*order).limit(limit))).all())


async def drop_output(session: AsyncSession, job: Job) -> None:
    """Forget what a locked job wrote; it is read again from its beginning."""
    await session.execute(delete(JobOutput).where(JobOutput.job_id == job.id))
    job.output_bytes, job.output_state, job.output_checked_at = 0, "", None


async def drop_outputs(session: AsyncSession, site_id: str, before: datetime) -> None:
    """Forget what jobs of a site wrote that ended before then."""
    old = select(Job.id).where(
        Job.site_id == site_id, Job.state == JobState.ENDED, Job.since < before
    )
    await session.execute(delete(JobOutput).where(JobOutput.job_id.in_(old)))


async def find(session: AsyncSession, scope: Scope, cluster_id: str, reference: str) -> Job:
    """A job of a cluster by id or by the scheduler's number.

    Raises:
        NotFoundError: none within the scope.
    """
    table = Job.__table__.c
    query = select(Job).where(
        scope.where(table.organization_id, table.project_id),
        Job.cluster_id == cluster_id,
        (Job.id == reference) | (Job.scheduler_id == reference),
    )
    found = (await session.scalars(query)).first()
    if found is None:
        raise NotFoundError(
            f"there is no job {reference} in this cluster",
            next_step="List them: dflare cluster jobs CLUSTER",
        )
    return found


async def page(
    session: AsyncSession, scope: Scope, cluster_id: str, after: str | None, limit: int
) -> list[Job]:
    """Jobs of a cluster, newest first, behind the job ``after``."""
    table = Job.__table__.c
    query = select(Job).where(
        scope.where(table.organization_id, table.project_id), Job.cluster_id == cluster_id
    )
    if after is not None:
        query = query.where(Job.id < after)
    return list((await session.scalars(query.order_by(Job.id.desc()).limit(limit))).all())


async def by_request(
    session: AsyncSession, cluster_id: str, created_by: str, request_key: str
) -> Job | None:
    """The job that a caller submitted under a key of its own."""
    query = select(Job).where(
        Job.cluster_id == cluster_id,
        Job.created_by == created_by,
        Job.request_key == request_key,
    )
    return (await session.scalars(query)).first()


async def output_pieces(
    session: AsyncSession, job_id: str, first: int, limit: int
) -> Sequence[JobOutput]:
    """The pieces of a job's output from the one that holds byte ``first`` on, enough for
    ``limit`` bytes."""
    start = (
        select(func.max(JobOutput.first))
        .where(JobOutput.job_id == job_id, JobOutput.first <= first)
        .scalar_subquery()
    )
    query = select(JobOutput).where(
        JobOutput.job_id == job_id, JobOutput.first >= start, JobOutput.first < first + limit
    )
    return (await session.scalars(query.order_by(JobOutput.first))).all()
