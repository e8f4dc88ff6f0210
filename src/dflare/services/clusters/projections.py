"""Read models that schedulers need: their hosts, what nodes have and where they hang, volumes."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from dflare.kit.feed import FeedEntry, Projection
from dflare.services.baremetal.contract import NodeDeclared, SiteDeclared
from dflare.services.clusters.domain_scheduler import gpu_type_of
from dflare.services.clusters.tables import (
    KIT,
    Base,
    KnownVolume,
    NodePlace,
    NodeShape,
    SchedulerHost,
)


class SchedulerHosts:
    """Scheduler hosts and shapes of nodes, from ``site.declared``; freezes from ``site.frozen``."""

    name = "clusters.scheduler_hosts"
    kit = KIT
    types = frozenset({"site.declared", "site.frozen"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest declaration of each site. A host that is declared no more stays known,
        because clusters may still run there."""
        for entry in entries:
            if entry.type == "site.frozen":
                await self._freeze(session, entry)
            else:
                await self._declare(session, entry)

    async def _freeze(self, session: AsyncSession, entry: FeedEntry) -> None:
        version = entry.resource_version
        await session.execute(
            update(SchedulerHost)
            .where(
                SchedulerHost.site_id == entry.data["site_id"],
                SchedulerHost.frozen_version < version,
            )
            .values(frozen=bool(entry.data["frozen"]), frozen_version=version)
        )

    async def _declare(self, session: AsyncSession, entry: FeedEntry) -> None:
        site, version = SiteDeclared.model_validate(entry.data), entry.resource_version
        for ordinal, host in enumerate(site.scheduler_hosts):
            values = {
                "ordinal": ordinal,
                "address": host.address,
                "secret": host.secret,
                "declared": True,
                "version": version,
            }
            key = {"site_id": site.site_id, "name": host.name}
            await _newest(session, SchedulerHost, SchedulerHost.version, key, values)
        await session.execute(
            update(SchedulerHost)
            .where(SchedulerHost.site_id == site.site_id, SchedulerHost.version < version)
            .values(declared=False, version=version)
        )
        for kind in site.node_types:
            values = {
                "cpus": kind.cpus,
                "memory_mib": kind.memory_mib,
                "gpus": kind.gpus,
                "gpu_type": gpu_type_of(kind.gpu_model),
                "version": version,
            }
            key = {"site_id": site.site_id, "node_type": kind.name}
            await _newest(session, NodeShape, NodeShape.version, key, values)


class NodePlaces:
    """The leaf that each node hangs on, from ``node.declared``: that of its first rail, or else of
    its first Ethernet port."""

    name = "clusters.node_places"
    kit = KIT
    types = frozenset({"node.declared"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest declaration of each node."""
        newest: dict[str, dict[str, Any]] = {}
        for entry in entries:
            node = NodeDeclared.model_validate(entry.data)
            known = newest.get(node.node_id)
            if known is None or known["version"] < entry.resource_version:
                newest[node.node_id] = {
                    "node_id": node.node_id,
                    "leaf": _leaf(node),
                    "version": entry.resource_version,
                }
        if not newest:
            return
        statement = insert(NodePlace).values(list(newest.values()))
        fresh = statement.excluded
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=["node_id"],
                set_={"leaf": fresh.leaf, "version": fresh.version},
                where=NodePlace.version < fresh.version,
            )
        )


class Volumes:
    """What clusters can mount, and from where, from ``volume.changed``."""

    name = "clusters.volumes"
    kit = KIT
    types = frozenset({"volume.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each volume."""
        for entry in entries:
            data = entry.data
            values = {
                "project_id": data["project_id"],
                "site_id": data["site_id"],
                "name": data["name"],
                "source": data.get("source") or "",
                "state": data["state"],
                "version": entry.resource_version,
            }
            key = {"volume_id": data["id"]}
            await _newest(session, KnownVolume, KnownVolume.version, key, values)


async def _newest(
    session: AsyncSession,
    kind: type[Base],
    version: InstrumentedAttribute[int],
    key: Mapping[str, str],
    values: Mapping[str, Any],
) -> None:
    """Insert a row, or replace what is older in it."""
    await session.execute(
        insert(kind)
        .values(**key, **values)
        .on_conflict_do_update(
            index_elements=list(key), set_=dict(values), where=version < values["version"]
        )
    )


def _leaf(node: NodeDeclared) -> str | None:
    rails = sorted(node.infiniband, key=lambda cable: cable.rail)
    if rails:
        return rails[0].switch
    return node.ethernet[0].switch if node.ethernet else None


def scheduler_projections() -> list[Projection]:
    """The read models of this module."""
    return [SchedulerHosts(), NodePlaces(), Volumes()]
