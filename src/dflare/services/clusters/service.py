"""Ordering and reading clusters."""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import idempotency, outbox, telemetry
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NotFoundError, ProblemError
from dflare.kit.etag import check_if_match
from dflare.kit.idempotency import Begun, RequestKey
from dflare.kit.ids import new_id
from dflare.kit.outbox import Event
from dflare.kit.pagination import cut
from dflare.kit.plan import Plan
from dflare.kit.seal import Sealer, get_secret
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource, Scope
from dflare.services.clusters import repository, repository_life, repository_scheduler
from dflare.services.clusters.contract import SLURM, ClusterDeclared, ClusterState
from dflare.services.clusters.domain import (
    ORDER_DEADLINE,
    check_deletable,
    cluster_event,
    cluster_id_of,
)
from dflare.services.clusters.domain_life import check_unprotected
from dflare.services.clusters.domain_scheduler import max_nodes_of
from dflare.services.clusters.errors import ClusterBusyError
from dflare.services.clusters.service_admission import (
    Checked,
    ClusterOrder,
    check_order,
    keep_references,
    name_taken,
)
from dflare.services.clusters.service_orders import Order, store_order
from dflare.services.clusters.service_scheduler import store_scheduler
from dflare.services.clusters.tables import KIT, Cluster, Drain, Member, NodePool, Scheduler
from dflare.services.orchestrator.contract import Orchestrator, Reservation, Wishes

SCHEMA = "clusters"


@dataclass(frozen=True)
class Quote:
    """The answer to a dry run: which nodes, why these, and the price an hour."""

    reservation: Reservation
    price_per_hour: Decimal
    currency: str


@dataclass(frozen=True)
class ClusterView:
    """A cluster with its pools and nodes, and those of its nodes that are drained, by their ids;
    of one of kind ``slurm`` its scheduler."""

    cluster: Cluster
    pools: list[NodePool]
    members: list[Member]
    drains: Mapping[str, Drain] = field(default_factory=dict[str, Drain])
    scheduler: Scheduler | None = None


