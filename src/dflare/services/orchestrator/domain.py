"""Lifecycle of allocations, and the public facts of allocations and claims."""

from collections.abc import Mapping
from datetime import datetime

from dflare.kit.errors import ConflictError
from dflare.kit.outbox import Event
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState, ClaimFacts
from dflare.services.orchestrator.tables import Allocation, Claim

_ALLOWED: Mapping[AllocationState, frozenset[AllocationState]] = {
    AllocationState.HELD: frozenset(
        {AllocationState.CONFIRMED, AllocationState.RELEASING, AllocationState.ENDED}
    ),
    AllocationState.CONFIRMED: frozenset({AllocationState.RELEASING, AllocationState.ENDED}),
    AllocationState.RELEASING: frozenset({AllocationState.ENDED}),
    AllocationState.ENDED: frozenset(),
}


def move(allocation: Allocation, new: AllocationState, now: datetime, *, reason: str = "") -> None:
    """The one transition function of allocations; raises the version of a locked row.

    Raises:
        ConflictError: ``new`` does not follow the present state.
    """
    old = AllocationState(allocation.state)
    if new is not old and new not in _ALLOWED[old]:
        raise ConflictError(
            f"allocation {allocation.id} is {old} and cannot become {new}",
            next_step="Look at the operation that holds the node.",
        )
    if new is not old:
        allocation.since = now
    allocation.state, allocation.reason = new, reason
    allocation.version += 1
    if new is not AllocationState.HELD:
        allocation.expires_at = None


def allocation_facts(allocation: Allocation) -> AllocationFacts:
    """What other services know of an allocation."""
    return AllocationFacts(
        allocation_id=allocation.id,
        version=allocation.version,
        state=AllocationState(allocation.state),
        node_id=allocation.node_id,
        node_name=allocation.node_name,
        node_type=allocation.node_type,
        gpus=allocation.gpus,
        site_id=allocation.site_id,
        organization_id=allocation.organization_id,
        project_id=allocation.project_id,
        cluster_id=allocation.cluster_id,
        pool=allocation.pool,
        slot=allocation.slot,
        operation_id=allocation.operation_id,
        epoch=allocation.epoch,
        usage_from=allocation.usage_from,
        usage_to=allocation.usage_to,
    )


def allocation_event(allocation: Allocation, now: datetime) -> Event:
    """``allocation.changed`` for a locked allocation."""
    return Event(
        type="allocation.changed",
        resource_kind="allocation",
        resource_id=allocation.id,
        resource_version=allocation.version,
        at=now,
        data=allocation_facts(allocation).model_dump(mode="json"),
        organization_id=allocation.organization_id,
        project_id=allocation.project_id,
        site_id=allocation.site_id,
        operation_id=allocation.operation_id,
    )


def claim_event(claim: Claim, now: datetime) -> Event:
    """``claim.changed`` for a locked claim."""
    facts = ClaimFacts(
        claim_id=claim.id,
        version=claim.version,
        node_id=claim.node_id,
        site_id=claim.site_id,
        operation_id=claim.operation_id,
        held=claim.ended_at is None,
    )
    return Event(
        type="claim.changed",
        resource_kind="claim",
        resource_id=claim.id,
        resource_version=claim.version,
        at=now,
        data=facts.model_dump(mode="json"),
        site_id=claim.site_id,
        operation_id=claim.operation_id,
    )
