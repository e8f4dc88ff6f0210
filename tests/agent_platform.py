"""A minimal platform for tests of the agent protocol: boot media, an image, and the agent's calls.

Written from ``docs/how-to/agent-protocol.md``; the media are made by pycdlib.
"""

import asyncio
import hashlib
import io
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pycdlib
from aiohttp import web

IMAGE = b"an operating system" + bytes(range(256)) * 8192


class AgentPlatform:
    """What the site worker does for agents; tests read what it saw."""

    def __init__(self) -> None:
        self.url = ""
        self.hellos: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.reports: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.ups: list[dict[str, Any]] = []
        self.measured: dict[str, list[str]] = defaultdict(list)
        self.refused: set[str] = set()
        self.unwanted: set[str] = set()
        self.image_downloads = 0
        self._tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._changed = asyncio.Condition()

    @property
    def image_url(self) -> str:
        """Where the image is."""
        return f"{self.url}/images/linux"

    @property
    def image_sha256(self) -> str:
        """Its digest."""
        return hashlib.sha256(IMAGE).hexdigest()

    def iso_url(self, token: str) -> str:
        """The boot medium of the node with this token."""
        return f"{self.url}/boot/{token}/agent.iso"

    def give(self, token: str, kind: str, task_id: str = "", **params: Any) -> str:
        """Queue a task for a node, sent until a report ends it; returns its id."""
        task_id = task_id or f"task_{uuid.uuid4()}"
        self._tasks[token].append({"id": task_id, "kind": kind, "params": params})
        return task_id

    def write_image(self, token: str, key: str, **more: Any) -> str:
        """Queue the writing of the image with an SSH key in its config drive."""
        drive = {
            "user_data": "#cloud-config\n",
            "meta_data": "{}",
            "ssh_keys": [key],
            "phone_home_url": f"{self.url}/v1/agent/up",
            "phone_home_token": token,
        }
        image = {"image_url": self.image_url, "image_sha256": self.image_sha256, "disk": None}
        return self.give(token, "write_image", **({**image, "config_drive": drive} | more))

    async def finished(self, task_id: str, times: int = 1) -> dict[str, Any]:
        """Wait for the last report of a task (the ``times``-th that ends it)."""

        def last() -> list[dict[str, Any]]:
            return [r for r in self.reports[task_id] if r["state"] != "running"]

        await self.until(lambda: len(last()) >= times)
        return last()[times - 1]

    async def until(self, true: Any) -> None:
        """Wait until the condition holds, 30 seconds at most."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(true)

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application()
        app.router.add_get("/boot/{token}/agent.iso", self._iso)
        app.router.add_get("/images/linux", self._image)
        app.router.add_post("/v1/agent/hello", self._hello)
        app.router.add_get("/v1/agent/task", self._task)
        app.router.add_post("/v1/agent/task/{id}/report", self._report)
        app.router.add_post("/v1/agent/up", self._up)
        app.router.add_post("/v1/agent/metrics", self._metrics)
        return app

    async def _iso(self, request: web.Request) -> web.Response:
        agent = {
            "version": 1,
            "node_id": f"node_{request.match_info['token']}",
            "agent_url": self.url,
            "token": request.match_info["token"],
            "poll_s": 0.05,
        }
        return web.Response(body=make_iso(json.dumps(agent)))

    async def _image(self, request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == '"one"':
            return web.Response(status=304)
        self.image_downloads += 1
        return web.Response(body=IMAGE, headers={"ETag": '"one"'})

    async def _hello(self, request: web.Request) -> web.Response:
        self.hellos[self._token(request)].append(await request.json())
        await self._wake()
        return web.json_response({"poll_s": 0.05})

    async def _task(self, request: web.Request) -> web.Response:
        token = self._token(request)
        for _ in range(20):
            if self._tasks[token]:
                return web.json_response(self._tasks[token][0])
            await asyncio.sleep(0.01)
        return web.Response(status=204)

    async def _report(self, request: web.Request) -> web.Response:
        token, task_id = self._token(request), request.match_info["id"]
        report = await request.json()
        self.reports[task_id].append(report)
        waiting = self._tasks[token]
        if waiting and waiting[0]["id"] == task_id and report["state"] != "running":
            del waiting[0]
        await self._wake()
        return web.Response(status=409 if task_id in self.unwanted else 204)

    async def _up(self, request: web.Request) -> web.Response:
        self._token(request)
        self.ups.append(await request.json())
        await self._wake()
        return web.Response(status=204)

    async def _metrics(self, request: web.Request) -> web.Response:
        self.measured[self._token(request)].append(await request.text())
        await self._wake()
        return web.Response(status=204)

    def _token(self, request: web.Request) -> str:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        if token in self.refused:
            raise web.HTTPUnauthorized
        return token

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def make_iso(agent_json: str | None) -> bytes:
    """An ISO 9660 medium with ``/DFLARE/AGENT.JSON;1``, or with nothing on it."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3)
    if agent_json is not None:
        content = agent_json.encode().ljust(4096)
        iso.add_directory("/DFLARE")
        iso.add_fp(io.BytesIO(content), len(content), "/DFLARE/AGENT.JSON;1")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


@asynccontextmanager
async def agent_platform() -> AsyncIterator[AgentPlatform]:
    """The platform on a free port of loopback."""
    platform = AgentPlatform()
    runner = web.AppRunner(platform.app(), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    host, port = runner.addresses[0][:2]
    platform.url = f"http://{host}:{port}"
    try:
        yield platform
    finally:
        await runner.cleanup()
