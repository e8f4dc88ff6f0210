"""Lifecycle of a node: one enum (in the contract), one transition function. Pure."""

from datetime import datetime, timedelta
from typing import assert_never

from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.errors import NodeStateError

TRANSIENT = frozenset(
    {NodeState.ENROLLING, NodeState.PREPARING, NodeState.PROVISIONING, NodeState.CLEANING}
)
"""States that have a deadline: somebody acts on the node."""

UNUSED = frozenset(
    {
        NodeState.DECLARED,
        NodeState.ENROLLING,
        NodeState.AVAILABLE,
        NodeState.FAILED,
        NodeState.MAINTENANCE,
    }
)
"""States in which the site document may change what a node is."""


def followers(state: NodeState) -> frozenset[NodeState]:
    """The states that may follow ``state``.

    Quarantine may follow every state and only cleaning leaves it; what becomes available was
    enrolled, cleaned, or never given a tenant's data. ``declared`` follows where the site document
    makes another server of a node that nobody uses.
    """
    quarantine = NodeState.QUARANTINE
    match state:
        case NodeState.DECLARED:
            return frozenset({NodeState.ENROLLING, NodeState.FAILED, quarantine})
        case NodeState.ENROLLING:
            return frozenset(
                {NodeState.DECLARED, NodeState.AVAILABLE, NodeState.FAILED, quarantine}
            )
        case NodeState.AVAILABLE:
            return frozenset(
                {
                    NodeState.DECLARED,
                    NodeState.PREPARING,
                    NodeState.ENROLLING,
                    NodeState.MAINTENANCE,
                    NodeState.FAILED,
                    quarantine,
                }
            )
        case NodeState.PREPARING:
            return frozenset(
                {
                    NodeState.AVAILABLE,
                    NodeState.PROVISIONING,
                    NodeState.CLEANING,
                    NodeState.FAILED,
                    quarantine,
                }
            )
        case NodeState.PROVISIONING:
            return frozenset({NodeState.ACTIVE, NodeState.CLEANING, NodeState.FAILED, quarantine})
        case NodeState.ACTIVE:
            return frozenset(
                {NodeState.RESCUE, NodeState.PROVISIONING, NodeState.CLEANING, quarantine}
            )
        case NodeState.RESCUE:
            return frozenset(
                {NodeState.ACTIVE, NodeState.PROVISIONING, NodeState.CLEANING, quarantine}
            )
        case NodeState.CLEANING:
            return frozenset({NodeState.AVAILABLE, NodeState.FAILED, quarantine})
        case NodeState.QUARANTINE:
            return frozenset({NodeState.CLEANING})
        case NodeState.MAINTENANCE:
            return frozenset({NodeState.DECLARED, NodeState.ENROLLING, quarantine})
        case NodeState.FAILED:
            return frozenset(
                {NodeState.DECLARED, NodeState.ENROLLING, NodeState.CLEANING, quarantine}
            )
        case _:
            assert_never(state)


def allows(old: NodeState, new: NodeState) -> bool:
    """Whether ``new`` may follow ``old``; the same again is allowed, for repeated steps."""
    return new is old or new in followers(old)


def check_transition(old: NodeState, new: NodeState) -> None:
    """The one transition function of nodes.

    Raises:
        NodeStateError: ``new`` does not follow ``old``.
    """
    if not allows(old, new):
        raise NodeStateError(
            f"a node that is {old} cannot become {new}",
            next_step="Look at it with `dflare node show`.",
        )


def deadline_of(state: NodeState, now: datetime, timeout_s: float) -> datetime | None:
    """When a transient state should have ended; none for the others."""
    return now + timedelta(seconds=timeout_s) if state in TRANSIENT else None
