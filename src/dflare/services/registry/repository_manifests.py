"""Queries of schema ``registry``: manifests, what they refer to, and tags. Who changes them has
locked the repository."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, exists, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.registry import repository
from dflare.services.registry.domain_manifests import Descriptor, ParsedManifest
from dflare.services.registry.errors import ManifestInvalidError, MissingReferenceError
from dflare.services.registry.tables import Manifest, Reference, Repository, RepositoryBlob, Tag

BLOB, MANIFEST = "blob", "manifest"


@dataclass(frozen=True)
class NewManifest:
    """A manifest to keep, and who pushed it when."""

    digest: str
    content: bytes
    parsed: ParsedManifest
    by: str
    at: datetime


@dataclass(frozen=True)
class TagFacts:
    """A tag and what it names; ``size_bytes`` are those of the manifest and all that it refers to
    itself."""

    name: str
    digest: str
    media_type: str
    artifact_type: str
    size_bytes: int
    updated_by: str
    updated_at: datetime


async def digest_of_tag(session: AsyncSession, repository_id: str, tag: str) -> str | None:
    """What a tag names."""
    query = select(Tag.digest).where(Tag.repository_id == repository_id, Tag.name == tag)
    return (await session.scalars(query)).first()


async def manifest(session: AsyncSession, repository_id: str, digest: str) -> Manifest | None:
    """A manifest by its digest."""
    query = select(Manifest).where(
        Manifest.repository_id == repository_id, Manifest.digest == digest
    )
    return (await session.scalars(query)).first()


async def put_manifest(session: AsyncSession, found: Repository, new: NewManifest) -> bool:
    """Keep a manifest, whose blobs no collection takes from now on; whether it is new here.

    Raises:
        MissingReferenceError: the repository lacks something that it refers to.
        ManifestInvalidError: that has another size than it says.
    """
    parsed = new.parsed
    here = await _blobs_here(session, found.id, [*parsed.blobs, *parsed.elsewhere])
    for one in parsed.blobs:
        _check_reference(here, one)
    layers = [one for one in parsed.elsewhere if one.digest in here]
    manifests = await _manifests_here(session, found.id, parsed.manifests)
    for one in parsed.manifests:
        _check_reference(manifests, one)
    values = {
        "repository_id": found.id,
        "digest": new.digest,
        "project_id": found.project_id,
        "media_type": parsed.media_type,
        "artifact_type": parsed.artifact_type,
        "subject": parsed.subject,
        "annotations": dict(parsed.annotations),
        "content": new.content,
        "size_bytes": len(new.content),
        "pushed_by": new.by,
        "pushed_at": new.at,
    }
    made = await session.scalar(
        insert(Manifest).values(**values).on_conflict_do_nothing().returning(Manifest.digest)
    )
    references = [
        *_references(found.id, new.digest, BLOB, [*parsed.blobs, *layers]),
        *_references(found.id, new.digest, MANIFEST, parsed.manifests),
    ]
    if references:
        await session.execute(insert(Reference).on_conflict_do_nothing(), references)
    await session.execute(
        update(RepositoryBlob)
        .where(
            RepositoryBlob.repository_id == found.id,
            RepositoryBlob.digest.in_([one.digest for one in (*parsed.blobs, *layers)]),
        )
        .values(unreferenced_since=None)
        .execution_options(synchronize_session=False)
    )
    return made is not None


async def set_tag(
    session: AsyncSession, repository_id: str, tag: str, digest: str, by: str, at: datetime
) -> bool:
    """Let a tag name a manifest; whether it did not before."""
    before = await digest_of_tag(session, repository_id, tag)
    values = {"digest": digest, "updated_by": by, "updated_at": at}
    await session.execute(
        insert(Tag)
        .values(repository_id=repository_id, name=tag, **values)
        .on_conflict_do_update(index_elements=["repository_id", "name"], set_=values)
    )
    return before != digest


async def remove_tag(session: AsyncSession, repository_id: str, tag: str) -> str | None:
    """Remove a tag; what it named, or none where there was none."""
    statement = delete(Tag).where(Tag.repository_id == repository_id, Tag.name == tag)
    return (await session.scalars(statement.returning(Tag.digest))).first()


async def remove_manifest(
    session: AsyncSession, repository_id: str, digest: str, now: datetime
) -> bool:
    """Remove a manifest with its tags; blobs that no other one refers to are kept for their time of
    grace. Whether there was one."""
    gone = delete(Manifest).where(
        Manifest.repository_id == repository_id, Manifest.digest == digest
    )
    if (await session.scalars(gone.returning(Manifest.digest))).first() is None:
        return False
    await session.execute(
        delete(Tag).where(Tag.repository_id == repository_id, Tag.digest == digest)
    )
    released = await session.scalars(
        delete(Reference)
        .where(Reference.repository_id == repository_id, Reference.manifest_digest == digest)
        .returning(Reference.digest)
    )
    still = exists().where(
        Reference.repository_id == RepositoryBlob.repository_id,
        Reference.digest == RepositoryBlob.digest,
    )
    await session.execute(
        update(RepositoryBlob)
        .where(
            RepositoryBlob.repository_id == repository_id,
            RepositoryBlob.digest.in_(released.all()),
            ~still,
        )
        .values(unreferenced_since=now)
        .execution_options(synchronize_session=False)
    )
    return True


async def remove_unnamed(
    session: AsyncSession, repository_id: str, digest: str, now: datetime
) -> list[str]:
    """Remove a manifest that no tag names and no other one refers to, and then those that it alone
    referred to, and those that are about it. Returns what was removed."""
    removed: list[str] = []
    waiting = [digest]
    while waiting:
        one = waiting.pop()
        if await _is_named(session, repository_id, one):
            continue
        parts = select(Reference.digest).where(
            Reference.repository_id == repository_id,
            Reference.manifest_digest == one,
            Reference.kind == MANIFEST,
        )
        about = select(Manifest.digest).where(
            Manifest.repository_id == repository_id, Manifest.subject == one
        )
        followers = [*(await session.scalars(parts)), *(await session.scalars(about))]
        if await remove_manifest(session, repository_id, one, now):
            removed.append(one)
            waiting += followers
    return removed


async def referrers(
    session: AsyncSession,
    repository_id: str,
    subject: str,
    artifact_type: str | None,
    after: str,
    limit: int,
) -> Sequence[dict[str, Any]]:
    """Descriptors of the manifests that are about ``subject``, in order of their digests behind
    ``after``."""
    columns = (
        Manifest.media_type,
        Manifest.digest,
        Manifest.size_bytes,
        Manifest.artifact_type,
        Manifest.annotations,
    )
    query = select(*columns).where(
        Manifest.repository_id == repository_id,
        Manifest.subject == subject,
        Manifest.digest > after,
    )
    if artifact_type is not None:
        query = query.where(Manifest.artifact_type == artifact_type)
    rows = await session.execute(query.order_by(Manifest.digest).limit(limit))
    return [_descriptor_of(*row) for row in rows]


async def tag_names(
    session: AsyncSession, repository_id: str, after: str, limit: int
) -> Sequence[str]:
    """Names of tags in lexical order (upper and lower case together, as the specification wants),
    behind ``after``."""
    order = (func.lower(Tag.name).collate("C"), Tag.name.collate("C"))
    query = select(Tag.name).where(Tag.repository_id == repository_id)
    if after:
        query = query.where(tuple_(*order) > tuple_(after.lower(), after))
    return (await session.scalars(query.order_by(*order).limit(limit))).all()


async def tags(
    session: AsyncSession, repository_id: str, after: str, limit: int
) -> Sequence[TagFacts]:
    """One page of tags in order of their names, with what they name."""
    content = (
        select(func.coalesce(func.sum(Reference.size_bytes), 0))
        .where(
            Reference.repository_id == Manifest.repository_id,
            Reference.manifest_digest == Manifest.digest,
        )
        .scalar_subquery()
    )
    query = (
        select(Tag, Manifest.media_type, Manifest.artifact_type, Manifest.size_bytes + content)
        .join(
            Manifest,
            (Manifest.repository_id == Tag.repository_id) & (Manifest.digest == Tag.digest),
        )
        .where(Tag.repository_id == repository_id, Tag.name.collate("C") > after)
        .order_by(Tag.name.collate("C"))
        .limit(limit)
    )
    return [
        TagFacts(tag.name, tag.digest, media, kind, int(size), tag.updated_by, tag.updated_at)
        for tag, media, kind, size in await session.execute(query)
    ]


async def _is_named(session: AsyncSession, repository_id: str, digest: str) -> bool:
    named = select(Tag.name).where(Tag.repository_id == repository_id, Tag.digest == digest)
    if (await session.scalars(named.limit(1))).first() is not None:
        return True
    return await repository.is_referenced(session, repository_id, digest)


async def _blobs_here(
    session: AsyncSession, repository_id: str, wanted: Sequence[Descriptor]
) -> dict[str, int]:
    """The sizes of those that the repository has, kept from being collected meanwhile."""
    query = select(RepositoryBlob.digest, RepositoryBlob.size_bytes).where(
        RepositoryBlob.repository_id == repository_id,
        RepositoryBlob.digest.in_([one.digest for one in wanted]),
    )
    rows = await session.execute(query.order_by(RepositoryBlob.digest).with_for_update())
    return {row.digest: row.size_bytes for row in rows}


async def _manifests_here(
    session: AsyncSession, repository_id: str, wanted: Sequence[Descriptor]
) -> dict[str, int]:
    query = select(Manifest.digest, Manifest.size_bytes).where(
        Manifest.repository_id == repository_id,
        Manifest.digest.in_([one.digest for one in wanted]),
    )
    return {row.digest: row.size_bytes for row in await session.execute(query)}


def _check_reference(here: dict[str, int], wanted: Descriptor) -> None:
    if wanted.digest not in here:
        raise MissingReferenceError(
            f"the repository does not have {wanted.digest}, to which the manifest refers",
            next_step="Push that first.",
            digest=wanted.digest,
        )
    if here[wanted.digest] != wanted.size_bytes:
        raise ManifestInvalidError(
            f"{wanted.digest} has {here[wanted.digest]} bytes, the manifest says "
            f"{wanted.size_bytes}",
            next_step="Make the manifest anew.",
        )


def _references(
    repository_id: str, manifest_digest: str, kind: str, targets: Iterable[Descriptor]
) -> list[dict[str, Any]]:
    return [
        {
            "repository_id": repository_id,
            "manifest_digest": manifest_digest,
            "digest": one.digest,
            "kind": kind,
            "size_bytes": one.size_bytes,
        }
        for one in targets
    ]


def _descriptor_of(
    media_type: str,
    digest: str,
    size_bytes: int,
    artifact_type: str,
    annotations: dict[str, Any],
) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size_bytes}
    if artifact_type:
        found["artifactType"] = artifact_type
    if annotations:
        found["annotations"] = annotations
    return found
