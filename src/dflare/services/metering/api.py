"""HTTP API of quotas, usage and invoices."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.etag import etag_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.metering.service import Invoice, MeteringService
from dflare.services.metering.tables import Quota

Answer = TypeVar("Answer", bound=BaseModel)
Month = Annotated[str, Query(description="YYYY-MM, in UTC")]


class QuotaBody(BaseModel):
    """How many nodes of the type the project may hold at once."""

    model_config = ConfigDict(extra="forbid")
    nodes: int = Field(ge=0, le=1_000_000)


class QuotaAnswer(BaseModel):
    """A limit."""

    node_type: str
    nodes: int
    updated_by: str
    updated_at: datetime
    version: int


class QuotaList(BaseModel):
    """All limits of a project."""

    items: list[QuotaAnswer]


class LineAnswer(BaseModel):
    """A line of an invoice; quantities and money are decimal strings."""

    cluster_id: str
    site_id: str
    node_type: str
    price_per_node_hour: str
    currency: str
    node_seconds: str
    gpu_seconds: str
    amount: str


class VolumeLineAnswer(BaseModel):
    """What a volume costs; quantities and money are decimal strings."""

    volume_id: str
    site_id: str
    price_per_gib_hour: str
    currency: str
    gib_seconds: str
    amount: str


class JobLineAnswer(BaseModel):
    """What the jobs of one member (the scheduler's wckey, empty where a job named none) had of a
    cluster's GPUs, in so many runs. It is part of what the nodes cost."""

    cluster_id: str
    account: str
    member: str
    runs: int
    gpu_seconds: str


class InvoiceAnswer(BaseModel):
    """A draft invoice. Usage that still runs is counted until ``as_of``. ``totals`` add up
    ``lines`` and ``volumes``."""

    project_id: str
    project: str
    month: str
    state: str = "draft"
    as_of: datetime
    lines: list[LineAnswer]
    volumes: list[VolumeLineAnswer]
    jobs: list[JobLineAnswer]
    totals: dict[str, str]
    notes: list[str]


class UsageAnswer(BaseModel):
    """One interval of one node, UTC wall time; ``usage_to`` is null while it runs."""

    allocation_id: str
    cluster_id: str
    node_id: str
    node_name: str
    node_type: str
    gpus: int
    usage_from: datetime
    usage_to: datetime | None


class VolumeUsageAnswer(BaseModel):
    """One interval of one size of a volume, UTC wall time; ``usage_to`` is null while it is."""

    interval_id: str
    volume_id: str
    site_id: str
    size_gib: int
    usage_from: datetime
    usage_to: datetime | None


class RegistryUsageAnswer(BaseModel):
    """What a project's repositories held from one moment to another, UTC wall time; ``usage_to`` is
    null while they do."""

    interval_id: str
    stored_bytes: int
    usage_from: datetime
    usage_to: datetime | None


class JobUsageAnswer(BaseModel):
    """One run of a job, UTC wall time as the scheduler's accounting says; ``usage_to`` is null
    while it runs. ``gpu_milli`` are thousandths of a GPU."""

    job_id: str
    run: int
    cluster_id: str
    scheduler_id: str
    name: str
    account: str
    member: str
    nodes: int
    gpu_milli: int
    usage_from: datetime
    usage_to: datetime | None


def _quota(row: Quota) -> QuotaAnswer:
    return QuotaAnswer.model_validate(row, from_attributes=True)


def _invoice(invoice: Invoice) -> InvoiceAnswer:
    return InvoiceAnswer(
        project_id=invoice.project.id,
        project=invoice.project.name,
        month=invoice.month,
        as_of=invoice.as_of,
        lines=[_texts(LineAnswer, line) for line in invoice.lines],
        volumes=[_texts(VolumeLineAnswer, line) for line in invoice.volumes],
        jobs=[_texts(JobLineAnswer, line) for line in invoice.jobs],
        notes=invoice.notes,
        totals={currency: str(amount) for currency, amount in invoice.totals.items()},
    )


def _texts(answer: type[Answer], line: object) -> Answer:
    """A line with its decimals as text, as JSON has no exact numbers."""
    values = {name: getattr(line, name) for name in answer.model_fields}
    return answer.model_validate(
        {name: format(v, "f") if isinstance(v, Decimal) else v for name, v in values.items()}
    )


def router(
    metering: MeteringService,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["metering"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    @routes.get("/projects/{project}/quotas")
    async def list_quotas(
        caller: Principal = Depends(principal), project: ProjectRef = Depends(project_of)
    ) -> QuotaList:
        """The limits of a project; a type without one cannot be ordered."""
        return QuotaList(items=[_quota(row) for row in await metering.quotas(caller, project)])

    @routes.put("/projects/{project}/quotas/{node_type}")
    async def set_quota(
        *,
        response: Response,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        node_type: str,
        body: QuotaBody,
    ) -> QuotaAnswer:
        """Set a limit (operators)."""
        row = await metering.set_quota(caller, project, node_type, body.nodes)
        response.headers["ETag"] = etag_of(row.version)
        return _quota(row)

    @routes.get("/projects/{project}/invoices/{month}")
    async def show_invoice(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        month: str,
    ) -> InvoiceAnswer:
        """The draft invoice of a month."""
        return _invoice(await metering.invoice(caller, project, month))

    @routes.get("/projects/{project}/usage")
    async def list_usage(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        month: Month,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[UsageAnswer]:
        """The ledger behind an invoice."""
        rows, more = await metering.usage(caller, project, month, decode_cursor(cursor), limit)
        return Page(
            items=[UsageAnswer.model_validate(row, from_attributes=True) for row in rows],
            next_cursor=next_cursor(more),
        )

    @routes.get("/projects/{project}/usage/volumes")
    async def list_volume_usage(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        month: Month,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[VolumeUsageAnswer]:
        """The intervals of volumes behind an invoice."""
        rows, more = await metering.volume_usage(
            caller, project, month, decode_cursor(cursor), limit
        )
        return Page(
            items=[VolumeUsageAnswer.model_validate(row, from_attributes=True) for row in rows],
            next_cursor=next_cursor(more),
        )

    @routes.get("/projects/{project}/usage/registry")
    async def list_registry_usage(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        month: Month,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[RegistryUsageAnswer]:
        """What the repositories of a project held, and for how long."""
        rows, more = await metering.registry_usage(
            caller, project, month, decode_cursor(cursor), limit
        )
        return Page(
            items=[RegistryUsageAnswer.model_validate(row, from_attributes=True) for row in rows],
            next_cursor=next_cursor(more),
        )

    @routes.get("/projects/{project}/usage/jobs")
    async def list_job_usage(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        month: Month,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[JobUsageAnswer]:
        """What each run of a job had of the project's clusters."""
        rows, more = await metering.job_usage(caller, project, month, decode_cursor(cursor), limit)
        return Page(
            items=[JobUsageAnswer.model_validate(row, from_attributes=True) for row in rows],
            next_cursor=next_cursor(more),
        )

    return routes
