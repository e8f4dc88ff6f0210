"""Jobs of a project's clusters: submitted, listed, and what they wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ConflictError, InvalidError
from dflare.kit.ids import new_id
from dflare.kit.outbox import AuditRecord
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.clusters import repository, repository_jobs
from dflare.services.clusters.contract import SLURM, ClusterState, JobState
from dflare.services.clusters.domain_jobs import job_event, not_a_members
from dflare.services.clusters.errors import NoSchedulerError
from dflare.services.clusters.tables import KIT, Cluster, Scheduler
from dflare.services.clusters.tables_jobs import Job

SCHEMA = "clusters"


@dataclass(frozen=True)
class JobOrder:
    """A batch job. ``options`` are sbatch's own."""

    script: str
    name: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Output:
    """A part of what a job wrote, from byte ``offset`` on. ``state``: ``open`` while more may come,
    ``complete`` or ``truncated`` once ``kept`` bytes are all that are kept."""

    offset: int
    content: bytes
    kept: int
    state: str


@dataclass(frozen=True)
class JobService:
    """Takes jobs in as rows; the site's worker submits and follows them."""

    database: Database
    clock: Clock
    authorizer: Authorizer

    async def submit(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        order: JobOrder,
        request_key: str | None,
    ) -> Job:
        """Take a job in for a cluster with a scheduler. It bills the project, for this member. A
        repeat under the same key is the same job.

        Raises:
            NotFoundError: no such cluster that the caller may read.
            ForbiddenError: the caller may not work on it.
            NoSchedulerError: the cluster runs no jobs, or not now.
            InvalidError: an option is not for a member to set.
            ConflictError: the key was used for another job.
        """
        cluster = await self._cluster(principal, project, reference, "cluster:update")
        _check_options(order.options)
        if request_key is not None and (
            known := await self._known(cluster, principal, request_key)
        ):
            return _same(known, order)
        if cluster.kind != SLURM:
            raise NoSchedulerError(
                f"cluster {cluster.name} has no scheduler",
                next_step="Order one that has: dflare cluster create NAME --kind slurm",
            )
        if ClusterState(cluster.state) not in {ClusterState.READY, ClusterState.RESIZING}:
            raise NoSchedulerError(
                f"cluster {cluster.name} is {cluster.state}",
                next_step="Submit when it is ready: dflare cluster show",
            )
        try:
            return await self._store(principal, cluster, order, request_key)
        except IntegrityError:
            # The same request came twice at once; the other one was stored.
            found = await self._known(cluster, principal, request_key or "")
            if found is None:
                raise
            return _same(found, order)

    async def jobs(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[Job], str | None]:
        """A page of a cluster's jobs, newest first, those submitted directly among them, and the
        id to go on behind where there are more.

        Raises:
            NotFoundError: no such cluster that the caller may read.
        """
        cluster = await self._cluster(principal, project, reference, "cluster:read")
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository_jobs.page(session, scope, cluster.id, after, limit + 1)
        shown, last = cut(rows, limit)
        return shown, last.id if last else None

    async def job(self, principal: Principal, project: ProjectRef, reference: str, job: str) -> Job:
        """A job by id, or by the scheduler's number.

        Raises:
            NotFoundError: none that the caller may read.
        """
        cluster = await self._cluster(principal, project, reference, "cluster:read")
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            return await repository_jobs.find(session, scope, cluster.id, job)

    async def output(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        job: str,
        offset: int,
        limit: int,
    ) -> Output:
        """At most ``limit`` bytes of what a job wrote, from byte ``offset`` on.

        Raises:
            NotFoundError: no such job that the caller may read.
            ConflictError: the job was submitted directly; its output is a file of its member's.
        """
        found = await self.job(principal, project, reference, job)
        if found.direct:
            raise ConflictError(
                f"job {found.scheduler_id} was submitted on the cluster itself",
                next_step="Read its output there: it is a file in the directory of its submission.",
            )
        async with self.database.reading(SCHEMA) as session:
            pieces = await repository_jobs.output_pieces(session, found.id, offset, limit)
        first = pieces[0].first if pieces else offset
        content = b"".join(piece.content for piece in pieces)[offset - first :][:limit]
        over = found.output_state or ("complete" if found.state == JobState.REFUSED else "open")
        return Output(offset, content, found.output_bytes, over)

    async def _cluster(
        self, principal: Principal, project: ProjectRef, reference: str, action: str
    ) -> Cluster:
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            cluster = await repository.find(session, scope, Cluster, project.id, reference)
        await self.authorizer.check(
            principal,
            action,
            Resource("cluster", cluster.id, cluster.organization_id, cluster.project_id),
        )
        return cluster

    async def _known(self, cluster: Cluster, principal: Principal, key: str) -> Job | None:
        async with self.database.reading(SCHEMA) as session:
            return await repository_jobs.by_request(session, cluster.id, principal.subject, key)

    async def _store(
        self, principal: Principal, cluster: Cluster, order: JobOrder, request_key: str | None
    ) -> Job:
        now = self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            scheduler = await session.get_one(Scheduler, cluster.id)
            job = Job(
                id=new_id("job"),
                organization_id=cluster.organization_id,
                project_id=cluster.project_id,
                site_id=cluster.site_id,
                cluster_id=cluster.id,
                name=order.name,
                account=scheduler.account,
                member=principal.subject,
                direct=False,
                script=order.script,
                options=list(order.options),
                environment=dict(order.environment or {}),
                state=JobState.PENDING,
                reason="",
                since=now,
                scheduler_state="",
                runs=[],
                output_bytes=0,
                output_state="",
                request_key=request_key,
                created_by=principal.subject,
                submitted_by=principal.name,
                created_at=now,
                version=1,
            )
            session.add(job)
            await session.flush()
            await outbox.emit(session, KIT, [job_event(job, now)])
            record = AuditRecord(
                at=now,
                principal=principal.subject,
                action="cluster:submit_job",
                resource_kind="job",
                resource_id=job.id,
                organization_id=cluster.organization_id,
                project_id=cluster.project_id,
                detail={"cluster_id": cluster.id, "name": order.name},
            )
            await outbox.record_audit(session, KIT, record)
        return job


def _check_options(options: Sequence[str]) -> None:
    for option in options:
        if not option.startswith("-"):
            raise InvalidError(
                f"{option!r} is no option of sbatch",
                next_step="Write each option with its value, such as --nodes=16.",
            )
        if not_a_members(option):
            raise InvalidError(
                f"{option} is set for you",
                next_step="Leave out --account, --wckey, --comment, --parsable and --job-name; "
                "the job's name is a field of its own.",
            )


def _same(known: Job, order: JobOrder) -> Job:
    asked = (order.script, order.name, list(order.options), dict(order.environment or {}))
    if (known.script, known.name, known.options, known.environment) != asked:
        raise ConflictError(
            "this Idempotency-Key was used for another job",
            next_step="Choose a new key for a new job.",
        )
    return known
