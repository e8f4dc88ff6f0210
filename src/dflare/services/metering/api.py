"""HTTP API of quotas, usage and invoices."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.etag import etag_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.metering.service import Invoice, MeteringService
from dflare.services.metering.tables import Quota

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


class InvoiceAnswer(BaseModel):
    """A draft invoice. Usage that still runs is counted until ``as_of``."""

    project_id: str
    project: str
    month: str
    state: str = "draft"
    as_of: datetime
    lines: list[LineAnswer]
    totals: dict[str, str]


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


def _quota(row: Quota) -> QuotaAnswer:
    return QuotaAnswer.model_validate(row, from_attributes=True)


def _invoice(invoice: Invoice) -> InvoiceAnswer:
    return InvoiceAnswer(
        project_id=invoice.project.id,
        project=invoice.project.name,
        month=invoice.month,
        as_of=invoice.as_of,
        lines=[
            LineAnswer(**{name: str(getattr(line, name)) for name in LineAnswer.model_fields})
            for line in invoice.lines
        ],
        totals={currency: str(amount) for currency, amount in invoice.totals.items()},
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

    return routes
