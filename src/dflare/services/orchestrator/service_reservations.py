"""Reservations of whole blocks for a project, from a time to a time, all or nothing.

An operator gives them: they cost nothing and keep others out. docs/adr/0016-block-reservations.md.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydantic import JsonValue
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import InvalidError, NameTakenError
from dflare.kit.etag import check_if_match
from dflare.kit.ids import new_id
from dflare.kit.outbox import AuditRecord, Event
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource, Scope
from dflare.services.orchestrator import (
    repository,
    repository_reservations,
    repository_waiting,
)
from dflare.services.orchestrator.contract import BlockReservationFacts, Same, Wishes
from dflare.services.orchestrator.errors import (
    CapacityError,
    QuotaError,
    UnknownNodeTypeError,
    UnknownSiteError,
)
from dflare.services.orchestrator.placement_blocks import Blocks, NoBlocks, choose_blocks
from dflare.services.orchestrator.placement_pools import SiteNode
from dflare.services.orchestrator.repository_reservations import CANCELLED, SCHEDULED
from dflare.services.orchestrator.repository_waiting import Holding
from dflare.services.orchestrator.service import SCHEMA
from dflare.services.orchestrator.tables import KIT, BlockReservation, Site

LONGEST: Final = timedelta(days=366)
_SCOPE = Scope.system("reservations of blocks")
_OUT_OF_SERVICE = frozenset({"quarantine", "failed", "maintenance", "declared"})
_IN_WORDS: Final = {
    Same.BLOCK: "blocks",
    Same.RAIL_BLOCK: "rail blocks",
    Same.LEAF: "leaves",
    Same.NVLINK_DOMAIN: "NVLink domains",
}


@dataclass(frozen=True)
class BlockOrder:
    """What is asked for: ``blocks`` whole groups of ``level`` of a node type."""

    name: str
    site: str | None
    node_type: str
    blocks: int
    level: Same
    starts_at: datetime | None
    ends_at: datetime


@dataclass(frozen=True)
class ReservationView:
    """A reservation, where it stands now, and how many of its nodes others still hold."""

    row: BlockReservation
    state: str
    held_by_others: int


@dataclass(frozen=True)
class ReservationService:
    """Create, show, list and end reservations."""

    database: Database
    clock: Clock
    authorizer: Authorizer

    async def create(
        self, principal: Principal, project: ProjectRef, order: BlockOrder
    ) -> ReservationView:
        """Reserve blocks; whole or not at all.

        Raises:
            ForbiddenError: only operators give reservations.
            InvalidError: the times are not in order.
            CapacityError: not as many blocks can be had for the whole time; it says why.
            QuotaError: the project could not use so many nodes.
            NameTakenError: the project has a reservation of that name.
        """
        wanted = Resource("reservation", "", project.organization_id, project.id)
        await self.authorizer.check(principal, "reservation:create", wanted)
        now = self.clock.now()
        starts_at = max(order.starts_at or now, now)
        _check_times(starts_at, order.ends_at)
        try:
            async with self.database.transaction(SCHEMA) as session:
                site = await _site(session, order)
                await repository.lock_site(session, site.site_id)
                blocks = await self._choose(session, project, order, site, starts_at)
                row = BlockReservation(
                    id=new_id("resv"),
                    organization_id=project.organization_id,
                    project_id=project.id,
                    site_id=site.site_id,
                    name=order.name,
                    node_type=order.node_type,
                    level=order.level,
                    block_names=list(blocks.names),
                    node_ids=[node.node_id for node in blocks.nodes],
                    node_names=[node.name for node in blocks.nodes],
                    state=SCHEDULED,
                    starts_at=starts_at,
                    ends_at=order.ends_at,
                    created_by=principal.subject,
                    created_at=now,
                    version=1,
                )
                session.add(row)
                await session.flush()
                await self._record(session, principal, row, "reservation:create", now)
                return await self._view(session, row)
        except IntegrityError as error:
            raise NameTakenError(
                f"the project has a reservation named {order.name}",
                next_step="Choose another name, or delete that one first.",
            ) from error

    async def get(
        self, principal: Principal, project: ProjectRef, reference: str
    ) -> ReservationView:
        """One by id or name.

        Raises:
            NotFoundError: none that the caller may read.
        """
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            row = await repository_reservations.find(session, scope, project.id, reference)
            view = await self._view(session, row)
        await self.authorizer.check(principal, "reservation:read", _resource(row))
        return view

    async def list(
        self, principal: Principal, project: ProjectRef, after: str | None, limit: int
    ) -> tuple[list[ReservationView], str | None]:
        """One page, newest first, and the id to go on behind where there are more."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository_reservations.page(session, scope, project.id, after, limit)
            shown, last = cut(rows, limit)
            views = [await self._view(session, row) for row in shown]
        allowed = await self.authorizer.readable(
            principal, "reservation:list", [_resource(view.row) for view in views]
        )
        return (
            [view for view, may in zip(views, allowed, strict=True) if may],
            last.id if last else None,
        )

    async def delete(
        self,
        principal: Principal,
        project: ProjectRef,
        reference: str,
        if_match: str | None = None,
    ) -> None:
        """End a reservation now; what the project holds of it stays its own.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says.
            PreconditionError: ``if_match`` names another state of it.
        """
        view = await self.get(principal, project, reference)
        await self.authorizer.check(principal, "reservation:delete", _resource(view.row))
        scope = self.authorizer.scope(principal)
        async with self.database.transaction(SCHEMA) as session:
            row = await repository_reservations.find(
                session, scope, project.id, view.row.id, lock=True
            )
            check_if_match(if_match, row.version, row.id)
            if row.state == CANCELLED:
                return
            row.state = CANCELLED
            row.version += 1
            await session.flush()
            await self._record(session, principal, row, "reservation:delete", self.clock.now())

    async def _choose(
        self,
        session: AsyncSession,
        project: ProjectRef,
        order: BlockOrder,
        site: Site,
        starts_at: datetime,
    ) -> Blocks:
        await _check_nobody_waits(session, site.site_id, order.node_type)
        nodes = await repository.site_nodes(session, site.site_id, [order.node_type])
        holdings = {
            one.node_id: one
            for one in await repository_waiting.holdings(session, _SCOPE, site.site_id)
        }
        others = await repository_reservations.overlapping(
            session, site.site_id, starts_at, order.ends_at
        )
        taken = {node_id for one in others for node_id in one.node_ids}

        def in_the_way(node: SiteNode) -> str | None:
            if node.node_id in taken:
                return "reserved already"
            return _in_the_way(node, holdings.get(node.node_id), project, starts_at, self.clock)

        answer = choose_blocks(nodes, order.level, order.blocks, in_the_way)
        if isinstance(answer, NoBlocks):
            raise _cannot(order, answer)
        own = {
            node_id
            for one in others
            if one.project_id == project.id and one.node_type == order.node_type
            for node_id in one.node_ids
        }
        await _check_quota(session, project, order, len(own) + len(answer.nodes))
        return answer

    async def _view(self, session: AsyncSession, row: BlockReservation) -> ReservationView:
        now = self.clock.now()
        if row.state == CANCELLED:
            state = CANCELLED
        elif now < row.starts_at:
            state = SCHEDULED
        else:
            state = "active" if now < row.ends_at else "ended"
        reserved = set(row.node_ids)
        held = [
            one
            for one in await repository_waiting.holdings(session, _SCOPE, row.site_id)
            if one.node_id in reserved and one.project_id != row.project_id
        ]
        return ReservationView(row, state, len(held))

    async def _record(
        self,
        session: AsyncSession,
        principal: Principal,
        row: BlockReservation,
        action: str,
        now: datetime,
    ) -> None:
        facts = BlockReservationFacts.model_validate(
            {name: getattr(row, name) for name in BlockReservationFacts.model_fields}
        )
        event = Event(
            type="reservation.changed",
            resource_kind="reservation",
            resource_id=row.id,
            resource_version=row.version,
            at=now,
            data=facts.model_dump(mode="json"),
            organization_id=row.organization_id,
            project_id=row.project_id,
            site_id=row.site_id,
        )
        await outbox.emit(session, KIT, [event])
        await outbox.record_audit(
            session,
            KIT,
            AuditRecord(
                at=now,
                principal=principal.subject,
                action=action,
                resource_kind="reservation",
                resource_id=row.id,
                organization_id=row.organization_id,
                project_id=row.project_id,
            ),
        )


