"""Queries of schema ``metrics``; what tenants may see starts from their scope."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.auth.contract import Scope
from dflare.services.metrics.contract import AlertState
from dflare.services.metrics.tables import (
    Alert,
    KnownCluster,
    KnownNode,
    KnownOperation,
    KnownSite,
    StepTime,
    Tenancy,
)


@dataclass(frozen=True)
class NodeFacts:
    """What measurements of a node are labelled with, tenants apart."""

    node_id: str
    name: str
    site_id: str
    site: str
    vendor: str
    gpus: int
    ports: frozenset[str]


@dataclass(frozen=True)
class Had:
    """A project that had a node, and its cluster's name; ``had_to`` is None while it still has."""

    node_id: str
    organization_id: str
    project_id: str
    cluster_id: str
    cluster: str
    had_from: datetime
    had_to: datetime | None


async def nodes(session: AsyncSession, scope: Scope) -> dict[str, NodeFacts]:
    """Every node that stands in a site, by id, for the platform itself."""
    if not scope.everything:
        return {}
    query = (
        select(KnownNode, KnownSite)
        .outerjoin(KnownSite, KnownSite.site_id == KnownNode.site_id)
        .where(~KnownNode.retired)
    )
    return {
        node.node_id: NodeFacts(
            node_id=node.node_id,
            name=node.name,
            site_id=node.site_id,
            site=site.name if site else node.site_id,
            vendor=str(site.vendors.get(node.node_type, "")) if site else "",
            gpus=node.gpus,
            ports=frozenset(node.ports),
        )
        for node, site in (await session.execute(query)).all()
    }


async def tenancies(
    session: AsyncSession, scope: Scope, since: datetime, node_ids: Sequence[str] | None = None
) -> dict[str, list[Had]]:
    """Who had nodes at some time after ``since``, by node, within the scope."""
    table = Tenancy.__table__
    query = (
        select(Tenancy, KnownCluster.name)
        .outerjoin(KnownCluster, KnownCluster.cluster_id == Tenancy.cluster_id)
        .where(
            or_(Tenancy.had_to.is_(None), Tenancy.had_to > since),
            scope.where(table.c.organization_id, table.c.project_id),
        )
    )
    if node_ids is not None:
        query = query.where(Tenancy.node_id == func.any(list(node_ids)))
    found: dict[str, list[Had]] = {}
    for row, cluster in (await session.execute(query)).all():
        had = Had(
            row.node_id,
            row.organization_id,
            row.project_id,
            row.cluster_id,
            cluster or row.cluster_id,
            row.had_from,
            row.had_to,
        )
        found.setdefault(row.node_id, []).append(had)
    return found


async def list_alerts(
    session: AsyncSession,
    scope: Scope,
    project_id: str | None,
    before: str | None,
    limit: int,
    *,
    resolved: bool,
) -> Sequence[Alert]:
    """One page of alerts, newest first, behind the id ``before``."""
    table = Alert.__table__
    query = select(Alert).where(scope.where(table.c.organization_id, table.c.project_id))
    if project_id is not None:
        query = query.where(Alert.project_id == project_id)
    if not resolved:
        query = query.where(Alert.state == AlertState.RAISED)
    if before is not None:
        query = query.where(Alert.id < before)
    return (await session.scalars(query.order_by(Alert.id.desc()).limit(limit))).all()


async def raised_alerts(session: AsyncSession, scope: Scope, *, lock: bool = False) -> list[Alert]:
    """Every alert that stands, for the platform itself."""
    if not scope.everything:
        return []
    query = select(Alert).where(Alert.state == AlertState.RAISED).order_by(Alert.id)
    return list(await session.scalars(query.with_for_update() if lock else query))


async def live_operations(session: AsyncSession, scope: Scope) -> list[KnownOperation]:
    """Operations that have not ended, within the scope."""
    table = KnownOperation.__table__
    query = select(KnownOperation).where(
        KnownOperation.finished_at.is_(None),
        scope.where(table.c.organization_id, table.c.project_id),
    )
    return list(await session.scalars(query.order_by(KnownOperation.operation_id)))


async def step_times(session: AsyncSession) -> list[StepTime]:
    """How long all steps took; they name nobody."""
    query = select(StepTime).order_by(StepTime.saga, StepTime.step, StepTime.outcome)
    return list(await session.scalars(query))


async def operation_counts(session: AsyncSession) -> list[tuple[str, str, int]]:
    """How many operations of each kind are in which state, of those that have not ended."""
    query = (
        select(KnownOperation.kind, KnownOperation.state, func.count())
        .where(KnownOperation.finished_at.is_(None))
        .group_by(KnownOperation.kind, KnownOperation.state)
        .order_by(KnownOperation.kind, KnownOperation.state)
    )
    return [(kind, state, count) for kind, state, count in (await session.execute(query)).all()]


async def forget(session: AsyncSession, before: datetime) -> None:
    """Remove what was over before a time: tenancies, operations, alerts. Series keep their labels
    for as long as the store keeps series."""
    await session.execute(delete(Tenancy).where(Tenancy.had_to < before))
    await session.execute(delete(KnownOperation).where(KnownOperation.finished_at < before))
    await session.execute(delete(Alert).where(Alert.resolved_at < before))
