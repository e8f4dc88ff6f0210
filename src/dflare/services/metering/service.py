"""Quotas, prices and draft invoices."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import InvalidError
from dflare.kit.outbox import AuditRecord, Event
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.metering import repository
from dflare.services.metering.contract import QuotaLimit
from dflare.services.metering.domain import (
    JobLine,
    JobUsage,
    Line,
    Usage,
    VolumeLine,
    VolumePriceStep,
    VolumeUsage,
    invoice_lines,
    job_lines,
    month_bounds,
    totals_of,
    volume_lines,
)
from dflare.services.metering.tables import (
    KIT,
    JobEntry,
    LedgerEntry,
    Quota,
    RegistryEntry,
    VolumeEntry,
)

SCHEMA = "metering"


@dataclass(frozen=True)
class Invoice:
    """A draft invoice of one project and month; ``totals`` by currency. Intervals that still run
    are counted until ``as_of``. ``jobs`` tell what the nodes were used for and add nothing to the
    totals; ``notes`` say what a reader might take for an error."""

    project: ProjectRef
    month: str
    as_of: datetime
    lines: list[Line]
    volumes: list[VolumeLine]
    jobs: list[JobLine]
    totals: dict[str, Decimal]
    notes: list[str]


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
            volumes = await repository.intervals(
                session, VolumeEntry, scope, project.id, start, end
            )
            jobs = await repository.jobs(session, scope, project.id, start, end)
            prices = await repository.prices(session)
            volume_prices = await repository.volume_prices(session)

        def assemble() -> Invoice:
            period = _Period(start, end, now)
            lines = invoice_lines(period.nodes(entries), prices)
            of_volumes = volume_lines(period.volumes(volumes), volume_prices)
            of_jobs = job_lines(period.jobs(jobs))
            totals = totals_of([*lines, *of_volumes])
            notes = _notes(of_volumes, volume_prices)
            return Invoice(project, month, now, lines, of_volumes, of_jobs, totals, notes)

        # Thousands of intervals take longer than the loop may be held.
        return await asyncio.to_thread(assemble)

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

    async def volume_usage(
        self, principal: Principal, project: ProjectRef, month: str, after: str | None, limit: int
    ) -> tuple[list[VolumeEntry], str | None]:
        """One page of the intervals of volumes behind an invoice, and the interval to go on behind
        where there are more.

        Raises:
            InvalidMonthError: the month is malformed.
            ForbiddenError: the caller may not read the project's usage.
        """
        return await self._intervals(VolumeEntry, principal, project, month, after, limit)

    async def registry_usage(
        self, principal: Principal, project: ProjectRef, month: str, after: str | None, limit: int
    ) -> tuple[list[RegistryEntry], str | None]:
        """One page of intervals of what the project's repositories held, and the interval to go on
        behind where there are more.

        Raises:
            InvalidMonthError: the month is malformed.
            ForbiddenError: the caller may not read the project's usage.
        """
        return await self._intervals(RegistryEntry, principal, project, month, after, limit)

    async def _intervals(
        self,
        entry: type[repository.HeldT],
        principal: Principal,
        project: ProjectRef,
        month: str,
        after: str | None,
        limit: int,
    ) -> tuple[list[repository.HeldT], str | None]:
        await self._may(principal, "usage:read", "usage", project)
        start, end = month_bounds(month)
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.intervals(
                session, entry, scope, project.id, start, end, after=after, limit=limit + 1
            )
        shown, last = cut(rows, limit)
        return list(shown), last.interval_id if last else None

    async def job_usage(
        self, principal: Principal, project: ProjectRef, month: str, after: str | None, limit: int
    ) -> tuple[list[JobEntry], str | None]:
        """One page of the runs of jobs in a month, and where to go on where there are more.

        Raises:
            InvalidMonthError: the month is malformed.
            InvalidError: ``after`` is not of this list.
            ForbiddenError: the caller may not read the project's usage.
        """
        await self._may(principal, "usage:read", "usage", project)
        start, end = month_bounds(month)
        scope = self.authorizer.scope(principal)
        behind = _run_of(after) if after is not None else None
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.jobs(
                session, scope, project.id, start, end, after=behind, limit=limit + 1
            )
        shown, last = cut(rows, limit)
        return list(shown), f"{last.job_id}/{last.run}" if last else None

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


@dataclass(frozen=True)
class _Period:
    """Cuts intervals to a month; one that still runs is counted until ``now``."""

    start: datetime
    end: datetime
    now: datetime

    def _cut(self, entry: LedgerEntry | VolumeEntry | JobEntry) -> tuple[datetime, datetime]:
        return max(entry.usage_from, self.start), min(entry.usage_to or self.now, self.end)

    def nodes(self, entries: Sequence[LedgerEntry]) -> list[Usage]:
        return [
            Usage(one.cluster_id, one.site_id, one.node_type, one.gpus, *self._cut(one))
            for one in entries
        ]

    def volumes(self, entries: Sequence[VolumeEntry]) -> list[VolumeUsage]:
        return [
            VolumeUsage(one.volume_id, one.site_id, one.size_gib, *self._cut(one))
            for one in entries
        ]

    def jobs(self, entries: Sequence[JobEntry]) -> list[JobUsage]:
        return [
            JobUsage(one.cluster_id, one.account, one.member, one.gpu_milli, *self._cut(one))
            for one in entries
        ]


def _notes(lines: Sequence[VolumeLine], prices: Sequence[VolumePriceStep]) -> list[str]:
    unpriced = {step.site_id for step in prices if step.price_per_gib_hour is None}
    unpriced |= {line.site_id for line in lines} - {step.site_id for step in prices}
    free = {line.site_id for line in lines if line.price_per_gib_hour == 0} & unpriced
    return [
        f"Site {site} declares no price for volumes: they are billed at 0." for site in sorted(free)
    ]


def _run_of(after: str) -> tuple[str, int]:
    job_id, _, run = after.rpartition("/")
    if not (job_id and run.isascii() and run.isdecimal() and len(run) < 10):
        raise InvalidError(
            "the cursor is not one of this list", next_step="Start again without `cursor`."
        )
    return job_id, int(run)
