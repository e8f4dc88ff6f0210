"""Rows that steps write: networks, desired ports, what still drains. Scoped reads for people."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.ids import new_id
from dflare.kit.outbox import Event, emit
from dflare.kit.plan import StepCall
from dflare.services.auth.contract import Scope
from dflare.services.baremetal.contract import PoolFacts
from dflare.services.network import pools
from dflare.services.network.contract import NetworkFacts
from dflare.services.network.domain import (
    IntentKind,
    NetworkState,
    NodeEpoch,
    PoolKind,
    check_network_transition,
)
from dflare.services.network.ethernet import vrf_of
from dflare.services.network.tables import (
    KIT,
    Device,
    Intent,
    Network,
    NetworkDevice,
    NodeAllocation,
    PortDesired,
    PortObserved,
    Site,
)
from dflare.services.orchestrator.contract import AllocationState


async def node_epochs(session: AsyncSession, node_ids: Sequence[str]) -> dict[str, NodeEpoch]:
    """Who holds these nodes; locked against a newer event until the transaction ends."""
    rows = await session.execute(
        select(
            NodeAllocation.node_id,
            NodeAllocation.cluster_id,
            NodeAllocation.allocation_id,
            NodeAllocation.state,
            NodeAllocation.epoch,
        )
        .where(NodeAllocation.node_id.in_(node_ids))
        .order_by(NodeAllocation.node_id)
        .with_for_update(read=True)
    )
    return {r[0]: NodeEpoch(r[0], r[1], r[2], AllocationState(r[3]), r[4]) for r in rows}


async def nodes_with_ports(session: AsyncSession, node_ids: Sequence[str]) -> set[str]:
    """Those of the nodes that are declared with ports."""
    return set(
        await session.scalars(
            select(PortDesired.node_id).where(PortDesired.node_id.in_(node_ids)).distinct()
        )
    )


async def lock_network(session: AsyncSession, cluster_id: str) -> Network | None:
    """The network of a cluster, locked."""
    return await session.scalar(
        select(Network)
        .where(Network.cluster_id == cluster_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


async def network_of(session: AsyncSession, cluster_id: str) -> str | None:
    """The id of a cluster's network."""
    return await session.scalar(select(Network.id).where(Network.cluster_id == cluster_id))


async def lock_networks_of(session: AsyncSession, node_ids: Sequence[str]) -> list[Network]:
    """The networks that the nodes' ports are desired in, locked in a fixed order."""
    ids = select(PortDesired.network_id).where(PortDesired.node_id.in_(node_ids)).distinct()
    return list(
        await session.scalars(
            select(Network).where(Network.id.in_(ids)).order_by(Network.id).with_for_update()
        )
    )


async def ensure_network(session: AsyncSession, call: StepCall, now: datetime) -> Network | None:
    """The ordering cluster's network, locked and active; ``None`` while it still drains.

    A new one and a released one get identifiers. One that drains cannot be revived: a late writer
    may still bring a node back that belongs to somebody else by now.

    Raises:
        PoolExhaustedError: there are none left of some kind.
    """
    await session.execute(
        insert(Network)
        .values(
            id=new_id("net"),
            cluster_id=call.resource_id,
            site_id=call.site_id,
            organization_id=call.organization_id,
            project_id=call.project_id,
            state=NetworkState.RELEASED,
            since=now,
            created_at=now,
            version=0,
        )
        .on_conflict_do_nothing(index_elements=["cluster_id"])
    )
    network = await lock_network(session, call.resource_id)
    assert network is not None
    if network.state == NetworkState.RELEASED:
        await _allocate(session, network, now)
    return network if network.state == NetworkState.ACTIVE else None


