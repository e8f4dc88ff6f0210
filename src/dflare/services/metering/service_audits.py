"""Audits of the usage ledger as operators read and ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import InvalidError, NotFoundError
from dflare.kit.ids import new_id
from dflare.kit.outbox import AuditRecord
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, Resource
from dflare.services.metering import repository_audits
from dflare.services.metering.domain_audits import AuditState, audited_since
from dflare.services.metering.tables import KIT, UsageAudit, UsageFinding

SCHEMA = "metering"


@dataclass(frozen=True)
class AuditService:
    """Reads audits and asks for new ones; workers do them."""

    database: Database
    clock: Clock
    authorizer: Authorizer

    async def audits(
        self, principal: Principal, after: str | None, limit: int
    ) -> tuple[Sequence[UsageAudit], str | None]:
        """A page of audits, newest first, and the id to go on behind where there are more.

        Raises:
            NotFoundError: the caller is none of the platform's people.
        """
        await self._may(principal, "usage_audit:list", "usage")
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository_audits.audits(session, scope, after, limit + 1)
        shown, last = cut(rows, limit)
        return shown, last.id if last else None

    async def audit(self, principal: Principal, audit_id: str) -> UsageAudit:
        """One audit.

        Raises:
            NotFoundError: there is none, or the caller is none of the platform's people.
        """
        await self._may(principal, "usage_audit:read", audit_id)
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            found = await repository_audits.audit(session, scope, audit_id)
        if found is None:
            raise NotFoundError(f"there is no usage_audit {audit_id}")
        return found

    async def findings(
        self, principal: Principal, audit_id: str, after: str | None, limit: int
    ) -> tuple[Sequence[UsageFinding], str | None]:
        """A page of an audit's findings, and the number to go on behind where there are more.

        Raises:
            NotFoundError: there is no such audit, or the caller is none of the platform's people.
            InvalidError: ``after`` is no number.
        """
        await self.audit(principal, audit_id)
        if after is not None and not (after.isascii() and after.isdecimal() and len(after) < 10):
            raise InvalidError(
                "the cursor is not one of this list", next_step="Start again without `cursor`."
            )
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository_audits.findings(
                session, scope, audit_id, int(after or 0), limit + 1
            )
        shown, last = cut(rows, limit)
        return shown, str(last.number) if last else None

    async def request(self, principal: Principal, usage_since: datetime | None) -> UsageAudit:
        """Ask for an audit of all usage that does not end before ``usage_since``, by default of
        what the daily audit covers. One that waits and covers it already is the answer.

        Raises:
            ForbiddenError: the caller is no operator.
            InvalidError: ``usage_since`` lies in the future.
        """
        await self._may(principal, "usage_audit:run", "usage")
        now = self.clock.now()
        since = usage_since or datetime.combine(audited_since(now.date()), time(), UTC)
        if since > now:
            raise InvalidError(
                "no usage lies in the future", next_step="Give a `usage_since` of the past."
            )
        scope = self.authorizer.scope(principal)
        async with self.database.transaction(SCHEMA) as session:
            audit = await repository_audits.waiting(session, scope, since)
            if audit is None:
                audit = UsageAudit(
                    id=new_id("audit"),
                    day=None,
                    usage_since=since,
                    requested_by=principal.subject,
                    requested_at=now,
                    state=AuditState.REQUESTED,
                    reason="",
                    since=now,
                    deadline=None,
                    allocations=0,
                    entries=0,
                    findings=0,
                    version=1,
                )
                session.add(audit)
            record = AuditRecord(
                at=now,
                principal=principal.subject,
                action="usage_audit:run",
                resource_kind="usage_audit",
                resource_id=audit.id,
                detail={"usage_since": since.isoformat()},
            )
            await outbox.record_audit(session, KIT, record)
        return audit

    async def _may(self, principal: Principal, action: str, audit_id: str) -> None:
        await self.authorizer.check(principal, action, Resource("usage_audit", audit_id))
