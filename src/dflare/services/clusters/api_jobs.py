"""HTTP API of the jobs of clusters that have a scheduler."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.clock import Clock
from dflare.kit.etag import etag_of
from dflare.kit.orders import IdempotencyKey
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.clusters.contract import JobState
from dflare.services.clusters.domain_jobs import MILLI, gpu_seconds, runs_of
from dflare.services.clusters.service_jobs import JobOrder, JobService
from dflare.services.clusters.tables_jobs import Job

Option = Annotated[str, Field(min_length=2, max_length=1000, pattern=r"^-[^\x00-\x1f\x7f]+$")]
Word = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Value = Annotated[str, Field(max_length=32_768, pattern=r"^[^\x00]*$")]


class JobBody(BaseModel):
    """A batch script for the cluster's scheduler. ``options`` are sbatch's, which win over lines of
    the script: ``--nodes=16``, ``--gres=gpu:8``. For whom the job is, is set by the platform."""

    model_config = ConfigDict(extra="forbid")
    script: str = Field(min_length=3, max_length=262_144, pattern=r"^#![^\x00]*$")
    name: str = Field(
        default="job", min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )
    options: list[Option] = Field(default_factory=list[Option], max_length=64)
    environment: dict[Word, Value] = Field(default_factory=dict[Word, Value], max_length=128)


class JobAnswer(BaseModel):
    """A job. ``scheduler_id`` is the scheduler's number, ``scheduler_state`` its own word.
    ``account`` and ``member`` are whom it is told for; ``direct``: it was submitted on the cluster
    itself. Nodes and GPUs are those of its latest run, ``gpu_seconds`` of all runs until now, a
    decimal string. ``exit_code`` is negative for a signal."""

    id: str
    cluster_id: str
    name: str
    state: JobState
    reason: str
    since: datetime
    scheduler_id: str | None
    scheduler_state: str
    account: str
    member: str
    submitted_by: str
    direct: bool
    runs: int
    nodes: int
    gpus: int
    gpu_seconds: str
    exit_code: int | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    output_bytes: int
    version: int


class OutputAnswer(BaseModel):
    """A part of what a job wrote, in bytes ``offset`` to ``next_offset``. ``state``: ``open`` while
    more may come; ``complete``; or ``truncated``: the job wrote more than is kept."""

    offset: int
    next_offset: int
    text: str
    state: str


def _job(job: Job, clock: Clock) -> JobAnswer:
    runs = runs_of(job)
    last = runs[-1] if runs else None
    names = set(JobAnswer.model_fields) & set(Job.__table__.c.keys()) - {"runs"}
    return JobAnswer.model_validate(
        {
            **{name: getattr(job, name) for name in names},
            "runs": len(runs),
            "nodes": last.nodes if last else 0,
            "gpus": last.gpu_milli // MILLI if last else 0,
            "gpu_seconds": format(gpu_seconds(runs, clock.now()), "f"),
            "started_at": runs[0].usage_from if runs else None,
            "ended_at": last.usage_to if last else None,
        }
    )


def router(
    jobs: JobService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["jobs"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    @routes.post("/projects/{project}/clusters/{cluster}/jobs", status_code=202)
    async def submit_job(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        body: JobBody,
        key: IdempotencyKey = None,
    ) -> JobAnswer:
        """Submit a batch job; read it until it has ended."""
        order = JobOrder(body.script, body.name, tuple(body.options), body.environment)
        return _job(await jobs.submit(caller, project, cluster, order, key), jobs.clock)

    @routes.get("/projects/{project}/clusters/{cluster}/jobs")
    async def list_jobs(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[JobAnswer]:
        """Jobs of a cluster, newest first, those submitted on the cluster itself among them."""
        rows, more = await jobs.jobs(caller, project, cluster, decode_cursor(cursor), limit)
        return Page(items=[_job(row, jobs.clock) for row in rows], next_cursor=next_cursor(more))

    @routes.get("/projects/{project}/clusters/{cluster}/jobs/{job}")
    async def show_job(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        job: str,
    ) -> JobAnswer:
        """One job, by id or by the scheduler's number."""
        row = await jobs.job(caller, project, cluster, job)
        response.headers["ETag"] = etag_of(row.version, row.id)
        return _job(row, jobs.clock)

    @routes.get("/projects/{project}/clusters/{cluster}/jobs/{job}/output")
    async def read_job_output(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cluster: str,
        job: str,
        offset: Annotated[int, Query(ge=0, le=2**31, description="From this byte on")] = 0,
        limit: Annotated[int, Query(ge=1, le=262_144, description="Bytes at most")] = 65_536,
    ) -> OutputAnswer:
        """What a job wrote, as far as it was read."""
        output = await jobs.output(caller, project, cluster, job, offset, limit)
        return OutputAnswer(
            offset=output.offset,
            next_offset=output.offset + len(output.content),
            text=output.content.decode(errors="replace"),
            state=output.state if output.offset + len(output.content) >= output.kept else "open",
        )

    return routes
