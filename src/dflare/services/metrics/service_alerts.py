"""Reading alerts."""

from collections.abc import Sequence
from dataclasses import dataclass

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.metrics import repository
from dflare.services.metrics.tables import Alert

SCHEMA = "metrics"


@dataclass(frozen=True)
class AlertService:
    """Alerts within what the caller may see."""

    database: Database
    clock: Clock
    authorizer: Authorizer

    async def list(
        self,
        principal: Principal,
        project: ProjectRef | None,
        before: str | None,
        limit: int,
        *,
        resolved: bool,
    ) -> tuple[Sequence[Alert], str | None]:
        """One page, newest first, and the id to go on behind where there are more."""
        scope = self.authorizer.scope(principal)
        async with self.database.reading(SCHEMA) as session:
            rows = await repository.list_alerts(
                session,
                scope,
                project.id if project else None,
                before,
                limit + 1,
                resolved=resolved,
            )
        shown, last = cut(rows, limit)
        resources = [
            Resource("alert", row.id, row.organization_id, row.project_id) for row in shown
        ]
        allowed = await self.authorizer.readable(principal, "alert:list", resources)
        visible = [row for row, may in zip(shown, allowed, strict=True) if may]
        return visible, last.id if last else None
