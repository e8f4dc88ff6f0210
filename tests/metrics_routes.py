"""The metrics service's routes over a tenancy, without a database."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, FastAPI

from dflare.services.auth.contract import Principal
from dflare.services.metrics.api import query_router
from dflare.services.metrics.service import QueryService
from tenancy import Tenancy, application


def query_application(tenancy: Tenancy, queries: QueryService) -> FastAPI:
    """Prometheus' query API alone."""

    def routes(principal: Callable[..., Awaitable[Principal]]) -> APIRouter:
        return query_router(queries, tenancy, principal)

    return application(tenancy, routes)
