"""HTTP API of operations and allocations."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from dflare.kit.etag import etag_of
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.kit.plan import OperationState
from dflare.kit.tables import KitTables
from dflare.services.auth.contract import Authorizer, Principal
from dflare.services.orchestrator import api_reservations
from dflare.services.orchestrator.contract import AllocationState
from dflare.services.orchestrator.repository import ListFilter
from dflare.services.orchestrator.service import OrchestratorService
from dflare.services.orchestrator.service_operations import OperationDesk, SpanNode
from dflare.services.orchestrator.service_reservations import ReservationService
from dflare.services.orchestrator.tables import Allocation

Project = Annotated[str | None, Query(description="Id or name of a project")]


class StepAnswer(BaseModel):
    """A step: ``planned``, ``running``, ``done``, ``failed``, ``undoing``, ``undone`` or
    ``needs_operator``; ``done`` and ``failed`` count its targets."""

    index: int
    name: str
    state: str
    total: int
    done: int
    failed: int
    message: str
    started_at: datetime | None
    finished_at: datetime | None


class OperationAnswer(BaseModel):
    """An operation with its steps. ``targets`` counts its nodes."""

    id: str
    service: str
    kind: str
    organization_id: str | None
    project_id: str | None
    site_id: str | None
    resource_kind: str
    resource_id: str
    state: OperationState
    reason: str
    since: datetime
    attempt: int
    cancel_requested: bool
    targets: int
    created_by: str
    created_at: datetime
    finished_at: datetime | None
    version: int
    steps: list[StepAnswer]


class SpanAnswer(BaseModel):
    """A span and those that it caused."""

    span_id: str
    name: str
    process: str
    started_at: datetime
    duration_ms: float
    error: str | None
    attributes: dict[str, Any]
    children: list["SpanAnswer"]


class TraceAnswer(BaseModel):
    """What was done for an operation, from the API to the devices."""

    operation_id: str
    spans: list[SpanAnswer]


class AllocationAnswer(BaseModel):
    """A node's membership in an order; it is billed from ``usage_from`` to ``usage_to``."""

    id: str
    state: AllocationState
    since: datetime
    reason: str
    node_id: str
    node_name: str
    node_type: str
    gpus: int
    site_id: str
    organization_id: str
    project_id: str
    cluster_id: str
    pool: str
    operation_id: str
    epoch: int
    expires_at: datetime | None
    usage_from: datetime | None
    usage_to: datetime | None
    created_at: datetime
    version: int


def _allocation_answer(row: Allocation) -> AllocationAnswer:
    return AllocationAnswer.model_validate(row, from_attributes=True)


def _span_answer(node: SpanNode) -> SpanAnswer:
    return SpanAnswer(
        span_id=node.span_id,
        name=node.name,
        process=node.process,
        started_at=node.started_at,
        duration_ms=round(node.duration_ms, 3),
        error=node.error,
        attributes=dict(node.attributes),
        children=[_span_answer(child) for child in node.children],
    )


def router(
    orchestrator: OrchestratorService,
    ordering: Mapping[str, KitTables],
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """The routes, relative to ``/v1``. ``ordering`` are the schemas that hold operations."""
    routes = APIRouter()
    desk = OperationDesk(orchestrator, ordering, authorizer)

    def project_id(caller: Principal, reference: str | None) -> str | None:
        if reference is None:
            return None
        return authorizer.project(authorizer.scope(caller), reference).id

    @routes.get("/operations", tags=["operations"])
    async def list_operations(
        *,
        caller: Principal = Depends(principal),
        project: Project = None,
        state: OperationState | None = None,
        kind: str | None = None,
        resource: Annotated[str | None, Query(description="Id of what was ordered")] = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[OperationAnswer]:
        """Operations that the caller may read, newest first."""
        wanted = ListFilter(
            after=decode_cursor(cursor),
            limit=limit,
            project_id=project_id(caller, project),
            state=state,
            kind=kind,
            resource_id=resource,
        )
        documents, more = await desk.list_operations(caller, wanted)
        return Page(
            items=[OperationAnswer.model_validate(one) for one in documents],
            next_cursor=next_cursor(more),
        )

    @routes.get("/operations/{operation}", tags=["operations"])
    async def show_operation(
        *, response: Response, caller: Principal = Depends(principal), operation: str
    ) -> OperationAnswer:
        """One operation with its steps."""
        document = await desk.get(caller, operation)
        response.headers["ETag"] = etag_of(document["version"])
        return OperationAnswer.model_validate(document)

    @routes.get("/operations/{operation}/trace", tags=["operations"])
    async def trace_operation(
        *, caller: Principal = Depends(principal), operation: str
    ) -> TraceAnswer:
        """What was done for an operation, from the API to the devices."""
        spans = await desk.trace(caller, operation)
        return TraceAnswer(operation_id=operation, spans=[_span_answer(span) for span in spans])

    @routes.post("/operations/{operation}/cancel", status_code=202, tags=["operations"])
    async def cancel_operation(
        *, caller: Principal = Depends(principal), operation: str
    ) -> OperationAnswer:
        """Undo an operation that has not gone past its commit step."""
        return OperationAnswer.model_validate(await desk.cancel(caller, operation))

    @routes.post("/operations/{operation}/retry", status_code=202, tags=["operations"])
    async def retry_operation(
        *, caller: Principal = Depends(principal), operation: str
    ) -> OperationAnswer:
        """Begin a failed operation again; an order reserves its nodes anew."""
        return OperationAnswer.model_validate(await desk.retry(caller, operation))

    @routes.post("/operations/{operation}/resume", status_code=202, tags=["operations"])
    async def resume_operation(
        *, caller: Principal = Depends(principal), operation: str
    ) -> OperationAnswer:
        """Go on with an operation that needs an operator, once the cause is removed."""
        return OperationAnswer.model_validate(await desk.resume(caller, operation))

    @routes.get("/allocations", tags=["allocations"])
    async def list_allocations(
        *,
        caller: Principal = Depends(principal),
        project: Project = None,
        cluster: Annotated[str | None, Query(description="Id of a cluster")] = None,
        state: AllocationState | None = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> Page[AllocationAnswer]:
        """Who holds which node; ended ones only where ``state=ended`` is asked for."""
        wanted = ListFilter(
            after=decode_cursor(cursor),
            limit=limit,
            project_id=project_id(caller, project),
            state=state,
            cluster_id=cluster,
        )
        rows, more = await desk.list_allocations(caller, wanted)
        return Page(items=[_allocation_answer(row) for row in rows], next_cursor=next_cursor(more))

    reservations = ReservationService(orchestrator.database, orchestrator.clock, authorizer)
    routes.include_router(api_reservations.router(reservations, authorizer, principal))
    return routes
