"""``GET /metrics``: the platform's own numbers, for operators. Apart from ``own_metrics``: workers
tell numbers too, and the frameworks of an API take a second to load."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Response

from dflare.apps.own_metrics import PlatformNumbers, own_lines
from dflare.apps.wiring import Platform
from dflare.kit.loop_lag import LoopLag
from dflare.kit.meters import Meters
from dflare.services.auth.contract import Principal
from dflare.services.metrics.service import metric_resource


def router(
    platform: Platform,
    numbers: PlatformNumbers,
    meters: Meters,
    lag: LoopLag | None,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """``GET /metrics``: this gateway's numbers and the platform's."""
    routes = APIRouter(tags=["metrics"])

    @routes.get("/metrics", response_class=Response)
    async def own_metrics(*, caller: Principal = Depends(principal)) -> Response:
        """The platform's own numbers in Prometheus' text format; for operators."""
        await platform.authorizer.check(caller, "metric:read", metric_resource(None))
        lines = [*own_lines(meters, lag), *await numbers.lines()]
        return Response("\n".join((*lines, "")), media_type="text/plain; version=0.0.4")

    return routes
