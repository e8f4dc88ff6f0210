"""Reading allocations for the audit of the usage ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, select

from dflare.kit.db import Database
from dflare.services.auth.contract import Scope
from dflare.services.orchestrator import domain
from dflare.services.orchestrator.contract import AllocationFacts
from dflare.services.orchestrator.tables import Allocation

SCHEMA = "orchestrator"

_SCOPE = Scope.system("the audit of the usage ledger")


@dataclass(frozen=True)
class AllocationUsage:
    """See ``contract.UsageRecords``."""

    database: Database

    async def handed_over(
        self, since: datetime, after: str | None, limit: int
    ) -> Sequence[AllocationFacts]:
        """A page of the allocations whose usage does not end before ``since``, by id."""
        query = select(Allocation).where(
            _within(),
            Allocation.usage_from.is_not(None),
            Allocation.usage_to.is_(None) | (Allocation.usage_to >= since),
        )
        if after is not None:
            query = query.where(Allocation.id > after)
        async with self.database.transaction(SCHEMA) as session:
            rows = await session.scalars(query.order_by(Allocation.id).limit(limit))
        return [domain.allocation_facts(row) for row in rows]

    async def allocations(self, allocation_ids: Sequence[str]) -> Sequence[AllocationFacts]:
        """Allocations by id; unknown ids are left out."""
        query = select(Allocation).where(_within(), Allocation.id.in_(allocation_ids))
        async with self.database.transaction(SCHEMA) as session:
            rows = await session.scalars(query)
        return [domain.allocation_facts(row) for row in rows]


def _within() -> ColumnElement[bool]:
    table = Allocation.__table__.c
    return _SCOPE.where(table.organization_id, table.project_id)
