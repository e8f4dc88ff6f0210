"""Operations as people meet them: reading, tracing, cancelling, retrying, resuming.

Lists come from the projection; one operation is read, and changed, in the schema of the service
that was ordered, which holds the truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from dflare.kit import operation_control, trace_tables
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NotFoundError
from dflare.kit.operations import operation_document
from dflare.kit.outbox import AuditRecord, record_audit
from dflare.kit.pagination import cut
from dflare.kit.tables import KitTables
from dflare.services.auth.contract import Authorizer, Principal, Resource, Scope
from dflare.services.orchestrator import repository
from dflare.services.orchestrator.repository import ListFilter
from dflare.services.orchestrator.service import SCHEMA, OrchestratorService
from dflare.services.orchestrator.tables import Allocation

Document = dict[str, Any]

_REMEMBERED = 10_000


@dataclass(frozen=True)
class SpanNode:
    """A span of an operation with those that it caused, by their starts."""

    span_id: str
    name: str
    process: str
    started_at: datetime
    duration_ms: float
    error: str | None
    attributes: Mapping[str, Any]
    children: list["SpanNode"]


@dataclass(frozen=True)
class OperationDesk:
    """Bound to the schemas of all services that can be ordered."""

    orchestrator: OrchestratorService
    ordering: Mapping[str, KitTables]
    authorizer: Authorizer
    _services: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def database(self) -> Database:
        """The process's connections."""
        return self.orchestrator.database

    @property
    def clock(self) -> Clock:
        """The process's clock."""
        return self.orchestrator.clock

    async def list_operations(
        self, principal: Principal, wanted: ListFilter
    ) -> tuple[list[Document], str | None]:
        """One page, newest first, and the id to continue behind where more follow."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.list_operations(session, scope, wanted)
        page, last = cut(rows, wanted.limit)
        resources = [
            Resource("operation", row.id, row.organization_id, row.project_id) for row in page
        ]
        allowed = await self.authorizer.readable(principal, "operation:list", resources)
        items = [row.document for row, ok in zip(page, allowed, strict=True) if ok]
        return items, last.id if last else None

    async def list_allocations(
        self, principal: Principal, wanted: ListFilter
    ) -> tuple[list[Allocation], str | None]:
        """One page, newest first, and the id to continue behind where more follow."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.list_allocations(session, scope, wanted)
        page, last = cut(rows, wanted.limit)
        resources = [
            Resource("allocation", row.id, row.organization_id, row.project_id) for row in page
        ]
        allowed = await self.authorizer.readable(principal, "allocation:list", resources)
        return (
            [row for row, ok in zip(page, allowed, strict=True) if ok],
            last.id if last else None,
        )

    async def get(self, principal: Principal, operation_id: str) -> Document:
        """One operation with its steps.

        Raises:
            NotFoundError: none that the caller may read.
        """
        _, document = await self._load(principal, "operation:read", operation_id)
        return document

    async def trace(self, principal: Principal, operation_id: str) -> list[SpanNode]:
        """The operation's story, from the API to the calls of the drivers, as trees of spans.

        Raises:
            NotFoundError: none that the caller may read.
        """
        await self._load(principal, "operation:read", operation_id)
        everything = self.authorizer.scope(principal).everything
        table = trace_tables.span
        async with self.database.transaction("trace") as session:
            rows = (
                (
                    await session.execute(
                        select(table)
                        .where(table.c.operation_id == operation_id)
                        .order_by(table.c.started_at, table.c.span_id)
                    )
                )
                .mappings()
                .all()
            )
        trees = _trees(rows)
        return trees if everything else [_without_others(tree) for tree in trees]

    async def cancel(self, principal: Principal, operation_id: str) -> Document:
        """Ask for the operation to be undone.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says.
            OperationStateError, TooLateError: it cannot be cancelled (any more).
        """
        kit, _ = await self._load(principal, "operation:cancel", operation_id)
        document = await operation_control.cancel(self.database, kit, operation_id, self.clock)
        await self._audit(kit, principal, "operation:cancel", document)
        return document

    async def resume(self, principal: Principal, operation_id: str) -> Document:
        """Go on with an operation that waits for a person.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says.
            OperationStateError: it does not wait for one.
        """
        kit, _ = await self._load(principal, "operation:resume", operation_id)
        document = await operation_control.resume(self.database, kit, operation_id, self.clock)
        await self._audit(kit, principal, "operation:resume", document)
        return document

    async def retry(self, principal: Principal, operation_id: str) -> Document:
        """Begin a failed operation again; an order reserves its nodes anew.

        Raises:
            NotFoundError, ForbiddenError: as DESIGN section 5 says.
            OperationStateError: it has not failed.
            CapacityError, QuotaError: an order's nodes cannot be had now.
        """
        kit, _ = await self._load(principal, "operation:retry", operation_id)
        await operation_control.check_retry(self.database, kit, operation_id)
        targets: list[str] | None = None
        if await self.orchestrator.has_reserved(operation_id):
            reservation = await self.orchestrator.reserve_again(operation_id)
            targets = [placed.node_id for placed in reservation.placed]
        document = await operation_control.retry(
            self.database, kit, operation_id, self.clock, targets
        )
        await self._audit(kit, principal, "operation:retry", document)
        return document

    async def _load(
        self, principal: Principal, action: str, operation_id: str
    ) -> tuple[KitTables, Document]:
        scope = self.authorizer.scope(principal)
        kit, document = await self._find(scope, operation_id)
        await self.authorizer.check(
            principal,
            action,
            Resource(
                "operation", operation_id, document["organization_id"], document["project_id"]
            ),
        )
        return kit, document

    async def _find(self, scope: Scope, operation_id: str) -> tuple[KitTables, Document]:
        """The operation in the schema that holds it; that is remembered, and never changes."""
        known = self._services.get(operation_id)
        for name in [known] if known else list(self.ordering):
            document = await self._read(scope, self.ordering[name], operation_id)
            if document is not None:
                if len(self._services) >= _REMEMBERED:
                    self._services.clear()
                self._services[operation_id] = name
                return self.ordering[name], document
        raise NotFoundError(
            f"there is no operation {operation_id}", next_step="List operations to find its id."
        )

    async def _read(self, scope: Scope, kit: KitTables, operation_id: str) -> Document | None:
        table = kit.operation
        async with self.database.transaction(kit.schema) as session:
            row = (
                (
                    await session.execute(
                        select(table).where(
                            table.c.id == operation_id,
                            scope.where(table.c.organization_id, table.c.project_id),
                        )
                    )
                )
                .mappings()
                .first()
            )
            return None if row is None else await operation_document(session, kit, row)

    async def _audit(
        self, kit: KitTables, principal: Principal, action: str, document: Document
    ) -> None:
        record = AuditRecord(
            at=self.clock.now(),
            principal=principal.subject,
            action=action,
            resource_kind="operation",
            resource_id=document["id"],
            organization_id=document["organization_id"],
            project_id=document["project_id"],
            operation_id=document["id"],
        )
        async with self.database.transaction(kit.schema) as session:
            await record_audit(session, kit, record)


