"""Reading nodes, and ordering what may be done to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import idempotency, operations, outbox, telemetry
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ProblemError
from dflare.kit.idempotency import Begun, RequestKey
from dflare.kit.ids import new_id
from dflare.kit.outbox import AuditRecord
from dflare.kit.pagination import cut
from dflare.kit.plan import Plan
from dflare.kit.seal import Sealer
from dflare.services.auth.contract import Authorizer, Principal, Resource
from dflare.services.baremetal import repository
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.errors import NodeBusyError, NodeStateError
from dflare.services.baremetal.repository import NodeFilter
from dflare.services.baremetal.steps.base import change_state, state_event
from dflare.services.baremetal.tables import KIT, Holder, Image, Node, NodeType
from dflare.services.orchestrator.contract import Orchestrator

SCHEMA = "baremetal"


@dataclass(frozen=True)
class NodeOrder:
    """What may be ordered on a node: its saga, the action to be allowed, and the states for it.

    ``held``: whether a tenant has to hold the node (true), nobody may (false), or no matter (none).
    """

    saga: str
    action: str
    states: frozenset[NodeState]
    held: bool | None


_IN_USE = frozenset({NodeState.ACTIVE, NodeState.RESCUE})
ORDERS = {
    "reboot": NodeOrder("reboot_node", "node:reboot", frozenset({NodeState.ACTIVE}), True),
    "rescue": NodeOrder("rescue_node", "node:rescue", _IN_USE, True),
    "unrescue": NodeOrder("unrescue_node", "node:rescue", _IN_USE, True),
    "reimage": NodeOrder("reimage_node", "node:reimage", _IN_USE | {NodeState.PROVISIONING}, True),
    "enrol": NodeOrder(
        "enrol_nodes",
        "node:cordon",
        frozenset(
            {
                NodeState.DECLARED,
                NodeState.ENROLLING,
                NodeState.AVAILABLE,
                NodeState.FAILED,
                NodeState.MAINTENANCE,
            }
        ),
        False,
    ),
    "release-quarantine": NodeOrder(
        "clean_node", "node:quarantine", frozenset({NodeState.QUARANTINE}), False
    ),
}


@dataclass(frozen=True)
class NodeEntry:
    """A node and who holds it."""

    node: Node
    holder: Holder | None


@dataclass(frozen=True)
class BaremetalService:
    """Nodes as people and tenants see them. Sites are declared in ``service_site``."""

    database: Database
    clock: Clock
    sealer: Sealer
    authorizer: Authorizer
    orchestrator: Orchestrator

    async def site_ids(self) -> list[str]:
        """The declared sites, for the processes that serve their queues."""
        async with self.database.reading(SCHEMA) as session:
            return await repository.site_ids(session)

    async def list_nodes(
        self, principal: Principal, wanted: NodeFilter, after: str | None, limit: int
    ) -> tuple[list[NodeEntry], str | None]:
        """One page of nodes: all for operators, a tenant's own for tenants; and the key to go on
        behind where there are more."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            found = await repository.list_nodes(session, scope, wanted, after, limit + 1)
        rows, last = cut(found, limit)
        entries = [NodeEntry(node, holder) for node, holder in rows]
        allowed = await self.authorizer.readable(
            principal, "node:read", [_resource(entry.node, entry.holder) for entry in entries]
        )
        key = f"{last[0].name}/{last[0].id}" if last else None
        return [e for e, may in zip(entries, allowed, strict=True) if may], key

    async def get(self, principal: Principal, reference: str) -> NodeEntry:
        """A node by id or name.

        Raises:
            NotFoundError: none that the caller may read.
        """
        async with self.database.reading(SCHEMA) as session:
            scope = self.authorizer.scope(principal)
            node, holder = await repository.find_node(session, scope, reference)
        await self.authorizer.check(principal, "node:read", _resource(node, holder))
        return NodeEntry(node, holder)

    async def order(
        self, principal: Principal, reference: str, verb: str, request: RequestKey
    ) -> tuple[int, dict[str, Any]]:
        """Order one of ``ORDERS`` on a node; returns status and the operation's document.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says.
            NodeStateError: the node's state does not allow it.
            NodeBusyError: another operation acts on the node.
        """
        order = ORDERS[verb]
        entry = await self.get(principal, reference)
        await self.authorizer.check(principal, order.action, _resource(entry.node, entry.holder))
        begun = await idempotency.begin(self.database, KIT, request, self.clock.now())
        if begun.answer is not None:
            return begun.status or 202, begun.answer
        try:
            with telemetry.span(f"baremetal.{verb}", operation_id=begun.operation_id):
                return await self._store(principal, entry.node.id, order, begun)
        except ProblemError:
            await idempotency.forget(self.database, KIT, begun)
            raise

    async def _store(
        self, principal: Principal, node_id: str, order: NodeOrder, begun: Begun
    ) -> tuple[int, dict[str, Any]]:
        now = self.clock.now()
        async with self.database.transaction(SCHEMA) as session:
            claimed = await idempotency.claim(session, KIT, begun, now)
            if claimed.answer is not None:
                return claimed.status or 202, claimed.answer
            scope = self.authorizer.scope(principal)
            node, holder = await repository.find_node(session, scope, node_id, lock=True)
            _check_order(node, holder, order)
            await _check_idle(session, node)
            document = await store_operation(
                session,
                principal,
                saga=order.saga,
                action=order.action,
                plan=self.orchestrator.plan(order.saga),
                operation_id=begun.operation_id,
                resource=("node", node.id),
                owner=_owner(holder),
                site_id=node.site_id,
                targets=[node.id],
                clock=self.clock,
            )
            await idempotency.complete(session, KIT, begun, 202, document)
        return 202, document

    async def cordon(
        self, principal: Principal, reference: str, *, cordoned: bool, reason: str
    ) -> NodeEntry:
        """Keep a node out of new orders, or let it in again; what runs on it runs on."""
        async with self.database.transaction(SCHEMA) as session:
            scope = self.authorizer.scope(principal)
            node, holder = await repository.find_node(session, scope, reference)
        await self.authorizer.check(principal, "node:cordon", _resource(node, holder))
        async with self.database.transaction(SCHEMA) as session:
            node, holder = await repository.find_node(session, scope, node.id, lock=True)
            if (node.cordoned, node.cordon_reason) != (cordoned, reason if cordoned else ""):
                now = self.clock.now()
                node.cordoned, node.cordon_reason = cordoned, reason if cordoned else ""
                node.version += 1
                await outbox.emit(session, KIT, [state_event(node, now, None)])
                await self._audit(session, principal, "node:cordon", node, reason)
        return NodeEntry(node, holder)

    async def quarantine(self, principal: Principal, reference: str, reason: str) -> NodeEntry:
        """Take a node out of every use at once. What acts on it stops; an operation closes its
        ports and turns it off; only cleaning leads out again."""
        async with self.database.transaction(SCHEMA) as session:
            scope = self.authorizer.scope(principal)
            node, holder = await repository.find_node(session, scope, reference)
        await self.authorizer.check(principal, "node:quarantine", _resource(node, holder))
        async with self.database.transaction(SCHEMA) as session:
            node, holder = await repository.find_node(session, scope, node.id, lock=True)
            if node.state != NodeState.QUARANTINE:
                await self._quarantine(session, principal, node, holder, reason)
        return NodeEntry(node, holder)

    async def _quarantine(
        self,
        session: AsyncSession,
        principal: Principal,
        node: Node,
        holder: Holder | None,
        reason: str,
    ) -> None:
        operation_id = new_id("op")
        events: list[outbox.Event] = []
        change_state(node, NodeState.QUARANTINE, reason, self.clock.now(), None, events)
        node.acting_operation_id = operation_id
        await repository.close_sessions(session, [node.id], None)
        await outbox.emit(session, KIT, events)
        plan = self.orchestrator.plan("quarantine_node")
        await store_operation(
            session,
            principal,
            saga="quarantine_node",
            action="node:quarantine",
            plan=plan.with_params("baremetal.quarantine@1", reason=reason),
            operation_id=operation_id,
            resource=("node", node.id),
            owner=_owner(holder),
            site_id=node.site_id,
            targets=[node.id],
            clock=self.clock,
        )

    async def images(self, principal: Principal) -> Sequence[Image]:
        """Images that can be ordered."""
        await self.authorizer.check(principal, "image:list", Resource("image", ""))
        async with self.database.reading(SCHEMA) as session:
            return await repository.images(session)

    async def node_types(self, principal: Principal) -> Sequence[NodeType]:
        """Node types that can be ordered."""
        await self.authorizer.check(principal, "node_type:list", Resource("node_type", ""))
        async with self.database.reading(SCHEMA) as session:
            return await repository.node_types(session)

    async def _audit(
        self, session: AsyncSession, principal: Principal, action: str, node: Node, reason: str
    ) -> None:
        record = AuditRecord(
            at=self.clock.now(),
            principal=principal.subject,
            action=action,
            resource_kind="node",
            resource_id=node.id,
            detail={"reason": reason, "cordoned": node.cordoned, "state": node.state},
        )
        await outbox.record_audit(session, KIT, record)


