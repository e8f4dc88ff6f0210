"""Read models fed by events: boot configurations, holders, claims, frozen sites."""

from collections.abc import Mapping, Sequence
from typing import cast

from sqlalchemy import Table, delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.feed import FeedEntry, Projection
from dflare.services.baremetal.tables import KIT, BootConfig, Claim, FrozenSite, Holder
from dflare.services.clusters.contract import ClusterDeclared
from dflare.services.orchestrator.contract import AllocationFacts, ClaimFacts


class BootConfigs:
    """Folds ``cluster.declared``."""

    name = "boot_config"
    kit = KIT
    types = frozenset({"cluster.declared"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """See ``Projection.apply``."""
        rows: dict[str, Mapping[str, object]] = {}
        for entry in entries:
            data = ClusterDeclared.model_validate(entry.data)
            rows[data.cluster_id] = {
                "cluster_id": data.cluster_id,
                "name": data.name,
                "organization_id": data.organization_id,
                "project_id": data.project_id,
                "site_id": data.site_id,
                "image": data.image,
                "ssh_keys": list(data.ssh_keys),
                "user_data_sealed": data.user_data_sealed,
                "kind": data.kind,
                "scheduler_sealed": data.scheduler_sealed,
                "version": entry.resource_version,
            }
        await _upsert(session, BootConfig, "cluster_id", rows)


class Holders:
    """Folds ``allocation.changed``: of a node's allocations that with the newest epoch counts."""

    name = "holder"
    kit = KIT
    types = frozenset({"allocation.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """See ``Projection.apply``."""
        newest: dict[str, AllocationFacts] = {}
        for entry in entries:
            facts = AllocationFacts.model_validate(entry.data)
            known = newest.get(facts.node_id)
            if known is None or (facts.epoch, facts.version) >= (known.epoch, known.version):
                newest[facts.node_id] = facts
        if not newest:
            return
        table = Holder.__table__
        statement = insert(Holder)
        fresh = statement.excluded
        names = [column.name for column in table.columns]
        statement = statement.on_conflict_do_update(
            index_elements=["node_id"],
            set_={name: fresh[name] for name in names if name != "node_id"},
            where=(table.c.epoch < fresh.epoch)
            | (
                (table.c.epoch == fresh.epoch)
                & (
                    (table.c.allocation_id != fresh.allocation_id)
                    | (table.c.version < fresh.version)
                )
            ),
        )
        rows = [facts.model_dump(include=set(names)) for facts in newest.values()]
        await session.execute(statement, rows)


class Claims:
    """Folds ``claim.changed``."""

    name = "claim"
    kit = KIT
    types = frozenset({"claim.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """See ``Projection.apply``. Events of one claim come in order, and each is folded once."""
        last = {entry.resource_id: entry for entry in entries}
        rows: dict[str, Mapping[str, object]] = {}
        ended: list[str] = []
        for entry in last.values():
            facts = ClaimFacts.model_validate(entry.data)
            if facts.held:
                rows[facts.claim_id] = facts.model_dump(
                    include={"claim_id", "node_id", "operation_id", "version"}
                )
            else:
                ended.append(facts.claim_id)
        await _upsert(session, Claim, "claim_id", rows)
        if ended:
            await session.execute(delete(Claim).where(Claim.claim_id.in_(ended)))


class FrozenSites:
    """Folds ``site.frozen``."""

    name = "frozen_site"
    kit = KIT
    types = frozenset({"site.frozen"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """See ``Projection.apply``."""
        rows: dict[str, Mapping[str, object]] = {
            entry.resource_id: {
                "site_id": entry.resource_id,
                "frozen": bool(entry.data["frozen"]),
                "reason": str(entry.data.get("reason") or ""),
                "version": entry.resource_version,
            }
            for entry in entries
        }
        await _upsert(session, FrozenSite, "site_id", rows)


async def _upsert(
    session: AsyncSession,
    kind: type[BootConfig] | type[Claim] | type[FrozenSite],
    key: str,
    rows: Mapping[str, Mapping[str, object]],
) -> None:
    """Insert or replace rows by ``key`` where theirs is the newer version."""
    if not rows:
        return
    table = cast("Table", kind.__table__)
    statement = insert(table)
    fresh = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=[key],
        set_={column.name: fresh[column.name] for column in table.columns if column.name != key},
        where=table.c.version < fresh.version,
    )
    await session.execute(statement, [dict(row) for row in rows.values()])


def projections() -> list[Projection]:
    """The read models of this service, to be run by its worker."""
    return [BootConfigs(), Holders(), Claims(), FrozenSites()]
