"""Queries of schema ``baremetal``; each starts from the caller's scope."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.errors import NotFoundError
from dflare.services.auth.contract import Scope
from dflare.services.baremetal.tables import (
    AgentSession,
    BootConfig,
    Claim,
    FrozenSite,
    Holder,
    Image,
    Node,
    NodeType,
    Rack,
    Site,
)

LIVE_HOLD = ("held", "confirmed", "releasing")


@dataclass(frozen=True)
class NodeFilter:
    """What a list of nodes is narrowed to."""

    site_id: str | None = None
    state: str | None = None
    node_type: str | None = None
    cluster_id: str | None = None
    name: str | None = None


def _visible(scope: Scope) -> Select[Node, Holder]:
    """Nodes with who holds them, as far as the scope reaches: a tenant sees those it holds."""
    query = (
        select(Node, Holder)
        .outerjoin(Holder, (Holder.node_id == Node.id) & Holder.state.in_(LIVE_HOLD))
        .where(Node.retired_at.is_(None))
    )
    table = Holder.__table__
    return query.where(scope.where(table.c.organization_id, table.c.project_id))


async def list_nodes(
    session: AsyncSession, scope: Scope, wanted: NodeFilter, after: str | None, limit: int
) -> list[tuple[Node, Holder | None]]:
    """One page of nodes by name and id; ``after`` is ``<name>/<id>``."""
    query = _visible(scope)
    for column, value in (
        (Node.site_id, wanted.site_id),
        (Node.state, wanted.state),
        (Node.node_type, wanted.node_type),
        (Node.name, wanted.name),
        (Holder.cluster_id, wanted.cluster_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if after is not None:
        name, _, id_ = after.rpartition("/")
        query = query.where((Node.name > name) | ((Node.name == name) & (Node.id > id_)))
    rows = await session.execute(query.order_by(Node.name, Node.id).limit(limit))
    return [(row[0], row[1]) for row in rows.all()]


async def find_node(
    session: AsyncSession, scope: Scope, reference: str, *, lock: bool = False
) -> tuple[Node, Holder | None]:
    """A node by id, or by a name that only one of the visible nodes has.

    Raises:
        NotFoundError: none within the scope, or several of that name.
    """
    query = _visible(scope).where((Node.id == reference) | (Node.name == reference))
    if lock:
        query = query.with_for_update(of=Node)
    found = (await session.execute(query.limit(2))).all()
    if len(found) != 1:
        raise NotFoundError(
            f"there are several nodes {reference}" if found else f"there is no node {reference}",
            next_step="Name it by its id, from `dflare node list`.",
        )
    return found[0][0], found[0][1]


async def lock_nodes(session: AsyncSession, scope: Scope, ids: Sequence[str]) -> dict[str, Node]:
    """Nodes by id, locked in the order of their ids."""
    if not scope.everything:
        raise NotFoundError("only the platform itself acts on nodes in batches")
    query = select(Node).where(Node.id == func.any(list(ids))).order_by(Node.id).with_for_update()
    return {node.id: node for node in await session.scalars(query)}


async def holders(session: AsyncSession, scope: Scope, ids: Sequence[str]) -> dict[str, Holder]:
    """Who holds the nodes, by node, within the scope."""
    table = Holder.__table__
    query = select(Holder).where(
        Holder.node_id == func.any(list(ids)),
        scope.where(table.c.organization_id, table.c.project_id),
    )
    return {holder.node_id: holder for holder in await session.scalars(query)}


async def claims(session: AsyncSession, ids: Sequence[str]) -> dict[str, list[str]]:
    """The operations that claim the nodes, by node: one, or two while events are on their way."""
    query = select(Claim.node_id, Claim.operation_id).where(Claim.node_id == func.any(list(ids)))
    found: dict[str, list[str]] = {}
    for row in (await session.execute(query)).all():
        found.setdefault(row[0], []).append(row[1])
    return found


async def boot_config(session: AsyncSession, scope: Scope, cluster_id: str) -> BootConfig | None:
    """What a cluster's nodes boot with; none before its event has come."""
    table = BootConfig.__table__
    query = select(BootConfig).where(
        BootConfig.cluster_id == cluster_id,
        scope.where(table.c.organization_id, table.c.project_id),
    )
    return (await session.scalars(query)).first()


