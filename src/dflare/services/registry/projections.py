"""Read models of the registry."""

from collections.abc import Sequence

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.feed import FeedEntry, Projection
from dflare.services.metering.contract import QuotaLimit
from dflare.services.registry.contract import QUOTA
from dflare.services.registry.tables import KIT, ProjectStorage


class QuotaProjection:
    """GiB that each project may hold, from ``quota.changed`` of ``QUOTA``."""

    name = "registry.quota"
    kit = KIT
    types = frozenset({"quota.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest limit of each project."""
        for entry in entries:
            facts = QuotaLimit.model_validate(entry.data)
            if facts.node_type != QUOTA:
                continue
            values = {
                "organization_id": facts.organization_id,
                "limit_gib": facts.nodes,
                "version": entry.resource_version,
            }
            await session.execute(
                insert(ProjectStorage)
                .values(project_id=facts.project_id, **values)
                .on_conflict_do_update(
                    index_elements=["project_id"],
                    set_=values,
                    where=ProjectStorage.version < entry.resource_version,
                )
            )


def projections() -> list[Projection]:
    """All read models of this service."""
    return [QuotaProjection()]
