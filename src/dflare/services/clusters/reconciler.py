"""What looks at clusters again and again: their conditions, and the end of those whose time is
over.

Every worker looks; each cluster is changed under its row's lock, and only where that changes
something, so that many workers do no more than one.
"""

import asyncio
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.outbox import Event
from dflare.kit.telemetry import carrier, log
from dflare.services.auth.contract import Scope
from dflare.services.clusters import repository_life
from dflare.services.clusters.contract import SLURM, ClusterState
from dflare.services.clusters.domain import cluster_event
from dflare.services.clusters.domain_life import (
    EXPIRY,
    Condition,
    Finding,
    enter,
    expiring_event,
    find_conditions,
    is_true,
    merged,
    without,
)
from dflare.services.clusters.service_orders import Order, store_order
from dflare.services.clusters.tables import KIT, Cluster
from dflare.services.orchestrator.contract import Orchestrator

SCHEMA = "clusters"
PAGE = 200
LOOK_EVERY_S = 1.0
AFTER_FAILURE_S = 5.0

_SCOPE = Scope.system("clusters are looked at again")


@dataclass(frozen=True)
class ClusterReconciler:
    """Finds conditions anew and releases what has expired."""

    database: Database
    clock: Clock
    orchestrator: Orchestrator
    page: int = PAGE

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
                await self.release_expired()
            except Exception as error:
                log.exception("clusters_look_failed", error=str(error))
                await asyncio.sleep(AFTER_FAILURE_S)
                continue
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> int:
        """Find the conditions of every cluster; returns how many changed."""
        changed, after = 0, ""
        while True:
            async with self.database.reading(SCHEMA) as session:
                page = await repository_life.living(session, after, self.page)
                found = await self._find(session, page)
            for cluster in page:
                if _conditions(cluster, found[cluster.id], self.clock) is not None:
                    changed += await self._save(cluster.id)
            if len(page) < self.page:
                return changed
            after = page[-1].id

    async def release_expired(self) -> int:
        """Order the release of clusters whose time is over; returns how many were ordered."""
        async with self.database.reading(SCHEMA) as session:
            due = await repository_life.expired(session, self.clock.now(), self.page)
        return sum([await self._release(cluster) for cluster in due])

    async def _find(self, session: AsyncSession, page: list[Cluster]) -> dict[str, list[Finding]]:
        ids = [cluster.id for cluster in page]
        health = await repository_life.health_of(session, ids)
        drains = await repository_life.drains_of(session, ids)
        schedulers = await repository_life.schedulers_of(session, ids)
        now = self.clock.now()
        return {
            cluster.id: find_conditions(
                cluster,
                health.get(cluster.id, []),
                len(drains.get(cluster.id, [])),
                schedulers.get(cluster.id),
                now,
            )
            for cluster in page
        }

    async def _save(self, cluster_id: str) -> int:
        """Write the conditions of one cluster, found again under its lock, and say so."""
        async with self.database.transaction(SCHEMA) as session:
            cluster = await repository_life.lock_unless_busy(session, _SCOPE, cluster_id)
            if cluster is None or cluster.state == ClusterState.DELETED:
                return 0
            found = (await self._find(session, [cluster]))[cluster.id]
            conditions = _conditions(cluster, found, self.clock)
            if conditions is None:
                return 0
            warned = is_true(cluster.conditions, Condition.EXPIRING)
            now = self.clock.now()
            # The version stays: an order that names what its caller saw is not to fail because a
            # node fell ill meanwhile.
            cluster.conditions = conditions
            await session.flush()
            events: list[Event] = [cluster_event(cluster, now)]
            if is_true(conditions, Condition.EXPIRING) and not warned:
                events.append(expiring_event(cluster, now))
            await outbox.emit(session, KIT, events)
        return 1

    async def _release(self, seen: Cluster) -> int:
        """Store the order that a person would give; nothing where the cluster changed since its
        nodes were read, and the next look sees what it became."""
        placed = await self.orchestrator.nodes_of(seen.id)
        saga = "delete_slurm_cluster" if seen.kind == SLURM else "delete_cluster"
        plan = self.orchestrator.plan(saga)
        async with self.database.transaction(SCHEMA) as session:
            cluster = await repository_life.lock_unless_busy(session, _SCOPE, seen.id)
            if cluster is None or cluster.version != seen.version:
                return 0
            now = self.clock.now()
            operation_id = new_id("op")
            cluster.operation_id = operation_id
            enter(cluster, ClusterState.DELETING, now, reason="expired")
            await session.flush()
            await outbox.emit(session, KIT, [cluster_event(cluster, now)])
            order = Order(
                operation_id=operation_id,
                kind="release_expired_cluster",
                action="cluster:expire",
                plan=plan.with_params("orchestrator.release@1", requested_at=now.isoformat()),
                targets=[one.node_id for one in placed],
                created_by=EXPIRY,
                trace=carrier(),
            )
            await store_order(session, cluster, order, None, now)
        log.info("cluster_expired", cluster_id=seen.id, operation_id=operation_id)
        return 1


def _conditions(
    cluster: Cluster, findings: list[Finding], clock: Clock
) -> list[dict[str, object]] | None:
    """The conditions to store, or ``None`` where those stored are right."""
    kept = cluster.conditions
    if cluster.expires_at is None:
        kept = without(kept, Condition.EXPIRING)
    fresh = merged(kept, findings, clock.now())
    if fresh is None and len(kept) != len(cluster.conditions):
        return kept
    return fresh