def _resource(row: BlockReservation) -> Resource:
    return Resource("reservation", row.id, row.organization_id, row.project_id)


def _check_times(starts_at: datetime, ends_at: datetime) -> None:
    if ends_at <= starts_at:
        raise InvalidError(
            "the reservation would end before it starts", next_step="Give an end after its start."
        )
    if ends_at - starts_at > LONGEST:
        raise InvalidError(
            "a reservation lasts at most 366 days", next_step="Reserve a shorter time."
        )


async def _site(session: AsyncSession, order: BlockOrder) -> Site:
    site = await repository_reservations.find_site(session, order.site)
    if site is None:
        raise UnknownSiteError(
            f"there is no site {order.site}" if order.site else "name a site",
            next_step="List sites and name one of them.",
        )
    if order.node_type not in site.node_types:
        raise UnknownNodeTypeError(
            f"site {site.name} has no node type {order.node_type}",
            next_step=f"Its node types are: {', '.join(sorted(site.node_types))}.",
            node_types=list[JsonValue](sorted(site.node_types)),
        )
    return site


async def _check_nobody_waits(session: AsyncSession, site_id: str, node_type: str) -> None:
    """A reservation would pass the orders that wait for such nodes."""
    waiting = [
        row
        for row in await repository_waiting.waiting_at(session, site_id)
        if any(pool.node_type == node_type for pool in Wishes.model_validate(row.wishes).pools)
    ]
    if waiting:
        raise CapacityError(
            f"{len(waiting)} orders wait for nodes of type {node_type}",
            next_step="Reserve when they were placed, or see them cancelled.",
            waiting=len(waiting),
        )


