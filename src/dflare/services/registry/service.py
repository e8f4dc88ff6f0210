"""Repositories and their blobs: who may use them, reading, mounting, deleting."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ForbiddenError, NotFoundError
from dflare.kit.etag import check_if_match
from dflare.kit.objects import ObjectStore
from dflare.kit.outbox import AuditRecord
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.registry import repository as rows
from dflare.services.registry import repository_manifests as manifests
from dflare.services.registry.contract import RepositoryState
from dflare.services.registry.domain import (
    RepositoryName,
    check_digest,
    parse_name,
    repository_event,
    repository_resource,
)
from dflare.services.registry.errors import (
    BlobInUseError,
    BlobUnknownError,
    NameInvalidError,
    NameUnknownError,
)
from dflare.services.registry.repository import Holding, Storage
from dflare.services.registry.repository_manifests import TagFacts
from dflare.services.registry.settings import RegistrySettings
from dflare.services.registry.tables import KIT, Repository, RepositoryBlob

SCHEMA = "registry"
PULL, PUSH, DELETE = "pull", "push", "delete"
ACTIONS = {PULL: "repository:read", PUSH: "repository:push", DELETE: "repository:delete"}
"""What each verb of a client's token is for Cedar."""


@dataclass(frozen=True)
class Place:
    """A repository as a caller named it, which may do there what it was opened for."""

    principal: Principal
    project: ProjectRef
    name: RepositoryName


@dataclass(frozen=True)
class RepositoryView:
    """A repository, its name as clients write it, and what it holds."""

    repository: Repository
    full_name: str
    size_bytes: int
    manifests: int
    tags: int


