"""Objects in an S3 store: whole, in ranges, and in parts that survive the process that sends them.

The operations and their answers are those of the Amazon S3 API Reference (2006-03-01); every
store that calls itself S3 has them. Written here and not taken from botocore, which hashes whole
bodies on the event loop whenever the store is reached over plain HTTP.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import aiohttp
from yarl import URL

from dflare.kit.clock import Clock, SystemClock
from dflare.kit.errors import UnavailableError
from dflare.kit.s3_signature import Credentials, encode_path, encode_query, signed_headers
from dflare.kit.settings import PlatformSettings

CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 120.0
"""A store may join thousands of parts before it answers."""

CONNECTIONS = 64
CHUNK_BYTES = 256 * 1024
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_COPY_BYTES = 5 * 1024**3
"""What CopyObject takes at once; larger ones are copied in parts of ``COPY_PART_BYTES``."""

COPY_PART_BYTES = 1024**3

_NEXT_STEP = "Try again in a moment; an operator looks with `dflare doctor`."


class ObjectStoreUnreachableError(UnavailableError):
    """The store does not answer, cannot serve, or refuses the platform's key."""


class NoSuchObjectError(Exception):
    """There is no object of that key."""


class NoSuchUploadError(NoSuchObjectError):
    """The upload was completed, aborted, or never begun."""


class RangeError(Exception):
    """The object has no byte in the range that was asked for."""


class ObjectRefusedError(Exception):
    """The store refused what was sent: a part too small or missing, a key too long."""


