"""Clients that hold connections without using them, on raw sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from dflare.apps import slow_clients
from dflare.apps.http import _Server  # pyright: ignore[reportPrivateUsage]
from dflare.apps.slow_clients import BodyDeadline, ImpatientProtocol
from dflare.embedded.ports import LOOPBACK, free_port

PATIENCE_S = 20
"""How long a test waits for what takes a fraction of a second on an idle machine."""


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def flood(_: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 256 * 1024

    return StreamingResponse(pieces())


@asynccontextmanager
async def serving(**deadline: Any) -> AsyncIterator[tuple[int, set[Any]]]:
    """The port of a server with a short patience, and its connections."""
    app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"]), Route("/flood", flood)])
    app.add_middleware(BodyDeadline, **deadline)
    port = free_port()
    config = uvicorn.Config(
        app, host=LOOPBACK, port=port, http=ImpatientProtocol, log_config=None, lifespan="off"
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    await server.bound.wait()
    try:
        yield port, server.server_state.connections
    finally:
        server.should_exit = server.force_exit = True
        await task


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server hangs up."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read(-1)
        except ConnectionError:
            return b""


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-More: "])
async def test_a_head_that_never_ends_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(slow_clients, "HEAD_WITHIN_S", 0.2)
    async with serving() as (port, _):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(sent)
        assert await until_closed(reader) == b""
        writer.close()


async def test_a_later_head_of_a_kept_connection_is_cut_off_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "HEAD_WITHIN_S", 0.2)
    async with serving() as (port, _):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n0"), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 200")
        writer.write(b"GET / HTTP/1.1\r\nHost")
        assert await until_closed(reader) == b""
        writer.close()


async def test_a_head_without_bounds_is_cut_off_before_its_time() -> None:
    async with serving() as (port, _):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 70_000)
        assert await until_closed(reader) == b""
        writer.close()


async def test_a_body_that_stops_is_answered_408_and_the_connection_closed() -> None:
    async with serving(grace_s=0.2, bytes_per_s=1e9) as (port, _):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        answer = await until_closed(reader)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body-too-slow" in answer
        writer.close()


async def test_a_body_that_drips_is_cut_off_though_it_never_stops() -> None:
    async with serving(grace_s=0.3, bytes_per_s=1e9) as (port, _):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")

        async def drip() -> None:
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        answer = await until_closed(reader)
        dripping.cancel()
        assert answer.startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_body_that_comes_at_its_pace_is_taken_however_long_it_is() -> None:
    async with serving(grace_s=20, bytes_per_s=1024) as (port, _):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n")
        for _ in range(5):
            writer.write(b"x" * 10)
            await asyncio.sleep(0.01)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n50"), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "READ_WITHIN_S", 0.2)
    async with serving() as (port, connections):
        reader, writer = await asyncio.open_connection(LOOPBACK, port, limit=1024)
        writer.write(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(10)
        async with asyncio.timeout(PATIENCE_S):
            while connections:  # noqa: ASYNC110 - the server sets no event
                await asyncio.sleep(0.02)
        taken = await until_closed(reader)
        assert len(taken) < 1000 * 256 * 1024
        writer.close()
