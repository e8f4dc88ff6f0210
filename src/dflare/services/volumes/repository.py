"""Queries of schema ``volumes``. Locks are taken in one order: the quota's row, then the volume's,
then its access rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.errors import NotFoundError
from dflare.services.auth.contract import Scope
from dflare.services.volumes.contract import QUOTA, AccessMode, VolumeState
from dflare.services.volumes.domain import access_event, usage_event, volume_event
from dflare.services.volumes.errors import VolumeQuotaError
from dflare.services.volumes.tables import (
    KIT,
    Access,
    KnownCluster,
    KnownSite,
    QuotaLimit,
    Snapshot,
    UsageInterval,
    Volume,
)

LIVE_CLUSTER = ("pending", "creating", "ready", "resizing")
"""States of clusters that may be given access."""


@dataclass(frozen=True)
class QuotaUse:
    """GiB that a project may have, and that its other volumes count."""

    limit_gib: int
    used_gib: int


async def find(session: AsyncSession, scope: Scope, project_id: str, reference: str) -> Volume:
    """A volume of a project by id, or by the name of one that is not deleted.

    Raises:
        NotFoundError: none within the scope.
    """
    query = select(Volume).where(
        _within(scope),
        Volume.project_id == project_id,
        (Volume.id == reference)
        | ((Volume.name == reference) & (Volume.state != VolumeState.DELETED)),
    )
    query = query.order_by((Volume.id != reference), Volume.id.desc())
    found = (await session.scalars(query.limit(1))).first()
    if found is None:
        raise NotFoundError(
            f"there is no volume {reference} in this project",
            next_step="List what there is, or check the project that you act in.",
        )
    return found


async def list_volumes(
    session: AsyncSession,
    scope: Scope,
    project_id: str | None,
    after: str | None,
    limit: int,
    *,
    deleted: bool,
) -> Sequence[Volume]:
    """One page of volumes in order of ids; those deleted only where asked for."""
    query = select(Volume).where(_within(scope))
    if project_id is not None:
        query = query.where(Volume.project_id == project_id)
    if not deleted:
        query = query.where(Volume.state != VolumeState.DELETED)
    if after is not None:
        query = query.where(Volume.id > after)
    return (await session.scalars(query.order_by(Volume.id).limit(limit))).all()


async def lock_volume(session: AsyncSession, scope: Scope, volume_id: str) -> Volume:
    """A volume by id, locked until the transaction ends.

    Raises:
        NotFoundError: none within the scope.
    """
    found = await lock_volume_if_any(session, scope, volume_id)
    if found is None:
        raise NotFoundError(f"there is no volume {volume_id}")
    return found


async def lock_volume_if_any(session: AsyncSession, scope: Scope, volume_id: str) -> Volume | None:
    """A volume by id, locked until the transaction ends, or ``None``."""
    query = select(Volume).where(Volume.id == volume_id, _within(scope)).with_for_update()
    return (await session.scalars(query)).first()


async def name_taken(session: AsyncSession, project_id: str, name: str, but_not: str) -> bool:
    """Whether another volume of the project, not deleted, has ``name``. Runs for a project that
    the caller was authorized in."""
    query = select(Volume.id).where(
        Volume.project_id == project_id,
        Volume.name == name,
        Volume.state != VolumeState.DELETED,
        Volume.id != but_not,
    )
    return (await session.scalars(query.limit(1))).first() is not None


async def access_of(
    session: AsyncSession, volume_ids: Sequence[str], *, lock: bool = False
) -> list[Access]:
    """The access maps of volumes that the caller has loaded within its scope."""
    query = select(Access).where(Access.volume_id.in_(volume_ids))
    query = query.order_by(Access.volume_id, Access.cluster_id)
    return list((await session.scalars(query.with_for_update() if lock else query)).all())


async def snapshots_of(session: AsyncSession, volume_id: str) -> list[Snapshot]:
    """The snapshots of a volume that the caller has loaded within its scope, oldest first."""
    query = select(Snapshot).where(Snapshot.volume_id == volume_id).order_by(Snapshot.id)
    return list((await session.scalars(query)).all())


async def set_mode(
    session: AsyncSession, volume: Volume, row: Access, mode: AccessMode, now: datetime
) -> bool:
    """Say what a cluster is to have of a locked volume; whether that is a change."""
    if row.mode == mode:
        return False
    row.mode = mode
    volume.revision += 1
    volume.version += 1
    await session.flush()
    await outbox.emit(session, KIT, [volume_event(volume, now), access_event(volume, row, now)])
    return True


async def cluster(
    session: AsyncSession, project_id: str, site_id: str, reference: str
) -> KnownCluster | None:
    """A live cluster of a project at a site, by id or name."""
    query = select(KnownCluster).where(
        KnownCluster.project_id == project_id,
        KnownCluster.site_id == site_id,
        KnownCluster.state.in_(LIVE_CLUSTER),
        (KnownCluster.cluster_id == reference) | (KnownCluster.name == reference),
    )
    return (await session.scalars(query.limit(1))).first()


async def cluster_names(session: AsyncSession, cluster_ids: Sequence[str]) -> Mapping[str, str]:
    """Names of clusters whose access the caller may see."""
    query = select(KnownCluster.cluster_id, KnownCluster.name)
    rows = await session.execute(query.where(KnownCluster.cluster_id.in_(cluster_ids)))
    return {row.cluster_id: row.name for row in rows}


async def lock_quota(session: AsyncSession, project_id: str) -> int:
    """GiB that a project's volumes may have together; locked until the transaction ends."""
    query = select(QuotaLimit.limit_gib).where(QuotaLimit.project_id == project_id)
    return await session.scalar(query.with_for_update()) or 0