_SHARED = frozenset({"together_with", "bmc", "orders", "ports"})
"""Attributes of spans that name other orders, count them in, or say how a BMC is reached."""


def _without_others(span: SpanNode) -> SpanNode:
    """A span as a tenant may see it: a pass over a switch serves several tenants' orders, and its
    calls name what is not this tenant's."""
    alone = int(span.attributes.get("orders", 1)) == 1
    return replace(
        span,
        attributes={name: one for name, one in span.attributes.items() if name not in _SHARED},
        error=span.error if alone else span.error and "see the operator's trace",
        children=[_without_others(child) for child in span.children] if alone else [],
    )


def _trees(rows: Sequence[Mapping[Any, Any]]) -> list[SpanNode]:
    nodes = {
        row["span_id"]: SpanNode(
            span_id=row["span_id"],
            name=row["name"],
            process=row["process"],
            started_at=row["started_at"],
            duration_ms=(row["ended_at"] - row["started_at"]).total_seconds() * 1000,
            error=row["error"],
            attributes=row["attributes"],
            children=[],
        )
        for row in rows
    }
    roots: list[SpanNode] = []
    for row in rows:
        # The parent of a root is the caller's own span, or one that was dropped under load.
        parent = nodes.get(row["parent_id"] or "")
        (parent.children if parent else roots).append(nodes[row["span_id"]])
    return roots
