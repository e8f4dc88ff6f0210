"""Queries of schedulers and their hosts. They run for steps, reconcilers and admissions that have
loaded their cluster, or its site, within a scope of their own."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.scheduler.port import (
    BoundVolume,
    HostAccess,
    NoSuchClusterError,
    SchedulerHostDriver,
    SchedulerSpec,
)
from dflare.kit.db import Database
from dflare.kit.seal import Sealer, drop_secret, get_secret, put_secret
from dflare.services.auth.contract import Scope
from dflare.services.clusters import repository
from dflare.services.clusters.contract import Mount, SchedulerSecret
from dflare.services.clusters.domain_scheduler import (
    PoolPlan,
    Shape,
    controller_of,
    max_nodes_of,
    slot_name,
    slots_of,
)
from dflare.services.clusters.tables import (
    KIT,
    Cluster,
    KnownVolume,
    Member,
    NodePlace,
    NodeShape,
    Scheduler,
    SchedulerHost,
)
from dflare.services.orchestrator.contract import AllocationState

_SCOPE = Scope.system("what a cluster's scheduler is to be")
_STANDS_IN = (AllocationState.HELD, AllocationState.CONFIRMED)


class NotKnownYetError(Exception):
    """An event that is needed has not come yet; the text says of what."""


@dataclass(frozen=True)
class SchedulerHosts:
    """Opens the drivers of scheduler hosts; ``connect`` makes one."""

    database: Database
    sealer: Sealer
    connect: Callable[[HostAccess], SchedulerHostDriver]

    async def of_cluster(self, cluster_id: str) -> SchedulerHostDriver:
        """The driver of the host that runs a cluster's scheduler.

        Raises:
            NoSuchClusterError: the cluster has none.
        """
        async with self.database.reading(KIT.schema) as session:
            host = await host_of(session, cluster_id)
        if host is None:
            raise NoSuchClusterError(f"cluster {cluster_id} has no scheduler")
        return self.open(host)

    def open(self, host: SchedulerHost) -> SchedulerHostDriver:
        """The driver of a host that was loaded."""
        name = f"device/{host.site_id}/{host.name}"
        account = orjson.loads(self.sealer.open(name, base64.b64decode(host.secret)))
        access = HostAccess(host.name, host.address, account["username"], account["password"])
        return self.connect(access)


async def hosts_of_site(session: AsyncSession, site_id: str) -> Sequence[SchedulerHost]:
    """The hosts that the site declares, in its order."""
    query = select(SchedulerHost).where(SchedulerHost.site_id == site_id, SchedulerHost.declared)
    return (await session.scalars(query.order_by(SchedulerHost.ordinal))).all()


async def host_of(session: AsyncSession, cluster_id: str) -> SchedulerHost | None:
    """The host of a cluster's scheduler, declared by its site still or not."""
    query = (
        select(SchedulerHost)
        .join(
            Scheduler,
            (Scheduler.site_id == SchedulerHost.site_id) & (Scheduler.host == SchedulerHost.name),
        )
        .where(Scheduler.cluster_id == cluster_id)
    )
    return (await session.scalars(query)).first()


async def scheduler_of(session: AsyncSession, cluster_id: str) -> Scheduler | None:
    """The scheduler of a cluster; a bare one has none."""
    return await session.get(Scheduler, cluster_id)


async def new_secret(session: AsyncSession, sealer: Sealer, cluster_id: str, key: bytes) -> str:
    """Keep the munge key of a new cluster; returns what its nodes get, sealed as
    ``ClusterDeclared`` says."""
    name = _secret_name(cluster_id)
    await put_secret(session, KIT, sealer, name, key)
    secret = SchedulerSecret(
        munge_key=base64.b64encode(key).decode(), controller=controller_of(cluster_id)
    )
    return base64.b64encode(sealer.seal(name, secret.model_dump_json().encode())).decode()


async def drop_key(session: AsyncSession, cluster_id: str) -> None:
    """Forget the munge key of a cluster of which nothing is left."""
    await drop_secret(session, KIT, _secret_name(cluster_id))


async def spec_of(session: AsyncSession, sealer: Sealer, cluster_id: str) -> SchedulerSpec:
    """What the cluster's scheduler is to be now.

    Raises:
        NotKnownYetError: a node type, a node's place or a volume has not been heard of.
    """
    cluster = await session.get_one(Cluster, cluster_id)
    scheduler = await session.get_one(Scheduler, cluster_id)
    key = await get_secret(session, KIT, sealer, _secret_name(cluster_id))
    pools = [
        PoolPlan(
            pool.name,
            pool.max_nodes or max_nodes_of(pool.count),
            await _shape(session, cluster.site_id, pool.node_type),
        )
        for pool in await repository.pools_of(session, [cluster_id])
    ]
    return SchedulerSpec(
        cluster_id=cluster_id,
        name=cluster.name,
        munge_key=key,
        slots=slots_of(pools, await _leaves(session, cluster_id)),
        mounts=await _mounts(session, cluster),
        account=scheduler.account,
    )


async def slots_of_nodes(
    session: AsyncSession, cluster_id: str, node_ids: Sequence[str]
) -> dict[str, str]:
    """The slot of each of these nodes that stands in for one of the cluster's."""
    query = select(Member).where(
        Member.cluster_id == cluster_id, Member.node_id.in_(node_ids), Member.state.in_(_STANDS_IN)
    )
    members = (await session.scalars(query)).all()
    return {member.node_id: slot_name(member.pool, member.slot) for member in members}


def _secret_name(cluster_id: str) -> str:
    return f"scheduler/{cluster_id}"


async def _shape(session: AsyncSession, site_id: str, node_type: str) -> Shape:
    row = await session.get(NodeShape, (site_id, node_type))
    if row is None:
        raise NotKnownYetError(f"what a node of type {node_type} has is not known yet")
    return Shape(row.cpus, row.memory_mib, row.gpus, row.gpu_type)


async def _leaves(session: AsyncSession, cluster_id: str) -> dict[str, str]:
    """The leaf switch of each slot that a node stands in for."""
    query = (
        select(Member.pool, Member.slot, NodePlace.leaf)
        .join(NodePlace, NodePlace.node_id == Member.node_id)
        .where(Member.cluster_id == cluster_id, Member.state.in_(_STANDS_IN))
    )
    rows = (await session.execute(query)).all()
    return {slot_name(pool, slot): leaf for pool, slot, leaf in rows if leaf}


async def _mounts(session: AsyncSession, cluster: Cluster) -> tuple[BoundVolume, ...]:
    bound: list[BoundVolume] = []
    for document in cluster.mounts:
        mount = Mount.model_validate(document)
        volume = await session.get(KnownVolume, mount.volume_id)
        if volume is None or not volume.source:
            raise NotKnownYetError(f"where volume {mount.volume_id} is mounted from is not known")
        bound.append(BoundVolume(volume.source, mount.target, mount.read_only))
    return tuple(bound)