@dataclass(frozen=True)
class ClusterService:
    """Orders go to the orchestrator for nodes and leave as operations of this schema."""

    database: Database
    clock: Clock
    sealer: Sealer
    authorizer: Authorizer
    orchestrator: Orchestrator

    async def create(
        self,
        principal: Principal,
        project: ProjectRef,
        order: ClusterOrder,
        request: RequestKey,
    ) -> tuple[int, dict[str, Any]]:
        """Order a cluster; returns status and the operation's document.

        A repeat with the same key gives the same order, wherever the first try ended.

        Raises:
            ProblemError: refused; nothing is kept and the same key may try again.
        """
        scope = self.authorizer.scope(principal)
        await self._may_create(principal, project)
        begun = await idempotency.begin(self.database, KIT, request, self.clock.now())
        if begun.answer is not None:
            return begun.status or 202, begun.answer
        with telemetry.span("clusters.create", operation_id=begun.operation_id):
            try:
                checked = await self._check(scope, project, order, begun.operation_id)
                reservation = await self.orchestrator.reserve(
                    begun.operation_id, self._wishes(project, order, checked, begun.operation_id)
                )
                try:
                    return await self._store(principal, project, order, checked, reservation, begun)
                except ProblemError:
                    await self.orchestrator.release_hold(begun.operation_id)
                    raise
            except ProblemError:
                await idempotency.forget(self.database, KIT, begun)
                raise

    async def quote(self, principal: Principal, project: ProjectRef, order: ClusterOrder) -> Quote:
        """What ``create`` would do, with nothing held.

        Raises:
            ProblemError: the refusal that ``create`` would give.
        """
        scope = self.authorizer.scope(principal)
        await self._may_create(principal, project)
        operation_id = new_id("op")
        checked = await self._check(scope, project, order, operation_id)
        reservation = await self.orchestrator.preview(
            self._wishes(project, order, checked, operation_id)
        )
        prices = {name: Decimal(price) for name, price in checked.site.node_types.items()}
        return Quote(
            reservation,
            sum((prices[pool.node_type] * pool.count for pool in order.pools), Decimal(0)),
            checked.site.currency,
        )

    async def _may_create(self, principal: Principal, project: ProjectRef) -> None:
        wanted = Resource("cluster", "", project.organization_id, project.id)
        await self.authorizer.check(principal, "cluster:create", wanted)

    async def _check(
        self, scope: Scope, project: ProjectRef, order: ClusterOrder, operation_id: str
    ) -> Checked:
        async with self.database.transaction(SCHEMA) as session:
            return await check_order(
                session, scope, project, order, cluster_id_of(operation_id), self.clock.now()
            )

    def _wishes(
        self, project: ProjectRef, order: ClusterOrder, checked: Checked, operation_id: str
    ) -> Wishes:
        return Wishes(
            organization_id=project.organization_id,
            project_id=project.id,
            site_id=checked.site.site_id,
            cluster_id=cluster_id_of(operation_id),
            pools=order.pools,
            placement=order.placement,
            wait=order.wait_for_capacity,
            # A protected cluster outlives its time, so nobody may count on its end.
            ends_at=self.clock.now() + order.ttl if order.ttl and not order.protected else None,
        )

    async def _store(
        self,
        principal: Principal,
        project: ProjectRef,
        order: ClusterOrder,
        checked: Checked,
        reservation: Reservation,
        begun: Begun,
    ) -> tuple[int, dict[str, Any]]:
        now = self.clock.now()
        cluster = _new_cluster(principal, project, order, checked, reservation, begun, now)
        try:
            async with self.database.transaction(SCHEMA) as session:
                claimed = await idempotency.claim(session, KIT, begun, now)
                if claimed.answer is not None:
                    return claimed.status or 202, claimed.answer
                await keep_references(session, self.authorizer.scope(principal), checked)
                session.add(cluster)
                session.add_all(
                    NodePool(
                        id=new_id("pool"),
                        cluster_id=cluster.id,
                        name=pool.pool,
                        node_type=pool.node_type,
                        count=pool.count,
                        max_nodes=max_nodes_of(pool.count) if order.kind == SLURM else 0,
                    )
                    for pool in order.pools
                )
                sealed = (
                    await store_scheduler(session, self.sealer, cluster, checked.host, project.name)
                    if checked.host is not None
                    else None
                )
                await session.flush()
                await outbox.emit(
                    session,
                    KIT,
                    [
                        await self._declared(session, cluster, checked, sealed, now),
                        cluster_event(cluster, now),
                    ],
                )
                document = await self._store_operation(
                    session,
                    principal,
                    cluster,
                    "create_cluster",
                    self._create_plan(cluster, reservation),
                    [placed.node_id for placed in reservation.placed],
                    begun,
                    waits_for=reservation.explanation if reservation.waits else None,
                )
        except IntegrityError as error:
            raise name_taken(order.name) from error
        return 202, document

    def _create_plan(self, cluster: Cluster, reservation: Reservation) -> Plan:
        if cluster.kind != SLURM:
            return reservation.plan
        return self.orchestrator.plan("create_slurm_cluster").with_params(
            "baremetal.provision@1", cluster_id=cluster.id
        )

    async def _declared(
        self,
        session: AsyncSession,
        cluster: Cluster,
        checked: Checked,
        scheduler_sealed: str | None,
        now: datetime,
    ) -> Event:
        sealed: str | None = None
        if checked.user_data is not None:
            text = await get_secret(session, KIT, self.sealer, f"user_data/{checked.user_data.id}")
            sealed = base64.b64encode(self.sealer.seal(f"user_data/{cluster.id}", text)).decode()
        declared = ClusterDeclared(
            cluster_id=cluster.id,
            name=cluster.name,
            organization_id=cluster.organization_id,
            project_id=cluster.project_id,
            site_id=cluster.site_id,
            image=cluster.image,
            ssh_keys=tuple(key.public_key for key in checked.keys),
            user_data_sealed=sealed,
            kind=cluster.kind,
            scheduler_sealed=scheduler_sealed,
            mounts=checked.mounts,
        )
        return Event(
            type="cluster.declared",
            resource_kind="cluster",
            resource_id=cluster.id,
            resource_version=cluster.version,
            at=now,
            data=declared.model_dump(mode="json"),
            organization_id=cluster.organization_id,
            project_id=cluster.project_id,
            site_id=cluster.site_id,
            operation_id=cluster.operation_id,
        )

    async def _store_operation(
        self,
        session: AsyncSession,
        principal: Principal,
        cluster: Cluster,
        kind: str,
        plan: Plan,
        targets: Sequence[str],
        begun: Begun,
        waits_for: str | None = None,
    ) -> dict[str, Any]:
        order = Order(
            operation_id=begun.operation_id,
            kind=kind,
            action=f"cluster:{kind.partition('_')[0]}",
            plan=plan,
            targets=targets,
            created_by=principal.subject,
            trace=telemetry.carrier(),
            waits=waits_for is not None,
            reason=waits_for or "",
        )
        return await store_order(session, cluster, order, begun, self.clock.now())

    async def delete(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        request: RequestKey,
        if_match: str | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Order the release of a cluster; usage ends now. A repeat with the same key gets the same
        answer, whatever the cluster has become.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says.
            PreconditionError: ``if_match`` names another state of it.
            ClusterBusyError: it is being created, resized or deleted.
            ProtectedError: someone protected it.
        """
        try:
            view = await self.get(principal, project, reference)
        except NotFoundError:
            # By name a released cluster is no longer found; its caller still gets the answer.
            earlier = await idempotency.earlier(self.database, KIT, request)
            if earlier is None or earlier.answer is None:
                raise
            return earlier.status or 202, earlier.answer
        await self.authorizer.check(principal, "cluster:delete", _resource(view.cluster))
        begun = await idempotency.begin(self.database, KIT, request, self.clock.now())
        if begun.answer is not None:
            return begun.status or 202, begun.answer
        scope = self.authorizer.scope(principal)
        try:
            check_if_match(if_match, view.cluster.version, view.cluster.id)
            check_deletable(view.cluster)
            check_unprotected(view.cluster)
            placed = await self.orchestrator.nodes_of(view.cluster.id)
            with telemetry.span("clusters.delete", operation_id=begun.operation_id):
                async with self.database.transaction(SCHEMA) as session:
                    now = self.clock.now()
                    claimed = await idempotency.claim(session, KIT, begun, now)
                    if claimed.answer is not None:
                        return claimed.status or 202, claimed.answer
                    cluster = await repository.lock_cluster(session, scope, view.cluster.id)
                    check_if_match(if_match, cluster.version, cluster.id)
                    check_deletable(cluster)
                    check_unprotected(cluster)
                    if cluster.version != view.cluster.version:
                        # Its nodes, read before, may be others now.
                        raise _changed(cluster)
                    cluster.state, cluster.since, cluster.reason = ClusterState.DELETING, now, ""
                    cluster.deadline = now + ORDER_DEADLINE
                    cluster.operation_id = begun.operation_id
                    cluster.version += 1
                    await session.flush()
                    await outbox.emit(session, KIT, [cluster_event(cluster, now)])
                    # Usage ends at the request of release, so the plan carries its time.
                    saga = "delete_slurm_cluster" if cluster.kind == SLURM else "delete_cluster"
                    plan = self.orchestrator.plan(saga).with_params(
                        "orchestrator.release@1", requested_at=now.isoformat()
                    )
                    document = await self._store_operation(
                        session,
                        principal,
                        cluster,
                        "delete_cluster",
                        plan,
                        [p.node_id for p in placed],
                        begun,
                    )
        except ProblemError:
            await idempotency.forget(self.database, KIT, begun)
            raise
        return 202, document

    async def get(self, principal: Principal, project: ProjectRef, reference: str) -> ClusterView:
        """A cluster by id or name.

        Raises:
            NotFoundError: none that the caller may read.
        """
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            cluster = await repository.find(session, scope, Cluster, project.id, reference)
            pools = await repository.pools_of(session, [cluster.id])
            members = await repository.members_of(session, cluster.id)
            drains = (await repository_life.drains_of(session, [cluster.id])).get(cluster.id, [])
            scheduler = await repository_scheduler.scheduler_of(session, cluster.id)
        await self.authorizer.check(principal, "cluster:read", _resource(cluster))
        drained = {one.node_id: one for one in drains}
        return ClusterView(cluster, pools, members, drained, scheduler)

    async def list(
        self,
        principal: Principal,
        project: ProjectRef | None,
        after: str | None,
        limit: int,
        *,
        deleted: bool = False,
    ) -> tuple[list[ClusterView], str | None]:
        """One page in order of ids, and the id to go on behind where there are more."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.list_clusters(
                session, scope, project.id if project else None, after, limit + 1, deleted=deleted
            )
            clusters, last = cut(rows, limit)
            pools: defaultdict[str, list[NodePool]] = defaultdict(list)
            for pool in await repository.pools_of(session, [cluster.id for cluster in clusters]):
                pools[pool.cluster_id].append(pool)
        allowed = await self.authorizer.readable(
            principal, "cluster:read", [_resource(cluster) for cluster in clusters]
        )
        views = [
            ClusterView(cluster, pools[cluster.id], [])
            for cluster, may in zip(clusters, allowed, strict=True)
            if may
        ]
        return views, last.id if last else None


