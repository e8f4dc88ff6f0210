"""Erasing a node, and seeing by a second boot that it is erased."""

import secrets
from datetime import datetime
from typing import Any

from dflare.kit.outbox import Event
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome
from dflare.services.baremetal.agent_sessions import SCHEMA, Conversation, session_id
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.errors import NodeFailedError
from dflare.services.baremetal.steps.base import Loaded, NodeStep, NodeWork, change_state
from dflare.services.baremetal.steps.boot import boot_agent, run_task
from dflare.services.baremetal.steps.power import UNTOUCHED, power_off
from dflare.services.baremetal.tables import Node

PURPOSE = "erase"


class Erase(NodeStep):
    """Disks, memories and TPM by the agent; BIOS defaults by the BMC; then a power cycle, and a
    read-back at places that nobody could foresee. Ends powered off with no medium inserted."""

    name = "baremetal.erase@1"

    def admit(self, row: Node, call: StepCall) -> Outcome | None:
        """See ``NodeStep.admit``; only an operator's cleaning leaves quarantine.

        An undo has nothing left to do there: the node stays dirty and set aside, and its order can
        end, without which no operator could let the node be cleaned.
        """
        if row.state == NodeState.QUARANTINE and call.ordering_service != SCHEMA:
            reason = f"the node is in quarantine ({row.reason})"
            return Outcome("done" if call.undoing else "failed", reason)
        return super().admit(row, call)

    def entering_state(self, row: Node, call: StepCall) -> NodeState | None:
        """A node that never held a tenant's data stays what it is, and nothing is erased."""
        return NodeState.CLEANING if row.dirty else None

    def enter(self, row: Node, call: StepCall, now: datetime, events: list[Event]) -> None:
        """See ``NodeStep.enter``; what an operator lets clean is erased whatever it held."""
        if row.state == NodeState.QUARANTINE:
            row.dirty = True
        super().enter(row, call, now, events)

    async def prepare(self, call: StepCall, loaded: Loaded) -> dict[str, Conversation]:
        """See ``NodeStep.prepare``."""
        keys = [
            (session_id(call.operation_id, PURPOSE, call.generation, id_), id_, call.operation_id)
            for id_, node in loaded.nodes.items()
            if node.dirty
        ]
        return await self.parts.sessions.open(keys)

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        if not work.node.dirty:
            await power_off(work)
            return DONE
        session = work.session
        if "erase" not in session.done:
            await boot_agent(work, 1)
        erased = await run_task(work, "erase", {"disks": None})
        _check_erased(erased)
        await self._stage_bios_defaults(work)
        if "read_back" not in session.done:
            if session.round < 2:
                # Off first: what stands in memory must not outlive the erasure.
                await power_off(work)
            await boot_agent(work, 2, not_boot=str(session.done["erase"]["boot_id"]))
        samples = work.parts.settings.read_back_samples
        seen = await run_task(
            work, "read_back", {"samples": samples, "seed": secrets.token_hex(16)}
        )
        _check_read_back(erased, seen)
        await self._check_bios_defaults(work)
        await power_off(work)
        await work.parts.bmc.ensure_media(work.node.bmc, None)
        return Outcome("done", observed={"erased": erased, "read_back": seen})

    def succeeded(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.succeeded``."""
        if row.dirty and NodeState(row.state) not in UNTOUCHED:
            reason = "erased and read back; that it is isolated was not observed yet"
            change_state(row, NodeState.CLEANING, reason, now, call, events)
        row.dirty, row.power = False, "off"
        if call.ordering_service == SCHEMA:
            # An operator has judged the node before letting it clean.
            row.fault = ""

    def failed(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.failed``; a failed cleaning goes back to quarantine."""
        super().failed(row, outcome, call, now, events)
        if call.ordering_service == SCHEMA:
            change_state(row, NodeState.QUARANTINE, outcome.reason, now, call, events)

    async def _stage_bios_defaults(self, work: NodeWork) -> None:
        defaults = work.parts.bios_defaults
        if defaults is not None and work.session.round < 2:
            await defaults.reset_bios(work.node.bmc)

    async def _check_bios_defaults(self, work: NodeWork) -> None:
        defaults = work.parts.bios_defaults
        if defaults is None:
            return
        changed = await defaults.changed_bios(work.node.bmc)
        if changed:
            named = ", ".join(changed[:4])
            raise NodeFailedError(f"BIOS defaults not observed: {named}", fault=True)


def _check_erased(observed: dict[str, Any]) -> None:
    left = [disk["name"] for disk in observed.get("disks", []) if disk["nonzero_sectors"]]
    if left:
        raise NodeFailedError(f"erase not observed: {', '.join(left)} not empty", fault=True)
    for what in ("memory_wiped", "tpm_cleared"):
        if not observed.get(what):
            raise NodeFailedError(f"erase not observed: {what} is false", fault=True)


def _check_read_back(erased: dict[str, Any], seen: dict[str, Any]) -> None:
    """Every disk that was erased was read, and nothing stood on it."""
    read = {disk["serial"]: disk for disk in seen.get("disks", [])}
    for disk in erased["disks"]:
        found = read.get(disk["serial"])
        if found is None:
            raise NodeFailedError(f"erase not observed: {disk['name']} was not read", fault=True)
        if found["nonzero_sectors"] or not found["sectors_sampled"]:
            reason = f"{found['nonzero_sectors']} of {found['sectors_sampled']} sectors not empty"
            raise NodeFailedError(f"erase not observed: {disk['name']}: {reason}", fault=True)
