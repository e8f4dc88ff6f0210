"""Enrolment: the inventory that the BMC shows, compared with what the site document declares."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.bmc.port import Inventory
from dflare.kit.outbox import Event
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.steps.base import Loaded, NodeStep, NodeWork, change_state
from dflare.services.baremetal.steps.power import power_off
from dflare.services.baremetal.tables import KIT, Node

_NAMED_AT_MOST = 4


class Enrol(NodeStep):
    """A node becomes available once it is what was declared, and off."""

    name = "baremetal.enrol@1"
    entering = NodeState.ENROLLING
    leaving = NodeState.AVAILABLE
    failing = NodeState.FAILED
    releases = True

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """See ``NodeStep.load``; what this enrolment set aside before, such as a node whose ports
        were not seen closed, does not come into the pool by it."""
        aside = await _set_aside(session, call, targets)
        loaded = await super().load(session, call, [t for t in targets if t not in aside])
        loaded.settled.update(dict.fromkeys(aside, Outcome("failed", "it was set aside")))
        return loaded

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        found = await work.parts.bmc.inventory(work.node.bmc)
        observed = {"inventory": _document(found)}
        differences = compare(work.node.serial, work.node.facts, found)
        if differences:
            return Outcome("failed", "; ".join(differences), observed)
        await power_off(work)
        return Outcome("done", observed=observed)

    def succeeded(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.succeeded``."""
        _keep(row, outcome, now)
        row.fault, row.power = "", "off"
        super().succeeded(row, outcome, call, now, events)

    def failed(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.failed``."""
        _keep(row, outcome, now)
        super().failed(row, outcome, call, now, events)


class SetAside(NodeStep):
    """Nodes that could not be enrolled stay ``failed`` with their reason; the others go on."""

    name = "baremetal.set_aside@1"
    lenient = True
    releases = True

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``. An operation that was taken over sets nothing aside."""
        return DONE

    def succeeded(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.succeeded``."""
        if row.state in (NodeState.DECLARED, NodeState.ENROLLING, NodeState.AVAILABLE):
            reason = call.params.get("reason", "not enrolled")
            change_state(row, NodeState.FAILED, reason, now, call, events)


async def _set_aside(session: AsyncSession, call: StepCall, targets: list[str]) -> set[str]:
    outcome = KIT.step_outcome
    return set(
        await session.scalars(
            select(outcome.c.target).where(
                outcome.c.operation_id == call.operation_id,
                outcome.c.step.startswith(f"{SetAside.name}#{call.generation}.", autoescape=True),
                outcome.c.target.in_(targets),
            )
        )
    )


def compare(serial: str, facts: dict[str, object], found: Inventory) -> list[str]:
    """Differences between a node's declaration and its inventory, each in words; none if it is
    the declared server. GPUs, MACs and GUIDs are compared as sets: more than declared is a
    difference too, since an unknown port would stay out of every isolation."""
    differences: list[str] = []
    if found.serial != serial:
        differences.append(f"serial is {found.serial or 'not shown'}, declared is {serial}")
    gpus = int(str(facts.get("gpus", 0)))
    if found.gpus != gpus:
        differences.append(f"it shows {found.gpus} GPUs, declared are {gpus}")
    maker = facts.get("gpu_vendor")
    others = sorted(str(found_maker) for found_maker in found.gpu_makers if found_maker != maker)
    if gpus and maker and others:
        differences.append(f"its GPUs are by {', '.join(others)}, declared are GPUs by {maker}")
    for what, key, field, seen in (
        ("MAC", "ethernet", "mac", found.macs),
        ("InfiniBand GUID", "infiniband", "guid", found.guids),
    ):
        ports = cast("list[dict[str, Any]]", facts.get(key, []))
        declared = {str(port[field]).lower() for port in ports}
        if missing := sorted(declared - seen):
            differences.append(f"{what} {_listed(missing)} is declared and not there")
        if unknown := sorted(seen - declared):
            differences.append(f"{what} {_listed(unknown)} is there and not declared")
    return differences


def _listed(values: list[str]) -> str:
    more = len(values) - _NAMED_AT_MOST
    shown = ", ".join(values[:_NAMED_AT_MOST])
    return f"{shown} and {more} more" if more > 0 else shown


def _document(found: Inventory) -> dict[str, Any]:
    return {
        "serial": found.serial,
        "manufacturer": found.manufacturer,
        "model": found.model,
        **found.document,
    }


def _keep(row: Node, outcome: Outcome, now: datetime) -> None:
    """Keep the inventory in the node's row; the step's outcome need not repeat it."""
    inventory = outcome.observed.pop("inventory", None)
    if inventory is not None:
        row.inventory = inventory
        row.health, row.health_reason, row.checked_at = "ok", "", now