@dataclass(frozen=True)
class RegistryService:
    """What reads and writes of blobs share; ``objects`` has their content."""

    database: Database
    clock: Clock
    authorizer: Authorizer
    objects: ObjectStore
    settings: RegistrySettings

    async def open(self, principal: Principal, name: str, verb: str) -> Place:
        """The repository ``organization/project/path``, which need not exist yet.

        Raises:
            NameInvalidError: it is no name.
            NameUnknownError: the caller may not know of it, the same as for one of nobody.
            ForbiddenError: it may know, but not do that.
        """
        place = self.place(principal, name)
        try:
            await self.authorizer.check(principal, ACTIONS[verb], place_resource(place))
        except NotFoundError as error:
            raise name_unknown(place.name) from error
        return place

    async def may(self, principal: Principal, name: str, verb: str) -> bool:
        """Whether ``open`` would let the caller; that it asked is in no audit log."""
        try:
            place = self.place(principal, name)
        except (NameInvalidError, NameUnknownError):
            return False
        wanted = [place_resource(place)]
        return await self.authorizer.readable(principal, ACTIONS[verb], wanted) == [True]

    def place(self, principal: Principal, name: str) -> Place:
        """The place of a name in a project that the caller may know of.

        Raises:
            NameInvalidError, NameUnknownError.
        """
        parsed = parse_name(name)
        scope = self.authorizer.scope(principal)
        try:
            project = self.authorizer.project(scope, f"{parsed.organization}/{parsed.project}")
        except NotFoundError as error:
            raise name_unknown(parsed) from error
        return Place(principal, project, parsed)

    async def present(self, session: AsyncSession, place: Place) -> Repository:
        """The repository of a place.

        Raises:
            NameUnknownError: nobody has pushed to it.
        """
        found = await rows.repository(session, place.project.id, place.name.path)
        if found is None:
            raise name_unknown(place.name)
        return found

    async def blob(self, place: Place, digest: str, *, pushing: bool = False) -> Holding:
        """A blob of a repository; ``pushing`` says that somebody is about to rely on it.

        Raises:
            DigestInvalidError, NameUnknownError.
            BlobUnknownError: this repository does not have it, whoever else may.
        """
        check_digest(digest)
        async with self.database.reading(SCHEMA) as session:
            found = await self.present(session, place)
            held = await rows.holding(session, found.id, digest)
        if held is None:
            raise blob_unknown(digest)
        if pushing and held.unreferenced_since is not None:
            than = timedelta(seconds=self.settings.grace_s / 10)
            async with self.database.transaction(SCHEMA) as session:
                await rows.renew(session, found.id, digest, self.clock.now(), than)
        return held

    async def content(
        self, held: Holding, byte_range: tuple[int, int] | None
    ) -> AsyncIterator[bytes]:
        """The content of a blob in pieces."""
        if held.size_bytes:
            async for piece in self.objects.get(held.object_key, byte_range):
                yield piece

    async def mount(self, place: Place, digest: str, source: str | None) -> bool:
        """Give the repository a blob of ``source``, or of any repository of its project where none
        is named; false where there is none that the caller may read.

        Raises:
            DigestInvalidError, StorageQuotaError.
        """
        check_digest(digest)
        origin = place
        if source is not None:
            try:
                origin = await self.open(place.principal, source, PULL)
            except (NameInvalidError, NameUnknownError, ForbiddenError):
                # The same answer as where the blob is not there, and no look at whether it is.
                return False
        now = self.clock.now()
        project, path = place.project, place.name.path
        async with self.database.transaction(SCHEMA) as session:
            await rows.lock_storage(session, project)
            own = await rows.blob_in_project(session, project.id, digest)
            found = own
            if source is not None:
                named = (origin.project.id, origin.name.path)
                found = await rows.blob_in_repository(session, *named, digest)
            if found is None:
                return False
            blob_id, size_bytes = found
            await rows.check_storage(session, project.id, 0 if own else size_bytes)
            by = place.principal.subject
            target = await rows.ensure_repository(session, project, path, by, now)
            return await rows.link(session, target, blob_id, now)

    async def delete_blob(self, place: Place, digest: str) -> None:
        """Take a blob from a repository; its object goes when nobody has it any more.

        Raises:
            DigestInvalidError, NameUnknownError, BlobUnknownError.
            BlobInUseError: a manifest of the repository refers to it.
        """
        check_digest(digest)
        async with self.database.transaction(SCHEMA) as session:
            named = await self.present(session, place)
            found = await rows.lock_repository(session, named.id)
            if found is None:
                raise name_unknown(place.name)
            if await rows.is_referenced(session, found.id, digest):
                raise BlobInUseError(
                    f"a manifest of the repository refers to {digest}",
                    next_step="Delete the manifests that do.",
                )
            only = RepositoryBlob.digest == digest
            if not await rows.unlink(session, found.id, self.clock.now(), only):
                raise blob_unknown(digest)

    # --- what the platform's own API shows --------------------------------------------------

    async def list(
        self,
        principal: Principal,
        project: ProjectRef | None,
        after: str | None,
        limit: int,
        *,
        name: str | None = None,
    ) -> tuple[Sequence[RepositoryView], str | None]:
        """One page of repositories that the caller may read, and the id to go on behind."""
        scope = self.authorizer.scope(principal)
        project_id = project.id if project else None
        async with self.database.reading(SCHEMA) as session:
            found = await rows.list_repositories(
                session, scope, project_id, after, limit + 1, name=name
            )
            shown, last = cut(found, limit)
            resources = [repository_resource(one) for one in shown]
            allowed = await self.authorizer.readable(principal, "repository:list", resources)
            kept = [one for one, may in zip(shown, allowed, strict=True) if may]
            views = await self._views(session, principal, kept)
        return views, last.id if last else None

    async def get(
        self, principal: Principal, project: ProjectRef, reference: str
    ) -> RepositoryView:
        """A repository by id or name.

        Raises:
            NotFoundError: there is none that the caller may read.
        """
        async with self.database.reading(SCHEMA) as session:
            scope = self.authorizer.scope(principal)
            found = await rows.find(session, scope, project.id, reference)
            await self.authorizer.check(principal, "repository:read", repository_resource(found))
            return (await self._views(session, principal, [found]))[0]

    async def storage(self, principal: Principal, project: ProjectRef) -> Storage:
        """What the repositories of a project hold and may hold.

        Raises:
            NotFoundError: the caller may not read repositories there.
        """
        wanted = Resource("repository", "", project.organization_id, project.id)
        await self.authorizer.check(principal, "repository:read", wanted)
        async with self.database.reading(SCHEMA) as session:
            return await rows.storage(session, project.id)

    async def tags(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[TagFacts], str | None]:
        """One page of a repository's tags, and the name to go on behind.

        Raises:
            NotFoundError: there is no such repository that the caller may read.
        """
        view = await self.get(principal, project, reference)
        async with self.database.reading(SCHEMA) as session:
            found = await manifests.tags(session, view.repository.id, after or "", limit + 1)
        shown, last = cut(found, limit)
        return shown, last.name if last else None

    async def delete(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        if_match: str | None = None,
    ) -> None:
        """Remove a repository with its manifests and tags.

        Raises:
            NotFoundError, ForbiddenError.
            PreconditionError: ``if_match`` names another state of it.
        """
        view = await self.get(principal, project, reference)
        resource = repository_resource(view.repository)
        await self.authorizer.check(principal, "repository:delete", resource)
        scope, now = self.authorizer.scope(principal), self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            found = await rows.find(session, scope, project.id, view.repository.id, lock=True)
            check_if_match(if_match, found.version, found.id)
            found.version += 1
            event = repository_event(found, now, state=RepositoryState.DELETED)
            await rows.remove_repository(session, found, now)
            await outbox.emit(session, KIT, [event])
            await self.audit(session, principal, found, "repository:delete")

    async def delete_tag(
        self, principal: Principal, project: ProjectRef, reference: str, tag: str
    ) -> None:
        """Remove a tag, and what no other tag names then: the manifest, its parts, and what is
        about it.

        Raises:
            NotFoundError, ForbiddenError.
        """
        view = await self.get(principal, project, reference)
        resource = repository_resource(view.repository)
        await self.authorizer.check(principal, "repository:delete", resource)
        scope, now = self.authorizer.scope(principal), self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            found = await rows.find(session, scope, project.id, view.repository.id, lock=True)
            digest = await manifests.remove_tag(session, found.id, tag)
            if digest is None:
                raise NotFoundError(
                    f"there is no tag {tag} in repository {found.name}",
                    next_step="List its tags: `dflare repository tags NAME`.",
                )
            removed = await manifests.remove_unnamed(session, found.id, digest, now)
            found.version += 1
            await session.flush()
            event = repository_event(found, now, tag=tag, digest=digest)
            await outbox.emit(session, KIT, [event])
            detail = {"tag": tag, "manifests": removed}
            await self.audit(session, principal, found, "repository:delete", **detail)

    async def audit(
        self,
        session: AsyncSession,
        principal: Principal,
        found: Repository,
        action: str,
        **detail: object,
    ) -> None:
        """Who did what to a repository, in the transaction that does it."""
        record = AuditRecord(
            at=self.clock.now(),
            principal=principal.subject,
            action=action,
            resource_kind="repository",
            resource_id=found.id,
            organization_id=found.organization_id,
            project_id=found.project_id,
            detail={"name": found.name, **detail},
        )
        await outbox.record_audit(session, KIT, record)

    async def _views(
        self, session: AsyncSession, principal: Principal, found: Sequence[Repository]
    ) -> Sequence[RepositoryView]:
        scope = self.authorizer.scope(principal)
        held = await rows.sizes(session, [one.id for one in found])
        return [
            RepositoryView(one, self._full_name(scope_project, one), *held[one.id])
            for one in found
            for scope_project in [self.authorizer.project(scope, one.project_id)]
        ]

    def _full_name(self, project: ProjectRef, found: Repository) -> str:
        return f"{project.organization_name}/{project.name}/{found.name}"


def place_resource(place: Place) -> Resource:
    """A repository that need not exist as the object of a decision."""
    return Resource("repository", "", place.project.organization_id, place.project.id)


def name_unknown(name: RepositoryName) -> NameUnknownError:
    """The one answer for what does not exist and what the caller may not know of."""
    return NameUnknownError(
        f"there is no repository {name.full} that you may use",
        next_step="Write ORGANIZATION/PROJECT/NAME; see `dflare project list` for the projects.",
    )


def blob_unknown(digest: str) -> BlobUnknownError:
    """That a repository does not have a blob."""
    return BlobUnknownError(f"the repository has no blob {digest}", next_step="Push it.")
