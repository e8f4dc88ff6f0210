"""The life of a running cluster: resizing, expiry, protection, drains, and its conditions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from dflare.drivers.scheduler.port import ControllerState
from dflare.kit.outbox import Event
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.domain import ORDER_DEADLINE, check_transition, cluster_event
from dflare.services.clusters.errors import (
    CannotScaleError,
    ClusterBusyError,
    DrainedByOtherError,
    ProtectedError,
    UnknownNodeError,
)
from dflare.services.clusters.tables import Cluster, Drain, NodePool, Scheduler
from dflare.services.orchestrator.contract import Placed

DRAINED_BY_US = "dflare:"
"""How the reason of a drain begins that the platform told a scheduler of."""

EXPIRY = "dflare:expiry"
"""Who releases a cluster whose time is over."""

WARN_BEFORE = timedelta(hours=1)
"""How long before its end a cluster says that it expires; a short life says so for its last
quarter."""

Status = Literal["true", "false", "unknown"]


class Condition(StrEnum):
    """What is said of a cluster beside its state. ``SCHEDULER_HEALTHY`` is not there for one
    without a scheduler, ``EXPIRING`` not for one without an end."""

    READY = "Ready"
    NODES_HEALTHY = "NodesHealthy"
    SCHEDULER_HEALTHY = "SchedulerHealthy"
    EXPIRING = "Expiring"


@dataclass(frozen=True)
class Finding:
    """One condition as it is now. ``reason`` is one word, ``message`` a sentence."""

    type: Condition
    status: Status
    reason: str
    message: str


@dataclass(frozen=True)
class NodeHealth:
    """What is known of a cluster's node: its state and reason in baremetal's words."""

    name: str
    state: str | None
    reason: str


def enter(cluster: Cluster, state: ClusterState, now: datetime, *, reason: str = "") -> None:
    """Move a locked cluster to ``state`` and raise its version.

    Raises:
        ConflictError: the state may not follow the present one.
    """
    old = ClusterState(cluster.state)
    check_transition(old, state)
    if state is not old:
        cluster.since = now
    cluster.state, cluster.reason = state, reason
    on_the_way = state in {ClusterState.RESIZING, ClusterState.DELETING}
    cluster.deadline = now + ORDER_DEADLINE if on_the_way else None
    cluster.version += 1


def check_resizable(cluster: Cluster) -> None:
    """Whether nodes may be added or taken away now.

    Raises:
        ClusterBusyError: it is not ready.
    """
    state = ClusterState(cluster.state)
    if state is ClusterState.READY:
        return
    ended = state in {ClusterState.FAILED, ClusterState.DELETED}
    raise ClusterBusyError(
        f"cluster {cluster.name} is {state}; only one that is ready changes its size",
        next_step="Order another cluster."
        if ended
        else f"Follow its operation first: dflare operation watch {cluster.operation_id}",
    )


def check_unprotected(cluster: Cluster) -> None:
    """Whether a release may be ordered.

    Raises:
        ProtectedError: someone protected it against that.
    """
    if cluster.protected:
        raise ProtectedError(
            f"cluster {cluster.name} is protected against deletion",
            next_step=f"Unprotect it first: dflare cluster unprotect {cluster.name}",
        )


def check_growth(pool: NodePool, added: int) -> None:
    """Whether a pool may have ``added`` more nodes.

    Raises:
        CannotScaleError: its scheduler has no room for so many.
    """
    if pool.max_nodes and pool.count + added > pool.max_nodes:
        raise CannotScaleError(
            f"pool {pool.name} has {pool.count} nodes and room for {pool.max_nodes}",
            next_step=f"Scale it to {pool.max_nodes} at most, or order another cluster.",
            max_nodes=pool.max_nodes,
        )


def check_shrink(pools: Sequence[NodePool], removed: int) -> None:
    """Whether a cluster keeps a node when it gives ``removed`` away.

    Raises:
        CannotScaleError: none would be left.
    """
    if sum(pool.count for pool in pools) - removed < 1:
        raise CannotScaleError(
            "a cluster keeps one node at least",
            next_step="Delete the cluster if none of it is needed any more.",
        )


def check_owner(drain: Drain, owner: str, node: str) -> None:
    """Whether ``owner`` may end a drain.

    Raises:
        DrainedByOtherError: somebody else drained the node.
    """
    if drain.owner != owner:
        raise DrainedByOtherError(
            f"node {node} was drained by {drain.owner}: {drain.reason}",
            next_step="Ask who drained it; only the owner of a drain ends it.",
            owner=drain.owner,
        )


def drain_reason(owner: str, why: str) -> str:
    """How a scheduler is told of a drain, so that its own tools show whose it is."""
    return f"{DRAINED_BY_US}{owner}: {why}"


def find_conditions(
    cluster: Cluster,
    nodes: Sequence[NodeHealth],
    drains: int,
    scheduler: Scheduler | None,
    now: datetime,
) -> list[Finding]:
    """The conditions of a cluster as they follow from what is known of it, its nodes and, if it has
    one, its scheduler."""
    findings = [_ready(cluster), _nodes(nodes, drains)]
    if scheduler is not None:
        findings.append(_scheduler(cluster, scheduler))
    if cluster.expires_at is not None:
        findings.append(_expiring(cluster, cluster.expires_at, now))
    return findings


def merged(
    present: Sequence[Mapping[str, Any]], findings: Sequence[Finding], now: datetime
) -> list[dict[str, Any]] | None:
    """The stored conditions with ``findings`` in place of those of their types; ``None`` where that
    changes nothing. ``since`` is when the status became what it is."""
    known = {one["type"]: dict(one) for one in present}
    fresh = dict(known)
    for finding in findings:
        old = known.get(finding.type)
        same = old is not None and old["status"] == finding.status
        fresh[finding.type] = {
            "type": finding.type.value,
            "status": finding.status,
            "reason": finding.reason,
            "message": finding.message,
            "since": old["since"] if old is not None and same else now.isoformat(),
        }
    order = [one.value for one in Condition]
    return None if fresh == known else sorted(fresh.values(), key=lambda c: order.index(c["type"]))


def without(present: Sequence[Mapping[str, Any]], gone: Condition) -> list[dict[str, Any]]:
    """The stored conditions but those of one type."""
    return [dict(one) for one in present if one["type"] != gone]


def is_true(present: Sequence[Mapping[str, Any]], wanted: Condition) -> bool:
    """Whether a condition is among those stored, and true."""
    return any(one["type"] == wanted and one["status"] == "true" for one in present)


def expiring_event(cluster: Cluster, now: datetime) -> Event:
    """``cluster.expiring``: the warning before a cluster's end, with the data of
    ``cluster.changed``."""
    return replace(cluster_event(cluster, now), type="cluster.expiring")


def leaving(nodes: Sequence[Placed], named: Sequence[str], count: int, pool: str) -> list[Placed]:
    """Which ``count`` of a pool's nodes leave it: those ``named`` (by name or id), then those with
    the highest numbers, the last to have come.

    Raises:
        UnknownNodeError: the pool has no node of that name.
        CannotScaleError: more are named than are to leave, or fewer are there.
    """
    chosen: list[Placed] = []
    for name in dict.fromkeys(named):
        found = next((one for one in nodes if name in (one.node_id, one.node_name)), None)
        if found is None:
            raise UnknownNodeError(
                f"pool {pool} has no node {name}",
                next_step="See the cluster's nodes by `dflare cluster show`.",
            )
        chosen.append(found)
    chosen = list(dict.fromkeys(chosen))
    if len(chosen) > count or count > len(nodes):
        raise CannotScaleError(
            f"{len(chosen)} nodes are named, {count} are to leave, and pool {pool} has "
            f"{len(nodes)} now",
            next_step="Name no more nodes than leave, or give no count.",
        )
    others = [one for one in nodes if one not in chosen]
    others.sort(key=lambda one: (one.slot, one.node_name), reverse=True)
    return chosen + others[: count - len(chosen)]


def _ready(cluster: Cluster) -> Finding:
    state = ClusterState(cluster.state)
    usable = state in {ClusterState.READY, ClusterState.RESIZING}
    return Finding(
        Condition.READY,
        "true" if usable else "false",
        state.value.capitalize(),
        cluster.reason or f"the cluster is {state}",
    )


def _nodes(nodes: Sequence[NodeHealth], drains: int) -> Finding:
    unwell = [one for one in nodes if one.state not in {"active", "rescue", None}]
    unheard = [one for one in nodes if one.state is None]
    drained = f"; {drains} drained" if drains else ""
    if unwell:
        named = ", ".join(
            f"{one.name} is {one.state}" + (f" ({one.reason})" if one.reason else "")
            for one in unwell[:5]
        )
        more = f" and {len(unwell) - 5} more" if len(unwell) > 5 else ""
        return Finding(
            Condition.NODES_HEALTHY, "false", "NodesUnwell", f"{named}{more}{drained}"[:500]
        )
    if unheard:
        message = f"of {len(unheard)} nodes nothing is known yet{drained}"
        return Finding(Condition.NODES_HEALTHY, "unknown", "NotHeardOf", message)
    return Finding(
        Condition.NODES_HEALTHY, "true", "AllActive", f"{len(nodes)} nodes are active{drained}"
    )


def _scheduler(cluster: Cluster, scheduler: Scheduler) -> Finding:
    healthy = Condition.SCHEDULER_HEALTHY
    if not scheduler.state:
        return Finding(healthy, "unknown", "NotHeardOf", "nothing is known of the scheduler yet")
    if scheduler.state == ControllerState.READY:
        return Finding(healthy, "true", "Ready", "the scheduler answers")
    gone = f"the scheduler of cluster {cluster.name} is {scheduler.state}"
    message = f"{gone}: {scheduler.reason}" if scheduler.reason else gone
    return Finding(healthy, "false", scheduler.state.capitalize(), message[:500])


def _expiring(cluster: Cluster, expires_at: datetime, now: datetime) -> Finding:
    notice = min(WARN_BEFORE, (expires_at - cluster.created_at) / 4)
    at = f"{expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if now < expires_at - notice:
        return Finding(Condition.EXPIRING, "false", "NotYet", f"the cluster ends at {at}")
    if cluster.protected:
        return Finding(
            Condition.EXPIRING,
            "true",
            "Protected",
            f"the cluster would end at {at}, and is kept because it is protected",
        )
    return Finding(Condition.EXPIRING, "true", "EndIsNear", f"the cluster is released at {at}")
