"""Which snapshots a volume is to have: desired state, which the site's reconciler brings about."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.errors import NotFoundError
from dflare.kit.ids import new_id
from dflare.services.auth.contract import Principal, ProjectRef
from dflare.services.volumes import repository
from dflare.services.volumes.contract import SnapshotFacts, SnapshotState
from dflare.services.volumes.domain import (
    check_ready,
    snapshot_event,
    snapshot_facts,
    volume_event,
)
from dflare.services.volumes.errors import NoSnapshotsError
from dflare.services.volumes.service import SCHEMA, VolumeService, audit_record, volume_resource
from dflare.services.volumes.tables import KIT, Snapshot, Volume

MAX_SNAPSHOTS = 64
"""Of one volume."""


@dataclass(frozen=True)
class SnapshotService:
    """Asks for snapshots and lists them; what a caller may do is what it may do to the volume."""

    volumes: VolumeService

    async def list(
        self, principal: Principal, project: ProjectRef, reference: str
    ) -> Sequence[SnapshotFacts]:
        """All snapshots of a volume, oldest first."""
        view = await self.volumes.get(principal, project, reference)
        async with self.volumes.database.reading(SCHEMA) as session:
            rows = await repository.snapshots_of(session, view.volume.id)
        return [snapshot_facts(view.volume, row) for row in rows]

    async def take(
        self, principal: Principal, project: ProjectRef, reference: str, name: str
    ) -> SnapshotFacts:
        """Ask for a snapshot; one of that name that is there already is the answer.

        Raises:
            VolumeBusyError: the volume is not ready.
            NoSnapshotsError: its storage takes none, or it has as many as it may have.
        """
        volume_id = await self._changeable(principal, project, reference)
        async with self.volumes.database.transaction(SCHEMA) as session:
            volume = await self._lock(session, principal, volume_id)
            rows = await repository.snapshots_of(session, volume.id)
            row = next((one for one in rows if one.name == name), None)
            if row is None:
                check_ready(volume)
                _check_room(volume, len(rows))
                row = self._new(principal, volume, name)
                session.add(row)
                await self._change(session, principal, volume, row, "snapshot")
            elif row.state == SnapshotState.DELETING:
                raise NoSnapshotsError(
                    f"a snapshot {name} of {volume.name} is being deleted",
                    next_step="Choose another name, or try again in a moment.",
                )
            return snapshot_facts(volume, row)

    async def drop(
        self, principal: Principal, project: ProjectRef, reference: str, name: str
    ) -> SnapshotFacts:
        """Ask for the end of a snapshot, by name or id; it is gone when it is no longer listed.

        Raises:
            NotFoundError: the volume has no such snapshot.
        """
        volume_id = await self._changeable(principal, project, reference)
        async with self.volumes.database.transaction(SCHEMA) as session:
            volume = await self._lock(session, principal, volume_id)
            rows = await repository.snapshots_of(session, volume.id)
            row = next((one for one in rows if name in (one.name, one.id)), None)
            if row is None:
                raise NotFoundError(
                    f"volume {volume.name} has no snapshot {name}",
                    next_step=f"See `dflare volume snapshot list {volume.name}`.",
                )
            if row.state != SnapshotState.DELETING:
                row.state = SnapshotState.DELETING
                await self._change(session, principal, volume, row, "drop-snapshot")
            return snapshot_facts(volume, row)

    async def _changeable(self, principal: Principal, project: ProjectRef, reference: str) -> str:
        view = await self.volumes.get(principal, project, reference)
        resource = volume_resource(view.volume)
        await self.volumes.authorizer.check(principal, "volume:update", resource)
        return view.volume.id

    async def _lock(self, session: AsyncSession, principal: Principal, volume_id: str) -> Volume:
        scope = self.volumes.authorizer.scope(principal)
        return await repository.lock_volume(session, scope, volume_id)

    def _new(self, principal: Principal, volume: Volume, name: str) -> Snapshot:
        return Snapshot(
            id=new_id("snp"),
            volume_id=volume.id,
            name=name,
            state=SnapshotState.CREATING,
            taken_at=None,
            created_by=principal.subject,
            created_at=self._now(),
        )

    async def _change(
        self, session: AsyncSession, principal: Principal, volume: Volume, row: Snapshot, verb: str
    ) -> None:
        now = self._now()
        volume.revision += 1
        volume.version += 1
        await session.flush()
        events = [volume_event(volume, now), snapshot_event(volume, row, now)]
        await outbox.emit(session, KIT, events)
        detail = {"snapshot": row.id, "name": row.name, "verb": verb}
        record = audit_record(principal, volume, "update", now, None, detail)
        await outbox.record_audit(session, KIT, record)

    def _now(self) -> datetime:
        return self.volumes.clock.now()


def _check_room(volume: Volume, count: int) -> None:
    if volume.no_snapshots:
        raise NoSnapshotsError(
            f"volume {volume.name} can have no snapshots: {volume.no_snapshots}",
            next_step="Copy its content to another volume instead.",
        )
    if count >= MAX_SNAPSHOTS:
        raise NoSnapshotsError(
            f"volume {volume.name} has {count} snapshots, which is as many as it may have",
            next_step=f"Delete one first: dflare volume snapshot delete {volume.name} NAME",
        )
