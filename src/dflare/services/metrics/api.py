"""HTTP API of metrics: Prometheus' query API within a project, and alerts."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, next_cursor
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.metrics.domain_query import (
    LABELS,
    QUERY,
    QUERY_RANGE,
    SERIES,
    label_path,
    pairs_of,
)
from dflare.services.metrics.service import QueryService
from dflare.services.metrics.service_alerts import AlertService
from dflare.services.metrics.tables import Alert

_BOTH = ["GET", "POST"]
_PROJECT = "/projects/{project}/metrics/api/v1"
_ALL = "/metrics/api/v1"


class AlertAnswer(BaseModel):
    """An alert. ``subject`` is the node or the operation that it is about, ``part`` the GPU or port
    of a node where it is one. It is ``raised`` until nothing of it is seen any more."""

    id: str
    rule: str
    state: str
    severity: str
    summary: str
    site_id: str | None
    organization_id: str | None
    project_id: str | None
    cluster_id: str | None
    subject_kind: str
    subject_id: str
    subject_name: str
    part: str
    raised_at: datetime
    resolved_at: datetime | None


def query_router(
    queries: QueryService, authorizer: Authorizer, principal: Callable[..., Awaitable[Principal]]
) -> APIRouter:
    """Prometheus' query API, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["metrics"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    async def answer(
        request: Request, caller: Principal, project: ProjectRef | None, question: str, path: str
    ) -> Response:
        given = pairs_of(
            request.url.query,
            await request.body() if request.method == "POST" else b"",
            request.headers.get("content-type", ""),
        )
        found = await queries.ask(caller, project, question, path, given)
        return Response(found.content, found.status, media_type="application/json")

    def ask_there(question: str) -> Callable[..., Awaitable[Response]]:
        async def ask_project(
            *,
            request: Request,
            caller: Principal = Depends(principal),
            project: ProjectRef = Depends(project_of),
        ) -> Response:
            return await answer(request, caller, project, question, f"/api/v1/{question}")

        ask_project.__doc__ = f"Prometheus' ``{question}`` over the series of a project."
        return ask_project

    def ask_everywhere(question: str) -> Callable[..., Awaitable[Response]]:
        async def ask_all(*, request: Request, caller: Principal = Depends(principal)) -> Response:
            return await answer(request, caller, None, question, f"/api/v1/{question}")

        ask_all.__doc__ = f"Prometheus' ``{question}`` over all series; for operators."
        return ask_all

    for question in (QUERY, QUERY_RANGE, SERIES, LABELS):
        for place, ask in ((_PROJECT, ask_there(question)), (_ALL, ask_everywhere(question))):
            for method in _BOTH:
                routes.add_api_route(
                    f"{place}/{question}",
                    ask,
                    methods=[method],
                    name=f"{method.lower()}_{question}_of_{'all' if place == _ALL else 'project'}",
                )

    @routes.get(f"{_PROJECT}/label/{{name}}/values")
    async def label_values_of_project(
        *,
        request: Request,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        name: str,
    ) -> Response:
        """Prometheus' values of a label among the series of a project."""
        return await answer(request, caller, project, LABELS, label_path(name))

    @routes.get(f"{_ALL}/label/{{name}}/values")
    async def label_values_of_all(
        *, request: Request, caller: Principal = Depends(principal), name: str
    ) -> Response:
        """Prometheus' values of a label among all series; for operators."""
        return await answer(request, caller, None, LABELS, label_path(name))

    return routes


def alert_router(
    alerts: AlertService, authorizer: Authorizer, principal: Callable[..., Awaitable[Principal]]
) -> APIRouter:
    """Alerts, relative to ``/v1``. ``principal`` is the gateway's authentication."""
    routes = APIRouter(tags=["metrics"])

    async def project_of(*, caller: Principal = Depends(principal), project: str) -> ProjectRef:
        return authorizer.project(authorizer.scope(caller), project)

    async def page(
        caller: Principal,
        project: ProjectRef | None,
        cursor: str | None,
        limit: int,
        *,
        resolved: bool,
    ) -> Page[AlertAnswer]:
        rows, more = await alerts.list(
            caller, project, decode_cursor(cursor), limit, resolved=resolved
        )
        return Page(items=[alert_answer(row) for row in rows], next_cursor=next_cursor(more))

    @routes.get("/alerts")
    async def list_all_alerts(
        *,
        caller: Principal = Depends(principal),
        cursor: Cursor = None,
        limit: Limit = 100,
        resolved: bool = Query(default=False, description="Those that are over too"),
    ) -> Page[AlertAnswer]:
        """Alerts that the caller may read: operators all, others those of their projects."""
        return await page(caller, None, cursor, limit, resolved=resolved)

    @routes.get("/projects/{project}/alerts")
    async def list_alerts(
        *,
        caller: Principal = Depends(principal),
        project: ProjectRef = Depends(project_of),
        cursor: Cursor = None,
        limit: Limit = 100,
        resolved: bool = Query(default=False, description="Those that are over too"),
    ) -> Page[AlertAnswer]:
        """Alerts on the nodes and operations of a project."""
        return await page(caller, project, cursor, limit, resolved=resolved)

    return routes


def alert_answer(row: Alert) -> AlertAnswer:
    """An alert as the API shows it."""
    return AlertAnswer(**{name: getattr(row, name) for name in AlertAnswer.model_fields})
