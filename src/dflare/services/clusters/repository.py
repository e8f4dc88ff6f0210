"""Queries of schema ``clusters``; each starts from the caller's scope."""

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.errors import NotFoundError
from dflare.services.auth.contract import Scope
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.tables import Cluster, KnownSite, Member, NodePool, SshKey, UserData

Named = TypeVar("Named", SshKey, UserData, Cluster)
Listed = TypeVar("Listed", SshKey, UserData)


async def find(
    session: AsyncSession,
    scope: Scope,
    kind: type[Named],
    project_id: str,
    reference: str,
) -> Named:
    """A resource of a project by id, or by the name of one that is not deleted.

    Raises:
        NotFoundError: none within the scope.
    """
    query = select(kind).where(
        scope.where(
            kind.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            kind.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        ),
        kind.project_id == project_id,
        (kind.id == reference) | (kind.name == reference),
    )
    if kind is Cluster:
        query = query.order_by((Cluster.state == ClusterState.DELETED), Cluster.id.desc())
        query = query.where((Cluster.id == reference) | (Cluster.state != ClusterState.DELETED))
    found = (await session.scalars(query.limit(1))).first()
    if found is None:
        label = kind.__tablename__.replace("_", " ")
        raise NotFoundError(
            f"there is no {label} {reference} in this project",
            next_step="List what there is, or check the project that you act in.",
        )
    return found


async def keep(
    session: AsyncSession, scope: Scope, kind: type[Listed], ids: Sequence[str], *, alone: bool
) -> set[str]:
    """Lock resources against removal until the transaction ends; returns which still exist.

    Not ``alone``, other orders may refer to them at the same time.
    """
    query = select(kind.id).where(
        scope.where(
            kind.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            kind.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        ),
        kind.id.in_(ids),
    )
    return set(await session.scalars(query.order_by(kind.id).with_for_update(read=not alone)))


async def list_named(
    session: AsyncSession,
    scope: Scope,
    kind: type[Listed],
    project_id: str | None,
    after: str | None,
    limit: int,
) -> Sequence[Listed]:
    """One page of a project's (or, without one, of all visible) resources, newest id last."""
    query = select(kind).where(
        scope.where(
            kind.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            kind.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        )
    )
    if project_id is not None:
        query = query.where(kind.project_id == project_id)
    if after is not None:
        query = query.where(kind.id > after)
    return (await session.scalars(query.order_by(kind.id).limit(limit))).all()


async def list_clusters(
    session: AsyncSession,
    scope: Scope,
    project_id: str | None,
    after: str | None,
    limit: int,
    *,
    deleted: bool,
) -> Sequence[Cluster]:
    """One page of clusters; those deleted only where asked for."""
    query = select(Cluster).where(
        scope.where(
            Cluster.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            Cluster.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        )
    )
    if project_id is not None:
        query = query.where(Cluster.project_id == project_id)
    if not deleted:
        query = query.where(Cluster.state != ClusterState.DELETED)
    if after is not None:
        query = query.where(Cluster.id > after)
    return (await session.scalars(query.order_by(Cluster.id).limit(limit))).all()


async def live_name_exists(session: AsyncSession, project_id: str, name: str, but_not: str) -> bool:
    """Whether another cluster of the project, not deleted, has ``name``. Runs for a project that
    the caller was authorized in."""
    query = select(Cluster.id).where(
        Cluster.project_id == project_id,
        Cluster.name == name,
        Cluster.state != ClusterState.DELETED,
        Cluster.id != but_not,
    )
    return (await session.scalars(query.limit(1))).first() is not None


async def lock_cluster(session: AsyncSession, scope: Scope, cluster_id: str) -> Cluster:
    """A cluster by id, locked until the transaction ends.

    Raises:
        NotFoundError: none within the scope.
    """
    query = select(Cluster).where(
        Cluster.id == cluster_id,
        scope.where(
            Cluster.__table__.c.organization_id,  # pyright: ignore[reportArgumentType]
            Cluster.__table__.c.project_id,  # pyright: ignore[reportArgumentType]
        ),
    )
    found = (await session.scalars(query.with_for_update())).first()
    if found is None:
        raise NotFoundError(f"there is no cluster {cluster_id}")
    return found


async def pools_of(session: AsyncSession, cluster_ids: Sequence[str]) -> list[NodePool]:
    """The node pools of clusters that the caller has loaded within its scope."""
    query = select(NodePool).where(NodePool.cluster_id.in_(cluster_ids)).order_by(NodePool.id)
    return list((await session.scalars(query)).all())


async def members_of(session: AsyncSession, cluster_id: str) -> list[Member]:
    """The nodes of a cluster that the caller has loaded within its scope."""
    query = (
        select(Member)
        .where(Member.cluster_id == cluster_id, Member.state != "ended")
        .order_by(Member.pool, Member.node_name)
    )
    return list((await session.scalars(query)).all())


async def site(session: AsyncSession, reference: str | None) -> KnownSite | None:
    """A site by id or name; without a reference the only one, if there is just one."""
    query = select(KnownSite)
    if reference is not None:
        query = query.where((KnownSite.site_id == reference) | (KnownSite.name == reference))
    found = (await session.scalars(query.order_by(KnownSite.site_id).limit(2))).all()
    return found[0] if len(found) == 1 or (found and reference is not None) else None


async def sites(session: AsyncSession) -> list[KnownSite]:
    """All sites that can be ordered from; their names are no tenant's."""
    return list((await session.scalars(select(KnownSite).order_by(KnownSite.name))).all())
