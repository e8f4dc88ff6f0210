"""Queries of schema ``orchestrator``; each starts from the caller's scope.

Locks are taken in one order everywhere: the site's lock, quota rows by key, nodes by id,
allocations by node, claims by node.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.ids import new_id
from dflare.services.auth.contract import Scope
from dflare.services.orchestrator import domain
from dflare.services.orchestrator.contract import AllocationState
from dflare.services.orchestrator.placement_pools import SiteNode
from dflare.services.orchestrator.tables import (
    KIT,
    Allocation,
    Claim,
    Node,
    OperationIndex,
    QuotaLimit,
    QuotaUsage,
    Reservation,
    Site,
)

LIVE = Allocation.state != AllocationState.ENDED


def _within(scope: Scope) -> ColumnElement[bool]:
    table = Allocation.__table__.c
    return scope.where(table.organization_id, table.project_id)


async def lock_site(session: AsyncSession, site_id: str) -> None:
    """Placement at a site is one at a time; held until the transaction ends."""
    await session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:site, 7233002))"), {"site": site_id}
    )


async def site(session: AsyncSession, site_id: str) -> Site | None:
    """A declared site; sites belong to no tenant."""
    return await session.get(Site, site_id)


async def site_nodes(
    session: AsyncSession, site_id: str, node_types: Iterable[str]
) -> list[SiteNode]:
    """All nodes of some types at a site, by name."""
    allocated = select(Allocation.node_id).where(LIVE)
    claimed = select(Claim.node_id).where(Claim.ended_at.is_(None))
    rows = await session.execute(
        select(
            Node.node_id,
            Node.name,
            Node.node_type,
            Node.gpus,
            Node.rack,
            Node.block,
            Node.nvlink_domain,
            Node.rail_block,
            Node.state,
            Node.cordoned,
            (Node.node_id.in_(allocated) | Node.node_id.in_(claimed)).label("busy"),
        )
        .where(Node.site_id == site_id, Node.node_type.in_(list(node_types)), ~Node.retired)
        .order_by(Node.name)
    )
    return [SiteNode(*row) for row in rows]


async def free_for(
    session: AsyncSession,
    site_id: str,
    node_types: Iterable[str],
    barred: Collection[str],
) -> list[SiteNode]:
    """The nodes of ``site_nodes``, with those marked that are reserved for others."""
    nodes = await site_nodes(session, site_id, node_types)
    return [replace(one, reserved=True) if one.node_id in barred else one for one in nodes]


async def sites_of(session: AsyncSession, node_ids: Sequence[str]) -> dict[str, str]:
    """The sites of known nodes, by node, with the nodes locked against a second claim."""
    rows = await session.execute(
        select(Node.node_id, Node.site_id)
        .where(Node.node_id.in_(node_ids))
        .order_by(Node.node_id)
        .with_for_update()
    )
    return {row.node_id: row.site_id for row in rows}


async def raise_epochs(session: AsyncSession, node_ids: Sequence[str]) -> dict[str, int]:
    """Lock nodes in order and raise their epochs; returns the new ones."""
    await session.execute(
        select(Node.node_id)
        .where(Node.node_id.in_(node_ids))
        .order_by(Node.node_id)
        .with_for_update()
    )
    rows = await session.execute(
        update(Node)
        .where(Node.node_id.in_(node_ids))
        .values(epoch=Node.epoch + 1)
        .returning(Node.node_id, Node.epoch)
        .execution_options(synchronize_session=False)
    )
    return {row.node_id: row.epoch for row in rows}


async def no_longer_free(session: AsyncSession, node_ids: Sequence[str]) -> set[str]:
    """Those of ``node_ids`` that somebody took before they could be locked; locks all."""
    rows = await session.execute(
        select(Node.node_id, Node.state, Node.cordoned, Node.retired)
        .where(Node.node_id.in_(node_ids))
        .order_by(Node.node_id)
        .with_for_update()
    )
    changed = {r.node_id for r in rows if r.state != "available" or r.cordoned or r.retired}
    claimed = await session.scalars(
        select(Claim.node_id).where(Claim.node_id.in_(node_ids), Claim.ended_at.is_(None))
    )
    return changed | set(claimed)


async def quota_limits(session: AsyncSession, project_id: str) -> dict[str, int]:
    """A project's limits by node type; a type that is not in it has the limit 0."""
    rows = await session.execute(
        select(QuotaLimit.node_type, QuotaLimit.nodes).where(QuotaLimit.project_id == project_id)
    )
    return {row.node_type: row.nodes for row in rows}


