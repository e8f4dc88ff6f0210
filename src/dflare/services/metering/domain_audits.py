"""What an audit of usage compares, and the states that it goes through. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any

from dflare.kit.errors import ConflictError
from dflare.services.metering.tables import LedgerEntry, UsageAudit
from dflare.services.orchestrator.contract import AllocationFacts


class AuditState(StrEnum):
    """``clean`` and ``found`` are final."""

    REQUESTED = "requested"
    RUNNING = "running"
    CLEAN = "clean"
    FOUND = "found"


_ALLOWED: Mapping[AuditState, frozenset[AuditState]] = {
    AuditState.REQUESTED: frozenset({AuditState.RUNNING}),
    # Running again: taken over from a worker that was lost. Requested again: it failed.
    AuditState.RUNNING: frozenset(AuditState),
    AuditState.CLEAN: frozenset(),
    AuditState.FOUND: frozenset(),
}


class FindingKind(StrEnum):
    """``missing``: handed over, but not in the ledger. ``extra``: in the ledger, but never handed
    over. ``differs``: in both, with other facts. ``overlap``: two intervals of one node bill the
    same time."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERS = "differs"
    OVERLAP = "overlap"


@dataclass(frozen=True)
class Finding:
    """One finding, named by the allocation that is billed wrongly (the later one of an overlap)."""

    kind: FindingKind
    allocation_id: str
    node_id: str
    organization_id: str
    project_id: str
    detail: dict[str, Any] = field(default_factory=dict[str, Any])


BILLED = (
    "organization_id",
    "project_id",
    "cluster_id",
    "site_id",
    "node_id",
    "node_name",
    "node_type",
    "gpus",
    "usage_from",
    "usage_to",
)
"""What a bill is made of; the ledger must have it as the allocation does."""


def move(
    audit: UsageAudit,
    new: AuditState,
    now: datetime,
    *,
    reason: str = "",
    deadline: datetime | None = None,
) -> None:
    """The one transition function of audits; raises the version of a locked row.

    Raises:
        ConflictError: ``new`` does not follow the present state.
    """
    if new not in _ALLOWED[AuditState(audit.state)]:
        raise ConflictError(
            f"audit {audit.id} is {audit.state} and cannot become {new}",
            next_step="Ask for another audit.",
        )
    audit.state, audit.reason, audit.since, audit.deadline = new, reason, now, deadline
    audit.version += 1


def audited_since(day: date) -> date:
    """Where the time begins that a day's audit covers: the first of the month that the day before
    lies in, so that on the first of a month the whole month is compared before it is billed."""
    return (day - timedelta(days=1)).replace(day=1)


def compare(allocation: AllocationFacts | None, entry: LedgerEntry | None) -> Finding | None:
    """What is wrong with one allocation's usage, if anything."""
    if allocation is not None and allocation.usage_from is None:
        # What was never handed over has no usage.
        allocation = None
    if allocation is None:
        return None if entry is None else _finding(FindingKind.EXTRA, entry, _side("ledger", entry))
    if entry is None:
        return _finding(FindingKind.MISSING, allocation, _side("allocation", allocation))
    other = [name for name in BILLED if getattr(entry, name) != getattr(allocation, name)]
    if not other:
        return None
    detail = {
        "fields": other,
        **_side("ledger", entry),
        **_side("allocation", allocation),
    }
    return _finding(FindingKind.DIFFERS, allocation, detail)


def overlap(earlier: LedgerEntry, later: LedgerEntry) -> Finding:
    """Two intervals of one node that bill the same time."""
    detail = {**_side("earlier", earlier), **_side("ledger", later)}
    return _finding(FindingKind.OVERLAP, later, detail)


def _finding(
    kind: FindingKind, of: AllocationFacts | LedgerEntry, detail: dict[str, Any]
) -> Finding:
    return Finding(kind, of.allocation_id, of.node_id, of.organization_id, of.project_id, detail)


def _side(name: str, of: AllocationFacts | LedgerEntry) -> dict[str, Any]:
    facts = {key: getattr(of, key) for key in ("allocation_id", "version", *BILLED)}
    return {
        name: {
            key: value.isoformat() if isinstance(value, datetime) else value
            for key, value in facts.items()
        }
    }