async def _allocate(session: AsyncSession, network: Network, now: datetime) -> None:
    has_infiniband = await session.scalar(
        select(
            exists().where(
                Device.site_id == network.site_id,
                Device.kind == "infiniband",
                ~Device.retired,
            )
        )
    )
    kinds = [PoolKind.VLAN, PoolKind.VNI, PoolKind.VNI, PoolKind.SUBNET]
    if has_infiniband:
        kinds.append(PoolKind.PKEY)
    values = await pools.take(session, network.site_id, network.id, kinds, now)
    facts = PoolFacts.model_validate(
        await session.scalar(select(Site.pools).where(Site.id == network.site_id))
    )
    network.vlan, network.vni, network.l3_vni = values[:3]
    network.vrf = vrf_of(values[2])
    network.subnet = pools.subnet_text(values[3], facts.subnet_length)
    network.pkey = values[4] if has_infiniband else None
    await change_network(session, network, NetworkState.ACTIVE, "", now)


async def change_network(
    session: AsyncSession, network: Network, state: NetworkState, reason: str, now: datetime
) -> None:
    """Move a locked network to another state and emit it."""
    check_network_transition(NetworkState(network.state), state)
    network.state, network.reason, network.since = state, reason, now
    network.version += 1
    await session.flush()
    facts = NetworkFacts(
        network_id=network.id,
        cluster_id=network.cluster_id,
        site_id=network.site_id,
        state=network.state,
        vrf=network.vrf,
        vlan=network.vlan,
        vni=network.vni,
        pkey=network.pkey,
        subnet=network.subnet,
    )
    await emit(
        session,
        KIT,
        [
            Event(
                type="network.changed",
                resource_kind="network",
                resource_id=network.id,
                resource_version=network.version,
                at=now,
                data=facts.model_dump(mode="json"),
                organization_id=network.organization_id,
                project_id=network.project_id,
                site_id=network.site_id,
            )
        ],
    )


async def open_ports(
    session: AsyncSession,
    network: Network,
    holders: Sequence[NodeEpoch],
    operation_id: str,
    now: datetime,
) -> set[str]:
    """Set the network as desired on every port of the nodes; returns the nodes that have it now.

    A row of a newer epoch, and one that closed the same allocation already, is left alone: a writer
    that was overtaken changes nothing. The devices were asked (``ask_devices``) before: their rows'
    locks keep a reconciler from forgetting the network meanwhile.
    """
    node_ids = [holder.node_id for holder in holders]
    await session.execute(
        text(
            """
            UPDATE network.port_desired AS d
            SET network_id = :network, allocation_id = h.allocation_id, epoch = h.epoch,
                operation_id = :operation, version = d.version + 1, changed_at = :now
            FROM unnest(CAST(:nodes AS text[]), CAST(:allocations AS text[]),
                        CAST(:epochs AS bigint[])) AS h(node_id, allocation_id, epoch)
            WHERE d.node_id = h.node_id
              AND d.network_id IS DISTINCT FROM :network
              AND (h.epoch > d.epoch
                   OR (h.epoch = d.epoch AND d.allocation_id IS DISTINCT FROM h.allocation_id))
            """
        ),
        {
            "network": network.id,
            "operation": operation_id,
            "now": now,
            "nodes": node_ids,
            "allocations": [h.allocation_id for h in holders],
            "epochs": [h.epoch for h in holders],
        },
    )
    rows = await session.execute(
        select(PortDesired.node_id, func.bool_and(PortDesired.network_id == network.id))
        .where(PortDesired.node_id.in_(node_ids))
        .group_by(PortDesired.node_id)
    )
    attached = {node_id for node_id, whole in rows if whole}
    # Every port that has the network counts here, not only those of nodes that have it whole.
    await session.execute(
        insert(NetworkDevice)
        .from_select(
            ["network_id", "device_id"],
            select(PortDesired.network_id, PortDesired.device_id)
            .where(PortDesired.network_id == network.id, PortDesired.node_id.in_(node_ids))
            .distinct(),
        )
        .on_conflict_do_nothing()
    )
    return attached