async def quota_used(
    session: AsyncSession, project_id: str, node_types: Iterable[str], *, lock: bool
) -> dict[str, int]:
    """Nodes that a project holds by type, with the counters locked in order if asked."""
    wanted = sorted(set(node_types))
    if lock:
        await session.execute(
            upsert(QuotaUsage)
            .values([{"project_id": project_id, "node_type": t, "nodes": 0} for t in wanted])
            .on_conflict_do_nothing()
        )
    query = (
        select(QuotaUsage.node_type, QuotaUsage.nodes)
        .where(QuotaUsage.project_id == project_id, QuotaUsage.node_type.in_(wanted))
        .order_by(QuotaUsage.node_type)
    )
    rows = await session.execute(query.with_for_update() if lock else query)
    return {row.node_type: row.nodes for row in rows}


async def count_quota(session: AsyncSession, allocations: Sequence[Allocation], sign: int) -> None:
    """Add allocations to (``sign`` 1) or take them from (-1) their projects' counters."""
    counts = Counter((one.project_id, one.node_type) for one in allocations)
    for (project_id, node_type), number in sorted(counts.items()):
        row = upsert(QuotaUsage).values(
            project_id=project_id, node_type=node_type, nodes=max(0, sign * number)
        )
        await session.execute(
            row.on_conflict_do_update(
                index_elements=["project_id", "node_type"],
                set_={"nodes": func.greatest(0, QuotaUsage.nodes + sign * number)},
            )
        )


async def reservation(session: AsyncSession, operation_id: str) -> Reservation | None:
    """What an operation wished for."""
    return await session.get(Reservation, operation_id)


async def first_reservation(session: AsyncSession, cluster_id: str) -> Reservation | None:
    """What the order wished for that gave a cluster its first nodes."""
    query = (
        select(Reservation)
        .join(Allocation, Allocation.reserved_by == Reservation.operation_id)
        .where(Allocation.cluster_id == cluster_id)
        .order_by(Allocation.created_at, Allocation.id)
        .limit(1)
    )
    return (await session.scalars(query)).first()


async def store_reservation(session: AsyncSession, row: Reservation) -> None:
    """Insert or replace an operation's reservation."""
    values = {
        "operation_id": row.operation_id,
        "wishes": row.wishes,
        "explanation": row.explanation,
        "expires_at": row.expires_at,
    }
    await session.execute(
        upsert(Reservation)
        .values(**values)
        .on_conflict_do_update(index_elements=["operation_id"], set_=values)
    )


async def free_slots(session: AsyncSession, cluster_id: str, pool: str, count: int) -> list[int]:
    """The lowest numbers that no node of a cluster's pool has, under the site's lock."""
    taken = set(
        await session.scalars(
            select(Allocation.slot).where(
                Allocation.cluster_id == cluster_id,
                Allocation.pool == pool,
                Allocation.state.in_([AllocationState.HELD, AllocationState.CONFIRMED]),
            )
        )
    )
    return list(islice((slot for slot in itertools.count() if slot not in taken), count))


async def add_allocations(
    session: AsyncSession, allocations: Sequence[Allocation], now: datetime
) -> None:
    """Insert allocations with their operation's claims, count the quota, emit the events."""
    session.add_all(allocations)
    await session.flush()
    await count_quota(session, allocations, 1)
    await outbox.emit(session, KIT, [domain.allocation_event(one, now) for one in allocations])
    await add_claims(
        session,
        [(one.node_id, one.site_id) for one in allocations],
        allocations[0].operation_id,
        now,
    )


