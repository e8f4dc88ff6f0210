"""Ordering and reading volumes."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import idempotency, operations, outbox, telemetry
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NameTakenError, NotFoundError, ProblemError
from dflare.kit.etag import check_if_match
from dflare.kit.idempotency import Begun, RequestKey
from dflare.kit.outbox import AuditRecord
from dflare.kit.pagination import cut
from dflare.kit.plan import Plan
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.orchestrator.contract import Orchestrator
from dflare.services.volumes import repository
from dflare.services.volumes.contract import VolumeState
from dflare.services.volumes.domain import (
    BYTES_PER_GIB,
    ORDER_DEADLINE,
    check_deletable,
    check_ready,
    enter,
    volume_event,
    volume_id_of,
)
from dflare.services.volumes.errors import TooSmallError, UnknownSiteError
from dflare.services.volumes.tables import KIT, Access, KnownSite, Volume

SCHEMA = "volumes"


@dataclass(frozen=True)
class VolumeOrder:
    """What a tenant asks for. ``site`` is an id or a name, or none where there is one site."""

    name: str
    size_gib: int
    site: str | None = None


@dataclass(frozen=True)
class VolumeView:
    """A volume, which clusters have access to it, and their names where they are known."""

    volume: Volume
    access: list[Access]
    cluster_names: Mapping[str, str]


@dataclass(frozen=True)
class VolumeService:
    """Orders leave as operations of this schema; their steps set desired state, which the site's
    reconciler brings about."""

    database: Database
    clock: Clock
    authorizer: Authorizer
    orchestrator: Orchestrator

    async def create(
        self, principal: Principal, project: ProjectRef, order: VolumeOrder, request: RequestKey
    ) -> tuple[int, dict[str, Any]]:
        """Order a volume; returns status and the operation's document.

        Raises:
            UnknownSiteError, NameTakenError, VolumeQuotaError: nothing is kept.
        """
        wanted = Resource("volume", "", project.organization_id, project.id)
        await self.authorizer.check(principal, "volume:create", wanted)
        begun = await idempotency.begin(self.database, KIT, request, self.clock.now())
        if begun.answer is not None:
            return begun.status or 202, begun.answer
        try:
            async with self._ordering(begun) as (session, answer):
                if answer is not None:
                    return answer
                volume = await self._new_volume(session, principal, project, order, begun)
                session.add(volume)
                await session.flush()
                plan = self.orchestrator.plan("create_volume")
                return await self._store(session, principal, volume, plan, "create", begun)
        except IntegrityError as error:
            await idempotency.forget(self.database, KIT, begun)
            raise _name_taken(order.name) from error

    async def resize(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        size_gib: int,
        request: RequestKey,
        if_match: str | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Order another size; the tenant has and pays for it when the storage was seen to grant it.

        Raises:
            PreconditionError: ``if_match`` names another state of it.
            VolumeBusyError: it is not ready.
            TooSmallError: by the last scan it holds more.
            VolumeQuotaError: the project may not have so much.
        """
        view = await self.get(principal, project, reference)
        await self.authorizer.check(principal, "volume:update", volume_resource(view.volume))
        begun = await idempotency.begin(self.database, KIT, request, self.clock.now())
        if begun.answer is not None:
            return begun.status or 202, begun.answer
        async with self._ordering(begun) as (session, answer):
            if answer is not None:
                return answer
            if size_gib > view.volume.size_gib:
                await repository.check_quota(session, project.id, size_gib, view.volume.id)
            volume = await self._lock(session, principal, view.volume.id)
            check_if_match(if_match, volume.version, volume.id)
            check_resizable(volume, size_gib)
            volume.wanted_gib = size_gib
            volume.operation_id = begun.operation_id
            enter(volume, VolumeState.RESIZING, self.clock.now())
            plan = self.orchestrator.plan("resize_volume").with_params(
                "volumes.set_size@1", size_gib=str(size_gib)
            )
            return await self._store(session, principal, volume, plan, "update", begun)

    async def delete(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        request: RequestKey,
        if_match: str | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Order the release of a volume; usage ends now. A repeat with the same key gets the same
        answer, whatever the volume has become.

        Raises:
            PreconditionError: ``if_match`` names another state of it.
            VolumeBusyError, VolumeInUseError: an operation or a cluster has it.
        """
        try:
            view = await self.get(principal, project, reference)
        except NotFoundError:
            # By name a deleted volume is no longer found; its caller still gets the answer.
            earlier = await idempotency.earlier(self.database, KIT, request)
            if earlier is None or earlier.answer is None:
                raise
            return earlier.status or 202, earlier.answer
        await self.authorizer.check(principal, "volume:delete", volume_resource(view.volume))
        begun = await idempotency.begin(self.database, KIT, request, self.clock.now())
        if begun.answer is not None:
            return begun.status or 202, begun.answer
        async with self._ordering(begun) as (session, answer):
            if answer is not None:
                return answer
            volume = await self._lock(session, principal, view.volume.id)
            check_if_match(if_match, volume.version, volume.id)
            check_deletable(volume, await repository.access_of(session, [volume.id]))
            now = self.clock.now()
            volume.operation_id = begun.operation_id
            enter(volume, VolumeState.DELETING, now)
            await session.flush()
            await repository.end_usage(session, volume, now)
            plan = self.orchestrator.plan("delete_volume")
            return await self._store(session, principal, volume, plan, "delete", begun)

    async def get(self, principal: Principal, project: ProjectRef, reference: str) -> VolumeView:
        """A volume by id or name.

        Raises:
            NotFoundError: none that the caller may read.
        """
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            volume = await repository.find(session, scope, project.id, reference)
            access = await repository.access_of(session, [volume.id])
            names = await repository.cluster_names(session, [row.cluster_id for row in access])
        await self.authorizer.check(principal, "volume:read", volume_resource(volume))
        return VolumeView(volume, access, names)

    async def list(
        self,
        principal: Principal,
        project: ProjectRef | None,
        after: str | None,
        limit: int,
        *,
        deleted: bool = False,
    ) -> tuple[list[VolumeView], str | None]:
        """One page in order of ids, and the id to go on behind where there are more."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.list_volumes(
                session, scope, project.id if project else None, after, limit + 1, deleted=deleted
            )
            volumes, last = cut(rows, limit)
            access = await repository.access_of(session, [volume.id for volume in volumes])
            names = await repository.cluster_names(session, [row.cluster_id for row in access])
        allowed = await self.authorizer.readable(
            principal, "volume:read", [volume_resource(volume) for volume in volumes]
        )
        views = [
            VolumeView(volume, [row for row in access if row.volume_id == volume.id], names)
            for volume, may in zip(volumes, allowed, strict=True)
            if may
        ]
        return views, last.id if last else None

    async def _new_volume(
        self,
        session: AsyncSession,
        principal: Principal,
        project: ProjectRef,
        order: VolumeOrder,
        begun: Begun,
    ) -> Volume:
        volume_id, now = volume_id_of(begun.operation_id), self.clock.now()
        site, _ = await admit(session, project, order, volume_id)
        return Volume(
            id=volume_id,
            organization_id=project.organization_id,
            project_id=project.id,
            site_id=site.site_id,
            name=order.name,
            size_gib=order.size_gib,
            wanted_gib=order.size_gib,
            desired_gib=order.size_gib,
            state=VolumeState.PENDING,
            since=now,
            deadline=now + ORDER_DEADLINE,
            operation_id=begun.operation_id,
            created_by=principal.subject,
            created_at=now,
            version=1,
        )

    @asynccontextmanager
    async def _ordering(
        self, begun: Begun
    ) -> AsyncGenerator[tuple[AsyncSession, tuple[int, dict[str, Any]] | None]]:
        """The one transaction of an order, with the answer that a try beside it has given already.
        A refusal is forgotten, so that the same key may try again."""
        try:
            with telemetry.span("volumes.order", operation_id=begun.operation_id):
                async with self.database.transaction(SCHEMA) as session:
                    claimed = await idempotency.claim(session, KIT, begun, self.clock.now())
                    given = claimed.answer
                    yield session, None if given is None else (claimed.status or 202, given)
        except ProblemError:
            await idempotency.forget(self.database, KIT, begun)
            raise

    async def _lock(self, session: AsyncSession, principal: Principal, volume_id: str) -> Volume:
        return await repository.lock_volume(session, self.authorizer.scope(principal), volume_id)

    async def _store(
        self,
        session: AsyncSession,
        principal: Principal,
        volume: Volume,
        plan: Plan,
        verb: str,
        begun: Begun,
    ) -> tuple[int, dict[str, Any]]:
        """Store the operation on a volume that was changed, with event, audit and answer."""
        now = self.clock.now()
        await session.flush()
        await outbox.emit(session, KIT, [volume_event(volume, now)])
        new = operations.NewOperation(
            id=begun.operation_id,
            kind=plan.saga,
            organization_id=volume.organization_id,
            project_id=volume.project_id,
            site_id=volume.site_id,
            resource_kind="volume",
            resource_id=volume.id,
            plan=plan,
            targets=[],
            created_by=principal.subject,
            trace=telemetry.carrier(),
        )
        await operations.create_operation(session, KIT, new, now)
        detail = {"size_gib": volume.wanted_gib}
        record = audit_record(principal, volume, verb, now, new.id, detail)
        await outbox.record_audit(session, KIT, record)
        row = await operations.lock_operation(session, KIT, new.id)
        document = await operations.operation_document(session, KIT, row)
        await idempotency.complete(session, KIT, begun, 202, document)
        return 202, document