async def close_ports(
    session: AsyncSession,
    node_ids: Sequence[str],
    network_id: str | None,
    operation_id: str,
    now: datetime,
) -> None:
    """Desire every port of the nodes closed: those of ``network_id`` alone, or of any network.

    The epoch becomes the node's newest, so that nothing of an older one is opened behind it.
    """
    newest = (
        select(NodeAllocation.epoch)
        .where(NodeAllocation.node_id == PortDesired.node_id)
        .scalar_subquery()
    )
    of_network = (
        PortDesired.network_id.is_not(None)
        if network_id is None
        else PortDesired.network_id == network_id
    )
    await session.execute(
        update(PortDesired)
        .where(PortDesired.node_id.in_(node_ids), of_network)
        .values(
            network_id=None,
            epoch=func.greatest(PortDesired.epoch, func.coalesce(newest, 0)),
            operation_id=operation_id,
            version=PortDesired.version + 1,
            changed_at=now,
        )
        .execution_options(synchronize_session=False)
    )


async def shut_out(session: AsyncSession, node_ids: Sequence[str], now: datetime) -> None:
    """Desire every port of nodes closed, and nothing that their present allocations ask for opened
    again: the nodes are in quarantine."""
    networks = await lock_networks_of(session, node_ids)
    await ask_devices(session, node_ids)
    await session.execute(
        text(
            """
            UPDATE network.port_desired AS d
            SET network_id = NULL,
                allocation_id = COALESCE(n.allocation_id, d.allocation_id),
                epoch = GREATEST(d.epoch, COALESCE(n.epoch, 0)),
                version = d.version + 1, changed_at = :now
            FROM unnest(CAST(:nodes AS text[])) AS q(node_id)
            LEFT JOIN network.node_allocation AS n ON n.node_id = q.node_id
            WHERE d.node_id = q.node_id
            """
        ),
        {"nodes": list(node_ids), "now": now},
    )
    for network in networks:
        await drain_if_empty(session, network, now)


async def ask_devices(session: AsyncSession, node_ids: Sequence[str]) -> list[str]:
    """Want a pass, and so a read-back, of every device that these nodes are cabled to."""
    rows = select(PortDesired.device_id).where(PortDesired.node_id.in_(node_ids)).distinct()
    devices = list(
        await session.scalars(
            select(Device.id).where(Device.id.in_(rows)).order_by(Device.id).with_for_update()
        )
    )
    await session.execute(
        update(Device)
        .where(Device.id.in_(devices))
        .values(desired_version=Device.desired_version + 1)
        .execution_options(synchronize_session=False)
    )
    return devices


async def asked_versions(session: AsyncSession, devices: Sequence[str]) -> dict[str, int]:
    """The present desired version of each device."""
    rows = await session.execute(
        select(Device.id, Device.desired_version).where(Device.id.in_(devices))
    )
    return {row.id: row.desired_version for row in rows}


async def unanswered(session: AsyncSession, asked: dict[str, int]) -> dict[str, str]:
    """Devices without a read-back since the version asked for, with what keeps them."""
    rows = await session.execute(
        select(Device.id, Device.observed_version, Device.health, Device.reason).where(
            Device.id.in_(asked)
        )
    )
    return {
        device_id: f"{health}: {reason}" if reason else "not read back yet"
        for device_id, observed, health, reason in rows
        if observed < asked[device_id]
    }


async def unmet_ports(session: AsyncSession, node_ids: Sequence[str]) -> dict[str, list[str]]:
    """For each node that has any: its devices with ports that were not seen as desired yet."""
    rows = await session.execute(
        select(PortDesired.node_id, PortDesired.device_id)
        .distinct()
        .outerjoin(PortObserved, PortObserved.port_id == PortDesired.port_id)
        .where(
            PortDesired.node_id.in_(node_ids),
            or_(
                PortObserved.port_id.is_(None),
                ~PortObserved.matches,
                PortObserved.compared_version != PortDesired.version,
            ),
        )
    )
    found: dict[str, list[str]] = {}
    for node_id, device_id in rows:
        found.setdefault(node_id, []).append(device_id)
    return found


