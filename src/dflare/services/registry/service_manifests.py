"""Manifests and tags: pushing, pulling, deleting, and what is about a manifest."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dflare.kit import outbox
from dflare.services.registry import repository as rows
from dflare.services.registry import repository_manifests as manifests
from dflare.services.registry.domain import (
    algorithm_of,
    check_digest,
    digest_of,
    is_digest,
    is_tag,
    repository_event,
)
from dflare.services.registry.domain_manifests import (
    MAX_MANIFEST_BYTES,
    ParsedManifest,
    parse_manifest,
)
from dflare.services.registry.errors import (
    DigestInvalidError,
    ManifestInvalidError,
    ManifestTooLargeError,
    ManifestUnknownError,
)
from dflare.services.registry.repository_manifests import NewManifest
from dflare.services.registry.service import SCHEMA, Place, RegistryService, name_unknown
from dflare.services.registry.tables import KIT, Manifest


@dataclass(frozen=True)
class Pushed:
    """A manifest that was pushed; ``subject`` is what it is about, or empty."""

    digest: str
    subject: str


@dataclass(frozen=True)
class ManifestService:
    """Manifests stand in the database itself, at most ``MAX_MANIFEST_BYTES`` each."""

    registry: RegistryService

    async def get(self, place: Place, reference: str) -> Manifest:
        """A manifest by tag or digest.

        Raises:
            DigestInvalidError, NameUnknownError, ManifestUnknownError.
        """
        _check_reference(reference)
        async with self.registry.database.reading(SCHEMA) as session:
            found = await self.registry.present(session, place)
            digest: str | None = reference
            if not is_digest(reference):
                digest = await manifests.digest_of_tag(session, found.id, reference)
            manifest = await manifests.manifest(session, found.id, digest) if digest else None
        if manifest is None:
            raise _unknown(reference)
        return manifest

    async def push(
        self, place: Place, reference: str, content: bytes, content_type: str, digest: str | None
    ) -> Pushed:
        """Keep a manifest under its digest, and under a tag where ``reference`` is one; ``digest``
        is what the caller says that a tagged one has.

        Raises:
            ManifestTooLargeError, ManifestInvalidError, DigestInvalidError, StorageQuotaError.
            MissingReferenceError: the repository lacks something that it refers to.
        """
        tag = "" if ":" in reference else reference
        if tag and not is_tag(tag):
            raise ManifestInvalidError(
                f"{tag[:130]!r} cannot be a tag",
                next_step="Use at most 128 letters, digits, _ . and -, not . or - first.",
            )
        wanted = (digest or None) if tag else reference
        if wanted is not None:
            check_digest(wanted)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ManifestTooLargeError(
                f"a manifest has at most {MAX_MANIFEST_BYTES} bytes",
                next_step="Push a smaller one.",
            )
        algorithm = algorithm_of(wanted) if wanted else "sha256"
        parsed, found = await asyncio.to_thread(_read, content, content_type, algorithm)
        if wanted is not None and wanted != found:
            raise DigestInvalidError(
                f"the manifest's digest is {found}, not {wanted}",
                next_step="Push it under its own digest, unchanged.",
            )
        at, by = self.registry.clock.now(), place.principal.subject
        await self._keep(place, NewManifest(found, content, parsed, by, at), tag)
        return Pushed(found, parsed.subject)

    async def _keep(self, place: Place, new: NewManifest, tag: str) -> None:
        project = place.project
        async with self.registry.database.transaction(SCHEMA) as session:
            await rows.lock_storage(session, project)
            made = await rows.ensure_repository(session, project, place.name.path, new.by, new.at)
            found = await rows.lock_repository(session, made.id)
            if found is None:
                raise name_unknown(place.name)
            known = await manifests.manifest(session, found.id, new.digest) is not None
            if not known:
                await rows.check_storage(session, project.id, len(new.content))
            changed = await manifests.put_manifest(session, found, new)
            if tag:
                moved = await manifests.set_tag(session, found.id, tag, new.digest, new.by, new.at)
                changed = changed or moved
            if not changed:
                return
            found.version += 1
            found.pushed_at = new.at
            await session.flush()
            event = repository_event(found, new.at, tag=tag, digest=new.digest)
            await outbox.emit(session, KIT, [event])
            detail = {"tag": tag, "digest": new.digest}
            await self.registry.audit(session, place.principal, found, "repository:push", **detail)

    async def delete(self, place: Place, reference: str) -> None:
        """Remove a tag, or a manifest with all its tags.

        Raises:
            DigestInvalidError, NameUnknownError, ManifestUnknownError.
        """
        _check_reference(reference)
        now = self.registry.clock.now()
        by_digest = is_digest(reference)
        async with self.registry.database.transaction(SCHEMA) as session:
            named = await self.registry.present(session, place)
            found = await rows.lock_repository(session, named.id)
            if found is None:
                raise name_unknown(place.name)
            if by_digest:
                gone = await manifests.remove_manifest(session, found.id, reference, now)
                digest = reference if gone else None
            else:
                digest = await manifests.remove_tag(session, found.id, reference)
            if digest is None:
                raise _unknown(reference)
            found.version += 1
            await session.flush()
            tag = "" if by_digest else reference
            await outbox.emit(session, KIT, [repository_event(found, now, tag=tag, digest=digest)])
            detail = {"tag": tag, "digest": digest}
            await self.registry.audit(
                session, place.principal, found, "repository:delete", **detail
            )

    async def referrers(
        self, place: Place, subject: str, artifact_type: str | None, after: str, limit: int
    ) -> Sequence[dict[str, Any]]:
        """Descriptors of what is about a manifest, which need not be there itself; none where there
        is no such repository.

        Raises:
            DigestInvalidError.
        """
        check_digest(subject)
        async with self.registry.database.reading(SCHEMA) as session:
            found = await rows.repository(session, place.project.id, place.name.path)
            if found is None:
                return []
            return await manifests.referrers(
                session, found.id, subject, artifact_type, after, limit
            )

    async def tag_names(self, place: Place, after: str, limit: int) -> Sequence[str]:
        """Names of tags in lexical order behind ``after``.

        Raises:
            NameUnknownError.
        """
        async with self.registry.database.reading(SCHEMA) as session:
            found = await self.registry.present(session, place)
            return await manifests.tag_names(session, found.id, after, limit)


def _read(content: bytes, content_type: str, algorithm: str) -> tuple[ParsedManifest, str]:
    return parse_manifest(content, content_type), digest_of(algorithm, content)


def _check_reference(reference: str) -> None:
    if ":" in reference:
        check_digest(reference)
    elif not is_tag(reference):
        raise _unknown(reference)


def _unknown(reference: str) -> ManifestUnknownError:
    return ManifestUnknownError(
        f"the repository has no manifest {reference[:150]}", next_step="List its tags."
    )