async def image(session: AsyncSession, site_id: str, name: str) -> Image | None:
    """A site's image by name; ``default`` is the first that the site declares."""
    query = select(Image).where(Image.site_id == site_id).order_by(Image.ordinal)
    images = list(await session.scalars(query))
    named = next((found for found in images if found.name == name), None)
    return images[0] if named is None and name == "default" and images else named


async def images(session: AsyncSession) -> list[Image]:
    """Images of all sites: what can be ordered is no tenant's."""
    query = select(Image).order_by(Image.site_id, Image.ordinal)
    return list(await session.scalars(query))


async def node_types(session: AsyncSession) -> list[NodeType]:
    """Node types of all sites: what can be ordered is no tenant's."""
    query = select(NodeType).order_by(NodeType.site_id, NodeType.name)
    return list(await session.scalars(query))


async def sites(session: AsyncSession) -> list[Site]:
    """All sites, by name; their names are no tenant's."""
    return list(await session.scalars(select(Site).order_by(Site.name)))


async def site_ids(session: AsyncSession) -> list[str]:
    """The ids of all sites."""
    return list(await session.scalars(select(Site.id).order_by(Site.id)))


async def find_site(session: AsyncSession, reference: str, *, lock: bool = False) -> Site | None:
    """A site by id or name."""
    query = select(Site).where((Site.id == reference) | (Site.name == reference))
    if lock:
        query = query.with_for_update()
    return (await session.scalars(query)).first()


async def nodes_of_site(session: AsyncSession, scope: Scope, site_id: str) -> dict[str, Node]:
    """The site's nodes that are not retired, by name, locked."""
    if not scope.everything:
        raise NotFoundError("only operators may change a site")
    query = (
        select(Node)
        .where(Node.site_id == site_id, Node.retired_at.is_(None))
        .order_by(Node.id)
        .with_for_update()
    )
    return {node.name: node for node in await session.scalars(query)}


async def count_by_state(session: AsyncSession, site_id: str) -> dict[str, int]:
    """How many nodes of a site are in each state."""
    query = (
        select(Node.state, func.count())
        .where(Node.site_id == site_id, Node.retired_at.is_(None))
        .group_by(Node.state)
    )
    return {row[0]: row[1] for row in (await session.execute(query)).all()}


async def racks_of(session: AsyncSession, site_id: str) -> list[Rack]:
    """The racks of a site."""
    return list(await session.scalars(select(Rack).where(Rack.site_id == site_id)))


async def close_sessions(
    session: AsyncSession, node_ids: Sequence[str], but_of: str | None
) -> None:
    """Refuse the tokens of the nodes' agent sessions, but those of operation ``but_of``."""
    await session.execute(
        update(AgentSession)
        .where(
            AgentSession.node_id == func.any(list(node_ids)),
            AgentSession.closed_at.is_(None),
            AgentSession.operation_id != but_of if but_of is not None else true(),
        )
        .values(closed_at=func.now(), version=AgentSession.version + 1)
    )


async def frozen(session: AsyncSession, site_id: str | None) -> str | None:
    """Why the site's devices may not be written to; none when they may."""
    query = select(FrozenSite.reason).where(FrozenSite.site_id == site_id, FrozenSite.frozen)
    return await session.scalar(query)


async def taken_nodes(
    session: AsyncSession, node_ids: Sequence[str], operation_id: str
) -> dict[str, str | None]:
    """Of the nodes, those that another operation (or nobody) acts on now, with it."""
    query = select(Node.id, Node.acting_operation_id).where(
        Node.id == func.any(list(node_ids)),
        Node.acting_operation_id.is_distinct_from(operation_id),
    )
    return {row[0]: row[1] for row in (await session.execute(query)).all()}
