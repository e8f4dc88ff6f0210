"""Read models of volumes: sites, clusters that may be given access, quota limits."""

from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.feed import FeedEntry, Projection
from dflare.services.auth.contract import Scope
from dflare.services.clusters.contract import ClusterDeclared
from dflare.services.metering.contract import QuotaLimit as QuotaFacts
from dflare.services.volumes import repository
from dflare.services.volumes.contract import QUOTA, AccessMode
from dflare.services.volumes.tables import (
    KIT,
    Access,
    DeclaredCluster,
    KnownCluster,
    KnownSite,
    QuotaLimit,
)

_SCOPE = Scope.system("a deleted cluster loses its access")


class SitesProjection:
    """Which sites there are and what volumes cost there, from ``site.declared``, and which are
    frozen, from ``site.frozen``."""

    name = "volumes.sites"
    kit = KIT
    types = frozenset({"site.declared", "site.frozen"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest of both, each by its own service's versions."""
        for entry in entries:
            site_id, version = entry.data["site_id"], entry.resource_version
            if entry.type == "site.declared":
                price = entry.data.get("volume_price_per_gib_hour")
                values = {
                    "name": entry.data["name"],
                    "price_per_gib_hour": None if price is None else Decimal(price),
                    "currency": entry.data.get("currency", ""),
                    "version": version,
                }
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
    """Clusters by name and state, from ``cluster.changed``, and the volumes that their orders name,
    from ``cluster.declared``. One that is deleted loses its access to every volume."""

    name = "volumes.clusters"
    kit = KIT
    types = frozenset({"cluster.declared", "cluster.changed"})

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each cluster."""
        for entry in entries:
            if entry.type == "cluster.declared":
                await self._declare(session, entry)
                continue
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

    async def _declare(self, session: AsyncSession, entry: FeedEntry) -> None:
        facts = ClusterDeclared.model_validate(entry.data)
        values = {
            "project_id": facts.project_id,
            "site_id": facts.site_id,
            "mounts": [mount.model_dump(mode="json") for mount in facts.mounts],
            "version": entry.resource_version,
        }
        await session.execute(
            insert(DeclaredCluster)
            .values(cluster_id=facts.cluster_id, **values)
            .on_conflict_do_update(
                index_elements=["cluster_id"],
                set_=values,
                where=DeclaredCluster.version < entry.resource_version,
            )
        )

    async def _shut_out(self, session: AsyncSession, cluster_id: str) -> None:
        await session.execute(
            delete(DeclaredCluster).where(DeclaredCluster.cluster_id == cluster_id)
        )
        query = select(Access.volume_id).where(
            Access.cluster_id == cluster_id, Access.mode != AccessMode.NONE
        )
        for volume_id in sorted((await session.scalars(query)).all()):
            volume = await repository.lock_volume(session, _SCOPE, volume_id)
            for row in await repository.access_of(session, [volume_id], lock=True):
                if row.cluster_id == cluster_id:
                    now = self._clock.now()
                    await repository.set_mode(session, volume, row, AccessMode.NONE, now)


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
