"""HTTP API of audits of the usage ledger, for the platform's people."""

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from dflare.kit.etag import etag_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Principal
from dflare.services.metering.domain_audits import AuditState, FindingKind
from dflare.services.metering.service_audits import AuditService
from dflare.services.metering.tables import UsageAudit

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


class AuditRequest(BaseModel):
    """What to audit: all usage that does not end before ``usage_since``; null for what the daily
    audit covers, which is the month of the day before."""

    model_config = ConfigDict(extra="forbid")
    usage_since: Annotated[AwareDatetime, Field(ge=_EARLIEST)] | None = None


class UsageAuditAnswer(BaseModel):
    """One comparison of the ledger with the allocations.

    ``day`` is that of the daily audit, null for one that was asked for. ``allocations`` and
    ``entries`` count what was compared, ``findings`` everything that was found; the first thousand
    of each sort are kept.
    """

    id: str
    day: date | None
    usage_since: datetime
    requested_by: str
    requested_at: datetime
    state: AuditState
    reason: str
    since: datetime
    deadline: datetime | None
    allocations: int
    entries: int
    findings: int
    version: int


class UsageFindingAnswer(BaseModel):
    """One finding. ``detail`` holds what the ledger and what the allocation say; ``overlap`` has
    the ``earlier`` entry and the ``ledger``'s later one."""

    number: int
    kind: FindingKind
    allocation_id: str
    node_id: str
    organization_id: str
    project_id: str
    detail: dict[str, Any]


def _audit(row: UsageAudit) -> UsageAuditAnswer:
    return UsageAuditAnswer.model_validate(row, from_attributes=True)


def router(audits: AuditService, principal: Callable[..., Awaitable[Principal]]) -> APIRouter:
    """The routes, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["metering"])

    @routes.get("/audits/usage")
    async def list_usage_audits(
        *, caller: Principal = Depends(principal), cursor: Cursor = None, limit: Limit = 100
    ) -> Page[UsageAuditAnswer]:
        """Audits of the usage ledger, newest first (operators and auditors)."""
        rows, more = await audits.audits(caller, decode_cursor(cursor), limit)
        return Page(items=[_audit(row) for row in rows], next_cursor=next_cursor(more))

    @routes.post("/audits/usage:run", status_code=202)
    async def run_usage_audit(
        *, caller: Principal = Depends(principal), body: AuditRequest | None = None
    ) -> UsageAuditAnswer:
        """Ask for an audit now (operators); read it until its state is ``clean`` or ``found``."""
        return _audit(await audits.request(caller, body.usage_since if body else None))

    @routes.get("/audits/usage/{audit}")
    async def show_usage_audit(
        *, response: Response, caller: Principal = Depends(principal), audit: str
    ) -> UsageAuditAnswer:
        """One audit (operators and auditors)."""
        row = await audits.audit(caller, audit)
        response.headers["ETag"] = etag_of(row.version)
        return _audit(row)

    @routes.get("/audits/usage/{audit}/findings")
    async def list_usage_findings(
        *,
        caller: Principal = Depends(principal),
        audit: str,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[UsageFindingAnswer]:
        """What an audit found (operators and auditors)."""
        rows, more = await audits.findings(caller, audit, decode_cursor(cursor), limit)
        return Page(
            items=[UsageFindingAnswer.model_validate(row, from_attributes=True) for row in rows],
            next_cursor=next_cursor(more),
        )

    return routes