@dataclass(frozen=True)
class ObjectFacts:
    """An object in a list."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStore:
    """The bucket ``settings.s3_bucket``; it is made when the first write finds none.

    Every call raises ``ObjectStoreUnreachableError`` (an answer of 503 to people) where the store
    is away or none is configured. Keys are any text of at most 1,024 bytes without control
    characters; who builds them from what tenants send checks that first.
    """

    def __init__(self, settings: PlatformSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._bucket = settings.s3_bucket
        self._session: aiohttp.ClientSession | None = None
        self._credentials: Credentials | None = None

    async def close(self) -> None:
        """Close the connections; a later call connects anew."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def put(self, key: str, content: bytes) -> None:
        """Write a whole object (at most 5 GiB), in place of an older one."""
        await self._write("PUT", key, {}, content)

    async def get(
        self, key: str, byte_range: tuple[int, int] | None = None
    ) -> AsyncGenerator[bytes]:
        """The content in pieces; of ``byte_range`` (first and last byte, from 0) where given.

        Raises:
            NoSuchObjectError: before the first piece.
            RangeError: the same.
        """
        headers = {"range": f"bytes={byte_range[0]}-{byte_range[1]}"} if byte_range else {}
        async with self._sent("GET", key, headers=headers) as response:
            await _raise_if_refused(response, key)
            async for piece in response.content.iter_chunked(CHUNK_BYTES):
                yield piece

    async def head(self, key: str) -> int | None:
        """The size in bytes; none where there is no such object."""
        async with self._sent("HEAD", key) as response:
            if response.status == 404:
                return None
            await _raise_if_refused(response, key)
            return int(response.headers["content-length"])

    async def delete(self, key: str) -> None:
        """Remove the object; one that is not there is no error."""
        async with self._sent("DELETE", key) as response:
            if response.status != 404:
                await _raise_if_refused(response, key)

    async def list(self, prefix: str) -> AsyncGenerator[ObjectFacts]:
        """The objects whose keys begin with ``prefix``, by key, a page of 1,000 at a time."""
        query = {"list-type": "2", "prefix": prefix}
        while True:
            async with self._sent("GET", "", query) as response:
                if response.status == 404:
                    return
                await _raise_if_refused(response, prefix)
                page = await _document(response)
            for entry in page.iterfind("{*}Contents"):
                yield ObjectFacts(
                    _text(entry, "Key"),
                    int(_text(entry, "Size")),
                    datetime.fromisoformat(_text(entry, "LastModified")),
                )
            if _text(page, "IsTruncated") != "true":
                return
            query = {**query, "continuation-token": _text(page, "NextContinuationToken")}

    async def copy(self, source: str, target: str) -> None:
        """Copy inside the store; ``target`` is there whole or not at all.

        Raises:
            NoSuchObjectError: there is no ``source``.
        """
        size = await self.head(source)
        if size is None:
            raise NoSuchObjectError(source)
        headers = {"x-amz-copy-source": encode_path(f"/{self._bucket}/{source}")}
        if size <= MAX_COPY_BYTES:
            await self._write("PUT", target, {}, headers=headers)
            return
        upload = await self.begin(target)
        try:
            parts: list[tuple[int, str]] = []
            for number, start in enumerate(range(0, size, COPY_PART_BYTES), 1):
                last = min(start + COPY_PART_BYTES, size) - 1
                of_part = {**headers, "x-amz-copy-source-range": f"bytes={start}-{last}"}
                query = {"partNumber": str(number), "uploadId": upload}
                answer = await self._write("PUT", target, query, headers=of_part)
                parts.append((number, _text(_parsed(answer), "ETag")))
            await self.complete(target, upload, parts)
        except BaseException:
            await self.abort(target, upload)
            raise

    async def begin(self, key: str) -> str:
        """Begin an upload in parts and return its id, which any process may go on with."""
        return _text(_parsed(await self._write("POST", key, {"uploads": ""})), "UploadId")

    async def part(self, key: str, upload_id: str, number: int, content: bytes) -> str:
        """Send part ``number`` (1 to 10,000; each but the last at least 5 MiB) and return its ETag.
        The same number again replaces the part.

        Raises:
            NoSuchUploadError: the upload has ended.
        """
        query = {"partNumber": str(number), "uploadId": upload_id}
        async with self._sent("PUT", key, query, content) as response:
            await _raise_if_refused(response, key)
            return response.headers["etag"]

    async def complete(self, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Join the parts (number and ETag, by number) to the object, which appears whole.

        Raises:
            NoSuchUploadError: the upload has ended.
            ObjectRefusedError: a part is missing or too small.
        """
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in parts
        )
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        async with self._sent("POST", key, {"uploadId": upload_id}, body) as response:
            await _raise_if_refused(response, key)
            # A store that has begun to answer can only tell of a failure in the answer itself.
            answer = await _document(response)
            if answer.tag.rpartition("}")[2] == "Error":
                raise _refusal(answer, 500, key)

    async def abort(self, key: str, upload_id: str) -> None:
        """Give the parts up; an upload that has ended is no error."""
        async with self._sent("DELETE", key, {"uploadId": upload_id}) as response:
            if response.status != 404:
                await _raise_if_refused(response, key)

    async def _write(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send what may be the first write of all; returns the answer."""
        for bucket_may_be_missing in (True, False):
            async with self._sent(method, key, query, content, headers) as response:
                answer = await _limited(response)
                if bucket_may_be_missing and response.status == 404 and b"NoSuchBucket" in answer:
                    await self._make_bucket()
                    continue
                # A copy may fail after its answer of 200 has begun, as completing may.
                if response.status >= 300 or b"<Error>" in answer[:200]:
                    raise _refusal(_parsed(answer), response.status, key)
                return answer
        raise AssertionError("the second try returns or raises")

    async def _make_bucket(self) -> None:
        async with self._sent("PUT", None) as response:
            # 409: another process was quicker.
            if response.status != 409:
                await _raise_if_refused(response, self._bucket)

    @asynccontextmanager
    async def _sent(
        self,
        method: str,
        key: str | None,
        query: Mapping[str, str] | None = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The answer to a signed request for ``key``; for the bucket itself where it is none."""
        session, credentials = self._opened()
        base = urlsplit(self._settings.s3_url)
        path = f"{base.path.rstrip('/')}/{self._bucket}" + ("" if key is None else f"/{key}")
        asked = query or {}
        signed = signed_headers(
            credentials, method, base.netloc, path, asked, headers or {}, self._clock.now()
        )
        text = encode_query(asked)
        url = URL(
            f"{base.scheme}://{base.netloc}{encode_path(path)}{f'?{text}' if text else ''}",
            encoded=True,
        )
        # Bytes would be written at once; a file is written piece by piece as the store takes it.
        body = content if len(content) <= CHUNK_BYTES else BytesIO(content)
        try:
            async with session.request(
                method, url, data=body, headers=signed, allow_redirects=False
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ObjectStoreUnreachableError(
                "the store of objects does not answer", next_step=_NEXT_STEP
            ) from error

    def _opened(self) -> tuple[aiohttp.ClientSession, Credentials]:
        settings = self._settings
        if not settings.s3_url:
            raise ObjectStoreUnreachableError(
                "this platform has no store of objects",
                next_step="An operator names one (DFLARE_S3_URL), or lets `dflare up` start one.",
            )
        if self._credentials is None:
            secret = Path(settings.s3_secret_key_file).read_text().strip()
            self._credentials = Credentials(settings.s3_access_key, secret, settings.s3_region)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_WITHIN_S, sock_read=ANSWER_WITHIN_S
                ),
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("content-type", "accept-encoding"),
                auto_decompress=False,
            )
        return self._session, self._credentials


async def _raise_if_refused(response: aiohttp.ClientResponse, key: str) -> None:
    if response.status >= 300:
        body = await _limited(response)
        raise _refusal(_parsed(body) if body else None, response.status, key)


async def _document(response: aiohttp.ClientResponse) -> ElementTree.Element:
    return _parsed(await _limited(response))


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_chunked(CHUNK_BYTES):
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise ObjectStoreUnreachableError(
                "the store of objects answers more than it should", next_step=_NEXT_STEP
            )
    return bytes(body)


def _parsed(body: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(body)  # noqa: S314 - the platform's own store, and bounded
    except ElementTree.ParseError as error:
        raise ObjectStoreUnreachableError(
            "what answers in place of the store of objects is no S3", next_step=_NEXT_STEP
        ) from error


def _text(element: ElementTree.Element, name: str) -> str:
    found = element.find(f"{{*}}{name}")
    return (found.text or "") if found is not None else ""


def _refusal(error: ElementTree.Element | None, status: int, key: str) -> Exception:
    """What to raise for an answer of ``status`` with that ``Error`` element (or without body)."""
    code = "" if error is None else _text(error, "Code")
    if code == "NoSuchUpload":
        return NoSuchUploadError(key)
    if status == 404:
        return NoSuchObjectError(key)
    if status == 416:
        return RangeError(key)
    said = f"{status} {code}".strip()
    if status in {401, 403} or status >= 500 or 300 <= status < 400:
        return ObjectStoreUnreachableError(
            f"the store of objects answers {said}", next_step=_NEXT_STEP
        )
    return ObjectRefusedError(f"{key}: {said}")