async def add_claims(
    session: AsyncSession,
    nodes: Sequence[tuple[str, str]],
    operation_id: str,
    now: datetime,
) -> None:
    """Give ``operation_id`` the claim of nodes (id, site) that nobody claims."""
    claims = [
        Claim(
            id=new_id("claim"),
            node_id=node_id,
            site_id=site_id,
            operation_id=operation_id,
            since=now,
            ended_at=None,
            version=1,
        )
        for node_id, site_id in nodes
    ]
    session.add_all(claims)
    await session.flush()
    await outbox.emit(session, KIT, [domain.claim_event(claim, now) for claim in claims])


async def live_claims(session: AsyncSession, node_ids: Sequence[str]) -> list[Claim]:
    """The live claims of nodes, locked in order."""
    return list(
        await session.scalars(
            select(Claim)
            .where(Claim.node_id.in_(node_ids), Claim.ended_at.is_(None))
            .order_by(Claim.node_id)
            .with_for_update()
        )
    )


async def end_claims(session: AsyncSession, claims: Sequence[Claim], now: datetime) -> None:
    """End locked claims and emit them."""
    for claim in claims:
        claim.ended_at = now
        claim.version += 1
    await session.flush()
    await outbox.emit(session, KIT, [domain.claim_event(claim, now) for claim in claims])