async def admit(
    session: AsyncSession, project: ProjectRef, order: VolumeOrder, volume_id: str
) -> tuple[KnownSite, repository.QuotaUse]:
    """Whether ``order`` can be taken as volume ``volume_id``: where it goes, and what it leaves.

    Raises:
        UnknownSiteError, NameTakenError, VolumeQuotaError: it cannot.
    """
    site = await repository.site(session, order.site)
    if site is None:
        names = [one.name for one in await repository.sites(session)]
        raise UnknownSiteError(
            f"there is no site {order.site}" if order.site else "name a site",
            next_step=f"Sites are: {', '.join(names) or 'none yet; load one first'}.",
        )
    if await repository.name_taken(session, project.id, order.name, volume_id):
        raise _name_taken(order.name)
    return site, await repository.check_quota(session, project.id, order.size_gib, volume_id)


def check_resizable(volume: Volume, size_gib: int) -> None:
    """Whether a volume may have another size now.

    Raises:
        VolumeBusyError: it is not ready.
        TooSmallError: by the last scan it holds more.
    """
    check_ready(volume)
    if volume.used_bytes is not None and volume.used_bytes > size_gib * BYTES_PER_GIB:
        raise TooSmallError(
            f"volume {volume.name} holds {volume.used_bytes / BYTES_PER_GIB:.1f} GiB, which "
            f"{size_gib} GiB have no room for",
            next_step="Remove content first, or choose a larger size.",
        )


def audit_record(
    principal: Principal,
    volume: Volume,
    verb: str,
    at: datetime,
    operation_id: str | None,
    detail: dict[str, Any],
) -> AuditRecord:
    """Who did what to a volume."""
    return AuditRecord(
        at=at,
        principal=principal.subject,
        action=f"volume:{verb}",
        resource_kind="volume",
        resource_id=volume.id,
        organization_id=volume.organization_id,
        project_id=volume.project_id,
        operation_id=operation_id,
        detail=detail,
    )


def _name_taken(name: str) -> NameTakenError:
    return NameTakenError(
        f"the project has a volume named {name}",
        next_step="Choose another name, or delete that volume first.",
    )


def volume_resource(volume: Volume) -> Resource:
    """The volume as the object of a decision."""
    return Resource("volume", volume.id, volume.organization_id, volume.project_id)
