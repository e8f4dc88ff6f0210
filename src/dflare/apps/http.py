"""An HTTP server as a task of a process, which decides alone when to stop."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

from dflare.apps.process import Process
from dflare.apps.slow_clients import ImpatientProtocol
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
            http=ImpatientProtocol,
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
