"""Changing a running cluster: its size, its nodes, its end, its protection, its drains."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import idempotency, outbox, telemetry
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NotFoundError, ProblemError
from dflare.kit.etag import check_if_match
from dflare.kit.idempotency import Begun, RequestKey
from dflare.kit.plan import Plan
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.clusters import repository
from dflare.services.clusters.activities_life import shrink_plan
from dflare.services.clusters.contract import SLURM, ClusterState
from dflare.services.clusters.domain import cluster_event
from dflare.services.clusters.domain_life import (
    check_growth,
    check_owner,
    check_resizable,
    check_shrink,
    enter,
    leaving,
)
from dflare.services.clusters.errors import CannotScaleError, ClusterBusyError, UnknownNodeError
from dflare.services.clusters.service import ClusterService, ClusterView
from dflare.services.clusters.service_orders import Order, record_audit, store_order
from dflare.services.clusters.tables import KIT, Cluster, Drain, KnownNode, NodePool
from dflare.services.orchestrator.contract import Orchestrator, Placed, PoolWish, Wishes

SCHEMA = "clusters"

Jobs = Literal["wait", "refuse", "now"]
Answer = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class ScaleOrder:
    """``count`` nodes from now on; without it those ``nodes`` (names or ids) leave. ``jobs`` says
    what is done where jobs run on nodes that leave: wait for them, refuse, or end them now."""

    count: int | None
    jobs: Jobs = "wait"
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LifeChange:
    """What is to become of a cluster's end and protection; ``None`` leaves it, a ``ttl`` of
    ``False`` takes the end away."""

    protected: bool | None = None
    ttl: timedelta | Literal[False] | None = None


@dataclass(frozen=True)
class _Looked:
    """A cluster as its caller saw it, before anything was asked of others."""

    view: ClusterView
    principal: Principal
    request: RequestKey
    if_match: str | None


@dataclass(frozen=True)
class _Resize:
    """An operation to store on the cluster."""

    kind: str
    plan: Plan
    targets: Sequence[str]


Prepare = Callable[[Begun], Awaitable[_Resize]]


@dataclass(frozen=True)
class LifeService:
    """Orders on running clusters; ``clusters`` finds them within the caller's scope."""

    database: Database
    clock: Clock
    authorizer: Authorizer
    orchestrator: Orchestrator
    clusters: ClusterService

    async def scale(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        pool_reference: str,
        order: ScaleOrder,
        request: RequestKey,
        if_match: str | None = None,
    ) -> Answer:
        """Order another size of a pool; returns status and the operation's document.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says; or there is no such pool.
            ClusterBusyError: it is not ready.
            CannotScaleError, CapacityError, QuotaError: it cannot have that size.
            UnknownNodeError: a node that is to leave is not in the pool.
        """
        looked = await self._look(principal, project, reference, request, if_match)
        pool = _pool(looked.view, pool_reference)

        async def prepare(begun: Begun) -> _Resize:
            wanted = pool.count - len(order.nodes) if order.count is None else order.count
            if wanted > pool.count and not order.nodes:
                return await self._grow(looked.view, pool, wanted - pool.count, begun)
            if wanted < pool.count:
                return await self._shrink(looked.view, pool, pool.count - wanted, order)
            raise CannotScaleError(
                f"pool {pool.name} has {pool.count} nodes",
                next_step="Give another count; nodes are named only where they are to leave.",
            )

        return await self._order(looked, prepare)

    async def replace_node(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        node: str,
        request: RequestKey,
        if_match: str | None = None,
    ) -> Answer:
        """Order another node in the place of one: the pool grows by one, and then releases it.

        What is done about jobs on it depends on whether it is well: they are waited for, or given
        up with a node that is not.

        Raises:
            UnknownNodeError: the cluster has no such node.
            and what ``scale`` raises.
        """
        looked = await self._look(principal, project, reference, request, if_match)

        async def prepare(begun: Begun) -> _Resize:
            held = await self.orchestrator.nodes_of(looked.view.cluster.id)
            old = _node(held, node)
            async with self.database.reading(SCHEMA) as session:
                known = await session.get(KnownNode, old.node_id)
            well = known is not None and known.state == "active"
            grow = await self._grow(looked.view, _pool(looked.view, old.pool), 1, begun)
            plan = grow.plan.with_params(
                "clusters.grown@1", replaces=old.node_id, drain="wait" if well else "now"
            )
            return _Resize("replace_node", plan, grow.targets)

        return await self._order(looked, prepare)

    async def change(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        change: LifeChange,
        if_match: str | None = None,
    ) -> ClusterView:
        """Set protection and the time to live, counted from now.

        Raises:
            ClusterBusyError: it is being released.
            PreconditionError: ``if_match`` names another state of it.
        """
        async with self._changing(principal, project, reference, if_match) as (session, cluster):
            now = self.clock.now()
            if change.protected is not None:
                cluster.protected = change.protected
            if change.ttl is not None:
                cluster.expires_at = now + change.ttl if change.ttl is not False else None
            await self._changed(session, principal, cluster, "cluster:update", now)
        return await self.clusters.get(principal, project, cluster.id)

    async def drain(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        node: str,
        reason: str,
    ) -> ClusterView:
        """Let a node take no new work; the caller owns the drain, and draining it again gives it
        another reason.

        Raises:
            UnknownNodeError: the cluster has no such node.
            DrainedByOtherError: somebody else drained it before.
        """
        async with self._changing(principal, project, reference, None) as (session, cluster):
            node_id, name = await _member(session, cluster, node)
            now = self.clock.now()
            present = await session.get(Drain, (cluster.id, node_id), with_for_update=True)
            if present is not None:
                check_owner(present, principal.subject, name)
                present.reason = reason
            else:
                values = {
                    "cluster_id": cluster.id,
                    "node_id": node_id,
                    "owner": principal.subject,
                    "reason": reason,
                    "since": now,
                }
                await session.execute(insert(Drain).values(**values))
            await self._changed(session, principal, cluster, "cluster:drain", now)
        return await self.clusters.get(principal, project, cluster.id)

    async def undrain(
        self, principal: Principal, project: ProjectRef, reference: str, node: str
    ) -> ClusterView:
        """End a drain of the caller's own; nothing happens where the node is not drained.

        Raises:
            UnknownNodeError: the cluster has no such node.
            DrainedByOtherError: somebody else drained it.
        """
        async with self._changing(principal, project, reference, None) as (session, cluster):
            node_id, name = await _member(session, cluster, node)
            present = await session.get(Drain, (cluster.id, node_id), with_for_update=True)
            if present is not None:
                check_owner(present, principal.subject, name)
                await session.execute(
                    delete(Drain).where(Drain.cluster_id == cluster.id, Drain.node_id == node_id)
                )
                now = self.clock.now()
                await self._changed(session, principal, cluster, "cluster:undrain", now)
        return await self.clusters.get(principal, project, cluster.id)

    async def _look(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        request: RequestKey,
        if_match: str | None,
    ) -> _Looked:
        view = await self.clusters.get(principal, project, reference)
        await self.authorizer.check(principal, "cluster:update", _resource(view.cluster))
        return _Looked(view, principal, request, if_match)

    async def _order(self, looked: _Looked, prepare: Prepare) -> Answer:
        """Ask others what has to be asked, and store the operation; a repeat of the request gets
        the same answer, wherever the first try ended."""
        begun = await idempotency.begin(self.database, KIT, looked.request, self.clock.now())
        if begun.answer is not None:
            return begun.status or 202, begun.answer
        cluster = looked.view.cluster
        with telemetry.span("clusters.resize", operation_id=begun.operation_id):
            try:
                check_if_match(looked.if_match, cluster.version, cluster.id)
                check_resizable(cluster)
                resize = await prepare(begun)
                try:
                    return await self._store(looked, resize, begun)
                except ProblemError:
                    await self.orchestrator.release_hold(begun.operation_id)
                    raise
            except ProblemError:
                await idempotency.forget(self.database, KIT, begun)
                raise

    async def _store(self, looked: _Looked, resize: _Resize, begun: Begun) -> Answer:
        scope = self.authorizer.scope(looked.principal)
        async with self.database.transaction(SCHEMA) as session:
            now = self.clock.now()
            claimed = await idempotency.claim(session, KIT, begun, now)
            if claimed.answer is not None:
                return claimed.status or 202, claimed.answer
            cluster = await repository.lock_cluster(session, scope, looked.view.cluster.id)
            check_if_match(looked.if_match, cluster.version, cluster.id)
            check_resizable(cluster)
            cluster.operation_id = begun.operation_id
            enter(cluster, ClusterState.RESIZING, now)
            await session.flush()
            await outbox.emit(session, KIT, [cluster_event(cluster, now)])
            order = Order(
                operation_id=begun.operation_id,
                kind=resize.kind,
                action=f"cluster:{resize.kind.removesuffix('_cluster')}",
                plan=resize.plan,
                targets=resize.targets,
                created_by=looked.principal.subject,
                trace=telemetry.carrier(),
            )
            return 202, await store_order(session, cluster, order, begun, now)

    async def _grow(self, view: ClusterView, pool: NodePool, added: int, begun: Begun) -> _Resize:
        cluster = view.cluster
        check_growth(pool, added)
        reservation = await self.orchestrator.reserve(
            begun.operation_id,
            Wishes(
                organization_id=cluster.organization_id,
                project_id=cluster.project_id,
                site_id=cluster.site_id,
                cluster_id=cluster.id,
                pools=(PoolWish(pool=pool.name, node_type=pool.node_type, count=added),),
                ends_at=cluster.expires_at,
            ),
        )
        saga = "grow_slurm_cluster" if cluster.kind == SLURM else "grow_cluster"
        plan = (
            self.orchestrator.plan(saga)
            .with_params("baremetal.provision@1", cluster_id=cluster.id)
            .with_params("clusters.grown@1", pool=pool.name, added=str(added))
        )
        return _Resize("grow_cluster", plan, [one.node_id for one in reservation.placed])

    async def _shrink(
        self, view: ClusterView, pool: NodePool, removed: int, order: ScaleOrder
    ) -> _Resize:
        check_shrink(view.pools, removed)
        held = await self.orchestrator.nodes_of(view.cluster.id)
        inside = [one for one in held if one.pool == pool.name]
        gone = leaving(inside, order.nodes, removed, pool.name)
        plan = shrink_plan(
            self.orchestrator.plan, view.cluster, pool.name, removed, order.jobs, self.clock.now()
        )
        return _Resize("shrink_cluster", plan, [one.node_id for one in gone])

    @asynccontextmanager
    async def _changing(
        self, principal: Principal, project: ProjectRef, reference: str, if_match: str | None
    ) -> AsyncGenerator[tuple[AsyncSession, Cluster]]:
        """A cluster that the caller may change, locked, in a transaction."""
        view = await self.clusters.get(principal, project, reference)
        await self.authorizer.check(principal, "cluster:update", _resource(view.cluster))
        scope = self.authorizer.scope(principal)
        async with self.database.transaction(SCHEMA) as session:
            cluster = await repository.lock_cluster(session, scope, view.cluster.id)
            check_if_match(if_match, cluster.version, cluster.id)
            if cluster.state in {ClusterState.DELETING, ClusterState.DELETED}:
                raise ClusterBusyError(
                    f"cluster {cluster.name} is {cluster.state}",
                    next_step=f"Follow its release: dflare operation watch {cluster.operation_id}",
                )
            yield session, cluster

    async def _changed(
        self,
        session: AsyncSession,
        principal: Principal,
        cluster: Cluster,
        action: str,
        now: datetime,
    ) -> None:
        cluster.version += 1
        await session.flush()
        await outbox.emit(session, KIT, [cluster_event(cluster, now)])
        await record_audit(session, cluster, principal.subject, action, None, now)


def _pool(view: ClusterView, reference: str) -> NodePool:
    found = next((pool for pool in view.pools if reference in (pool.name, pool.id)), None)
    if found is None:
        names = ", ".join(pool.name for pool in view.pools)
        raise NotFoundError(
            f"cluster {view.cluster.name} has no pool {reference}",
            next_step=f"Its pools are: {names}.",
        )
    return found


def _node(held: Sequence[Placed], reference: str) -> Placed:
    found = next((one for one in held if reference in (one.node_id, one.node_name)), None)
    if found is None:
        raise _unknown_node(reference)
    return found


async def _member(session: AsyncSession, cluster: Cluster, reference: str) -> tuple[str, str]:
    """Id and name of a node that a cluster has and nobody releases."""
    for one in await repository.members_of(session, cluster.id):
        if one.state != "releasing" and reference in (one.node_id, one.node_name):
            return one.node_id, one.node_name
    raise _unknown_node(reference)


def _unknown_node(reference: str) -> UnknownNodeError:
    return UnknownNodeError(
        f"the cluster has no node {reference}",
        next_step="See its nodes by `dflare cluster show`.",
    )


def _resource(cluster: Cluster) -> Resource:
    return Resource("cluster", cluster.id, cluster.organization_id, cluster.project_id)
