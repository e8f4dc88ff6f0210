"""How long requests take, by route, method and status: ``http_server_request_duration_seconds``."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dflare.kit.meters import Meters

NAME = "http_server_request_duration_seconds"


class RequestMeter:
    """ASGI middleware that notes every HTTP request in ``meters``, up to its answer's first bytes.
    Paths are told by their route alone: ids would make a series each."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unmatched")
                labels = (
                    ("http_request_method", str(scope["method"])[:16]),
                    ("http_response_status_code", str(message["status"])),
                    ("http_route", route),
                )
                self._meters.observe(NAME, labels, time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, noting)
