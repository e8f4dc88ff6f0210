"""Which clusters have which volumes: desired state, which the site's reconciler brings about."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef
from dflare.services.volumes import repository
from dflare.services.volumes.contract import AccessMode
from dflare.services.volumes.domain import check_not_mounted, check_ready
from dflare.services.volumes.errors import UnknownClusterError
from dflare.services.volumes.service import (
    SCHEMA,
    VolumeService,
    VolumeView,
    audit_record,
    volume_resource,
)
from dflare.services.volumes.tables import KIT, Access, Volume


@dataclass(frozen=True)
class AccessService:
    """Writes the access maps of volumes."""

    volumes: VolumeService

    @property
    def database(self) -> Database:
        """The process's connections."""
        return self.volumes.database

    @property
    def clock(self) -> Clock:
        """The time of the changes."""
        return self.volumes.clock

    @property
    def authorizer(self) -> Authorizer:
        """The policy snapshot."""
        return self.volumes.authorizer

    async def set(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        cluster_reference: str,
        mode: AccessMode,
    ) -> VolumeView:
        """Say what a cluster of the project is to have of a volume; the storage follows. To a
        cluster that has no access, taking it away changes nothing.

        Raises:
            VolumeBusyError: access is given to a volume that is not ready.
            VolumeInUseError: the cluster's order mounts it so for all of the cluster's life.
            UnknownClusterError: the project has no such live cluster at the volume's site.
        """
        view = await self.volumes.get(principal, project, reference)
        await self.authorizer.check(principal, "volume:update", volume_resource(view.volume))
        async with self.database.transaction(SCHEMA) as session:
            volume = await repository.lock_volume(
                session, self.authorizer.scope(principal), view.volume.id
            )
            row = await self._access_row(
                session, principal, volume, cluster_reference, create=mode is not AccessMode.NONE
            )
            if row is not None and row.mode != mode:
                check_not_mounted(volume, row)
                now = self.clock.now()
                await repository.set_mode(session, volume, row, mode, now)
                verb = "attach" if mode is not AccessMode.NONE else "detach"
                detail = {"cluster": row.cluster_id, "mode": str(mode), "verb": verb}
                record = audit_record(principal, volume, "update", now, None, detail)
                await outbox.record_audit(session, KIT, record)
        return await self.volumes.get(principal, project, view.volume.id)

    async def _access_row(
        self,
        session: AsyncSession,
        principal: Principal,
        volume: Volume,
        reference: str,
        *,
        create: bool,
    ) -> Access | None:
        rows = await repository.access_of(session, [volume.id], lock=True)
        names = await repository.cluster_names(session, [row.cluster_id for row in rows])
        for row in rows:
            if reference in (row.cluster_id, names.get(row.cluster_id)):
                if create and row.mode == AccessMode.NONE:
                    break
                return row
        if not create:
            return None
        check_ready(volume)
        found = await repository.cluster(session, volume.project_id, volume.site_id, reference)
        if found is None:
            raise UnknownClusterError(
                f"the project has no live cluster {reference} at the site of {volume.name}",
                next_step="See `dflare cluster list`; a new one is known within a second.",
            )
        present = next((row for row in rows if row.cluster_id == found.cluster_id), None)
        row = present or Access(
            volume_id=volume.id,
            cluster_id=found.cluster_id,
            mode=AccessMode.NONE,
            observed=AccessMode.NONE,
            created_by=principal.subject,
            created_at=self.clock.now(),
        )
        session.add(row)
        return row
