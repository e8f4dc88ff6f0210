"""Reserving nodes for orders, and taking stand-ins: the ledger of who holds which node."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NotFoundError
from dflare.kit.ids import new_id
from dflare.kit.plan import Plan
from dflare.kit.telemetry import span
from dflare.services.auth.contract import Scope
from dflare.services.orchestrator import repository
from dflare.services.orchestrator.contract import (
    AllocationState,
    Placed,
    Reservation,
    Wishes,
)
from dflare.services.orchestrator.errors import (
    CapacityError,
    QuotaError,
    UnknownNodeTypeError,
    UnknownSiteError,
)
from dflare.services.orchestrator.placement import Candidate, place
from dflare.services.orchestrator.repository import SiteNode
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.tables import Allocation
from dflare.services.orchestrator.tables import Reservation as ReservationRow

SCHEMA = "orchestrator"
CREATE = "create_cluster"

_SCOPE = Scope.system("the ledger of allocations")
_STATES_IN_WORDS = {
    "declared": "not enrolled yet",
    "enrolling": "being enrolled",
    "preparing": "being cleaned or prepared",
    "provisioning": "being cleaned or prepared",
    "cleaning": "being cleaned or prepared",
    "active": "held by other orders",
    "rescue": "held by other orders",
}


@dataclass(frozen=True)
class _Chosen:
    """A node for a pool of an order."""

    pool: str
    node: SiteNode


@dataclass(frozen=True)
class OrchestratorService:
    """The synchronous part of the orchestrator, see ``contract.Orchestrator``."""

    database: Database
    clock: Clock

    async def reserve(self, operation_id: str, wishes: Wishes) -> Reservation:
        """Place, allocate, claim and count the quota in one transaction; idempotent by operation.

        Raises:
            CapacityError, QuotaError, UnknownNodeTypeError, UnknownSiteError: nothing is held.
        """
        with span("orchestrator.reserve", operation_id=operation_id):
            async with self.database.transaction(SCHEMA) as session:
                await repository.lock_site(session, wishes.site_id)
                if held := await self._held_before(session, operation_id, wishes):
                    return held
                await _check_site(session, wishes)
                await _check_quota(session, wishes, lock=True)
                chosen, explanation = await _choose(session, wishes)
                return await self._hold(session, operation_id, wishes, chosen, explanation)

    async def release_hold(self, operation_id: str) -> None:
        """Give back at once what an order that is refused still holds; see the contract."""
        with span("orchestrator.release_hold", operation_id=operation_id):
            async with self.database.transaction(SCHEMA) as session:
                held = await repository.lock_holds(session, operation_id)
                await repository.end_allocations(
                    session, held, self.clock.now(), "the order was refused"
                )

    async def preview(self, wishes: Wishes) -> Reservation:
        """The answer that ``reserve`` would give, with nothing held and no epoch raised."""
        async with self.database.transaction(SCHEMA) as session:
            await _check_site(session, wishes)
            await _check_quota(session, wishes, lock=False)
            chosen, explanation = await _choose(session, wishes)
        placed = tuple(Placed("", one.node.node_id, one.node.name, one.pool, 0) for one in chosen)
        return Reservation(placed, _plan(wishes), explanation, self._expiry(wishes))

    def plan(self, saga: str) -> Plan:
        """The present plan of a saga.

        Raises:
            NotFoundError: there is no saga of that name.
        """
        try:
            return SAGAS[saga]
        except KeyError as error:
            raise NotFoundError(
                f"there is no saga {saga}", next_step=f"Sagas are: {', '.join(sorted(SAGAS))}."
            ) from error

    async def nodes_of(self, cluster_id: str) -> Sequence[Placed]:
        """The live allocations of a cluster, for the targets of its release."""
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.of_cluster(session, _SCOPE, cluster_id)
        return tuple(_placed(row) for row in rows)

    async def has_reserved(self, operation_id: str) -> bool:
        """Whether the operation is an order of nodes."""
        async with self.database.reading(SCHEMA) as session:
            return await repository.reservation(session, operation_id) is not None

    async def reserve_again(self, operation_id: str) -> Reservation:
        """Reserve what the operation wished for once more, for a retry.

        Raises:
            NotFoundError: the operation never reserved anything.
            CapacityError, QuotaError: as for ``reserve``.
        """
        async with self.database.transaction(SCHEMA) as session:
            row = await repository.reservation(session, operation_id)
        if row is None:
            raise NotFoundError(
                f"operation {operation_id} reserved no nodes", next_step="Order anew."
            )
        return await self.reserve(operation_id, Wishes.model_validate(row.wishes))

    def _expiry(self, wishes: Wishes) -> datetime:
        return self.clock.now() + timedelta(seconds=wishes.ttl_s)

    async def _held_before(
        self, session: AsyncSession, operation_id: str, wishes: Wishes
    ) -> Reservation | None:
        rows = await repository.reserved(session, operation_id, live=True)
        row = await repository.reservation(session, operation_id)
        if row is None or not rows:
            return None
        return Reservation(
            tuple(_placed(one) for one in rows), _plan(wishes), row.explanation, row.expires_at
        )

    async def _hold(
        self,
        session: AsyncSession,
        operation_id: str,
        wishes: Wishes,
        chosen: Sequence[_Chosen],
        explanation: str,
    ) -> Reservation:
        now, expires_at = self.clock.now(), self._expiry(wishes)
        epochs = await repository.raise_epochs(session, [one.node.node_id for one in chosen])
        sizes = Counter(one.pool for one in chosen)
        slots = {
            pool: iter(await repository.free_slots(session, wishes.cluster_id, pool, count))
            for pool, count in sizes.items()
        }
        allocations = [
            Allocation(
                id=new_id("alloc"),
                version=1,
                state=AllocationState.HELD,
                node_id=one.node.node_id,
                node_name=one.node.name,
                node_type=one.node.node_type,
                gpus=one.node.gpus,
                site_id=wishes.site_id,
                organization_id=wishes.organization_id,
                project_id=wishes.project_id,
                cluster_id=wishes.cluster_id,
                pool=one.pool,
                slot=next(slots[one.pool]),
                reserved_by=operation_id,
                operation_id=operation_id,
                epoch=epochs[one.node.node_id],
                reason="",
                since=now,
                expires_at=expires_at,
                created_at=now,
            )
            for one in chosen
        ]
        await repository.add_allocations(session, allocations, now)
        await repository.store_reservation(
            session,
            ReservationRow(
                operation_id=operation_id,
                wishes=wishes.model_dump(mode="json"),
                explanation=explanation,
                expires_at=expires_at,
            ),
        )
        return Reservation(
            tuple(_placed(one) for one in allocations), _plan(wishes), explanation, expires_at
        )


def _plan(wishes: Wishes) -> Plan:
    return SAGAS[CREATE].with_params("baremetal.provision@1", cluster_id=wishes.cluster_id)


def _placed(row: Allocation) -> Placed:
    return Placed(row.id, row.node_id, row.node_name, row.pool, row.epoch, row.slot)


async def _check_site(session: AsyncSession, wishes: Wishes) -> None:
    site = await repository.site(session, wishes.site_id)
    if site is None:
        raise UnknownSiteError(
            f"there is no site {wishes.site_id}", next_step="List sites and name one of them."
        )
    for pool in wishes.pools:
        if pool.node_type not in site.node_types:
            raise UnknownNodeTypeError(
                f"site {site.name} has no node type {pool.node_type}",
                next_step=f"Its node types are: {', '.join(sorted(site.node_types))}.",
                node_types=list[JsonValue](sorted(site.node_types)),
            )


def _wanted_by_type(wishes: Wishes) -> Counter[str]:
    wanted: Counter[str] = Counter()
    for pool in wishes.pools:
        wanted[pool.node_type] += pool.count
    return wanted


async def _check_quota(session: AsyncSession, wishes: Wishes, *, lock: bool) -> None:
    wanted = _wanted_by_type(wishes)
    limits = await repository.quota_limits(session, wishes.project_id)
    used = await repository.quota_used(session, wishes.project_id, wanted, lock=lock)
    for node_type, count in sorted(wanted.items()):
        limit, held = limits.get(node_type, 0), used.get(node_type, 0)
        if held + count > limit:
            raise QuotaError(
                f"{count} nodes of type {node_type} wanted; the project holds {held} of the "
                f"{limit} that its quota allows",
                next_step="Release nodes, order fewer, or ask an operator for a higher quota.",
                node_type=node_type,
                limit=limit,
                used=held,
                wanted=count,
            )


async def _choose(session: AsyncSession, wishes: Wishes) -> tuple[list[_Chosen], str]:
    """Nodes for every pool, locked against a change of their state.

    Raises:
        CapacityError: too few are free.
    """
    nodes = await repository.site_nodes(session, wishes.site_id, _wanted_by_type(wishes))
    changed: set[str] = set()
    while True:
        chosen, explanation = _place_pools(wishes, nodes, changed)
        late = await repository.no_longer_free(session, [one.node.node_id for one in chosen])
        if not late:
            return chosen, explanation
        changed |= late


def _place_pools(
    wishes: Wishes, nodes: Sequence[SiteNode], changed: set[str]
) -> tuple[list[_Chosen], str]:
    by_id = {node.node_id: node for node in nodes}
    free = [node for node in nodes if node.free and node.node_id not in changed]
    for node_type, count in sorted(_wanted_by_type(wishes).items()):
        candidates = [node for node in free if node.node_type == node_type]
        if len(candidates) < count:
            raise _too_few(node_type, count, len(candidates), nodes)
    chosen: list[_Chosen] = []
    taken: list[Candidate] = []
    explanations: list[str] = []
    for pool in wishes.pools:
        used = {one.node_id for one in taken}
        choice = place(
            [
                candidate_of(node)
                for node in free
                if node.node_type == pool.node_type and node.node_id not in used
            ],
            pool.count,
            taken,
        )
        assert choice is not None, "the sum over pools of a type was checked above"
        taken.extend(choice.nodes)
        chosen.extend(_Chosen(pool.pool, by_id[node.node_id]) for node in choice.nodes)
        explanations.append(f"{pool.pool}: {choice.explanation}")
    return chosen, ". ".join(explanations)


def candidate_of(node: SiteNode) -> Candidate:
    """A node as placement takes it."""
    return Candidate(node.node_id, node.name, node.rack, node.block, node.nvlink_domain)


def why_not_free(node_type: str, nodes: Sequence[SiteNode]) -> dict[str, int]:
    """Counts of a type's nodes that are not free, by reason; other tenants are not named."""
    reasons: Counter[str] = Counter()
    for node in nodes:
        if node.node_type != node_type or node.free:
            continue
        if node.state in ("quarantine", "failed", "maintenance"):
            reasons[f"in {node.state}" if node.state != "failed" else "failed"] += 1
        elif node.busy:
            reasons["held by other orders"] += 1
        elif node.state != "available":
            reasons[_STATES_IN_WORDS.get(node.state, node.state)] += 1
        else:
            reasons["cordoned"] += 1
    return dict(reasons.most_common())


def _too_few(node_type: str, wanted: int, free: int, nodes: Sequence[SiteNode]) -> CapacityError:
    reasons = why_not_free(node_type, nodes)
    others = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    return CapacityError(
        f"{wanted} nodes of type {node_type} wanted, {free} are free, {wanted - free} are missing"
        + (f"; the others: {others}" if others else "; the site has no others"),
        next_step="Order fewer nodes or another type, or try again when others were released.",
        node_type=node_type,
        wanted=wanted,
        free=free,
        missing=wanted - free,
        not_free=dict[str, JsonValue](reasons),
    )
