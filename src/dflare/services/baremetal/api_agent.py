"""The agent API and the boot medium's server: plain HTTP for nodes, not part of ``/v1`` of people.

Calls, bodies and status codes: ``docs/how-to/agent-protocol.md``. It is on the way of a thousand
servers at once, so it is Starlette without a schema layer.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from dflare.services.baremetal.agent_sessions import AgentSessions, Conversation
from dflare.services.baremetal.image_files import ImageFiles
from dflare.services.baremetal.medium import agent_iso

POLL_S = 2
LONG_POLL_S = 15.0
_MAX_BODY = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

BodyT = TypeVar("BodyT", bound=BaseModel)
_Handler = Callable[[Request], Awaitable[Response]]


class Hello(BaseModel):
    """Body of ``hello``."""

    serial: str = Field(max_length=256)
    boot_id: str = Field(max_length=128)
    macs: list[str] = Field(default_factory=list[str], max_length=256)
    inventory: dict[str, Any] = Field(default_factory=dict[str, Any])


class Report(BaseModel):
    """Body of a task's report."""

    state: Literal["running", "succeeded", "failed"]
    percent: int = Field(default=0, ge=0, le=100)
    message: str = Field(default="", max_length=4000)
    observed: dict[str, Any] = Field(default_factory=dict[str, Any])


class Up(BaseModel):
    """Body of ``up``."""

    serial: str = Field(max_length=256)
    boot_id: str = Field(max_length=128)
    image_sha256: str | None = Field(default=None, max_length=128)
    ssh_keys: list[str] = Field(default_factory=list[str], max_length=1024)


class _RefusedError(Exception):
    """The answer to a call that is not served."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class AgentApi:
    """The handlers. ``public_url`` is how nodes reach this server."""

    def __init__(self, sessions: AgentSessions, images: ImageFiles, public_url: str) -> None:
        self._sessions = sessions
        self._images = images
        self._public_url = public_url

    def app(self) -> Starlette:
        """The ASGI app that the site worker serves."""
        routes: list[tuple[str, str, _Handler]] = [
            ("/v1/agent/hello", "POST", self._hello),
            ("/v1/agent/task", "GET", self._task),
            ("/v1/agent/task/{id}/report", "POST", self._report),
            ("/v1/agent/up", "POST", self._up),
            ("/boot/{token}/agent.iso", "GET", self._medium),
            ("/images/{sha256}", "GET", self._image),
            ("/healthz", "GET", self._healthz),
        ]
        return Starlette(
            routes=[Route(path, handler, methods=[method]) for path, method, handler in routes],
            exception_handlers={_RefusedError: _refused},
        )

    async def _hello(self, request: Request) -> Response:
        conversation = await self._caller(request, "agent")
        body = await _body(request, Hello)
        await self._sessions.hello(conversation, body.boot_id, body.serial)
        return _json({"poll_s": POLL_S})

    async def _task(self, request: Request) -> Response:
        conversation = await self._caller(request, "agent")
        if conversation.task is None:
            loop = asyncio.get_running_loop()
            until = loop.time() + LONG_POLL_S
            while conversation.task is None and not conversation.closed:
                left_s = until - loop.time()
                if left_s <= 0:
                    return Response(status_code=204)
                await conversation.changed(left_s)
        if conversation.closed or conversation.task is None:
            raise _RefusedError(401)
        task = conversation.task
        return _json({"id": task.id, "kind": task.kind, "params": task.params})

    async def _report(self, request: Request) -> Response:
        conversation = await self._caller(request, "agent")
        body = await _body(request, Report)
        task_id = str(request.path_params["id"])
        wanted = await self._sessions.report(conversation, task_id, body.model_dump())
        return Response(status_code=204 if wanted else 409)

    async def _up(self, request: Request) -> Response:
        conversation = await self._caller(request, "phone")
        body = await _body(request, Up)
        await self._sessions.up(conversation, body.model_dump())
        return Response(status_code=204)

    async def _medium(self, request: Request) -> Response:
        token = str(request.path_params["token"])
        conversation = await self._sessions.of_token(token, "agent")
        if conversation is None:
            raise _RefusedError(404)
        data = agent_iso(conversation.node_id, self._public_url, token, POLL_S)
        return _ranged(request, data)

    async def _image(self, request: Request) -> Response:
        sha256 = str(request.path_params["sha256"])
        path = self._images.path_of(sha256)
        if path is None:
            raise _RefusedError(404)
        etag = f'"{sha256}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag})
        # A digest never changes its bytes, so it is the strongest tag there is.
        return FileResponse(path, media_type="application/octet-stream", headers={"ETag": etag})

    async def _healthz(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    async def _caller(self, request: Request, purpose: str) -> Conversation:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise _RefusedError(401)
        conversation = await self._sessions.of_token(token, purpose)
        if conversation is None:
            raise _RefusedError(401)
        return conversation


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, _RefusedError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return Response(status_code=error.status, headers=headers)


async def _body(request: Request, model: type[BodyT]) -> BodyT:
    data = await request.body()
    if len(data) > _MAX_BODY:
        raise _RefusedError(413)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _RefusedError(422) from error


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _ranged(request: Request, data: bytes) -> Response:
    """The whole, or one range of it (RFC 9110, 14.2): BMCs read media piece by piece."""
    headers = {"Accept-Ranges": "bytes"}
    media_type = "application/octet-stream"
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None:
        return Response(data, headers=headers, media_type=media_type)
    first = int(found[1])
    last = min(int(found[2]) if found[2] else len(data) - 1, len(data) - 1)
    if first > last:
        headers["Content-Range"] = f"bytes */{len(data)}"
        return Response(status_code=416, headers=headers)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(data[first : last + 1], 206, headers, media_type)
