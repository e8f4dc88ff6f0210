"""What keeps the drains that schedulers have as the rows of clusters say, at a site's worker.

A drain that the platform asked for says whose it is in its reason; one that a tenant made with the
scheduler's own tools does not, and is left alone.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from dflare.drivers.scheduler.port import SchedulerError
from dflare.kit.telemetry import log
from dflare.services.clusters import repository_life
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.domain_life import DRAINED_BY_US, drain_reason
from dflare.services.clusters.domain_scheduler import slot_name
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.tables import KIT, Cluster, Member, Scheduler

LOOK_EVERY_S = 2.0

_RUNS = (ClusterState.READY, ClusterState.RESIZING)
_HAS = ("held", "confirmed")


@dataclass
class Change:
    """What a scheduler has to be told: slots to drain, by reason, and slots to let work."""

    drain: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    resume: list[str] = field(default_factory=list[str])


def changes(
    wanted: Mapping[str, str], seen: Mapping[str, Mapping[str, Any]], filled: Collection[str]
) -> Change:
    """What differs between the drains ``wanted`` (reasons by slot) and the slots as they were
    ``seen``. Slots that the scheduler has not told of are waited for; one that no node stands in
    for (it is not ``filled``) stays drained until a node comes, so that no job begins there."""
    change = Change()
    for slot, node in sorted(seen.items()):
        drained = "DRAIN" in node["state"]
        ours = str(node["reason"]).startswith(DRAINED_BY_US)
        reason = wanted.get(slot)
        if reason is not None and not (drained and (not ours or node["reason"].startswith(reason))):
            change.drain[reason].append(slot)
        elif reason is None and drained and ours and slot in filled:
            change.resume.append(slot)
    return change


@dataclass(frozen=True)
class DrainReconciler:
    """Tells schedulers of drains that began, changed or ended."""

    hosts: SchedulerHosts
    look_every_s: float = LOOK_EVERY_S

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:
                log.exception("drains_look_failed", error=str(error))
            await asyncio.sleep(self.look_every_s)

    async def look(self) -> int:
        """Compare every cluster's drains with what was last seen; returns how many differed."""
        async with self.hosts.database.reading(KIT.schema) as session:
            query = (
                select(Scheduler.cluster_id, Scheduler.nodes)
                .join(Cluster, Cluster.id == Scheduler.cluster_id)
                .where(Cluster.state.in_(_RUNS))
            )
            seen = {row.cluster_id: row.nodes for row in await session.execute(query)}
            drains = await repository_life.drains_of(session, list(seen))
            members = select(Member.node_id, Member.cluster_id, Member.pool, Member.slot).where(
                Member.cluster_id.in_(seen), Member.state.in_(_HAS)
            )
            slots = {
                (row.cluster_id, row.node_id): slot_name(row.pool, row.slot)
                for row in await session.execute(members)
            }
        filled: defaultdict[str, set[str]] = defaultdict(set)
        for (cluster_id, _), slot in slots.items():
            filled[cluster_id].add(slot)
        told = 0
        for cluster_id, nodes in seen.items():
            wanted = {
                slots[cluster_id, one.node_id]: drain_reason(one.owner, one.reason)
                for one in drains.get(cluster_id, [])
                if (cluster_id, one.node_id) in slots
            }
            told += await self._tell(cluster_id, changes(wanted, nodes, filled[cluster_id]))
        return told

    async def _tell(self, cluster_id: str, change: Change) -> int:
        if not change.drain and not change.resume:
            return 0
        try:
            driver = await self.hosts.of_cluster(cluster_id)
            for reason, slots in change.drain.items():
                await driver.set_drain(cluster_id, slots, reason)
            if change.resume:
                await driver.set_drain(cluster_id, change.resume, None)
        except (SchedulerError, TimeoutError) as error:
            log.warning("drain_not_told", cluster_id=cluster_id, error=str(error))
        return 1
