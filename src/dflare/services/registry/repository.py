"""Queries of schema ``registry``: repositories, what they hold, and how much that is.

Locks are taken in one order: the project's storage, the repository, its upload, blobs by their ids,
then what links repositories to them. Functions that take no scope run for a project or repository
that the caller was authorized in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, case, delete, func, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.errors import NotFoundError
from dflare.kit.ids import new_id
from dflare.services.auth.contract import ProjectRef, Scope
from dflare.services.registry.contract import QUOTA
from dflare.services.registry.domain import BYTES_PER_GIB, repository_event
from dflare.services.registry.errors import StorageQuotaError
from dflare.services.registry.tables import (
    KIT,
    Blob,
    Garbage,
    Manifest,
    ProjectStorage,
    Reference,
    Repository,
    RepositoryBlob,
    Tag,
    Upload,
)


@dataclass(frozen=True)
class Storage:
    """What a project may hold and holds; ``uploading_bytes`` are those of blobs being sent."""

    limit_bytes: int
    stored_bytes: int
    uploading_bytes: int


@dataclass(frozen=True)
class Holding:
    """A blob of a repository and the object that has its content."""

    digest: str
    size_bytes: int
    object_key: str
    unreferenced_since: datetime | None


async def repository(session: AsyncSession, project_id: str, name: str) -> Repository | None:
    """A repository of a project by its name."""
    query = select(Repository).where(Repository.project_id == project_id, Repository.name == name)
    return (await session.scalars(query)).first()


async def lock_repository(
    session: AsyncSession, repository_id: str, *, shared: bool = False
) -> Repository | None:
    """A repository, locked against others that change its manifests; ``shared`` only against its
    removal. None where it was removed meanwhile."""
    query = select(Repository).where(Repository.id == repository_id)
    locking = query.with_for_update(read=shared, key_share=True)
    return (await session.scalars(locking)).first()


async def ensure_repository(
    session: AsyncSession, project: ProjectRef, name: str, by: str, now: datetime
) -> Repository:
    """The repository of that name, made where the project has none; locked against its removal."""
    made = await session.scalar(
        insert(Repository)
        .values(
            id=new_id("repo"),
            organization_id=project.organization_id,
            project_id=project.id,
            name=name,
            created_by=by,
            created_at=now,
            pushed_at=now,
            version=1,
        )
        .on_conflict_do_nothing()
        .returning(Repository.id)
    )
    query = select(Repository).where(Repository.project_id == project.id, Repository.name == name)
    found = (await session.scalars(query.with_for_update(read=True, key_share=True))).one()
    if made is not None:
        await outbox.emit(session, KIT, [repository_event(found, now)])
    return found


async def find(
    session: AsyncSession, scope: Scope, project_id: str, reference: str, *, lock: bool = False
) -> Repository:
    """A repository of a project by id or name; with ``lock`` nobody else changes it until the
    transaction ends.

    Raises:
        NotFoundError: none within the scope.
    """
    query = select(Repository).where(
        _within(scope),
        Repository.project_id == project_id,
        (Repository.id == reference) | (Repository.name == reference),
    )
    query = query.order_by(Repository.id != reference).limit(1)
    found = (await session.scalars(query.with_for_update() if lock else query)).first()
    if found is None:
        raise NotFoundError(
            f"there is no repository {reference} in this project",
            next_step="List what there is, or check the project that you act in.",
        )
    return found


async def list_repositories(
    session: AsyncSession,
    scope: Scope,
    project_id: str | None,
    after: str | None,
    limit: int,
    *,
    name: str | None = None,
) -> Sequence[Repository]:
    """One page of repositories in order of ids."""
    query = select(Repository).where(_within(scope))
    if project_id is not None:
        query = query.where(Repository.project_id == project_id)
    if name is not None:
        query = query.where(Repository.name == name)
    if after is not None:
        query = query.where(Repository.id > after)
    return (await session.scalars(query.order_by(Repository.id).limit(limit))).all()


async def sizes(
    session: AsyncSession, repository_ids: Sequence[str]
) -> dict[str, tuple[int, int, int]]:
    """Bytes, manifests and tags of repositories that the caller has loaded within its scope."""
    blobs = await _sums(session, repository_ids, RepositoryBlob)
    manifests = await _sums(session, repository_ids, Manifest)
    tags = select(Tag.repository_id, func.count()).where(Tag.repository_id.in_(repository_ids))
    counted = {row[0]: row[1] for row in await session.execute(tags.group_by(Tag.repository_id))}
    return {
        one: (
            blobs.get(one, (0, 0))[0] + manifests.get(one, (0, 0))[0],
            manifests.get(one, (0, 0))[1],
            counted.get(one, 0),
        )
        for one in repository_ids
    }


async def _sums(
    session: AsyncSession,
    repository_ids: Sequence[str],
    table: type[RepositoryBlob] | type[Manifest],
) -> dict[str, tuple[int, int]]:
    query = (
        select(table.repository_id, func.sum(table.size_bytes), func.count())
        .where(table.repository_id.in_(repository_ids))
        .group_by(table.repository_id)
    )
    return {row[0]: (int(row[1]), row[2]) for row in await session.execute(query)}


async def lock_storage(session: AsyncSession, project: ProjectRef) -> ProjectStorage:
    """What a project may hold; its pushes wait here for each other until the transaction ends."""
    values = {"project_id": project.id, "organization_id": project.organization_id}
    await session.execute(insert(ProjectStorage).values(**values).on_conflict_do_nothing())
    query = select(ProjectStorage).where(ProjectStorage.project_id == project.id)
    return (await session.scalars(query.with_for_update())).one()


async def stored_bytes(session: AsyncSession, project_id: str) -> int:
    """What the repositories of a project hold; a blob that several of them have counts once."""
    own = select(RepositoryBlob.digest, RepositoryBlob.size_bytes).where(
        RepositoryBlob.project_id == project_id
    )
    distinct = own.distinct().subquery()
    blobs = await session.scalar(select(func.coalesce(func.sum(distinct.c.size_bytes), 0)))
    manifests = await session.scalar(
        select(func.coalesce(func.sum(Manifest.size_bytes), 0)).where(
            Manifest.project_id == project_id
        )
    )
    return int(blobs or 0) + int(manifests or 0)


async def storage(session: AsyncSession, project_id: str, but_not: str = "") -> Storage:
    """What a project may hold and holds, without the upload ``but_not``."""
    limit = select(ProjectStorage.limit_gib).where(ProjectStorage.project_id == project_id)
    uploading = select(func.coalesce(func.sum(Upload.offset_bytes), 0)).where(
        Upload.project_id == project_id, Upload.id != but_not
    )
    return Storage(
        limit_bytes=(await session.scalar(limit) or 0) * BYTES_PER_GIB,
        stored_bytes=await stored_bytes(session, project_id),
        uploading_bytes=int(await session.scalar(uploading) or 0),
    )


async def check_storage(
    session: AsyncSession, project_id: str, more_bytes: int, but_not: str = ""
) -> None:
    """Whether the project may hold ``more_bytes``, those of upload ``but_not`` not counted.

    Raises:
        StorageQuotaError: with limit, use and wish.
    """
    held = await storage(session, project_id, but_not)
    used_bytes = held.stored_bytes + held.uploading_bytes
    if more_bytes and used_bytes + more_bytes > held.limit_bytes:
        raise StorageQuotaError(
            f"{_gib(more_bytes)} GiB beside the {_gib(used_bytes)} GiB that the project's "
            f"repositories hold are more than the {_gib(held.limit_bytes)} GiB of its quota",
            next_step="Delete images (`dflare repository list`), or ask an operator to run "
            f"`dflare quota set {QUOTA} GIB`.",
            limit_bytes=held.limit_bytes,
            used_bytes=used_bytes,
            wanted_bytes=more_bytes,
        )


async def holding(session: AsyncSession, repository_id: str, digest: str) -> Holding | None:
    """A blob of a repository."""
    query = (
        select(
            RepositoryBlob.digest,
            RepositoryBlob.size_bytes,
            RepositoryBlob.unreferenced_since,
            Blob.object_key,
        )
        .join(Blob, Blob.id == RepositoryBlob.blob_id)
        .where(RepositoryBlob.repository_id == repository_id, RepositoryBlob.digest == digest)
    )
    found = (await session.execute(query)).first()
    if found is None:
        return None
    return Holding(found.digest, found.size_bytes, found.object_key, found.unreferenced_since)


async def renew(
    session: AsyncSession, repository_id: str, digest: str, now: datetime, than: timedelta
) -> None:
    """A pusher relies on a blob that no manifest refers to: its time of grace begins again, unless
    it began less than ``than`` ago."""
    await session.execute(
        update(RepositoryBlob)
        .where(
            RepositoryBlob.repository_id == repository_id,
            RepositoryBlob.digest == digest,
            RepositoryBlob.unreferenced_since < now - than,
        )
        .values(unreferenced_since=now)
    )


async def blob_in_project(
    session: AsyncSession, project_id: str, digest: str
) -> tuple[str, int] | None:
    """Id and bytes of the blob of that digest that some repository of a project has."""
    query = select(RepositoryBlob.blob_id, RepositoryBlob.size_bytes).where(
        RepositoryBlob.project_id == project_id, RepositoryBlob.digest == digest
    )
    found = (await session.execute(query.limit(1))).first()
    return (found.blob_id, found.size_bytes) if found else None


async def blob_in_repository(
    session: AsyncSession, project_id: str, name: str, digest: str
) -> tuple[str, int] | None:
    """Id and bytes of the blob of that digest that the repository ``name`` of a project has."""
    query = (
        select(RepositoryBlob.blob_id, RepositoryBlob.size_bytes)
        .join(Repository, Repository.id == RepositoryBlob.repository_id)
        .where(
            Repository.project_id == project_id,
            Repository.name == name,
            RepositoryBlob.digest == digest,
        )
    )
    found = (await session.execute(query)).first()
    return (found.blob_id, found.size_bytes) if found else None


async def link(session: AsyncSession, target: Repository, blob_id: str, now: datetime) -> bool:
    """Give a repository a blob that another one has; false where that is gone by now."""
    query = select(Blob).where(Blob.id == blob_id).with_for_update()
    blob = (await session.scalars(query)).first()
    if blob is None:
        return False
    before, blob.unreferenced_since = blob.unreferenced_since, None
    statement = insert(RepositoryBlob).values(
        repository_id=target.id,
        digest=blob.digest,
        project_id=target.project_id,
        blob_id=blob.id,
        size_bytes=blob.size_bytes,
        unreferenced_since=now,
    )
    kept = case((RepositoryBlob.unreferenced_since.is_(None), null()), else_=now)
    had = await session.scalar(
        statement.on_conflict_do_update(
            index_elements=["repository_id", "digest"], set_={"unreferenced_since": kept}
        ).returning(RepositoryBlob.blob_id)
    )
    if had != blob.id:
        # The repository has that content in another object, which it keeps.
        blob.unreferenced_since = before
    return True


async def unlink(
    session: AsyncSession, repository_id: str, now: datetime, *conditions: ColumnElement[bool]
) -> list[str]:
    """Take from a locked repository the blobs whose links meet ``conditions``, and note those that
    nobody has any more. Returns their digests."""
    wanted = select(RepositoryBlob.blob_id).where(
        RepositoryBlob.repository_id == repository_id, *conditions
    )
    blob_ids = sorted((await session.scalars(wanted)).all())
    # First the blobs: of two who let go of one at the same time, the later one notes that.
    await session.execute(
        select(Blob.id).where(Blob.id.in_(blob_ids)).order_by(Blob.id).with_for_update()
    )
    gone = await session.scalars(
        delete(RepositoryBlob)
        .where(
            RepositoryBlob.repository_id == repository_id,
            RepositoryBlob.blob_id.in_(blob_ids),
            *conditions,
        )
        .returning(RepositoryBlob.digest)
    )
    digests = list(gone.all())
    has_one = select(RepositoryBlob.blob_id).where(RepositoryBlob.blob_id == Blob.id).exists()
    await session.execute(
        update(Blob)
        .where(Blob.id.in_(blob_ids), ~has_one)
        .values(unreferenced_since=now)
        .execution_options(synchronize_session=False)
    )
    return digests


async def is_referenced(session: AsyncSession, repository_id: str, digest: str) -> bool:
    """Whether a manifest of the repository refers to that blob or manifest."""
    query = select(Reference.digest).where(
        Reference.repository_id == repository_id, Reference.digest == digest
    )
    return (await session.scalars(query.limit(1))).first() is not None


async def discard(
    session: AsyncSession, object_key: str, due_at: datetime, store_upload_id: str = ""
) -> None:
    """Have an object removed from the store."""
    values = {"object_key": object_key, "due_at": due_at, "store_upload_id": store_upload_id}
    await session.execute(insert(Garbage).values(**values).on_conflict_do_nothing())


async def remove_repository(session: AsyncSession, found: Repository, now: datetime) -> None:
    """Remove a locked repository with all that it has."""
    await unlink(session, found.id, now)
    for table in (Tag, Reference, Manifest):
        await session.execute(delete(table).where(table.repository_id == found.id))
    await session.delete(found)
    await session.flush()


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / BYTES_PER_GIB:.3f}".rstrip("0").rstrip(".")


def _within(scope: Scope) -> ColumnElement[bool]:
    table = Repository.__table__.c
    return scope.where(table.organization_id, table.project_id)