async def check_quota(
    session: AsyncSession, project_id: str, wanted_gib: int, but_not: str
) -> QuotaUse:
    """Whether the project may have ``wanted_gib`` GiB in volume ``but_not`` beside what its others
    count; orders of a project wait here for each other until the transaction ends.

    Raises:
        VolumeQuotaError: with limit, use and wish.
    """
    limit_gib = await lock_quota(session, project_id)
    used = await session.scalar(
        select(func.coalesce(func.sum(func.greatest(Volume.size_gib, Volume.wanted_gib)), 0)).where(
            Volume.project_id == project_id,
            Volume.state != VolumeState.DELETED,
            Volume.id != but_not,
        )
    )
    used_gib = int(used or 0)
    if used_gib + wanted_gib > (limit_gib):
        raise VolumeQuotaError(
            f"{wanted_gib} GiB beside {used_gib} GiB of other volumes are more than the "
            f"{limit_gib} GiB that the project's quota allows",
            next_step="Delete or shrink volumes, order less, or ask an operator to run "
            f"`dflare quota set {QUOTA} GIB`.",
            limit_gib=limit_gib,
            used_gib=used_gib,
            wanted_gib=wanted_gib,
        )
    return QuotaUse(limit_gib, used_gib)


async def site(session: AsyncSession, reference: str | None) -> KnownSite | None:
    """A site by id or name; without a reference the only one, if there is just one."""
    query = select(KnownSite).where(KnownSite.version > 0)
    if reference is not None:
        query = query.where((KnownSite.site_id == reference) | (KnownSite.name == reference))
    found = (await session.scalars(query.order_by(KnownSite.site_id).limit(2))).all()
    return found[0] if len(found) == 1 or (found and reference is not None) else None


async def sites(session: AsyncSession) -> list[KnownSite]:
    """All sites; their names are no tenant's."""
    query = select(KnownSite).where(KnownSite.version > 0).order_by(KnownSite.name)
    return list((await session.scalars(query)).all())


async def open_sites(session: AsyncSession) -> list[str]:
    """Ids of the sites whose storages may be written to."""
    query = select(KnownSite.site_id).where(KnownSite.version > 0, KnownSite.frozen.is_(False))
    return sorted((await session.scalars(query)).all())


async def end_usage(session: AsyncSession, volume: Volume, at: datetime) -> None:
    """Close the open interval of a locked volume, if it has one, and emit it."""
    query = select(UsageInterval).where(
        UsageInterval.volume_id == volume.id, UsageInterval.usage_to.is_(None)
    )
    interval = (await session.scalars(query)).first()
    if interval is None:
        return
    interval.usage_to = max(at, interval.usage_from)
    interval.version += 1
    await session.flush()
    await outbox.emit(session, KIT, [usage_event(volume, interval, at)])


async def begin_usage(session: AsyncSession, volume: Volume, at: datetime) -> None:
    """From now on a locked volume is used in its present size; an interval of another size ends."""
    query = select(UsageInterval).where(UsageInterval.volume_id == volume.id)
    intervals = (await session.scalars(query)).all()
    running = next((one for one in intervals if one.usage_to is None), None)
    if running is not None and running.size_gib == volume.size_gib:
        return
    await end_usage(session, volume, at)
    interval = UsageInterval(
        id=f"{volume.id}.{len(intervals) + 1}",
        volume_id=volume.id,
        organization_id=volume.organization_id,
        project_id=volume.project_id,
        site_id=volume.site_id,
        size_gib=volume.size_gib,
        usage_from=at,
        usage_to=None,
        version=1,
    )
    session.add(interval)
    await session.flush()
    await outbox.emit(session, KIT, [usage_event(volume, interval, at)])


def desired_access(rows: Sequence[Access]) -> dict[str, bool]:
    """The access map that the storage is to have: cluster to whether it may write."""
    return {
        row.cluster_id: row.mode == AccessMode.READ_WRITE
        for row in rows
        if row.mode != AccessMode.NONE
    }


def _within(scope: Scope) -> ColumnElement[bool]:
    return scope.where(
        Volume.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
        Volume.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
    )
