"""The process's sockets: many addresses, one HTTP server, TLS, and connections that just drop.

An app learns which device is meant from ``scope["server"][0]``, the address that was connected to.
"""

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
from collections.abc import Callable, Generator, Sequence
from typing import cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ABORT = "dflare.abort"
_BACKLOG = 512


class PortInUseError(OSError):
    """An address that a device needs is taken by another process."""


class _DroppableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also hands the app a way to cut the connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, object]", self.scope)["extensions"] = {_ABORT: self.transport.abort}


class DeviceServer(uvicorn.Server):
    """A server whose signals belong to the process, not to it; ``ready`` once it accepts."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting."""
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the process's signal handlers alone."""
        yield


def device_server(app: ASGIApp, context: ssl.SSLContext | None) -> DeviceServer:
    """A server for ``app``, with TLS where a context is given; ``serve(sockets=…)`` runs it."""
    config = uvicorn.Config(
        app,
        http=_DroppableProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        date_header=True,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=1,
        backlog=_BACKLOG,
        ssl_context_factory=None if context is None else lambda _config, _default: context,
    )
    return DeviceServer(config)


async def drop_connection(scope: Scope, receive: Receive) -> None:
    """Cut the connection of this request without an answer, as an unreachable device does."""
    abort = cast("Callable[[], None]", scope["extensions"][_ABORT])
    abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def listen(addresses: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """One listening socket for each (address, port).

    Raises:
        PortInUseError: one of them is taken; the message names it and what to do.
    """
    sockets: list[socket.socket] = []
    try:
        for address, port in addresses:
            sockets.append(_listening(address, port))
    except BaseException:
        for made in sockets:
            made.close()
        raise
    return sockets


def raise_file_limit(wanted: int) -> None:
    """Let the process open ``wanted`` files, or as many as it may.

    Each device has a listening socket and each client holds connections open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))


def _listening(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                errno.EADDRINUSE,
                f"{address}:{port} is in use by another process; stop it, or give the simulator "
                "another port in its file",
            ) from error
        raise
    return made
