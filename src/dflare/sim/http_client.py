"""A small HTTP/1.1 client: what firmware and agents speak, cheap enough for thousands of them.

Follows RFC 9112 as far as a server of today needs it: Content-Length, chunked bodies, bodies that
end with the connection, and connections kept open. Certificates are not verified, as a BMC that
fetches virtual media does not by default (VirtualMedia.VerifyCertificate).
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import urlsplit

_CHUNK = 64 * 1024
_HEADER_LIMIT = 128 * 1024
MAX_BODY = 64 * 1024 * 1024
"""Larger bodies are refused by ``request``; ``stream`` has no such limit."""


class HttpError(OSError):
    """No usable answer: refused, broken off, too slow, or not HTTP."""


@dataclass(frozen=True, slots=True)
class Response:
    """Status, header fields (names in lower case) and the body."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpConnection:
    """One connection to one server at a time, kept open between requests.

    It serves one request at a time; a request that is cancelled closes it.
    """

    def __init__(self) -> None:
        self._origin: tuple[str, str, int] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float,
    ) -> Response:
        """Send one request and read its whole answer within ``timeout_s`` of wall time.

        Raises:
            HttpError: there is no usable answer, or its body is larger than ``MAX_BODY``.
        """
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    status, fields = await self._exchange(method, url, headers, body)
                except HttpError:
                    # A kept connection may have been closed by the server meanwhile.
                    status, fields = await self._exchange(method, url, headers, body, fresh=True)
                whole = bytearray()
                async with aclosing(self._body(method, status, fields)) as chunks:
                    async for chunk in chunks:
                        whole += chunk
                        if len(whole) > MAX_BODY:
                            raise HttpError(f"{url}: the answer is larger than {MAX_BODY} bytes")
                return Response(status, fields, bytes(whole))
        except TimeoutError as error:
            self.close()
            raise HttpError(f"{url}: no answer within {timeout_s:g} s") from error
        except BaseException:
            self.close()
            raise

    async def stream(
        self, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> tuple[int, dict[str, str], AsyncGenerator[bytes, None]]:
        """GET ``url``: status, header fields and the body in chunks; close it after a break.

        ``timeout_s`` bounds the wait for the header fields.

        Raises:
            HttpError: there is no usable answer.
        """
        try:
            async with asyncio.timeout(timeout_s):
                status, fields = await self._exchange("GET", url, headers, None, fresh=True)
        except TimeoutError as error:
            self.close()
            raise HttpError(f"{url}: no answer within {timeout_s:g} s") from error
        return status, fields, self._body("GET", status, fields)

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._origin = self._reader = self._writer = None

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        *,
        fresh: bool = False,
    ) -> tuple[int, dict[str, str]]:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise HttpError(f"{url}: not an http or https address")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            reader, writer = await self._connect((parts.scheme, parts.hostname, port), fresh=fresh)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            fields = {"Host": parts.netloc.rpartition("@")[2], **(headers or {})}
            if body is not None:
                fields["Content-Length"] = str(len(body))
            lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
            head = await reader.readuntil(b"\r\n\r\n")
            return _parse_head(head)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self.close()
            raise HttpError(f"{url}: {error or type(error).__name__}") from error

    async def _connect(
        self, origin: tuple[str, str, int], *, fresh: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        usable = not fresh and self._origin == origin
        if usable and self._reader and self._writer and not self._writer.is_closing():
            return self._reader, self._writer
        self.close()
        scheme, host, port = origin
        context = _unverified() if scheme == "https" else None
        self._reader, self._writer = await asyncio.open_connection(
            host, port, ssl=context, limit=_HEADER_LIMIT
        )
        self._origin = origin
        return self._reader, self._writer

    async def _body(
        self, method: str, status: int, fields: dict[str, str]
    ) -> AsyncGenerator[bytes, None]:
        reader = self._reader
        if reader is None:
            raise HttpError("the connection is closed")
        complete = False
        try:
            if method == "HEAD" or status in (204, 304):
                pass
            elif "chunked" in fields.get("transfer-encoding", "").lower():
                async for chunk in _chunked(reader):
                    yield chunk
            elif (length := fields.get("content-length")) is not None:
                async for chunk in _counted(reader, int(length)):
                    yield chunk
            else:
                fields["connection"] = "close"
                while chunk := await reader.read(_CHUNK):
                    yield chunk
            complete = fields.get("connection", "").lower() != "close"
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise HttpError(f"the answer broke off: {error}") from error
        finally:
            if not complete:
                self.close()


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    status_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = status_line.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise HttpError(f"not an HTTP answer: {status_line[:40]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    return int(words[1]), fields


async def _counted(reader: asyncio.StreamReader, length: int) -> AsyncGenerator[bytes, None]:
    while length > 0:
        chunk = await reader.read(min(length, _CHUNK))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", length)
        length -= len(chunk)
        yield chunk


async def _chunked(reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        async for chunk in _counted(reader, size):
            yield chunk
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