async def store_operation(
    session: AsyncSession,
    principal: Principal,
    *,
    saga: str,
    action: str,
    plan: Plan,
    operation_id: str,
    resource: tuple[str, str],
    owner: tuple[str | None, str | None],
    site_id: str,
    targets: Sequence[str],
    clock: Clock,
) -> dict[str, Any]:
    """Store an operation of this service with its audit row; returns its public document."""
    now = clock.now()
    new = operations.NewOperation(
        id=operation_id,
        kind=saga,
        organization_id=owner[0],
        project_id=owner[1],
        site_id=site_id,
        resource_kind=resource[0],
        resource_id=resource[1],
        plan=plan,
        targets=targets,
        created_by=principal.subject,
        trace=telemetry.carrier(),
    )
    await operations.create_operation(session, KIT, new, now)
    record = AuditRecord(
        at=now,
        principal=principal.subject,
        action=action,
        resource_kind=resource[0],
        resource_id=resource[1],
        organization_id=owner[0],
        project_id=owner[1],
        operation_id=operation_id,
    )
    await outbox.record_audit(session, KIT, record)
    row = await operations.lock_operation(session, KIT, operation_id)
    return await operations.operation_document(session, KIT, row)


def _resource(node: Node, holder: Holder | None) -> Resource:
    return Resource(
        "node",
        node.id,
        holder.organization_id if holder else None,
        holder.project_id if holder else None,
    )


def _owner(holder: Holder | None) -> tuple[str | None, str | None]:
    return (holder.organization_id, holder.project_id) if holder else (None, None)


def _check_order(node: Node, holder: Holder | None, order: NodeOrder) -> None:
    if node.state not in order.states:
        wanted = ", ".join(sorted(order.states))
        raise NodeStateError(
            f"node {node.name} is {node.state}; it has to be {wanted}",
            next_step="Wait for what acts on it, or look at it with `dflare node show`.",
        )
    if order.held is not None and order.held != (holder is not None):
        raise NodeStateError(
            f"node {node.name} is {'held by an order' if holder else 'held by no order'}",
            next_step="Release its cluster first." if holder else "Order a cluster first.",
        )


async def _check_idle(session: AsyncSession, node: Node) -> None:
    claims = await repository.claims(session, [node.id])
    acting = node.acting_operation_id or next(iter(claims.get(node.id, [])), None)
    if acting is not None:
        raise NodeBusyError(
            f"operation {acting} acts on node {node.name}",
            next_step=f"Wait for it: `dflare operation watch {acting}`.",
            operation_id=acting,
        )
