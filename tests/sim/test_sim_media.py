"""What firmware and agents fetch over HTTP: boot media, images, and servers that misbehave."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from agent_platform import make_iso
from dflare.sim.http_client import HttpConnection, HttpError
from dflare.sim.media import ImageStore, MediaError, read_agent_medium

AGENT = {
    "version": 1,
    "node_id": "node_1",
    "agent_url": "http://127.0.0.1:1/",
    "token": "t",
    "poll_s": 2,
}


class Files:
    """A web server for one test's files; ``requests`` are the methods, paths and headers seen."""

    def __init__(self) -> None:
        self.url = ""
        self.content: dict[str, bytes] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.ranges = True
        self.etag: str | None = None
        self.chunked = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, dict(request.headers)))
        found = self.content.get(request.path)
        if found is None:
            raise web.HTTPNotFound
        headers = {"ETag": self.etag} if self.etag else {}
        if self.etag and request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304)
        if self.ranges and "Range" in request.headers:
            wanted = request.http_range
            part = found[wanted.start : wanted.stop]
            return web.Response(status=206 if part else 416, body=part, headers=headers)
        answer = web.StreamResponse(headers=headers)
        if self.chunked:
            answer.enable_chunked_encoding()
        else:
            answer.content_length = len(found)
        await answer.prepare(request)
        for at in range(0, len(found), 100_000):
            await answer.write(found[at : at + 100_000])
        return answer


@pytest.fixture
async def files() -> AsyncIterator[Files]:
    """The server, empty."""
    made = Files()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.serve)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


@pytest.mark.parametrize("ranges", [True, False])
async def test_the_agents_settings_are_read_from_the_medium(files: Files, ranges: bool) -> None:
    files.ranges = ranges
    files.content["/agent.iso"] = make_iso(json.dumps(AGENT))
    medium = await read_agent_medium(f"{files.url}/agent.iso")
    assert medium is not None
    assert (medium.node_id, medium.token, medium.poll_s) == ("node_1", "t", 2)
    assert medium.agent_url == "http://127.0.0.1:1"
    assert len(files.requests) == 1


async def test_settings_far_behind_the_first_quarter_megabyte_are_read_by_ranges(
    files: Files,
) -> None:
    iso = bytearray(make_iso(json.dumps(AGENT)))
    content = json.dumps(AGENT).encode().ljust(4096)
    at = iso.index(content)
    far = 1 << 20
    iso[at : at + 4096] = bytes(4096)
    iso += bytes(far - len(iso)) + content
    old, new = at // 2048, far // 2048
    record = old.to_bytes(4, "little") + old.to_bytes(4, "big")
    assert iso.count(record) == 1
    place = iso.index(record)
    iso[place : place + 8] = new.to_bytes(4, "little") + new.to_bytes(4, "big")
    files.content["/agent.iso"] = bytes(iso)
    medium = await read_agent_medium(f"{files.url}/agent.iso")
    assert medium is not None
    assert medium.node_id == "node_1"
    assert len(files.requests) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is no medium" * 5000,
        make_iso(None),
        make_iso("{not json"),
        make_iso("[]"),
        make_iso(json.dumps({**AGENT, "version": 2})),
        make_iso(json.dumps({**AGENT, "poll_s": "soon"})),
        make_iso(json.dumps({k: v for k, v in AGENT.items() if k != "token"})),
    ],
)
async def test_a_medium_without_valid_settings_boots_no_agent(files: Files, content: bytes) -> None:
    files.content["/agent.iso"] = content
    assert await read_agent_medium(f"{files.url}/agent.iso") is None


async def test_a_medium_that_is_not_there_is_an_error(files: Files) -> None:
    with pytest.raises(MediaError, match="404"):
        await read_agent_medium(f"{files.url}/agent.iso")


@pytest.mark.parametrize("chunked", [True, False])
async def test_many_servers_share_one_download_and_later_ones_ask_whether_it_changed(
    files: Files, chunked: bool
) -> None:
    files.chunked, files.etag = chunked, '"1"'
    files.content["/linux"] = bytes(range(256)) * 20_000
    store = ImageStore()
    images = await asyncio.gather(*(store.fetch(f"{files.url}/linux") for _ in range(50)))
    assert {image.sha256 for image in images} == {
        hashlib.sha256(files.content["/linux"]).hexdigest()
    }
    assert images[0].size == 5_120_000
    assert len(files.requests) == 1
    again = await store.fetch(f"{files.url}/linux")
    assert again == images[0]
    assert files.requests[-1][1]["If-None-Match"] == '"1"'
    files.content["/linux"], files.etag = b"another", '"2"'
    assert (await store.fetch(f"{files.url}/linux")).size == 7


async def test_a_server_that_gives_up_does_not_end_the_download_of_the_others(
    files: Files,
) -> None:
    files.content["/linux"] = b"x" * 3_000_000
    store = ImageStore()
    first = asyncio.create_task(store.fetch(f"{files.url}/linux"))
    second = asyncio.create_task(store.fetch(f"{files.url}/linux"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).size == 3_000_000
    assert len(files.requests) == 1


async def test_an_image_that_is_not_there_is_an_error(files: Files) -> None:
    with pytest.raises(MediaError, match="404"):
        await ImageStore().fetch(f"{files.url}/linux")


async def talk(script: list[bytes], **request: Any) -> tuple[int, bytes]:
    """Ask a server that sends ``script``, then closes; returns status and body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in script:
            writer.write(part)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = HttpConnection()
    try:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/x"
        answer = await connection.request("GET", url, **({"timeout_s": 10} | request))
        return answer.status, answer.body
    finally:
        connection.close()
        server.close()
        await server.wait_closed()


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    assert await talk([b"HTTP/1.1 200 OK\r\n\r\n", b"one", b"two"]) == (200, b"onetwo")


async def test_a_chunked_body_with_extensions_and_trailers_is_put_together() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"3;a=b\r\none\r\n3\r\ntwo\r\n0\r\nTrailer: x\r\n\r\n"
    assert await talk([head, body]) == (200, b"onetwo")


@pytest.mark.parametrize(
    "script",
    [
        [],
        [b"SSH-2.0-OpenSSH\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"],
    ],
)
async def test_a_broken_answer_is_an_error(script: list[bytes]) -> None:
    with pytest.raises(HttpError):
        await talk(script)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http:///x", "nonsense"])
async def test_an_address_that_is_not_http_is_an_error(url: str) -> None:
    with pytest.raises(HttpError):
        await HttpConnection().request("GET", url, timeout_s=5)
