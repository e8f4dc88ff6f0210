"""Read models of the orchestrator: sites, nodes and limits for placement, operations for lists.

Events of one resource come in the order of its versions; an older version changes nothing.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.feed import FeedEntry, Projection
from dflare.services.baremetal.contract import (
    NodeDeclared,
    NodeState,
    NodeStateChanged,
    SiteDeclared,
)
from dflare.services.clusters.contract import ClusterState
from dflare.services.metering.contract import QuotaLimit as QuotaLimitFacts
from dflare.services.orchestrator import repository, repository_waiting
from dflare.services.orchestrator.placement import rail_block_named
from dflare.services.orchestrator.tables import KIT, Node, OperationIndex, QuotaLimit, Site

Row = dict[str, Any]

_USELESS = NodeState.QUARANTINE
_NODES = cast("Table", Node.__table__)

_FACTS_AT_START: Row = {
    "node_type": "",
    "gpus": 0,
    "row": "",
    "rack": "",
    "block": "",
    "nvlink_domain": None,
    "rail_block": None,
    "retired": False,
    "state": "declared",
    "cordoned": False,
}


def projections() -> list[Projection]:
    """All read models of this service."""
    return [PlacementProjection(), OperationsProjection()]


class PlacementProjection:
    """What placement needs to know of sites, nodes and limits; and the end of usage of a node that
    its tenant has when it goes into quarantine."""

    name = "orchestrator.placement"
    kit = KIT
    types = frozenset(
        {
            "site.declared",
            "node.declared",
            "node.state_changed",
            "quota.changed",
            "cluster.changed",
        }
    )

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Fold a batch: nodes together, the few sites and limits one by one."""
        for entry in entries:
            if entry.type == "site.declared":
                await _keep_site(session, entry)
            elif entry.type == "quota.changed":
                await _keep_limit(session, entry)
            elif entry.type == "cluster.changed":
                await _keep_end(session, entry)
        nodes = [e for e in entries if e.type in ("node.declared", "node.state_changed")]
        if nodes:
            await _keep_nodes(session, nodes)
            ends = {e.resource_id: e.at for e in reversed(nodes) if e.data.get("state") == _USELESS}
            if ends:
                await repository.end_usage(session, ends)


async def _keep_site(session: AsyncSession, entry: FeedEntry) -> None:
    site = SiteDeclared.model_validate(entry.data)
    values = {
        "name": site.name,
        "node_types": sorted(one.name for one in site.node_types),
        "version": entry.resource_version,
    }
    await session.execute(
        insert(Site)
        .values(site_id=site.site_id, **values)
        .on_conflict_do_update(
            index_elements=["site_id"], set_=values, where=Site.version < entry.resource_version
        )
    )


async def _keep_end(session: AsyncSession, entry: FeedEntry) -> None:
    """A cluster that is protected is not released at its time, so its end is not known."""
    if entry.data.get("state") == ClusterState.DELETED:
        await repository_waiting.drop_end(session, entry.resource_id)
        return
    text = None if entry.data.get("protected") else entry.data.get("expires_at")
    await repository_waiting.keep_end(
        session,
        entry.resource_id,
        datetime.fromisoformat(text) if text else None,
        entry.resource_version,
    )


async def _keep_limit(session: AsyncSession, entry: FeedEntry) -> None:
    limit = QuotaLimitFacts.model_validate(entry.data)
    values = {"nodes": limit.nodes, "version": entry.resource_version}
    await session.execute(
        insert(QuotaLimit)
        .values(project_id=limit.project_id, node_type=limit.node_type, **values)
        .on_conflict_do_update(
            index_elements=["project_id", "node_type"],
            set_=values,
            where=QuotaLimit.version < entry.resource_version,
        )
    )


async def _keep_nodes(session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
    """Fold all changes of each node into one row. Rows are locked in the order of their ids, as
    everywhere, so that a reservation at the same time cannot deadlock with this."""
    ids = sorted({entry.resource_id for entry in entries})
    present = (
        await session.execute(
            select(_NODES).where(Node.node_id.in_(ids)).order_by(Node.node_id).with_for_update()
        )
    ).mappings()
    rows: dict[str, Row] = {row["node_id"]: dict(row) for row in present}
    for entry in entries:
        change = _node_change(entry)
        row = rows.setdefault(
            change["node_id"], {**_FACTS_AT_START, "version": 0, "epoch": 0, **change}
        )
        if entry.resource_version >= row["version"]:
            row |= {**change, "version": entry.resource_version}
    statement = insert(_NODES)
    kept = {"node_id", "epoch"}
    # Many executions of one statement: one with thousands of parameters is built anew each time.
    await (await session.connection()).execute(
        statement.on_conflict_do_update(
            index_elements=["node_id"],
            set_={
                column.name: statement.excluded[column.name]
                for column in _NODES.columns
                if column.name not in kept
            },
        ),
        [rows[node_id] for node_id in sorted(rows)],
    )


def _node_change(entry: FeedEntry) -> Row:
    if entry.type == "node.declared":
        declared = NodeDeclared.model_validate(entry.data)
        return {
            "node_id": declared.node_id,
            "site_id": declared.site_id,
            "name": declared.name,
            "node_type": declared.node_type,
            "gpus": declared.gpus,
            "row": declared.row,
            "rack": declared.rack,
            "block": declared.block,
            "nvlink_domain": declared.nvlink_domain,
            "rail_block": rail_block_named({one.rail: one.switch for one in declared.infiniband}),
            "retired": declared.retired,
        }
    changed = NodeStateChanged.model_validate(entry.data)
    return {
        "node_id": changed.node_id,
        "site_id": changed.site_id,
        "name": changed.name,
        "state": changed.state.value,
        "cordoned": changed.cordoned,
    }


class OperationsProjection:
    """All operations of all services, for ``operation list``."""

    name = "orchestrator.operations"
    kit = KIT
    types = frozenset({"operation.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each operation."""
        newest = {entry.resource_id: entry for entry in entries}
        statement = insert(OperationIndex).values(
            [
                {
                    "id": entry.resource_id,
                    "service": entry.source,
                    "kind": entry.data["kind"],
                    "organization_id": entry.organization_id,
                    "project_id": entry.project_id,
                    "site_id": entry.site_id,
                    "resource_kind": entry.data["resource_kind"],
                    "resource_id": entry.data["resource_id"],
                    "state": entry.data["state"],
                    "document": entry.data,
                    "version": entry.resource_version,
                }
                for entry in newest.values()
            ]
        )
        if newest:
            await session.execute(
                statement.on_conflict_do_update(
                    index_elements=["id"],
                    set_={
                        name: statement.excluded[name] for name in ("state", "document", "version")
                    },
                    where=OperationIndex.version < statement.excluded.version,
                )
            )
