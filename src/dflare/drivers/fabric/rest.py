"""JSON over HTTPS to fabric devices: one bounded client a process, and failures told apart."""

import asyncio
import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import aiohttp
import orjson

from dflare.drivers.fabric.port import (
    DeviceAccess,
    DeviceRefusedError,
    DeviceUnreachableError,
)
from dflare.kit.db import assert_no_transaction
from dflare.kit.telemetry import span

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_CONNECTIONS = 256
_CONNECTIONS_A_DEVICE = 4
_KEEP_ALIVE_S = 60
_TRANSIENT = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Reply:
    """A status below 400, or 404, with its JSON body and its ``Location``."""

    status: int
    body: Json
    location: str | None


class DeviceRest:
    """Shared by the drivers of one process; ``ca_file`` names the authority that devices'
    certificates are checked against (empty: the machine's own)."""

    def __init__(self, *, ca_file: str = "", timeout_s: float = 10.0) -> None:
        self._ca_file = ca_file
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        access: DeviceAccess,
        protocol: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json = None,
    ) -> Reply:
        """Ask ``access`` once; nothing is retried here. ``protocol`` names the span.

        Raises:
            DeviceUnreachableError: no answer in time, or 5xx, 408, 425 or 429.
            DeviceRefusedError: any other status from 400 on, save 404.
            OpenTransactionError: a transaction is open.
        """
        what = f"{protocol} {method} {path}"
        assert_no_transaction(what)
        with span(what, device=access.name):
            try:
                async with self._client().request(
                    method,
                    f"https://{access.address}{path}",
                    params=query,
                    data=None if body is None else orjson.dumps(body),
                    headers={
                        "Content-Type": "application/json",
                        "Authorization": _basic(access),
                    },
                ) as response:
                    content = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                reason = str(error) or type(error).__name__
                raise DeviceUnreachableError(
                    f"{access.name}: {what}: {reason}",
                    harmless=method == "GET" or isinstance(error, aiohttp.ClientConnectorError),
                ) from error
            status = response.status
            if status >= 500 or status in _TRANSIENT:
                raise DeviceUnreachableError(f"{access.name}: {what}: {status} {_said(content)}")
            if status >= 400 and status != 404:
                raise DeviceRefusedError(f"{access.name}: {what}: {status} {_said(content)}")
            return Reply(status, _parsed(access, what, content), response.headers.get("Location"))

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context(cafile=self._ca_file or None)
            connector = aiohttp.TCPConnector(
                limit=_CONNECTIONS,
                limit_per_host=_CONNECTIONS_A_DEVICE,
                keepalive_timeout=_KEEP_ALIVE_S,
                ssl=context,
            )
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self._session


async def polled(wait_s: float, attempt: int) -> None:
    """Sleep before look number ``attempt`` (from 0): 20 ms at first, growing to 1 s at most."""
    await asyncio.sleep(min(wait_s, 1.0, 0.02 * 1.6**attempt))


def branch(tree: Json, *path: str) -> dict[str, Json]:
    """The object at ``path``; an empty one where there is none."""
    at: Json = tree
    for key in path:
        if not isinstance(at, dict):
            return {}
        at = at.get(key)
    return at if isinstance(at, dict) else {}


def _basic(access: DeviceAccess) -> str:
    """The header of RFC 7617."""
    login = f"{access.username}:{access.password}".encode()
    return f"Basic {base64.b64encode(login).decode()}"


def _parsed(access: DeviceAccess, what: str, content: bytes) -> Json:
    if not content.strip():
        return None
    try:
        return cast("Json", orjson.loads(content))
    except orjson.JSONDecodeError as error:
        raise DeviceUnreachableError(f"{access.name}: {what}: the answer is not JSON") from error


def _said(content: bytes) -> str:
    return content[:300].decode(errors="replace")
