"""An HTTP server as a task of a process, which decides alone when to stop."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dflare.apps.process import Process
from dflare.kit import problem
from dflare.kit.errors import TYPE_BASE
from dflare.kit.settings import SettingsError

BACKLOG = 4096


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.bound = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.bound.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the process's."""
        yield


@dataclass(frozen=True)
class BodyLimit:
    """Refuses bodies over ``limit_bytes`` by their announced length, before anything reads them.

    A body without a length is cut off where it passes the limit. Plain ASGI: middleware that wraps
    responses in tasks costs a fifth of a small answer's time.
    """

    app: ASGIApp
    limit_bytes: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limit_bytes:
            await self._refuse(int(announced))(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit_bytes:
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, limited, send)

    def _refuse(self, size: int) -> Response:
        return problem.render(
            {
                "type": TYPE_BASE + "body-too-large",
                "title": "Body too large",
                "status": 413,
                "detail": f"the body has {size} bytes, {self.limit_bytes} are allowed",
                "next_step": "Send less at once.",
                "retryable": False,
            }
        )


async def serve_http(process: Process, app: Any, host: str, port: int, name: str) -> None:
    """Serve ``app`` until the process ends; returns when the socket is bound.

    Raises:
        SettingsError: the address cannot be had; says what to do.
    """
    try:
        listener = socket.create_server((host, port), backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror}); "
            "stop what holds it or choose another port"
        ) from error
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=30,
            ws="websockets-sansio",
            lifespan="off",
        )
    )

    async def run() -> None:
        try:
            await server.serve([listener])
        except asyncio.CancelledError:
            server.should_exit = True
            await server.shutdown([listener])
            raise

    process.start(run(), name)
    await server.bound.wait()