async def _check_quota(
    session: AsyncSession, project: ProjectRef, order: BlockOrder, nodes: int
) -> None:
    limit = (await repository.quota_limits(session, project.id)).get(order.node_type, 0)
    if nodes > limit:
        raise QuotaError(
            f"{nodes} nodes of type {order.node_type} would be reserved for the project, which may "
            f"hold {limit}",
            next_step="Raise its quota first, or reserve fewer blocks.",
            node_type=order.node_type,
            limit=limit,
            wanted=nodes,
        )


def _in_the_way(
    node: SiteNode,
    holding: Holding | None,
    project: ProjectRef,
    starts_at: datetime,
    clock: Clock,
) -> str | None:
    """Why a node cannot be had for the project from the start on; ``None`` if it can."""
    if node.cordoned or node.state in _OUT_OF_SERVICE:
        return "out of service"
    if holding is not None and holding.project_id == project.id:
        return None
    if holding is not None:
        if holding.ends_at is None:
            return "held by an order without an end"
        return "held beyond the start" if holding.ends_at > starts_at else None
    if not node.free and starts_at <= clock.now():
        return "not free now"
    return None


def _cannot(order: BlockOrder, answer: NoBlocks) -> CapacityError:
    groups = _IN_WORDS[order.level]
    reasons = ", ".join(f"{count} {reason}" for reason, count in answer.reasons.items())
    return CapacityError(
        f"{answer.wanted} whole {groups} of type {order.node_type} wanted, {answer.able} of "
        f"{answer.known} can be had for the whole time"
        + (f"; nodes in the way: {reasons}" if reasons else ""),
        next_step="Reserve fewer, smaller groups (--of), or a later time.",
        wanted=answer.wanted,
        able=answer.able,
        known=answer.known,
        in_the_way=dict[str, JsonValue](answer.reasons),
    )
