"""Names, digests and ranges: what may stand in a request, without any query.

Source: OCI distribution specification 1.1, sections "Pulling manifests", "Pushing blobs"; OCI image
specification 1.1, section "Digests"; RFC 9110 section 14.
"""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dflare.kit.outbox import Event
from dflare.services.auth.contract import Resource
from dflare.services.registry.contract import RegistryUsage, RepositoryFacts, RepositoryState
from dflare.services.registry.errors import (
    ChunkOrderError,
    DigestInvalidError,
    NameInvalidError,
    RangeInvalidError,
    UploadInvalidError,
)
from dflare.services.registry.tables import Repository, UsageInterval

BYTES_PER_GIB = 2**30
MIB = 2**20
MIN_PART_BYTES = 5 * MIB
"""Every part of an upload but the last has at least this many (Amazon S3 API Reference)."""

MAX_PARTS = 10_000

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_MAX_NAME = 255
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGESTS = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile(r"(sha256):([a-f0-9]{64})|(sha512):([a-f0-9]{128})")
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,15})-([0-9]{1,15})(?:/(?:[0-9]+|\*))?")
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


class Hash(Protocol):
    """A running digest."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add ``data``."""
        ...

    def hexdigest(self) -> str:
        """The digest of all that was added."""
        ...


@dataclass(frozen=True)
class RepositoryName:
    """``<organization>/<project>/<path>``; the path may have several components."""

    organization: str
    project: str
    path: str

    @property
    def full(self) -> str:
        """The name as clients write it."""
        return f"{self.organization}/{self.project}/{self.path}"


def parse_name(text: str) -> RepositoryName:
    """The parts of a repository's name.

    Raises:
        NameInvalidError: it is not one.
    """
    if len(text) > _MAX_NAME or not _NAME.fullmatch(text):
        raise NameInvalidError(
            "a repository's name has components of lower-case letters and digits, separated by one "
            f"of . _ __ - inside and by / between them, in at most {_MAX_NAME} characters",
            next_step="Write ORGANIZATION/PROJECT/NAME.",
        )
    parts = text.split("/", 2)
    if len(parts) < 3:
        raise NameInvalidError(
            f"{text} does not say organization, project and name",
            next_step="Write ORGANIZATION/PROJECT/NAME.",
        )
    return RepositoryName(*parts)


def is_tag(text: str) -> bool:
    """Whether it can be a tag."""
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether it is a digest of an algorithm that this registry computes."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """The digest itself.

    Raises:
        DigestInvalidError: it is malformed, or of another algorithm.
    """
    if not is_digest(text):
        raise DigestInvalidError(
            "a digest is sha256: or sha512: and so many hexadecimal digits in lower case",
            next_step="Send the digest of the content.",
        )
    return text


def algorithm_of(digest: str) -> str:
    """``sha256`` or ``sha512``."""
    return digest.partition(":")[0]


def check_algorithm(name: str) -> str:
    """An algorithm that digests may have.

    Raises:
        DigestInvalidError: this registry does not compute it.
    """
    if name not in _DIGESTS:
        raise DigestInvalidError(
            f"digests of {name[:32]} are not computed here", next_step="Use sha256 or sha512."
        )
    return name


def new_hash(algorithm: str) -> Hash:
    """A running digest of an algorithm of ``check_algorithm``."""
    return hashlib.new(algorithm, usedforsecurity=True)


def digest_of(algorithm: str, content: bytes) -> str:
    """The digest of content of a few MiB; 512 MiB a second or so, so off the loop for more."""
    running = new_hash(algorithm)
    running.update(content)
    return f"{algorithm}:{running.hexdigest()}"


def assert_off_loop(what: str) -> None:
    """Called by what takes more than 2 ms of the processor."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise AssertionError(f"{what} on the event loop")


def part_bytes(number: int) -> int:
    """The size of part ``number`` of an upload: 8 MiB, doubled every 2,500 parts, so that 10,000
    parts hold 293 GiB and an upload in progress needs little memory."""
    return (8 * MIB) << ((number - 1) // 2500)


def check_chunk(content_range: str | None, offset: int, length: int | None) -> None:
    """Whether a chunk of ``length`` bytes (none: not announced) fits an upload of ``offset``.

    Raises:
        UploadInvalidError: its range and its length differ, or its range is none.
        ChunkOrderError: it does not begin where the upload ends.
    """
    if content_range is None:
        return
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        raise UploadInvalidError(
            "Content-Range does not say first and last byte", next_step="Write FIRST-LAST."
        )
    first, last = int(found[1]), int(found[2])
    if first != offset:
        raise ChunkOrderError(
            f"the chunk begins at byte {first}, the upload has {offset}",
            next_step="Ask for the upload's status and go on from there.",
            offset=offset,
        )
    size = last - first + 1
    if size < 0 or (length is not None and length != size):
        raise UploadInvalidError(
            f"Content-Range announces {size} bytes, Content-Length {length}",
            next_step="Send as many bytes as the range has.",
        )


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of a ``Range`` header; none where the whole content is to be sent, as for
    headers that are malformed or name several ranges (RFC 9110 section 14.2).

    Raises:
        RangeInvalidError: it begins behind the content's end, or ends before it begins.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        first, last = max(size - int(found[2]), 0), size - 1
    else:
        first, last = int(found[1]), min(int(found[2] or size), size - 1)
    if first > last or first >= size:
        raise RangeInvalidError(
            f"the blob has {size} bytes, not those of {found[0]}",
            next_step="Ask for bytes that it has.",
            size_bytes=size,
        )
    return first, last


def repository_resource(repository: Repository) -> Resource:
    """A repository as the object of a decision."""
    return Resource("repository", repository.id, repository.organization_id, repository.project_id)


def repository_event(
    repository: Repository,
    now: datetime,
    *,
    state: RepositoryState = RepositoryState.READY,
    tag: str = "",
    digest: str = "",
) -> Event:
    """``repository.changed`` for a locked repository whose version was raised."""
    facts = RepositoryFacts(
        id=repository.id,
        name=repository.name,
        organization_id=repository.organization_id,
        project_id=repository.project_id,
        state=state,
        version=repository.version,
        tag=tag,
        digest=digest,
    )
    return Event(
        type="repository.changed",
        resource_kind="repository",
        resource_id=repository.id,
        resource_version=repository.version,
        at=now,
        data=facts.model_dump(mode="json"),
        organization_id=repository.organization_id,
        project_id=repository.project_id,
    )


def usage_event(interval: UsageInterval, now: datetime) -> Event:
    """``registry.usage`` for an interval of a locked project."""
    facts = RegistryUsage(
        interval_id=interval.id,
        version=interval.version,
        organization_id=interval.organization_id,
        project_id=interval.project_id,
        stored_bytes=interval.stored_bytes,
        usage_from=interval.usage_from,
        usage_to=interval.usage_to,
    )
    return Event(
        type="registry.usage",
        resource_kind="registry_usage",
        resource_id=interval.id,
        resource_version=interval.version,
        at=now,
        data=facts.model_dump(mode="json"),
        organization_id=interval.organization_id,
        project_id=interval.project_id,
    )
