"""What kind ``slurm`` adds to an order: a host that can run its Slurm, the volumes that its jobs
see, the rows and secrets of its scheduler."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.scheduler.port import SchedulerState
from dflare.kit.seal import Sealer
from dflare.services.auth.contract import ProjectRef
from dflare.services.clusters import repository_scheduler as rows
from dflare.services.clusters.contract import Mount
from dflare.services.clusters.domain_scheduler import MUNGE_KEY_BYTES
from dflare.services.clusters.errors import (
    InvalidMountError,
    SlurmUnavailableError,
    UnknownVolumeError,
)
from dflare.services.clusters.tables import (
    Cluster,
    KnownSite,
    KnownVolume,
    Scheduler,
    SchedulerHost,
)

STALE = timedelta(seconds=60)
"""A host that was not seen for so long may be anything by now."""

_TARGET = re.compile(r"/(mnt|srv|data|scratch)(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_READY = "ready"
_BARE = "order kind bare, which needs no scheduler"


@dataclass(frozen=True)
class VolumeWish:
    """A volume of the project, by name or id, and where jobs are to see it."""

    volume: str
    target: str
    read_only: bool = False


async def usable_host(session: AsyncSession, site: KnownSite, now: datetime) -> SchedulerHost:
    """The first scheduler host of the site that was seen ready.

    Raises:
        SlurmUnavailableError: why there is none, and what to do.
    """
    hosts = await rows.hosts_of_site(session, site.site_id)
    if not hosts:
        raise SlurmUnavailableError(
            f"site {site.name} has no host that runs Slurm controllers",
            next_step=f"Its operator adds one under `scheduler_hosts`; or {_BARE}.",
        )
    for host in hosts:
        if host.state == SchedulerState.READY and _is_fresh(host, now):
            return host
    host = hosts[0]
    if host.state == SchedulerState.PREPARING and _is_fresh(host, now):
        raise SlurmUnavailableError(
            f"scheduler host {host.name} of site {site.name} is getting ready: {host.reason}",
            next_step=f"Try again in a minute; or {_BARE}.",
        )
    if not host.state or not _is_fresh(host, now):
        raise SlurmUnavailableError(
            f"scheduler host {host.name} of site {site.name} was not heard of lately",
            next_step=f"Try again in a few seconds, and see whether the site's worker runs; "
            f"or {_BARE}.",
        )
    raise SlurmUnavailableError(
        f"scheduler host {host.name} of site {site.name} cannot run Slurm: {host.reason}",
        next_step=f"Its operator puts that right; or {_BARE}.",
    )


async def mounts_of(
    session: AsyncSession, project: ProjectRef, site: KnownSite, wishes: Sequence[VolumeWish]
) -> tuple[Mount, ...]:
    """What the wishes stand for. Runs for a project that the caller was authorized in.

    Raises:
        InvalidMountError: a place that jobs cannot have, or one inside another.
        UnknownVolumeError: naming the volumes there are.
    """
    _check_targets([wish.target for wish in wishes])
    mounts: list[Mount] = []
    for wish in wishes:
        volume = await _volume(session, project, site, wish.volume)
        if volume.volume_id in {mount.volume_id for mount in mounts}:
            raise InvalidMountError(
                f"volume {volume.name} is named twice", next_step="Mount each volume once."
            )
        mounts.append(
            Mount(volume_id=volume.volume_id, target=wish.target, read_only=wish.read_only)
        )
    return tuple(mounts)


async def store_scheduler(
    session: AsyncSession, sealer: Sealer, cluster: Cluster, host: SchedulerHost, account: str
) -> str:
    """Keep the rows and secrets of a new cluster's scheduler; returns what its nodes get, sealed.

    ``account`` is whom its jobs are billed to, in Slurm's own accounting.
    """
    session.add(
        Scheduler(
            cluster_id=cluster.id,
            site_id=cluster.site_id,
            host=host.name,
            account=account,
            nodes={},
        )
    )
    cluster.scheduler_id = cluster.id
    key = secrets.token_bytes(MUNGE_KEY_BYTES)
    return await rows.new_secret(session, sealer, cluster.id, key)


def _is_fresh(host: SchedulerHost, now: datetime) -> bool:
    return host.checked_at is not None and now - host.checked_at < STALE


def _check_targets(targets: Sequence[str]) -> None:
    for target in targets:
        if not _TARGET.fullmatch(target):
            raise InvalidMountError(
                f"a volume cannot be mounted at {target}",
                next_step="Choose a place below /mnt, /srv, /data or /scratch.",
            )
    for one in sorted(targets):
        inside = [other for other in targets if other.startswith(f"{one}/")]
        if inside or targets.count(one) > 1:
            raise InvalidMountError(
                f"{inside[0] if inside else one} lies in another volume's place {one}",
                next_step="Give each volume a place of its own.",
            )


async def _volume(
    session: AsyncSession, project: ProjectRef, site: KnownSite, reference: str
) -> KnownVolume:
    query = select(KnownVolume).where(
        KnownVolume.project_id == project.id,
        KnownVolume.site_id == site.site_id,
        KnownVolume.state == _READY,
    )
    found = (await session.scalars(query.order_by(KnownVolume.name))).all()
    for volume in found:
        if reference in (volume.volume_id, volume.name):
            return volume
    names = ", ".join(volume.name for volume in found)
    raise UnknownVolumeError(
        f"the project has no volume {reference} that is ready at site {site.name}",
        next_step=f"Ready are: {names}." if names else "Order one: dflare volume create.",
    )
