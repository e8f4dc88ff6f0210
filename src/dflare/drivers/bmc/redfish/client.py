"""HTTP to BMCs: one pool of connections a process, bounded, no retries.

Sources: DSP0266 1.20 (sections 6 and 7 for methods and status codes, 13.3 for Basic
authentication, 7.5 for ETags).
"""

import asyncio
import ssl
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import orjson
from yarl import URL

from dflare.drivers.bmc.port import (
    BmcAccess,
    BmcConflictError,
    BmcFaultError,
    BmcRefusedError,
    BmcUnreachableError,
)
from dflare.kit.db import assert_no_transaction
from dflare.kit.telemetry import span

CALLS_AT_ONCE = 128
CALL_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 120.0

Document = dict[str, Any]

_LATER = frozenset({408, 412, 425, 429})
_WRONG_STATE = "InvalidOperationForSystemState"
"""iLO's message for a reset into the power state that is there already, sent with a 400."""


@dataclass(frozen=True)
class Answer:
    """A successful answer; ``etag`` is empty where the BMC gave none."""

    status: int
    document: Document
    etag: str


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Verifies BMCs against ``ca_file``, or against the system's authorities where it is empty.

    Raises:
        OSError: the file cannot be read.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class RedfishClient:
    """Calls of one process to all BMCs. Close it with ``close``.

    The authorities' file is read at the first call: it may be made after the process starts.
    """

    def __init__(self, ca_file: str = "", *, at_once: int = CALLS_AT_ONCE) -> None:
        self._ca_file = ca_file
        self._slots = asyncio.Semaphore(at_once)
        self._lines: dict[str, asyncio.Lock] = {}
        self._session: aiohttp.ClientSession | None = None
        self._authorization: dict[tuple[str, str], str] = {}
        self._urls: dict[tuple[str, str], URL] = {}

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, bmc: BmcAccess, path: str) -> Answer:
        """GET a resource."""
        return await self.call(bmc, "GET", path)

    async def post(self, bmc: BmcAccess, path: str, body: Document) -> Answer:
        """POST an action."""
        return await self.call(bmc, "POST", path, body)

    async def patch(self, bmc: BmcAccess, path: str, body: Document, etag: str = "") -> Answer:
        """PATCH a resource, only if it still is what ``etag`` names."""
        return await self.call(bmc, "PATCH", path, body, {"If-Match": etag} if etag else {})

    async def call(
        self,
        bmc: BmcAccess,
        method: str,
        path: str,
        body: Document | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One call.

        Raises:
            BmcUnreachableError: no answer within the time-out.
            BmcFaultError: an answer that may be another one later.
            BmcRefusedError: an answer that will stay.
        """
        what = f"redfish {method} {path}"
        assert_no_transaction(what)
        # One call at a time to a BMC: they are small computers, and each connection more is a TLS
        # handshake more, which costs both sides more than all its calls.
        line = self._lines.get(bmc.address)
        if line is None:
            line = self._lines[bmc.address] = asyncio.Lock()
        async with line, self._slots:
            with span(what, bmc=bmc.address):
                status, data, etag = await self._exchange(bmc, method, path, body, headers or {})
        if 200 <= status < 300:
            return Answer(status, _json(data), etag)
        text = f"{bmc.address} answered {status} to {method} {path}{_message(data)}"
        if status == 409 or (status == 400 and _WRONG_STATE in text):
            raise BmcConflictError(text)
        if status >= 500 or status in _LATER:
            raise BmcFaultError(text)
        raise BmcRefusedError(text)

    async def _exchange(
        self,
        bmc: BmcAccess,
        method: str,
        path: str,
        body: Document | None,
        headers: dict[str, str],
    ) -> tuple[int, bytes, str]:
        sent = {"Authorization": self._basic(bmc), "OData-Version": "4.0", **headers}
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            async with self._opened().request(
                method,
                self._url(bmc, path),
                data=None if body is None else orjson.dumps(body),
                headers=sent,
                allow_redirects=False,
            ) as answer:
                return answer.status, await answer.read(), answer.headers.get("ETag", "")
        except TimeoutError as error:
            raise BmcUnreachableError(f"{bmc.address} did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BmcUnreachableError(f"{bmc.address}: {error or type(error).__name__}") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            if self._ca_file and not Path(self._ca_file).exists():
                raise BmcUnreachableError(f"the file {self._ca_file} of authorities is not there")
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    ssl=tls_context(self._ca_file),
                    keepalive_timeout=KEEP_ALIVE_S,
                ),
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                raise_for_status=False,
                auto_decompress=True,
            )
        return self._session

    def _url(self, bmc: BmcAccess, path: str) -> URL:
        """The parsed URL, kept: the same few paths of each BMC are asked for again and again."""
        key = (bmc.address, path)
        known = self._urls.get(key)
        if known is None:
            known = self._urls[key] = URL(f"https://{bmc.address}{path}", encoded=True)
        return known

    def _basic(self, bmc: BmcAccess) -> str:
        pair = (bmc.username, bmc.password)
        known = self._authorization.get(pair)
        if known is None:
            known = "Basic " + b64encode(":".join(pair).encode()).decode()
            self._authorization[pair] = known
        return known


def _json(data: bytes) -> Document:
    if not data:
        return {}
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BmcFaultError("the BMC's answer is not JSON") from error
    return cast("Document", document) if isinstance(document, dict) else {}


def _message(data: bytes) -> str:
    """The first extended message of an error body (DSP0266, 8.6).

    Its text is optional: iLO sends the message's id and arguments alone.
    """
    try:
        error = cast("Document", orjson.loads(data))["error"]
        info = cast("list[Document]", error.get("@Message.ExtendedInfo") or [{}])[0]
        terse = [str(info.get("MessageId") or ""), *map(str, info.get("MessageArgs") or [])]
        text = info.get("Message") or " ".join(filter(None, terse)) or error.get("message") or ""
        return ": " + str(text)[:300]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError):
        return ""
