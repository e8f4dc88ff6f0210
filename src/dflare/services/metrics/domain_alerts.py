"""Conditions that become alerts. Pure, but for the queries' text.

``dead_gpu``: a node's own system sees fewer accelerators than stand in it. ``lost_link``: it says
that a port has no link. Both are PromQL over what nodes say of themselves, and so end when a node
falls silent. ``late_operation``: an order is under way for longer than its kind ever should be, or
cannot go on without an operator.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dflare.kit.plan import OperationState
from dflare.kit.series import Sample
from dflare.services.metrics.contract import AlertRule
from dflare.services.metrics.domain import GPU_COUNT, GPU_UTILIZATION, NETWORK_UP
from dflare.services.metrics.repository import Had, NodeFacts
from dflare.services.metrics.tables import KnownOperation

SEVERITY: Mapping[AlertRule, str] = {
    AlertRule.DEAD_GPU: "critical",
    AlertRule.LOST_LINK: "warning",
    AlertRule.LATE_OPERATION: "warning",
}

_LATE: Mapping[str, timedelta] = {
    "reboot_node": timedelta(minutes=20),
    "create_volume": timedelta(minutes=5),
    "resize_volume": timedelta(minutes=5),
    "delete_volume": timedelta(minutes=15),
}
"""How long an operation may take where that is not the usual."""


@dataclass(frozen=True)
class Condition:
    """Something that is seen to be wrong now. ``fingerprint`` names it as long as it lasts."""

    fingerprint: str
    rule: AlertRule
    summary: str
    site_id: str | None
    organization_id: str | None
    project_id: str | None
    cluster_id: str | None
    subject_kind: str
    subject_id: str
    subject_name: str
    part: str = ""
    at_once: bool = False


@dataclass(frozen=True)
class Places:
    """Nodes by the names of their site and their own, and who has them now."""

    by_name: Mapping[tuple[str, str], NodeFacts]
    owners: Mapping[str, Had]

    @classmethod
    def of(cls, nodes: Mapping[str, NodeFacts], had: Mapping[str, Sequence[Had]]) -> "Places":
        """Out of the read models."""
        owners = {node_id: ones[-1] for node_id, ones in had.items() if ones[-1].had_to is None}
        return cls({(one.site, one.name): one for one in nodes.values()}, owners)

    def find(self, sample: Sample) -> tuple[NodeFacts, Had | None] | None:
        """The node that a series is of, where it still is whose the series says it was."""
        key = (sample.labels.get("site", ""), sample.labels.get("node", ""))
        node = self.by_name.get(key)
        if node is None:
            return None
        owner = self.owners.get(node.node_id)
        if sample.labels.get("project", "") != (owner.project_id if owner else ""):
            return None
        return node, owner


def gpu_query(window_s: float) -> str:
    """How many accelerators are missing, of nodes that miss any."""
    counted = f'last_over_time({GPU_COUNT}{{state="%s"}}[{window_s:g}s])'
    return f"{counted % 'declared'} - ignoring(state) {counted % 'seen'} > 0"


def present_query(window_s: float) -> str:
    """The accelerators that were heard of within ``window_s``."""
    return f"count_over_time({GPU_UTILIZATION}[{window_s:g}s])"


def link_query(window_s: float) -> str:
    """Ports without a link."""
    return f"last_over_time({NETWORK_UP}[{window_s:g}s]) == 0"


def dead_gpus(
    missing: Iterable[Sample], present: Iterable[Sample], places: Places
) -> list[Condition]:
    """Nodes with accelerators that do not answer; the part names them where that can be told."""
    heard: dict[tuple[str, str], set[str]] = {}
    for sample in present:
        key = (sample.labels.get("site", ""), sample.labels.get("node", ""))
        heard.setdefault(key, set()).add(sample.labels.get("hw_id", ""))
    found: list[Condition] = []
    for sample in missing:
        place = places.find(sample)
        if place is None:
            continue
        node, _ = place
        known = heard.get((node.site, node.name), set())
        gone = [str(number) for number in range(node.gpus) if str(number) not in known]
        count = round(sample.value)
        named = f"GPU {', '.join(gone)}" if len(gone) == count else ""
        which = named or f"{count} GPUs"
        summary = (
            f"{which} of {node.name} does not answer"
            if count == 1
            else (f"{which} of {node.name} do not answer")
        )
        found.append(_of_node(AlertRule.DEAD_GPU, place, "", summary, named))
    return found


def lost_links(down: Iterable[Sample], places: Places) -> list[Condition]:
    """Ports that have no link."""
    found: list[Condition] = []
    for sample in down:
        place, port = places.find(sample), sample.labels.get("hw_id", "")
        if place is not None:
            summary = f"port {port} of {place[0].name} has no link"
            found.append(_of_node(AlertRule.LOST_LINK, place, port, summary, port))
    return found


def late_operations(
    live: Iterable[KnownOperation], now: datetime, usual: timedelta
) -> list[Condition]:
    """Operations that take too long, or wait for an operator. One that waits for capacity, or for
    nobody to start it yet, is not late."""
    found: list[Condition] = []
    for row in live:
        stuck = row.state == OperationState.NEEDS_OPERATOR
        took = now - row.begun_at
        if row.attempt < 1 or not (stuck or took > _LATE.get(row.kind, usual)):
            continue
        said = f": {row.reason}" if row.reason else ""
        late = f"is under way for {int(took.total_seconds() // 60)} minutes{said}"
        summary = f"{row.kind} {f'needs an operator{said}' if stuck else late}"
        found.append(
            Condition(
                fingerprint=f"{AlertRule.LATE_OPERATION}/{row.operation_id}/{row.attempt}",
                rule=AlertRule.LATE_OPERATION,
                summary=summary[:500],
                site_id=row.site_id,
                organization_id=row.organization_id,
                project_id=row.project_id,
                cluster_id=None,
                subject_kind="operation",
                subject_id=row.operation_id,
                subject_name=row.kind,
                at_once=True,
            )
        )
    return found


def _of_node(
    rule: AlertRule, place: tuple[NodeFacts, Had | None], what: str, summary: str, part: str
) -> Condition:
    node, owner = place
    holder = f"{owner.project_id}/{owner.cluster_id}" if owner else "nobody"
    return Condition(
        fingerprint=f"{rule}/{node.node_id}/{what}/{holder}",
        rule=rule,
        summary=summary,
        site_id=node.site_id,
        organization_id=owner.organization_id if owner else None,
        project_id=owner.project_id if owner else None,
        cluster_id=owner.cluster_id if owner else None,
        subject_kind="node",
        subject_id=node.node_id,
        subject_name=node.name,
        part=part,
    )