async def not_of_network(
    session: AsyncSession, node_ids: Sequence[str], network_id: str | None
) -> set[str]:
    """Nodes with a port whose desired network is another than ``network_id``."""
    return set(
        await session.scalars(
            select(PortDesired.node_id)
            .where(
                PortDesired.node_id.in_(node_ids),
                PortDesired.network_id.is_distinct_from(network_id),
            )
            .distinct()
        )
    )


async def members_of(
    session: AsyncSession, node_ids: Sequence[str], network_id: str | None
) -> set[str]:
    """Nodes with a port that is desired in the network (``None``: in any)."""
    query = select(PortDesired.node_id).where(PortDesired.node_id.in_(node_ids))
    if network_id is None:
        query = query.where(PortDesired.network_id.is_not(None))
    else:
        query = query.where(PortDesired.network_id == network_id)
    return set(await session.scalars(query.distinct()))


async def nodes_kept_by_intents(
    session: AsyncSession, node_ids: Sequence[str], network_id: str | None
) -> dict[str, str]:
    """Nodes that a write of the network (``None``: of any) may still open a port of, with the
    device. This is the fence against late writers: a node drains until none is left.
    """
    query = select(Intent.node_id, Intent.device_id).where(
        Intent.node_id.in_(node_ids),
        Intent.closed_at.is_(None),
        Intent.kind == IntentKind.OPEN,
    )
    if network_id is not None:
        query = query.where(Intent.network_id == network_id)
    rows = await session.execute(query)
    return {node_id: device_id for node_id, device_id in rows if node_id is not None}


async def drain_if_empty(session: AsyncSession, network: Network, now: datetime) -> None:
    """A locked network without members starts draining."""
    if network.state != NetworkState.ACTIVE:
        return
    if await session.scalar(select(exists().where(PortDesired.network_id == network.id))):
        return
    await pools.drain(session, network.id, now)
    await change_network(session, network, NetworkState.DRAINING, "no members", now)


async def release_if_drained(
    session: AsyncSession, network: Network, now: datetime, speed: float
) -> bool:
    """A locked, draining network of which no device holds anything and no write is on its way gives
    its identifiers into cooldown."""
    if network.state != NetworkState.DRAINING:
        return network.state == NetworkState.RELEASED
    held = await session.scalar(
        select(
            or_(
                exists().where(NetworkDevice.network_id == network.id),
                exists().where(PortDesired.network_id == network.id),
            )
        )
    )
    if held or await network_kept_by_intents(session, network.id):
        return False
    await pools.cool_down(session, network.site_id, network.id, now, speed)
    await change_network(session, network, NetworkState.RELEASED, "drained", now)
    return True


async def network_kept_by_intents(session: AsyncSession, network_id: str) -> bool:
    """Whether a write of the network may still take effect on some device."""
    return bool(
        await session.scalar(
            select(
                exists().where(
                    Intent.network_id == network_id,
                    Intent.closed_at.is_(None),
                    Intent.kind == IntentKind.OPEN,
                )
            )
        )
    )


async def draining_clusters(session: AsyncSession) -> list[str]:
    """Clusters whose network drains."""
    return list(
        await session.scalars(
            select(Network.cluster_id).where(Network.state == NetworkState.DRAINING)
        )
    )


def _within(scope: Scope) -> ColumnElement[bool]:
    table = Network.__table__.c
    return scope.where(table.organization_id, table.project_id)


async def list_networks(
    session: AsyncSession, scope: Scope, *, after: str | None, limit: int, project: str | None
) -> list[Network]:
    """A page of networks in the order of their ids."""
    query = select(Network).where(_within(scope))
    if after is not None:
        query = query.where(Network.id > after)
    if project is not None:
        query = query.where(Network.project_id == project)
    return list(await session.scalars(query.order_by(Network.id).limit(limit)))


async def find_network(session: AsyncSession, scope: Scope, network_id: str) -> Network | None:
    """One network."""
    return await session.scalar(
        select(Network).where(
            and_(
                Network.id == network_id,
                _within(scope),
            )
        )
    )