async def lock_allocations(
    session: AsyncSession,
    node_ids: Sequence[str],
    *,
    cluster_id: str | None = None,
    reserved_by: str | None = None,
) -> dict[str, Allocation]:
    """The live allocations of nodes, locked in order, by node; narrowed to one owner."""
    query = select(Allocation).where(Allocation.node_id.in_(node_ids), LIVE)
    if cluster_id is not None:
        query = query.where(Allocation.cluster_id == cluster_id)
    if reserved_by is not None:
        query = query.where(Allocation.reserved_by == reserved_by)
    rows = await session.scalars(
        query.order_by(Allocation.node_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return {row.node_id: row for row in rows}


async def save_allocations(
    session: AsyncSession, allocations: Sequence[Allocation], now: datetime
) -> None:
    """Write changed allocations whose rows are locked, and emit them."""
    await session.flush()
    await outbox.emit(session, KIT, [domain.allocation_event(one, now) for one in allocations])


async def in_quarantine(session: AsyncSession, node_ids: Sequence[str]) -> set[str]:
    """Those of ``node_ids`` that are in quarantine."""
    return set(
        await session.scalars(
            select(Node.node_id).where(Node.node_id.in_(node_ids), Node.state == "quarantine")
        )
    )


async def end_usage(session: AsyncSession, ends: Mapping[str, datetime]) -> None:
    """End what is billed for nodes at these times; the allocations live on. Time in quarantine is
    never billed, and a node does not come back from there to its tenant."""
    held = await lock_allocations(session, list(ends))
    used = [one for one in held.values() if one.usage_from is not None and one.usage_to is None]
    for one in used:
        assert one.usage_from is not None
        one.usage_to = max(one.usage_from, ends[one.node_id])
        one.version += 1
    if used:
        await save_allocations(session, used, max(ends.values()))


async def end_allocations(
    session: AsyncSession, allocations: Sequence[Allocation], now: datetime, reason: str
) -> None:
    """End locked allocations: the quota and the claims are given back with them."""
    if not allocations:
        return
    for one in allocations:
        released = one.state == AllocationState.RELEASING
        domain.move(one, AllocationState.ENDED, now, reason=reason)
        if one.usage_from is not None and not (released and one.usage_to):
            # An order that is undone after a part of its hand-over is not billed, whatever else
            # (quarantine) ended its usage meanwhile.
            one.usage_to = one.usage_from
    await save_allocations(session, allocations, now)
    await count_quota(session, allocations, -1)
    claims = await live_claims(session, [one.node_id for one in allocations])
    holders = {one.operation_id for one in allocations} | {one.reserved_by for one in allocations}
    await end_claims(session, [c for c in claims if c.operation_id in holders], now)


async def reserved(session: AsyncSession, operation_id: str, *, live: bool) -> list[Allocation]:
    """Allocations that an operation placed, by node; only those held or confirmed if ``live``."""
    query = select(Allocation).where(Allocation.reserved_by == operation_id)
    if live:
        query = query.where(Allocation.state.in_([AllocationState.HELD, AllocationState.CONFIRMED]))
    return list(await session.scalars(query.order_by(Allocation.node_id, Allocation.id)))


async def lock_holds(session: AsyncSession, operation_id: str) -> list[Allocation]:
    """The allocations that an operation holds and has not confirmed, locked in order."""
    return list(
        await session.scalars(
            select(Allocation)
            .where(Allocation.reserved_by == operation_id, Allocation.state == AllocationState.HELD)
            .order_by(Allocation.node_id)
            .with_for_update()
        )
    )


async def held_nodes(session: AsyncSession, operation_id: str, node_ids: Sequence[str]) -> set[str]:
    """Those of ``node_ids`` that the operation holds or has confirmed."""
    return set(
        await session.scalars(
            select(Allocation.node_id).where(
                Allocation.node_id.in_(node_ids),
                Allocation.reserved_by == operation_id,
                Allocation.state.in_([AllocationState.HELD, AllocationState.CONFIRMED]),
            )
        )
    )


async def live_nodes(session: AsyncSession, cluster_id: str, node_ids: Sequence[str]) -> list[str]:
    """Those of ``node_ids`` that a cluster has and nobody releases yet, in order."""
    return list(
        await session.scalars(
            select(Allocation.node_id)
            .where(
                Allocation.node_id.in_(node_ids),
                Allocation.cluster_id == cluster_id,
                Allocation.state.in_([AllocationState.HELD, AllocationState.CONFIRMED]),
            )
            .order_by(Allocation.node_id)
        )
    )


async def of_cluster(session: AsyncSession, scope: Scope, cluster_id: str) -> list[Allocation]:
    """The live allocations of a cluster."""
    query = select(Allocation).where(_within(scope), Allocation.cluster_id == cluster_id, LIVE)
    return list(await session.scalars(query.order_by(Allocation.pool, Allocation.node_name)))


async def expired(session: AsyncSession, now: datetime, limit: int) -> list[Allocation]:
    """Held allocations whose time is up, locked; rows that somebody works on are skipped."""
    return list(
        await session.scalars(
            select(Allocation)
            .where(Allocation.state == AllocationState.HELD, Allocation.expires_at < now)
            .order_by(Allocation.node_id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
    )


@dataclass(frozen=True)
class ListFilter:
    """Which items of a list, behind which id; one more than ``limit`` is read, to see whether more
    follow."""

    after: str | None
    limit: int
    project_id: str | None = None
    state: str | None = None
    kind: str | None = None
    resource_id: str | None = None
    cluster_id: str | None = None


async def list_operations(
    session: AsyncSession, scope: Scope, wanted: ListFilter
) -> list[OperationIndex]:
    """One page of operations, newest first."""
    table = OperationIndex.__table__.c
    query = select(OperationIndex).where(scope.where(table.organization_id, table.project_id))
    for column, value in (
        (OperationIndex.project_id, wanted.project_id),
        (OperationIndex.state, wanted.state),
        (OperationIndex.kind, wanted.kind),
        (OperationIndex.resource_id, wanted.resource_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.after is not None:
        query = query.where(OperationIndex.id < wanted.after)
    return list(
        await session.scalars(query.order_by(OperationIndex.id.desc()).limit(wanted.limit + 1))
    )


async def list_allocations(
    session: AsyncSession, scope: Scope, wanted: ListFilter
) -> list[Allocation]:
    """One page of allocations, newest first; ended ones only where their state is asked for."""
    query = select(Allocation).where(_within(scope))
    query = query.where(Allocation.state == wanted.state if wanted.state else LIVE)
    for column, value in (
        (Allocation.project_id, wanted.project_id),
        (Allocation.cluster_id, wanted.cluster_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.after is not None:
        query = query.where(Allocation.id < wanted.after)
    return list(await session.scalars(query.order_by(Allocation.id.desc()).limit(wanted.limit + 1)))
