"""Blobs that are being sent: in one request or many, by any process, from where the last one ended.

A blob is hashed while it comes. The running digest is this process's alone (it cannot be written
down); where another process had a share in the upload, or the digest is of another algorithm than
was announced, the object is read back when all of it is there.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.ids import new_id
from dflare.kit.objects import NoSuchUploadError
from dflare.services.registry import repository as rows
from dflare.services.registry import repository_uploads as uploads
from dflare.services.registry.domain import (
    MAX_PARTS,
    MIB,
    MIN_PART_BYTES,
    Hash,
    algorithm_of,
    assert_off_loop,
    check_algorithm,
    check_chunk,
    check_digest,
    new_hash,
    part_bytes,
)
from dflare.services.registry.errors import (
    BusyError,
    DigestInvalidError,
    SizeInvalidError,
    StorageQuotaError,
    UploadTakenError,
    UploadUnknownError,
)
from dflare.services.registry.repository_uploads import Claim
from dflare.services.registry.service import SCHEMA, Place, RegistryService
from dflare.services.registry.tables import Blob, Upload

REMEMBERED = 256
"""Uploads between two requests whose running digests a process keeps."""

_READ_BACK_BYTES = 4 * MIB


@dataclass
class Running:
    """A digest that runs along with an upload, valid for who claims it next behind ``epoch``."""

    algorithm: str
    hash: Hash
    epoch: int
    offset_bytes: int


@dataclass
class UploadService:
    """Receives blobs and, when all of one is there and is what it should be, lets its repository
    have it."""

    registry: RegistryService
    _running: OrderedDict[str, Running] = field(default_factory=OrderedDict[str, Running])
    _receiving: Counter[str] = field(default_factory=Counter[str])

    async def begin(self, place: Place, algorithm: str = "sha256") -> str:
        """Begin an upload; its id.

        Raises:
            DigestInvalidError: digests of that algorithm are not computed here.
            StorageQuotaError: the project may hold nothing more.
        """
        check_algorithm(algorithm)
        now = self.registry.clock.now()
        upload_id = new_id("upl")
        async with self.registry.database.transaction(SCHEMA) as session:
            held = await rows.storage(session, place.project.id)
            if held.limit_bytes and held.stored_bytes + held.uploading_bytes >= held.limit_bytes:
                await rows.check_storage(session, place.project.id, 1)
            session.add(
                Upload(
                    id=upload_id,
                    project_id=place.project.id,
                    name=place.name.path,
                    object_key=f"registry/{upload_id[-2:]}/{upload_id}",
                    algorithm=algorithm,
                    store_upload_id="",
                    tail_key="",
                    tail_bytes=0,
                    offset_bytes=0,
                    next_part=1,
                    epoch=0,
                    created_by=place.principal.subject,
                    created_at=now,
                    touched_at=now,
                )
            )
        return upload_id

    async def offset(self, place: Place, upload_id: str) -> int:
        """How many bytes of an upload are there.

        Raises:
            UploadUnknownError.
        """
        async with self.registry.database.reading(SCHEMA) as session:
            found = await uploads.upload(session, place.project.id, place.name.path, upload_id)
        if found is None:
            raise _unknown(upload_id)
        return found.offset_bytes

    async def cancel(self, place: Place, upload_id: str) -> None:
        """Give an upload up.

        Raises:
            UploadUnknownError.
        """
        self._running.pop(upload_id, None)
        async with self.registry.database.transaction(SCHEMA) as session:
            found = await self._locked(session, place, upload_id)
            await uploads.drop_upload(session, found, self.registry.clock.now())

    async def receive(
        self,
        place: Place,
        upload_id: str,
        body: AsyncIterator[bytes],
        *,
        content_range: str | None = None,
        length: int | None = None,
        last: bool = False,
    ) -> int:
        """Take in bytes behind those that are there, and return how many are there now. ``length``
        is what the request announces; after ``last`` comes nothing but ``finish``.

        Raises:
            UploadUnknownError, UploadInvalidError, ChunkOrderError, SizeInvalidError.
            StorageQuotaError: the project may not hold so much.
            UploadTakenError: a later request goes on with the upload.
            BusyError: as many requests send blobs as may.
        """
        with self._slot(place.project.id):
            claimed = await self._claim(place, upload_id, content_range, length)
            receiver = _Receiver(self.registry, place, claimed, self._taken(claimed), last=last)
            try:
                offset_bytes = await receiver.run(body, length)
            except StorageQuotaError:
                await self._drop(place, claimed)
                raise
            self._remember(upload_id, receiver.running)
            return offset_bytes

    async def finish(self, place: Place, upload_id: str, digest: str) -> int:
        """Let the repository have the blob of which all bytes are there; its size in bytes.

        Raises:
            UploadUnknownError, UploadTakenError.
            DigestInvalidError: it is not what was announced; the upload ends.
            StorageQuotaError: the project may not hold so much; the upload ends.
        """
        check_digest(digest)
        claimed = await self._claim(place, upload_id, None, 0)
        running = self._taken(claimed)
        try:
            known = running is not None and running.algorithm == algorithm_of(digest)
            if known and running is not None:
                _check_content(digest, running.hash.hexdigest())
            object_key = await self._join(claimed)
            if not known:
                _check_content(digest, await self._read_back(claimed, object_key, digest))
            await self._keep(place, claimed, digest, object_key)
        except (DigestInvalidError, StorageQuotaError):
            await self._drop(place, claimed)
            raise
        return claimed.offset_bytes

    async def _claim(
        self, place: Place, upload_id: str, content_range: str | None, length: int | None
    ) -> Claim:
        now = self.registry.clock.now()
        keep = timedelta(seconds=2 * self.registry.settings.upload_keep_s)
        async with self.registry.database.transaction(SCHEMA) as session:
            found = await self._locked(session, place, upload_id)
            check_chunk(content_range, found.offset_bytes, length)
            if length:
                more = found.offset_bytes + length
                await rows.check_storage(session, place.project.id, more, found.id)
            brings = length != 0
            return await uploads.claim(session, found, now, now + keep if brings else None)

    async def _locked(self, session: AsyncSession, place: Place, upload_id: str) -> Upload:
        found = await uploads.lock_upload(session, place.project.id, place.name.path, upload_id)
        if found is None:
            raise _unknown(upload_id)
        return found

    def _taken(self, claimed: Claim) -> Running | None:
        """The running digest of what is there, if this process has seen all of it."""
        running = self._running.pop(claimed.upload_id, None)
        if claimed.offset_bytes == 0:
            return Running(claimed.algorithm, new_hash(claimed.algorithm), claimed.epoch, 0)
        if running is None or running.epoch != claimed.epoch - 1:
            return None
        return running if running.offset_bytes == claimed.offset_bytes else None

    def _remember(self, upload_id: str, running: Running | None) -> None:
        if running is not None:
            self._running[upload_id] = running
            while len(self._running) > REMEMBERED:
                self._running.popitem(last=False)

    async def _join(self, claimed: Claim) -> str:
        """Make one object of what is there; its key, which is empty where nothing is."""
        if not claimed.parts:
            return claimed.tail_key
        objects, parts = self.registry.objects, list(claimed.parts)
        key, store_upload_id = claimed.object_key, claimed.store_upload_id
        try:
            if claimed.tail_bytes:
                tail = b"".join([piece async for piece in objects.get(claimed.tail_key)])
                etag = await objects.part(key, store_upload_id, claimed.part, tail)
                parts.append((claimed.part, etag))
            await objects.complete(key, store_upload_id, parts)
        except NoSuchUploadError as error:
            # Maybe it was joined by a request that ended before that was recorded.
            if await objects.head(key) != claimed.offset_bytes:
                raise _unknown(claimed.upload_id) from error
        return claimed.object_key

    async def _read_back(self, claimed: Claim, object_key: str, digest: str) -> str:
        running = new_hash(algorithm_of(digest))
        if object_key:
            pieces: list[bytes] = []
            async for piece in self.registry.objects.get(object_key):
                pieces.append(piece)
                if sum(map(len, pieces)) >= _READ_BACK_BYTES:
                    await asyncio.to_thread(_join_hashed, pieces, 0, running)
                    pieces = []
            await asyncio.to_thread(_join_hashed, pieces, 0, running)
        return running.hexdigest()

    async def _keep(self, place: Place, claimed: Claim, digest: str, object_key: str) -> None:
        now, project = self.registry.clock.now(), place.project
        by, size_bytes = place.principal.subject, claimed.offset_bytes
        async with self.registry.database.transaction(SCHEMA) as session:
            await rows.lock_storage(session, project)
            target = await rows.ensure_repository(session, project, place.name.path, by, now)
            found = await self._locked(session, place, claimed.upload_id)
            if found.epoch != claimed.epoch:
                raise taken_over(claimed.upload_id)
            own = await rows.blob_in_project(session, project.id, digest)
            await uploads.end_upload(session, found)
            if claimed.parts and claimed.tail_key:
                await rows.discard(session, claimed.tail_key, now)
            if own is not None and await rows.link(session, target, own[0], now):
                if object_key:
                    await rows.discard(session, object_key, now)
                return
            await rows.check_storage(session, project.id, size_bytes)
            blob = Blob(
                id=new_id("blob"),
                digest=digest,
                size_bytes=size_bytes,
                object_key=object_key,
                created_at=now,
                unreferenced_since=None,
            )
            session.add(blob)
            await session.flush()
            await rows.link(session, target, blob.id, now)

    async def _drop(self, place: Place, claimed: Claim) -> None:
        async with self.registry.database.transaction(SCHEMA) as session:
            project, name = place.project.id, place.name.path
            found = await uploads.lock_upload(session, project, name, claimed.upload_id)
            if found is not None and found.epoch == claimed.epoch:
                await uploads.drop_upload(session, found, self.registry.clock.now())

    @contextmanager
    def _slot(self, project_id: str) -> Generator[None]:
        settings = self.registry.settings
        full = self._receiving.total() >= settings.uploads_at_once
        if full or self._receiving[project_id] >= settings.uploads_a_project:
            raise BusyError(
                "as many blobs are being sent as may be at once", next_step="Repeat in a moment."
            )
        self._receiving[project_id] += 1
        try:
            yield
        finally:
            self._receiving[project_id] -= 1
            if not self._receiving[project_id]:
                del self._receiving[project_id]


@dataclass
class _Receiver:
    """One request that sends a part of a blob. While one part goes to the store, the next one
    comes; so a request holds two parts in memory at most, and the pieces of one."""

    registry: RegistryService
    place: Place
    claimed: Claim
    running: Running | None
    last: bool = False
    _sending: asyncio.Task[None] | None = None
    _in_parts: int = 0
    _number: int = 0
    _pieces: list[bytes] = field(default_factory=list[bytes])
    _size: int = 0
    _unhashed: int = 0

    async def run(self, body: AsyncIterator[bytes], length: int | None) -> int:
        """Take in ``body``; how many bytes of the blob are there afterwards."""
        claimed = self.claimed
        self._in_parts = claimed.offset_bytes - claimed.tail_bytes
        self._number = claimed.part
        try:
            await self._take_in(body, length)
            await self._end()
        except BaseException as error:
            self.running = None
            if self._sending is not None:
                # A part that has come whole is kept where the client went away behind it.
                if not isinstance(error, Exception):
                    self._sending.cancel()
                await asyncio.gather(self._sending, return_exceptions=True)
            raise
        offset_bytes = self._in_parts + self._size
        if self.running is not None:
            self.running.offset_bytes, self.running.epoch = offset_bytes, claimed.epoch
        return offset_bytes

    async def _take_in(self, body: AsyncIterator[bytes], length: int | None) -> None:
        received = 0
        async for piece in body:
            if not piece:
                continue
            if not received and self.claimed.tail_bytes:
                await self._fetch_tail()
            received += len(piece)
            if length is not None and received > length:
                raise SizeInvalidError(
                    f"more than the {length} bytes that were announced came",
                    next_step="Send as many as are announced.",
                )
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size >= part_bytes(self._number):
                await self._send(check=length is None)
        if length is not None and received != length:
            raise SizeInvalidError(f"{received} of {length} bytes came", next_step="Send the rest.")
        if not received:
            # What is behind the parts stays where it is.
            self._size = self.claimed.tail_bytes

    async def _fetch_tail(self) -> None:
        self._pieces = [piece async for piece in self.registry.objects.get(self.claimed.tail_key)]
        self._size = sum(map(len, self._pieces))
        self._unhashed = len(self._pieces)

    async def _send(self, *, check: bool) -> None:
        content = await self._content()
        if self._number > MAX_PARTS:
            raise SizeInvalidError(
                "the blob is larger than any may be", next_step="Push smaller layers."
            )
        await self._sent()
        if check:
            async with self.registry.database.reading(SCHEMA) as session:
                more = self._in_parts + len(content)
                project_id, own = self.place.project.id, self.claimed.upload_id
                await rows.check_storage(session, project_id, more, own)
        self._sending = asyncio.create_task(self._send_part(self._number, content))
        self._number += 1

    async def _content(self) -> bytes:
        """What has come as one piece, hashed."""
        pieces, known = self._pieces, self._unhashed
        self._pieces, self._size, self._unhashed = [], 0, 0
        running = self.running.hash if self.running else None
        return await asyncio.to_thread(_join_hashed, pieces, known, running)

    async def _sent(self) -> None:
        """Return when the part before is in the store and recorded."""
        sending, self._sending = self._sending, None
        if sending is not None:
            try:
                await sending
            except BaseException:
                sending.cancel()
                raise

    async def _send_part(self, number: int, content: bytes) -> None:
        objects, claimed = self.registry.objects, self.claimed
        if not claimed.store_upload_id:
            begun = await objects.begin(claimed.object_key)
            async with self.registry.database.transaction(SCHEMA) as session:
                self._check(await uploads.record_store_upload(session, claimed, begun))
            claimed = self.claimed = replace(claimed, store_upload_id=begun)
        etag = await objects.part(claimed.object_key, claimed.store_upload_id, number, content)
        offset_bytes = self._in_parts + len(content)
        async with self.registry.database.transaction(SCHEMA) as session:
            now = self.registry.clock.now()
            recorded = await uploads.record_part(
                session, claimed, (number, etag), len(content), offset_bytes, now
            )
            self._check(recorded)
        self._in_parts = offset_bytes
        self.claimed = replace(self.claimed, tail_key="", tail_bytes=0)

    async def _end(self) -> None:
        """Put away what is left when the request has ended."""
        if not self._pieces:
            await self._sent()
            return
        in_parts_already = bool(self.claimed.parts) or self._number > self.claimed.part
        if self._size >= MIN_PART_BYTES or (self.last and in_parts_already):
            await self._send(check=False)
            await self._sent()
            return
        size = self._size
        content = await self._content()
        await self._sent()
        claimed = self.claimed
        await self.registry.objects.put(claimed.next_tail_key, content)
        async with self.registry.database.transaction(SCHEMA) as session:
            now = self.registry.clock.now()
            offset_bytes = self._in_parts + size
            self._check(await uploads.record_tail(session, claimed, size, offset_bytes, now))
        self._size = size

    def _check(self, recorded: bool) -> None:
        if not recorded:
            raise taken_over(self.claimed.upload_id)


def taken_over(upload_id: str) -> UploadTakenError:
    """That what a request did is not recorded."""
    return UploadTakenError(
        f"a later request goes on with upload {upload_id}", next_step="Leave it to that one."
    )


def _join_hashed(pieces: list[bytes], known: int, running: Hash | None) -> bytes:
    """The pieces as one; all but the first ``known`` are added to the running digest."""
    assert_off_loop("a blob is hashed")
    if running is None:
        return b"".join(pieces)
    whole = b"".join(pieces)
    skipped = sum(map(len, pieces[:known]))
    running.update(memoryview(whole)[skipped:] if skipped else whole)
    return whole


def _check_content(digest: str, found: str) -> None:
    if digest.partition(":")[2] != found:
        raise DigestInvalidError(
            f"the blob's digest is {algorithm_of(digest)}:{found}, not {digest}",
            next_step="Push it anew: what came is not what was announced.",
        )


def _unknown(upload_id: str) -> UploadUnknownError:
    return UploadUnknownError(
        f"there is no upload {upload_id[:64]}", next_step="Begin the blob anew."
    )
