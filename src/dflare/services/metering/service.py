"""Quotas, prices and draft invoices."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.outbox import AuditRecord, Event
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.metering import repository
from dflare.services.metering.contract import QuotaLimit
from dflare.services.metering.domain import Line, Usage, invoice_lines, month_bounds
from dflare.services.metering.tables import KIT, LedgerEntry, Quota

SCHEMA = "metering"


@dataclass(frozen=True)
class Invoice:
    """A draft invoice of one project and month; ``totals`` by currency. Intervals that still run
    are counted until ``as_of``."""

    project: ProjectRef
    month: str
    as_of: datetime
    lines: list[Line]
    totals: dict[str, Decimal]


@dataclass(frozen=True)
class MeteringService:
    """Reads the ledger; writes quotas. The ledger itself is written by its projection alone."""

    database: Database
    clock: Clock
    authorizer: Authorizer

    async def invoice(self, principal: Principal, project: ProjectRef, month: str) -> Invoice:
        """The draft invoice of a month.

        Raises:
            InvalidMonthError: the month is malformed.
            ForbiddenError: the caller may not read the project's invoices.
        """
        await self._may(principal, "invoice:read", "invoice", project)
        start, end = month_bounds(month)
        now = self.clock.now()
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            entries = await repository.ledger(session, scope, project.id, start, end)
            prices = await repository.prices(session)
        usages = [
            Usage(
                entry.cluster_id,
                entry.site_id,
                entry.node_type,
                entry.gpus,
                max(entry.usage_from, start),
                min(entry.usage_to or now, end),
            )
            for entry in entries
        ]
        # Thousands of intervals take longer than the loop may be held.
        lines = await asyncio.to_thread(invoice_lines, usages, prices)
        totals: dict[str, Decimal] = {}
        for line in lines:
            totals[line.currency] = totals.get(line.currency, Decimal("0.00")) + line.amount
        return Invoice(project, month, now, lines, totals)

    async def usage(
        self, principal: Principal, project: ProjectRef, month: str, after: str | None, limit: int
    ) -> tuple[list[LedgerEntry], str | None]:
        """One page of the ledger behind an invoice, and the allocation to go on behind where there
        are more.

        Raises:
            InvalidMonthError: the month is malformed.
            ForbiddenError: the caller may not read the project's usage.
        """
        await self._may(principal, "usage:read", "usage", project)
        start, end = month_bounds(month)
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.ledger(
                session, scope, project.id, start, end, after=after, limit=limit + 1
            )
        shown, last = cut(rows, limit)
        return list(shown), last.allocation_id if last else None

    async def quotas(self, principal: Principal, project: ProjectRef) -> list[Quota]:
        """The limits of a project."""
        await self._may(principal, "quota:read", "quota", project)
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            return await repository.quotas(session, scope, project.id)

    async def set_quota(
        self, principal: Principal, project: ProjectRef, node_type: str, nodes: int
    ) -> Quota:
        """Set how many nodes of a type the project may hold at once; 0 forbids more.

        Raises:
            ForbiddenError: only operators give capacity.
        """
        await self._may(principal, "quota:set", "quota", project)
        now = self.clock.now()
        key = (Quota.project_id == project.id) & (Quota.node_type == node_type)
        async with self.database.transaction(SCHEMA) as session:
            await session.execute(
                insert(Quota)
                .values(
                    project_id=project.id,
                    organization_id=project.organization_id,
                    node_type=node_type,
                    nodes=nodes,
                    updated_by=principal.subject,
                    updated_at=now,
                    version=0,
                )
                .on_conflict_do_nothing()
            )
            row = (await session.scalars(select(Quota).where(key).with_for_update())).one()
            row.nodes, row.updated_by, row.updated_at = nodes, principal.subject, now
            row.version += 1
            await session.flush()
            limit = QuotaLimit(
                project_id=project.id,
                organization_id=project.organization_id,
                node_type=node_type,
                nodes=nodes,
            )
            await outbox.emit(
                session,
                KIT,
                [
                    Event(
                        type="quota.changed",
                        resource_kind="quota",
                        resource_id=f"{project.id}/{node_type}",
                        resource_version=row.version,
                        at=now,
                        data=limit.model_dump(mode="json"),
                        organization_id=project.organization_id,
                        project_id=project.id,
                    )
                ],
            )
            await outbox.record_audit(
                session,
                KIT,
                AuditRecord(
                    at=now,
                    principal=principal.subject,
                    action="quota:set",
                    resource_kind="quota",
                    resource_id=f"{project.id}/{node_type}",
                    organization_id=project.organization_id,
                    project_id=project.id,
                    detail={"nodes": nodes},
                ),
            )
        return row

    async def _may(self, principal: Principal, action: str, kind: str, project: ProjectRef) -> None:
        await self.authorizer.check(
            principal, action, Resource(kind, project.id, project.organization_id, project.id)
        )
