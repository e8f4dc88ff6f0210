"""What is checked of an order before nodes are asked for: all that it names has to exist."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.errors import NameTakenError, ProblemError
from dflare.services.auth.contract import ProjectRef, Scope
from dflare.services.clusters import repository
from dflare.services.clusters.contract import SLURM, Mount
from dflare.services.clusters.errors import (
    InvalidMountError,
    UnknownImageError,
    UnknownKeyError,
    UnknownNodeTypeError,
    UnknownSiteError,
)
from dflare.services.clusters.service_scheduler import VolumeWish, mounts_of, usable_host
from dflare.services.clusters.tables import KnownSite, SchedulerHost, SshKey
from dflare.services.clusters.tables import UserData as UserDataRow
from dflare.services.orchestrator.contract import PlacementWish, PoolWish

SITE_DEFAULT_IMAGE = "default"
"""Orders the first image that the site declares, whatever its name is."""

Row = TypeVar("Row", SshKey, UserDataRow)


@dataclass(frozen=True)
class ClusterOrder:
    """What a tenant asks for. References are ids or names within the project."""

    name: str
    kind: str
    site: str | None
    image: str
    pools: tuple[PoolWish, ...]
    ssh_keys: tuple[str, ...]
    user_data: str | None
    ttl: timedelta | None = None
    protected: bool = False
    volumes: tuple[VolumeWish, ...] = ()
    placement: PlacementWish | None = None
    wait_for_capacity: bool = False


@dataclass(frozen=True)
class Checked:
    """What an order's references stand for; of kind ``slurm`` also the host of its scheduler."""

    site: KnownSite
    image: str
    keys: list[SshKey]
    user_data: UserDataRow | None
    host: SchedulerHost | None = None
    mounts: tuple[Mount, ...] = ()


async def check_order(
    session: AsyncSession,
    scope: Scope,
    project: ProjectRef,
    order: ClusterOrder,
    cluster_id: str,
    now: datetime,
) -> Checked:
    """Look up what the order of cluster ``cluster_id`` names.

    Raises:
        UnknownSiteError, UnknownNodeTypeError, UnknownImageError: naming those there are.
        UnknownKeyError: the project has no such SSH key or user data.
        NameTakenError: another live cluster of the project has that name.
        SlurmUnavailableError, UnknownVolumeError, InvalidMountError: see ``service_scheduler``.
    """
    site = await repository.site(session, order.site)
    if site is None:
        names = [s.name for s in await repository.sites(session)]
        raise UnknownSiteError(
            f"there is no site {order.site}" if order.site else "name a site",
            next_step=f"Sites are: {', '.join(names) or 'none yet; load one first'}.",
        )
    _check_node_types(site, order.pools)
    image = _image(site, order.image)
    keys = [await _reference(session, scope, SshKey, project, key) for key in order.ssh_keys]
    user_data = (
        await _reference(session, scope, UserDataRow, project, order.user_data)
        if order.user_data
        else None
    )
    if await repository.live_name_exists(session, project.id, order.name, cluster_id):
        raise name_taken(order.name)
    if order.kind != SLURM:
        if order.volumes:
            raise InvalidMountError(
                f"a cluster of kind {order.kind} mounts no volumes",
                next_step="Order kind slurm, or mount them in the system that you boot.",
            )
        return Checked(site, image, keys, user_data)
    host = await usable_host(session, site, now)
    mounts = await mounts_of(session, project, site, order.volumes)
    return Checked(site, image, keys, user_data, host, mounts)


async def keep_references(session: AsyncSession, scope: Scope, checked: Checked) -> None:
    """What the order refers to stays until it is stored.

    Raises:
        UnknownKeyError: it was removed since it was looked up.
    """
    user_data = [checked.user_data] if checked.user_data else []
    kept = await repository.keep(
        session, scope, SshKey, [key.id for key in checked.keys], alone=False
    ) | await repository.keep(session, scope, UserDataRow, [d.id for d in user_data], alone=False)
    for row in (*checked.keys, *user_data):
        if row.id not in kept:
            raise UnknownKeyError(
                f"{row.name} was removed at this moment", next_step="List what there is."
            )


def name_taken(name: str) -> NameTakenError:
    """The refusal of a name that another live cluster of the project has."""
    return NameTakenError(
        f"the project has a cluster named {name}",
        next_step="Choose another name, or delete that cluster first.",
    )


def _check_node_types(site: KnownSite, pools: Sequence[PoolWish]) -> None:
    for pool in pools:
        if pool.node_type not in site.node_types:
            raise UnknownNodeTypeError(
                f"site {site.name} has no node type {pool.node_type}",
                next_step=f"Its node types are: {', '.join(sorted(site.node_types))}.",
                node_types=list[JsonValue](sorted(site.node_types)),
            )


def _image(site: KnownSite, wanted: str) -> str:
    if wanted in site.images:
        return wanted
    if wanted == SITE_DEFAULT_IMAGE and site.images:
        return site.images[0]
    if not site.images:
        raise UnknownImageError(
            f"site {site.name} has no image to boot",
            next_step="Its operator adds one under `images` of the site document.",
            images=[],
        )
    raise UnknownImageError(
        f"site {site.name} has no image {wanted}",
        next_step=f"Its images are: {', '.join(site.images)}.",
        images=list[JsonValue](site.images),
    )


async def _reference(
    session: AsyncSession, scope: Scope, kind: type[Row], project: ProjectRef, reference: str
) -> Row:
    try:
        return await repository.find(session, scope, kind, project.id, reference)
    except ProblemError as error:
        raise UnknownKeyError(error.detail, next_step=error.next_step) from error
