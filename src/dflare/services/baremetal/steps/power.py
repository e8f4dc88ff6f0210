"""Steps on power and on a node's way back to the pool: prepare, power_off, free, quarantine."""

import asyncio
from contextlib import suppress
from datetime import datetime

from dflare.drivers.bmc.port import BmcError, Power
from dflare.kit.outbox import Event
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.domain import allows
from dflare.services.baremetal.errors import StillWaitingError
from dflare.services.baremetal.steps.base import NodeStep, NodeWork, change_state
from dflare.services.baremetal.tables import Node

_ASK_AGAIN_S = 15.0
_QUARANTINE_POWER_S = 10.0
UNTOUCHED = frozenset({NodeState.QUARANTINE, NodeState.MAINTENANCE, NodeState.FAILED})


async def power_off(work: NodeWork) -> None:
    """Turn the node off and see that it is. Asked again only after a while: some BMCs start
    anew with every ask."""
    bmc, loop = work.parts.bmc, asyncio.get_running_loop()
    seen = await bmc.ensure_power(work.node.bmc, Power.OFF)
    ask_again_at = loop.time() + _ASK_AGAIN_S
    while seen.power is not Power.OFF:
        await work.pause("the server is still on")
        if loop.time() >= ask_again_at:
            seen = await bmc.ensure_power(work.node.bmc, Power.OFF)
            ask_again_at = loop.time() + _ASK_AGAIN_S
        else:
            seen = await bmc.observe(work.node.bmc)


class Prepare(NodeStep):
    """The first step on a node that was placed: it is this service that knows whether it may be."""

    name = "baremetal.prepare@1"
    entering = NodeState.PREPARING

    def admit(self, row: Node, call: StepCall) -> Outcome | None:
        """See ``NodeStep.admit``; cordoned and dirty nodes take no new order."""
        refused = super().admit(row, call)
        if refused is None and row.state == NodeState.AVAILABLE:
            if row.cordoned:
                return Outcome("failed", f"the node is cordoned ({row.cordon_reason})")
            if row.dirty:
                return Outcome("failed", "the node's erasure was not observed")
        return refused

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        await power_off(work)
        return DONE


class PowerOff(NodeStep):
    """Turn off. In a release the node leaves its tenant here; as undo the state stays."""

    name = "baremetal.power_off@1"

    def entering_state(self, row: Node, call: StepCall) -> NodeState | None:
        """See ``NodeStep.entering_state``."""
        in_use = row.state in (NodeState.ACTIVE, NodeState.RESCUE)
        return NodeState.CLEANING if in_use and not call.undoing else None

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        await power_off(work)
        return DONE


class Free(NodeStep):
    """The node goes back to the pool; one that was not seen clean goes to quarantine instead."""

    name = "baremetal.free@1"
    releases = True

    async def work(self, work: NodeWork) -> Outcome:
        """Nothing is left to do on the device: erasure, or the undo of prepare, turned it off."""
        if not work.node.dirty:
            await power_off(work)
        return DONE

    def succeeded(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.succeeded``."""
        state = NodeState(row.state)
        if state in UNTOUCHED:
            return
        if row.dirty:
            reason = "freed, but its erasure was not observed"
            change_state(row, NodeState.QUARANTINE, reason, now, call, events)
        elif row.fault and allows(state, NodeState.FAILED):
            change_state(row, NodeState.FAILED, row.fault, now, call, events)
        elif allows(state, NodeState.AVAILABLE):
            change_state(row, NodeState.AVAILABLE, "", now, call, events)


class Quarantine(NodeStep):
    """Take the node out of every use; it is turned off as far as its BMC obeys."""

    name = "baremetal.quarantine@1"
    lenient = True
    releases = True

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``; never fails, since quarantine is where failures end."""
        with suppress(BmcError, StillWaitingError, TimeoutError):
            async with asyncio.timeout(_QUARANTINE_POWER_S):
                await power_off(work)
        reason = work.call.params.get("reason", "") or f"operation {work.call.operation_id}"
        return Outcome("done", reason)

    def succeeded(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """See ``NodeStep.succeeded``."""
        change_state(row, NodeState.QUARANTINE, row.reason or outcome.reason, now, call, events)
