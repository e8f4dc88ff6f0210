"""The little HTTP that both device apps need: a parsed request, JSON answers, Basic auth."""

import base64
import hmac
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl, unquote

import orjson
from starlette.types import Receive, Scope, Send

from dflare.sim.config import Credentials
from dflare.sim.fabric.tree import Json

_MAX_BODY = 8 * 1024 * 1024
_JSON_HEADER = (b"content-type", b"application/json")


class BadBody(Exception):  # noqa: N818 - what the client sent is bad
    """The body is no JSON, or too long; the message says which."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``path`` holds the decoded segments, so that a key may contain a slash."""

    method: str
    path: tuple[str, ...]
    query: dict[str, str]
    headers: dict[bytes, bytes]
    address: str
    body: bytes

    def json(self) -> Json:
        """The body; ``None`` for an empty one.

        Raises:
            BadBody: it is not JSON.
        """
        if not self.body.strip():
            return None
        try:
            return cast("Json", orjson.loads(self.body))
        except orjson.JSONDecodeError as error:
            raise BadBody(f"the body is not JSON: {error}") from error

    def authorized(self, credentials: Credentials) -> bool:
        """Whether the request carries these credentials as HTTP Basic (RFC 7617)."""
        expected = base64.b64encode(f"{credentials.username}:{credentials.password}".encode())
        return hmac.compare_digest(self.headers.get(b"authorization", b""), b"Basic " + expected)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a JSON value (``None`` with 204: no body) and further headers."""

    status: int
    body: Json = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    raw: bytes | None = None

    async def send(self, send: Send) -> None:
        """Send it."""
        content = b"" if self.status == 204 else self.raw
        if content is None:
            content = orjson.dumps(self.body)
        length = (b"content-length", str(len(content)).encode())
        headers = [_JSON_HEADER, *self.headers]
        if self.status != 204:
            headers.append(length)
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


async def read_call(scope: Scope, receive: Receive) -> Call:
    """Read the whole request.

    Raises:
        BadBody: the body is longer than 8 MiB.
    """
    raw_path = cast("bytes", scope.get("raw_path") or scope["path"].encode())
    server = cast("tuple[str, int] | None", scope.get("server"))
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        part = cast("bytes", message.get("body", b""))
        size += len(part)
        if size > _MAX_BODY:
            raise BadBody("the body is longer than 8 MiB")
        parts.append(part)
        more = bool(message.get("more_body", False))
    return Call(
        method=cast("str", scope["method"]),
        path=tuple(unquote(s) for s in raw_path.split(b"?")[0].decode().split("/") if s),
        query=dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True)),
        headers=dict(cast("list[tuple[bytes, bytes]]", scope["headers"])),
        address=server[0] if server is not None else "",
        body=b"".join(parts),
    )
