"""What looks at scheduler hosts again and again: whether they can run schedulers, how those of
clusters are, and whether something is left that should not be.

Every site worker looks. Reading twice does no harm, and what is told a host is what its cluster's
rows say, so that two that tell it say the same.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.scheduler.port import (
    SchedulerError,
    SchedulerHostDriver,
    SchedulerObserved,
    SchedulerSpec,
    SchedulerState,
    SchedulerStatus,
)
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.telemetry import log
from dflare.services.clusters import repository_scheduler as rows
from dflare.services.clusters.activities_scheduler import keep_observed
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.domain_scheduler import digest_of
from dflare.services.clusters.repository_scheduler import NotKnownYetError, SchedulerHosts
from dflare.services.clusters.tables import KIT, Cluster, Scheduler, SchedulerHost

LOOK_EVERY_S = 2.0
AT_ONCE = 8
LATE_WRITES = timedelta(minutes=10)
"""So long after its end a cluster is still looked for: a call that was on its way may have begun it
again."""

_KEPT = frozenset({ClusterState.READY, ClusterState.RESIZING})
_ENDED = frozenset({ClusterState.DELETED, ClusterState.FAILED})


@dataclass(frozen=True)
class Seen:
    """A cluster's scheduler as it was loaded. ``spec`` is what it is to be, where that is for the
    reconciler to say: between orders, and never while a step acts."""

    cluster_id: str
    host: SchedulerHost
    ended: bool
    told: str
    spec: SchedulerSpec | None


@dataclass(frozen=True)
class SchedulerReconciler:
    """The site-worker's part of clusters."""

    hosts: SchedulerHosts
    clock: Clock
    look_every_s: float = LOOK_EVERY_S

    @property
    def _database(self) -> Database:
        return self.hosts.database

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:
                # Whatever it is, later looks may go well, and admissions depend on them.
                log.exception("scheduler_look_failed", error=str(error))
            await asyncio.sleep(self.look_every_s)

    async def look(self) -> None:
        """Ask every host, and after every scheduler that runs, or may run, there."""
        async with self._database.reading(KIT.schema) as session:
            query = select(SchedulerHost).where(SchedulerHost.declared)
            hosts = (await session.scalars(query)).all()
            seen = await self._schedulers(session)
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(seen: Seen) -> None:
            async with slots:
                await self._follow(seen)

        await asyncio.gather(*(self._ask(host) for host in hosts), *map(one, seen))

    async def _schedulers(self, session: AsyncSession) -> Sequence[Seen]:
        recent = self.clock.now() - LATE_WRITES
        query = (
            select(Scheduler, Cluster.state, SchedulerHost)
            .join(Cluster, Cluster.id == Scheduler.cluster_id)
            .join(
                SchedulerHost,
                (SchedulerHost.site_id == Scheduler.site_id)
                & (SchedulerHost.name == Scheduler.host),
            )
            .where(Cluster.state.not_in(_ENDED) | (Cluster.since > recent))
            .where(Cluster.state != ClusterState.PENDING)
        )
        return [
            Seen(
                scheduler.cluster_id,
                host,
                state in _ENDED,
                scheduler.told,
                await self._spec(session, scheduler.cluster_id) if state in _KEPT else None,
            )
            for scheduler, state, host in (await session.execute(query)).all()
        ]

    async def _spec(self, session: AsyncSession, cluster_id: str) -> SchedulerSpec | None:
        try:
            return await rows.spec_of(session, self.hosts.sealer, cluster_id)
        except NotKnownYetError as error:
            log.debug("scheduler_waits", cluster_id=cluster_id, reason=str(error))
            return None

    async def _ask(self, host: SchedulerHost) -> None:
        try:
            status = await self.hosts.open(host).status()
        except (SchedulerError, TimeoutError) as error:
            status = SchedulerStatus(SchedulerState.UNAVAILABLE, None, str(error))
        async with self._database.transaction(KIT.schema) as session:
            row = await session.get_one(SchedulerHost, (host.site_id, host.name))
            row.state, row.release, row.reason = str(status.state), status.version, status.reason
            row.checked_at = self.clock.now()

    async def _follow(self, seen: Seen) -> None:
        """See how a scheduler is; put right one that its host lost, or that should be gone."""
        driver = self.hosts.open(seen.host)
        try:
            told, observed = await self._put_right(driver, seen)
        except (SchedulerError, TimeoutError) as error:
            log.warning("scheduler_not_seen", cluster_id=seen.cluster_id, error=str(error))
            return
        async with self._database.transaction(KIT.schema) as session:
            row = await session.get_one(Scheduler, seen.cluster_id, with_for_update=True)
            keep_observed(row, observed, self.clock.now())
            if row.told == seen.told:
                row.told = told

    async def _put_right(
        self, driver: SchedulerHostDriver, seen: Seen
    ) -> tuple[str, SchedulerObserved | None]:
        observed = await driver.observe(seen.cluster_id)
        if seen.host.frozen:
            return seen.told, observed
        if seen.ended and observed is not None:
            log.warning("scheduler_left_over", cluster_id=seen.cluster_id)
            await driver.remove(seen.cluster_id)
        if seen.spec is not None and (observed is None or seen.told != digest_of(seen.spec)):
            log.info("scheduler_told_again", cluster_id=seen.cluster_id, lost=observed is None)
            return digest_of(seen.spec), await driver.ensure(seen.spec)
        return seen.told, observed
