"""Steps of a cluster's order that give it the volumes it names, and take them away again. Their
target is the cluster; they set desired state and wait until the storages were seen to follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.plan import StepCall
from dflare.kit.steps import Outcome
from dflare.services.auth.contract import Scope
from dflare.services.clusters.contract import Mount
from dflare.services.volumes import repository
from dflare.services.volumes.activities_parts import Parts
from dflare.services.volumes.contract import AccessMode, VolumeState
from dflare.services.volumes.tables import KIT, Access, DeclaredCluster, KnownCluster, Volume

_SCOPE = Scope.system("step of an operation on a cluster")
_ENDING = ("deleting", "deleted")
_COMING = (VolumeState.PENDING, VolumeState.CREATING)
_THERE = (VolumeState.READY, VolumeState.RESIZING)


@dataclass(frozen=True)
class Sharing:
    """What the storages have to be seen to grant the cluster of each volume, or why nothing was
    asked of them: ``failed`` for good, ``waiting`` for now."""

    modes: Mapping[str, AccessMode] = field(default_factory=dict[str, AccessMode])
    failed: str = ""
    waiting: str = ""


class _AccessStep:
    """Changes the cluster's access in one transaction, and then looks at what was observed."""

    def __init__(self, name: str, parts: Parts) -> None:
        self.name = name
        self.parts = parts

    async def act(self, call: StepCall, loaded: Sharing, targets: list[str]) -> dict[str, Outcome]:
        """Wake the reconciler and look at what it saw."""
        if loaded.failed:
            return dict.fromkeys(targets, Outcome("failed", loaded.failed))
        if loaded.waiting:
            return dict.fromkeys(targets, Outcome("pending", loaded.waiting))
        parts = self.parts
        parts.signals.wake()
        outcome = await self._look(call.resource_id, loaded.modes)
        if outcome.state == "pending":
            await parts.signals.passed(parts.settings.step_wait_s)
            outcome = await self._look(call.resource_id, loaded.modes)
        return dict.fromkeys(targets, outcome)

    async def _look(self, cluster_id: str, modes: Mapping[str, AccessMode]) -> Outcome:
        async with self.parts.database.reading(KIT.schema) as session:
            query = select(Access).where(Access.cluster_id == cluster_id)
            seen = {row.volume_id: row.observed for row in await session.scalars(query)}
            unmet = [one for one, mode in modes.items() if seen.get(one, AccessMode.NONE) != mode]
            volumes = (await session.scalars(select(Volume).where(Volume.id.in_(unmet)))).all()
        for volume in volumes:
            if volume.refused and volume.trouble_revision == volume.revision:
                return Outcome("failed", f"volume {volume.name}: {volume.trouble}")
        if volumes:
            told = [f"volume {v.name} {v.trouble or 'is not seen so yet'}" for v in volumes]
            return Outcome("pending", "; ".join(told)[:300])
        return Outcome("done", observed={one: str(mode) for one, mode in modes.items()})

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Sharing, outcomes: dict[str, Outcome]
    ) -> None:
        """Everything was written in the first transaction."""


class Grant(_AccessStep):
    """The cluster is to have the volumes that its order names, all of them or none."""

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Sharing:
        """Desire the access, once the order has arrived in the read models."""
        cluster_id = call.resource_id
        known = await session.get(KnownCluster, cluster_id)
        declared = await session.get(DeclaredCluster, cluster_id)
        if known is not None and known.state in _ENDING:
            return Sharing(failed=f"the cluster is {known.state}")
        if known is None or declared is None or known.state not in repository.LIVE_CLUSTER:
            return Sharing(waiting="what the cluster's order names has not arrived yet")
        modes = _modes([Mount.model_validate(one) for one in declared.mounts])
        volumes: list[Volume] = []
        for volume_id in sorted(modes):
            volume = await repository.lock_volume_if_any(session, _SCOPE, volume_id)
            refusal = _refusal(volume, declared)
            if volume is None or refusal:
                return Sharing(failed=f"volume {volume_id} {refusal}")
            if volume.state in _COMING:
                return Sharing(waiting=f"volume {volume.name} is being made")
            volumes.append(volume)
        for volume in volumes:
            await self._grant(session, call, volume, modes[volume.id])
        return Sharing(modes)

    async def _grant(
        self, session: AsyncSession, call: StepCall, volume: Volume, mode: AccessMode
    ) -> None:
        now = self.parts.clock.now()
        rows = await repository.access_of(session, [volume.id], lock=True)
        row = next((one for one in rows if one.cluster_id == call.resource_id), None)
        if row is None:
            row = Access(
                volume_id=volume.id,
                cluster_id=call.resource_id,
                mode=AccessMode.NONE,
                observed=AccessMode.NONE,
                created_by=call.operation_id,
                created_at=now,
            )
            session.add(row)
        row.mounted = True
        await repository.set_mode(session, volume, row, mode, now)


class Revoke(_AccessStep):
    """The cluster is to have no volume any more, whoever gave it."""

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Sharing:
        """Desire no access; a storage that refused is asked once more."""
        now = self.parts.clock.now()
        query = select(Access.volume_id).where(Access.cluster_id == call.resource_id)
        volume_ids = sorted((await session.scalars(query)).all())
        for volume_id in volume_ids:
            volume = await repository.lock_volume(session, _SCOPE, volume_id)
            for row in await repository.access_of(session, [volume_id], lock=True):
                if row.cluster_id != call.resource_id:
                    continue
                asked = await repository.set_mode(session, volume, row, AccessMode.NONE, now)
                if not asked and volume.refused and volume.trouble_revision == volume.revision:
                    volume.revision += 1
        return Sharing(dict.fromkeys(volume_ids, AccessMode.NONE))


def _modes(mounts: list[Mount]) -> dict[str, AccessMode]:
    """What a cluster needs of each volume; one mounted twice is written to if either mount is."""
    modes: dict[str, AccessMode] = {}
    for mount in mounts:
        if not mount.read_only:
            modes[mount.volume_id] = AccessMode.READ_WRITE
        modes.setdefault(mount.volume_id, AccessMode.READ_ONLY)
    return modes


def _refusal(volume: Volume | None, declared: DeclaredCluster) -> str:
    """Why a cluster cannot have a volume; empty if it can, now or soon."""
    if volume is None or volume.project_id != declared.project_id:
        return "is none of the project's"
    if volume.site_id != declared.site_id:
        return "is at another site"
    if volume.state not in (*_COMING, *_THERE):
        return f"is {volume.state}"
    return ""
