"""The daily audit: compares the ledger with the allocations (DESIGN section 5).

An audit is a row that waits. Every worker makes the row of the day, unique by its day, and takes
what is due; an audit whose worker was lost is taken over at its deadline, and only the latest
taker's conclusion counts.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.outbox import Event
from dflare.kit.telemetry import log
from dflare.services.auth.contract import Scope
from dflare.services.metering import domain_audits, repository_audits
from dflare.services.metering.contract import AuditFound
from dflare.services.metering.domain_audits import AuditState, Finding
from dflare.services.metering.settings import MeteringSettings
from dflare.services.metering.tables import KIT, UsageAudit, UsageFinding
from dflare.services.orchestrator.contract import AllocationFacts, UsageRecords

SCHEMA = "metering"
PAGE = 500
LOOKS = 3
"""How often what seems to differ is looked at again before it is a finding."""
MOST_FINDINGS = 1_000
"""Findings of each sort that are stored; an audit with more has one cause, and counts them all."""
AFTER_FAILURE_S = 30.0

_SCOPE = Scope.system("the audit of the usage ledger")


@dataclass
class Compared:
    """What one audit saw."""

    allocations: int = 0
    entries: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])


@dataclass
class UsageAuditor:
    """Does the audits that are due, one at a time."""

    database: Database
    clock: Clock
    records: UsageRecords
    settings: MeteringSettings
    page: int = PAGE
    _day: date | None = None

    async def run(self) -> None:
        """Look for audits until cancelled."""
        while True:
            try:
                worked = await self.work()
            except Exception as error:
                log.exception("usage_audit_failed", error=str(error))
                await asyncio.sleep(AFTER_FAILURE_S)
                continue
            if not worked:
                await asyncio.sleep(self.settings.audit_look_every_s)

    async def work(self) -> bool:
        """Do one audit that is due; whether there was one."""
        audit = await self._take()
        if audit is None:
            return False
        try:
            compared = await self.compare(audit.usage_since)
        except Exception as error:
            await self._put_back(audit, f"{type(error).__name__}: {error}"[:300])
            raise
        await self._conclude(audit, compared)
        return True

    async def compare(self, usage_since: datetime) -> Compared:
        """Compare all usage that does not end before ``usage_since``."""
        compared = Compared()
        suspects = {
            *await self._from_allocations(usage_since, compared),
            *await self._from_ledger(usage_since, compared),
        }
        found: list[Finding] = []
        for _ in range(LOOKS):
            if not suspects:
                break
            await self.clock.sleep(self.settings.audit_settle_s)
            found = await self._look_at(sorted(suspects))
            suspects = {finding.allocation_id for finding in found}
        async with self.database.transaction(SCHEMA) as session:
            pairs = await repository_audits.overlaps(session, _SCOPE, usage_since, MOST_FINDINGS)
        compared.findings = [*found, *(domain_audits.overlap(*pair) for pair in pairs)]
        return compared

    async def _from_allocations(self, since: datetime, compared: Compared) -> set[str]:
        """Allocations that the ledger does not seem to have as they are."""
        suspects: set[str] = set()
        after: str | None = None
        while page := await self.records.handed_over(since, after, self.page):
            after = page[-1].allocation_id
            compared.allocations += len(page)
            suspects |= {finding.allocation_id for finding in await self._differing(page)}
        return suspects

    async def _from_ledger(self, since: datetime, compared: Compared) -> set[str]:
        """Entries of the ledger that do not seem to be as their allocations are."""
        suspects: set[str] = set()
        after: str | None = None
        while True:
            async with self.database.transaction(SCHEMA) as session:
                page = await repository_audits.entries(session, _SCOPE, since, after, self.page)
            if not page:
                return suspects
            after = page[-1].allocation_id
            compared.entries += len(page)
            found = await self._look_at([entry.allocation_id for entry in page])
            suspects |= {finding.allocation_id for finding in found}

    async def _look_at(self, allocation_ids: Sequence[str]) -> list[Finding]:
        """What is wrong now with the usage of some allocations, known to either side."""
        found: list[Finding] = []
        for start in range(0, len(allocation_ids), self.page):
            ids = allocation_ids[start : start + self.page]
            found += await self._differing(await self.records.allocations(ids), ids)
        return found

    async def _differing(
        self, allocations: Sequence[AllocationFacts], unknown: Sequence[str] = ()
    ) -> list[Finding]:
        """Compare allocations, and ids of which there may be none, with the ledger as it is now."""
        truth = {allocation.allocation_id: allocation for allocation in allocations}
        ids = sorted({*truth, *unknown})
        async with self.database.transaction(SCHEMA) as session:
            rows = await repository_audits.entries_of(session, _SCOPE, ids)
        ledger = {row.allocation_id: row for row in rows}
        found = [domain_audits.compare(truth.get(one), ledger.get(one)) for one in ids]
        return [finding for finding in found if finding is not None]

    async def _take(self) -> UsageAudit | None:
        """The oldest audit that is due, from now on this worker's; today's is made if need be."""
        now = self.clock.now()
        deadline = now + timedelta(seconds=self.settings.audit_deadline_s)
        async with self.database.transaction(SCHEMA) as session:
            if self._day != now.date():
                await session.execute(
                    insert(UsageAudit).values(_daily(now)).on_conflict_do_nothing()
                )
            audit = await repository_audits.due(session, _SCOPE, now)
            if audit is not None:
                domain_audits.move(audit, AuditState.RUNNING, now, deadline=deadline)
        self._day = now.date()
        return audit

    async def _put_back(self, audit: UsageAudit, reason: str) -> None:
        async with self.database.transaction(SCHEMA) as session:
            if own := await _still_own(session, audit):
                domain_audits.move(own, AuditState.REQUESTED, self.clock.now(), reason=reason)

    async def _conclude(self, audit: UsageAudit, compared: Compared) -> None:
        now = self.clock.now()
        findings = compared.findings
        state = AuditState.FOUND if findings else AuditState.CLEAN
        async with self.database.transaction(SCHEMA) as session:
            own = await _still_own(session, audit)
            if own is None:
                log.warning("usage_audit_taken_over", audit=audit.id)
                return
            domain_audits.move(own, state, now)
            own.allocations, own.entries = compared.allocations, compared.entries
            own.findings = len(findings)
            if findings:
                rows = [
                    {"audit_id": own.id, "number": number, **vars(finding)}
                    for number, finding in enumerate(findings[:MOST_FINDINGS], start=1)
                ]
                await session.execute(insert(UsageFinding), rows)
                await outbox.emit(session, KIT, [_found(own, findings, now)])
        if findings:
            log.error("usage_audit_found", audit=audit.id, findings=len(findings))


async def _still_own(session: AsyncSession, audit: UsageAudit) -> UsageAudit | None:
    """The audit, locked, unless another worker has taken it over since."""
    own = await session.get(UsageAudit, audit.id, with_for_update=True)
    return own if own is not None and own.version == audit.version else None


def _daily(now: datetime) -> dict[str, Any]:
    since = domain_audits.audited_since(now.date())
    return {
        "id": new_id("audit"),
        "day": now.date(),
        "usage_since": datetime.combine(since, time(), UTC),
        "requested_by": "system",
        "requested_at": now,
        "state": AuditState.REQUESTED,
        "since": now,
    }


def _found(audit: UsageAudit, findings: Sequence[Finding], now: datetime) -> Event:
    facts = AuditFound(
        audit_id=audit.id,
        usage_since=audit.usage_since,
        findings=len(findings),
        kinds=dict(Counter(finding.kind.value for finding in findings)),
    )
    return Event(
        type="metering.audit_found",
        resource_kind="usage_audit",
        resource_id=audit.id,
        resource_version=audit.version,
        at=now,
        data=facts.model_dump(mode="json"),
    )
