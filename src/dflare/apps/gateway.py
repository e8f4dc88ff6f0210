"""The gateway: HTTP API and WebSocket over all services. ``python -m dflare.apps.gateway``."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text

import dflare
from dflare.apps import events, own_metrics_api, portal, wiring_api
from dflare.apps.body_limit import BodyLimit
from dflare.apps.http import serve_http
from dflare.apps.openapi import describe
from dflare.apps.own_metrics import PlatformNumbers, own_lines, push
from dflare.apps.process import Process, run_process
from dflare.apps.rate_limits import PRINCIPAL, LimitSettings, RateLimits
from dflare.apps.request_meter import RequestMeter
from dflare.apps.slow_clients import BodyDeadline
from dflare.apps.token_buckets import Buckets
from dflare.apps.wiring import Platform
from dflare.kit import problem
from dflare.kit.errors import UnauthenticatedError
from dflare.kit.loop_lag import LoopLag
from dflare.kit.meters import Meters
from dflare.services.auth.contract import Principal

MAX_BODY_BYTES = 8 * 1024 * 1024
"""A site of 4,000 nodes is about 6 MiB; nothing else comes near."""


def build_app(
    platform: Platform,
    hub: events.EventHub,
    lag: LoopLag | None = None,
    meters: Meters | None = None,
) -> FastAPI:
    """The application over a wired platform; its requests are counted in ``meters``."""
    meters = meters or Meters()
    app = FastAPI(
        title="Dflare",
        version=dflare.__version__,
        openapi_url="/v1/openapi.json",
        docs_url="/v1/docs",
        redoc_url=None,
        separate_input_output_schemas=False,
        # The framework's own span of every request is kept by nobody and costs a tenth of a read.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    problem.install(app)
    app.add_middleware(BodyLimit, limit_bytes=MAX_BODY_BYTES, streamed=wiring_api.STREAMED)
    app.add_middleware(BodyDeadline)
    limits = LimitSettings.read()
    if limits.enabled and platform.process.settings.valkey_url:
        app.add_middleware(
            RateLimits,
            buckets=Buckets(platform.process.cache),
            authorizer=platform.authorizer,
            settings=limits,
        )
    app.add_middleware(RequestMeter, meters=meters)

    async def principal(request: Request) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError(
                "no bearer token came with the request", next_step="Run `dflare login`."
            )
        known: Principal | None = request.scope.get(PRINCIPAL)
        return known or await platform.authorizer.authenticate(token)

    v1 = APIRouter(prefix="/v1")
    for router in wiring_api.routers(platform, principal):
        v1.include_router(router)
    v1.include_router(events.router(hub, platform.authorizer, principal))
    app.include_router(v1)
    for router in wiring_api.root_routers(platform):
        app.include_router(router)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> JSONResponse:
        """Whether this process can serve: the database answers."""
        async with platform.database.across() as connection:
            await connection.execute(text("SELECT 1"))
        return JSONResponse(
            {
                "status": "ok",
                "version": dflare.__version__,
                "loop_lag": lag.report() if lag else None,
            }
        )

    numbers = PlatformNumbers(platform)
    app.include_router(own_metrics_api.router(platform, numbers, meters, lag, principal))
    app.include_router(portal.router())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi
    return app


async def serve(process: Process) -> None:
    """Start serving; returns when the socket is bound."""
    platform = Platform(process)
    await platform.start_gateway(portal.callbacks(process.settings.public_url))
    hub = events.EventHub(process.database, process.feed)
    process.start(hub.run(), "event-hub")
    settings = process.settings
    lag = LoopLag()
    process.start(lag.run(), "loop-lag")
    meters = Meters()
    if platform.series.present:
        process.start(push(process, platform.series, lambda: own_lines(meters, lag)), "own-numbers")
    app = build_app(platform, hub, lag, meters)
    await serve_http(process, app, settings.gateway_host, settings.gateway_port, "http")


if __name__ == "__main__":
    run_process("gateway", serve)
