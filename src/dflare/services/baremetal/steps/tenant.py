"""What a tenant may do to its nodes: reboot, rescue, unrescue (``provision`` has reimage)."""

from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.bmc.port import BootTarget
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome
from dflare.services.baremetal import repository
from dflare.services.baremetal.agent_sessions import Conversation, session_id
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.errors import StillWaitingError
from dflare.services.baremetal.steps.base import SCOPE, Loaded, NodeStep, NodeWork
from dflare.services.baremetal.steps.boot import boot_agent, run_task
from dflare.services.baremetal.tables import Node

_UNCHANGED_LOOKS = 8
"""Looks after a reset after which a system that seems never to have stopped counts as started
anew: a BMC's times have whole seconds, and fast hardware is up again within one."""


@dataclass(frozen=True)
class _Keys:
    by_node: dict[str, list[str]]

    def of(self, node_id: str) -> list[str] | None:
        return self.by_node.get(node_id)


class _TenantAction(NodeStep):
    """A step on a node in a tenant's hands; its session only remembers what was done."""

    comes_from: ClassVar[frozenset[NodeState]]
    releases = True

    def admit(self, row: Node, call: StepCall) -> Outcome | None:
        """See ``NodeStep.admit``."""
        if NodeState(row.state) not in self.comes_from:
            return Outcome("failed", f"the node is {row.state}")
        return super().admit(row, call)

    async def prepare(self, call: StepCall, loaded: Loaded) -> dict[str, Conversation]:
        """See ``NodeStep.prepare``."""
        purpose = self.name.partition(".")[2].partition("@")[0]
        return await self.parts.sessions.open(
            [
                (
                    session_id(call.operation_id, purpose, call.generation, id_),
                    id_,
                    call.operation_id,
                )
                for id_ in loaded.nodes
            ]
        )


class Reboot(_TenantAction):
    """Reset the server; its disks stay as they are."""

    name = "baremetal.reboot@1"
    comes_from = frozenset({NodeState.ACTIVE})

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        await _restart_into_system(work, None)
        return DONE


class Unrescue(_TenantAction):
    """Boot the system on the disks again."""

    name = "baremetal.unrescue@1"
    comes_from = frozenset({NodeState.RESCUE, NodeState.ACTIVE})
    leaving = NodeState.ACTIVE

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        await work.parts.bmc.ensure_media(work.node.bmc, None)
        await _restart_into_system(work, BootTarget.DISK)
        return DONE


class Rescue(_TenantAction):
    """Run a system in memory that holders of the cluster's SSH keys can enter."""

    name = "baremetal.rescue@1"
    comes_from = frozenset({NodeState.ACTIVE, NodeState.RESCUE})
    leaving = NodeState.RESCUE

    async def load_extra(self, session: AsyncSession, call: StepCall) -> object:
        """See ``NodeStep.load_extra``."""
        held = await repository.holders(session, SCOPE, list(call.targets))
        keys: dict[str, list[str]] = {}
        for node_id, holder in held.items():
            config = await repository.boot_config(session, SCOPE, holder.cluster_id)
            if config is not None:
                keys[node_id] = list(config.ssh_keys)
        return _Keys(keys)

    async def work(self, work: NodeWork) -> Outcome:
        """See ``NodeStep.work``."""
        keys = work.extra.of(work.node.id) if isinstance(work.extra, _Keys) else None
        if keys is None:
            raise StillWaitingError("the cluster's boot configuration has not come yet")
        if "rescue" not in work.session.done:
            await boot_agent(work, 1)
        observed = await run_task(work, "rescue", {"ssh_keys": keys, "user_data": ""})
        await work.parts.bmc.ensure_media(work.node.bmc, None)
        return Outcome("done", observed=observed)


async def _restart_into_system(work: NodeWork, target: BootTarget | None) -> None:
    """Reset once, and wait until the BMC sees a system run that started after it."""
    bmc, access = work.parts.bmc, work.node.bmc
    before = await bmc.observe(access)
    looks = _UNCHANGED_LOOKS
    if work.session.round < 1:
        await bmc.boot(access, target)
        # Noted after it: a crash between the two only resets once more.
        await work.parts.sessions.booted(work.session, 1)
        looks = 0
    seen_down = False
    while True:
        seen = await bmc.observe(access)
        looks += 1
        anew = seen.progress_at != before.progress_at or seen.last_reset_at != before.last_reset_at
        if seen.os_running and (seen_down or anew or looks >= _UNCHANGED_LOOKS):
            return
        seen_down = seen_down or not seen.os_running
        await work.pause("the system has not started yet")