def _new_cluster(
    principal: Principal,
    project: ProjectRef,
    order: ClusterOrder,
    checked: Checked,
    reservation: Reservation,
    begun: Begun,
    now: datetime,
) -> Cluster:
    return Cluster(
        id=cluster_id_of(begun.operation_id),
        organization_id=project.organization_id,
        project_id=project.id,
        site_id=checked.site.site_id,
        name=order.name,
        kind=order.kind,
        image=checked.image,
        state=ClusterState.PENDING,
        # Its position changes: the operation tells it.
        reason=f"waits for capacity; see operation {begun.operation_id}"
        if reservation.waits
        else "",
        since=now,
        deadline=None if reservation.waits else now + ORDER_DEADLINE,
        ssh_keys=[key.id for key in checked.keys],
        user_data_id=checked.user_data.id if checked.user_data else None,
        operation_id=begun.operation_id,
        explanation="" if reservation.waits else reservation.explanation,
        expires_at=now + order.ttl if order.ttl else None,
        protected=order.protected,
        mounts=[mount.model_dump(mode="json") for mount in checked.mounts],
        created_by=principal.subject,
        created_at=now,
        version=1,
    )


def _resource(cluster: Cluster) -> Resource:
    return Resource("cluster", cluster.id, cluster.organization_id, cluster.project_id)


def _changed(cluster: Cluster) -> ClusterBusyError:
    return ClusterBusyError(
        f"cluster {cluster.name} changed at this moment", next_step="Repeat the request."
    )
