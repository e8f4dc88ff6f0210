"""What a server fetches over HTTP: the boot medium (as a BMC does) and operating system images.

The boot medium is ISO 9660 (ECMA-119); ``docs/how-to/agent-protocol.md`` says what stands on it.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

import orjson

from dflare.sim.disk import KEPT_IMAGE_BYTES, Image
from dflare.sim.http_client import HttpConnection, HttpError

_ISO_SECTOR = 2048
_FIRST_READ = 256 * 1024
_MEDIA_TIMEOUT_S = 30.0
_HASH_AT_ONCE = 1 << 20
_DESCRIPTOR_SECTOR = 16
_ROOT_RECORD_OFFSET = 156
_AGENT_PATH = ("DFLARE", "AGENT.JSON;1")


class MediaError(Exception):
    """The medium or image cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class AgentMedium:
    """The content of ``AGENT.JSON``; ``poll_s`` is wall time."""

    node_id: str
    agent_url: str
    token: str
    poll_s: float


async def read_agent_medium(url: str) -> AgentMedium | None:
    """The agent's settings on the ISO at ``url``; ``None`` when it boots no agent.

    Raises:
        MediaError: the medium cannot be fetched.
    """
    reader = _RangeReader(url)
    try:
        content = await _read_file(reader)
    finally:
        reader.close()
    if content is None:
        return None
    try:
        document = cast("dict[str, object]", orjson.loads(content.rstrip(b" \0")))
        poll = document["poll_s"]
        if document["version"] != 1 or not isinstance(poll, int | float):
            return None
        return AgentMedium(
            str(document["node_id"]),
            str(document["agent_url"]).rstrip("/"),
            str(document["token"]),
            float(poll),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


class ImageStore:
    """Downloads images once for many servers; a later use asks the server whether it changed."""

    def __init__(self, kept: int = 32, at_once: int = 16) -> None:
        self._kept = kept
        self._images: OrderedDict[str, tuple[str, Image]] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Image]] = {}
        self._slots = asyncio.Semaphore(at_once)

    async def fetch(self, url: str) -> Image:
        """The image at ``url``.

        Raises:
            MediaError: it cannot be downloaded.
        """
        task = self._under_way.get(url)
        if task is None:
            task = asyncio.create_task(self._fetch(url))
            self._under_way[url] = task
            task.add_done_callback(lambda _done: self._under_way.pop(url, None))
        # One server that loses power must not end the download of the others.
        return await asyncio.shield(task)

    async def stop(self) -> None:
        """End every download."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, url: str) -> Image:
        async with self._slots:
            connection = HttpConnection()
            known = self._images.get(url)
            headers = {"If-None-Match": known[0]} if known else {}
            try:
                status, fields, body = await connection.stream(
                    url, headers=headers, timeout_s=_MEDIA_TIMEOUT_S
                )
                async with aclosing(body):
                    if status == 304 and known is not None:
                        return known[1]
                    if status != 200:
                        raise MediaError(f"{url}: answered {status}")
                    image = await _digest(body)
            except HttpError as error:
                raise MediaError(str(error)) from error
            finally:
                connection.close()
        if etag := fields.get("etag"):
            self._images[url] = (etag, image)
            while len(self._images) > self._kept:
                self._images.popitem(last=False)
        return image


async def _digest(body: AsyncGenerator[bytes, None]) -> Image:
    digest = hashlib.sha256()
    head = bytearray()
    size = 0
    pending = bytearray()
    async for chunk in body:
        size += len(chunk)
        if len(head) < KEPT_IMAGE_BYTES:
            head += chunk[: KEPT_IMAGE_BYTES - len(head)]
        pending += chunk
        if len(pending) >= _HASH_AT_ONCE:
            # A megabyte takes about 2 ms: too long for the loop that answers for every device.
            await asyncio.to_thread(digest.update, bytes(pending))
            pending.clear()
    digest.update(pending)
    return Image(digest.hexdigest(), size, bytes(head))


async def _read_file(reader: "_RangeReader") -> bytes | None:
    descriptor = await reader.read(_DESCRIPTOR_SECTOR * _ISO_SECTOR, _ISO_SECTOR)
    if descriptor[:6] != b"\x01CD001":
        return None
    extent = _extent(descriptor[_ROOT_RECORD_OFFSET:])
    for name in _AGENT_PATH:
        directory = await reader.read(extent[0] * _ISO_SECTOR, extent[1])
        found = _find(directory, name)
        if found is None:
            return None
        extent = found
    return await reader.read(extent[0] * _ISO_SECTOR, extent[1])


def _extent(record: bytes) -> tuple[int, int]:
    """First sector and length in bytes of a directory record (ECMA-119 9.1)."""
    return int.from_bytes(record[2:6], "little"), int.from_bytes(record[10:14], "little")


def _find(directory: bytes, name: str) -> tuple[int, int] | None:
    at = 0
    while at < len(directory):
        length = directory[at]
        if length == 0:
            # Records do not cross sectors: the rest of this one is padding.
            at = (at // _ISO_SECTOR + 1) * _ISO_SECTOR
            continue
        record = directory[at : at + length]
        if record[33 : 33 + record[32]] == name.encode():
            return _extent(record)
        at += length
    return None


class _RangeReader:
    """Reads pieces of a file over HTTP, by ranges where the server has them (RFC 9110, 14)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = HttpConnection()
        self._start = 0
        self._window = b""
        self._whole = False

    async def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; fewer where the file ends before."""
        end = offset + length
        inside = self._start <= offset and end <= self._start + len(self._window)
        if not inside and not self._whole:
            # The first range covers the descriptors and, on a small medium, everything.
            first = not self._window
            await self._load(0 if first else offset, max(_FIRST_READ, end if first else length))
            inside = self._start <= offset and end <= self._start + len(self._window)
            if first and not inside and not self._whole:
                await self._load(offset, length)
        return self._window[offset - self._start : end - self._start]

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    async def _load(self, offset: int, length: int) -> None:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        try:
            answer = await self._connection.request(
                "GET", self._url, headers=headers, timeout_s=_MEDIA_TIMEOUT_S
            )
        except HttpError as error:
            raise MediaError(str(error)) from error
        if answer.status == 206:
            self._start, self._window = offset, answer.body
        elif answer.status == 200:
            self._start, self._window, self._whole = 0, answer.body, True
        elif answer.status == 416:
            self._start, self._window = offset, b""
        else:
            raise MediaError(f"{self._url}: answered {answer.status}")
