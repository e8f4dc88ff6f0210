"""Read models of volumes: sites, clusters that may be given access, quota limits."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.feed import FeedEntry, Projection
from dflare.services.auth.contract import Scope
from dflare.services.metering.contract import QuotaLimit as QuotaFacts
from dflare.services.volumes import repository
from dflare.services.volumes.contract import QUOTA, AccessMode
from dflare.services.volumes.domain import access_event, volume_event
from dflare.services.volumes.tables import KIT, Access, KnownCluster, KnownSite, QuotaLimit

_SCOPE = Scope.system("a deleted cluster loses its access")


class SitesProjection:
    """Which sites there are and which are frozen, from ``site.declared`` and ``site.frozen``."""

    name = "volumes.sites"
    kit = KIT
    types = frozenset({"site.declared", "site.frozen"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest of both, each by its own service's versions."""
        for entry in entries:
            site_id, version = entry.data["site_id"], entry.resource_version
            if entry.type == "site.declared":
                values = {"name": entry.data["name"], "version": version}
                newer = KnownSite.version < version
            else:
                values = {"frozen": entry.data["frozen"], "frozen_version": version}
                newer = KnownSite.frozen_version < version
            await session.execute(
                insert(KnownSite)
                .values(site_id=site_id, **values)
                .on_conflict_do_update(index_elements=["site_id"], set_=values, where=newer)
            )


class ClustersProjection:
    """Clusters by name and state, from ``cluster.changed``. One that is deleted loses its access to
    every volume."""

    name = "volumes.clusters"
    kit = KIT
    types = frozenset({"cluster.changed"})

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each cluster."""
        for entry in entries:
            data = entry.data
            values = {
                "project_id": data["project_id"],
                "site_id": data["site_id"],
                "name": data["name"],
                "state": data["state"],
                "version": entry.resource_version,
            }
            await session.execute(
                insert(KnownCluster)
                .values(cluster_id=data["id"], **values)
                .on_conflict_do_update(
                    index_elements=["cluster_id"],
                    set_=values,
                    where=KnownCluster.version < entry.resource_version,
                )
            )
            if data["state"] == "deleted":
                await self._shut_out(session, data["id"])

    async def _shut_out(self, session: AsyncSession, cluster_id: str) -> None:
        query = select(Access.volume_id).where(
            Access.cluster_id == cluster_id, Access.mode != AccessMode.NONE
        )
        for volume_id in sorted((await session.scalars(query)).all()):
            volume = await repository.lock_volume(session, _SCOPE, volume_id)
            for row in await repository.access_of(session, [volume_id], lock=True):
                if row.cluster_id != cluster_id or row.mode == AccessMode.NONE:
                    continue
                now = self._clock.now()
                row.mode = AccessMode.NONE
                volume.revision += 1
                volume.version += 1
                await session.flush()
                events = [volume_event(volume, now), access_event(volume, row, now)]
                await outbox.emit(session, KIT, events)


class QuotaProjection:
    """GiB that each project may have, from ``quota.changed`` of ``QUOTA``."""

    name = "volumes.quota"
    kit = KIT
    types = frozenset({"quota.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest limit of each project."""
        for entry in entries:
            facts = QuotaFacts.model_validate(entry.data)
            if facts.node_type != QUOTA:
                continue
            values = {"limit_gib": facts.nodes, "version": entry.resource_version}
            await session.execute(
                insert(QuotaLimit)
                .values(project_id=facts.project_id, **values)
                .on_conflict_do_update(
                    index_elements=["project_id"],
                    set_=values,
                    where=QuotaLimit.version < entry.resource_version,
                )
            )


def projections(clock: Clock) -> list[Projection]:
    """All read models of this service."""
    return [SitesProjection(), ClustersProjection(clock), QuotaProjection()]
