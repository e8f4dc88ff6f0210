"""Steps on queue ``clusters.<site>``: nodes that leave a Slurm cluster come to rest first, and
slots that get a node take work.

Source: scontrol(1) and squeue(1) of Slurm 22.05.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.scheduler.port import SchedulerHostDriver, SlotObserved
from dflare.kit.clock import Clock
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.services.clusters import repository_scheduler as rows
from dflare.services.clusters.activities_scheduler import Loaded, Parts, SchedulerStep
from dflare.services.clusters.domain_life import drain_reason
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.tables import KIT, Drain

_BUSY = ("ALLOCATED", "MIXED", "COMPLETING")
_QUEUE = ("squeue", "--noheader", "--states=RUNNING,SUSPENDED,COMPLETING", "--format=%A %j")
_MOST_NAMED = 5


class _SlotStep(SchedulerStep):
    """A step about the slots of its nodes; a node whose allocation has ended has none."""

    async def load_more(
        self, session: AsyncSession, call: StepCall, targets: Sequence[str], loaded: Loaded
    ) -> None:
        """The slots, and why those that are drained are."""
        loaded.slots = await rows.slots_of_nodes(session, call.resource_id, targets)
        drained = select(Drain).where(
            Drain.cluster_id == call.resource_id, Drain.node_id.in_(targets)
        )
        loaded.reasons = {
            one.node_id: drain_reason(one.owner, one.reason)
            for one in await session.scalars(drained)
        }
        operation = KIT.operation
        loaded.cancelled = bool(
            await session.scalar(
                select(operation.c.cancel_requested).where(operation.c.id == call.operation_id)
            )
        )


class AwaitIdle(_SlotStep):
    """No job runs on the nodes, and none begins. What is done about those that run is the param
    ``jobs``: ``wait`` for them, ``refuse``, or take the nodes from them ``now``: Slurm queues them
    again then."""

    async def tell(
        self, driver: SchedulerHostDriver, call: StepCall, loaded: Loaded, targets: list[str]
    ) -> dict[str, Outcome]:
        """See ``SchedulerStep.tell``. A wait ends where somebody cancels the operation, which is
        asked for between steps otherwise."""
        for reason in sorted(set(loaded.reasons.values())):
            alike = [
                slot for node, slot in loaded.slots.items() if loaded.reasons.get(node) == reason
            ]
            if alike:
                await driver.set_drain(call.resource_id, sorted(alike), reason)
        seen = await driver.observe(call.resource_id)
        loaded.observed = seen
        nodes = dict[str, SlotObserved]() if seen is None else dict(seen.nodes)
        busy = {
            node: slot
            for node, slot in loaded.slots.items()
            if slot in nodes and any(word in nodes[slot].state for word in _BUSY)
        }
        outcomes = {node: DONE for node in targets if node not in busy}
        if not busy:
            return outcomes
        jobs = call.params.get("jobs", "wait")
        if jobs == "now":
            slots = ",".join(sorted(busy.values()))
            down = ["State=DOWN", f"Reason={drain_reason(call.operation_id, 'it is released')}"]
            await driver.run(call.resource_id, ["scontrol", "update", f"NodeName={slots}", *down])
            return outcomes | dict.fromkeys(busy, Outcome("pending", "its jobs are being ended"))
        for node, slot in busy.items():
            said = f"{slot} runs {await _jobs_on(driver, call.resource_id, slot)}"
            final = jobs == "refuse" or loaded.cancelled
            outcomes[node] = Outcome("failed" if final else "pending", said)
        return outcomes


class ResumeNodes(_SlotStep):
    """The slots of the nodes take work, whatever was said of the nodes that stood there before."""

    def without_scheduler(self) -> Outcome:
        """A cluster that never got its scheduler has nothing to resume."""
        return DONE

    async def tell(
        self, driver: SchedulerHostDriver, call: StepCall, loaded: Loaded, targets: list[str]
    ) -> dict[str, Outcome]:
        """See ``SchedulerStep.tell``. A slot that somebody else drained stays so."""
        own = drain_reason(call.operation_id, "")
        slots = sorted(
            slot
            for node, slot in loaded.slots.items()
            if loaded.reasons.get(node, own).startswith(own)
        )
        if slots:
            await driver.set_drain(call.resource_id, slots, None)
        missing = [node for node in targets if node not in loaded.slots and not call.undoing]
        waits = Outcome("pending", "the node's place in its cluster has not come yet")
        return dict.fromkeys(targets, DONE) | dict.fromkeys(missing, waits)


def site_steps(hosts: SchedulerHosts, clock: Clock) -> list[Step[Any]]:
    """The steps of a site's queue."""
    parts = Parts(hosts, clock)
    return [
        AwaitIdle("clusters.await_idle@1", parts),
        ResumeNodes("clusters.resume_nodes@1", parts),
    ]


async def _jobs_on(driver: SchedulerHostDriver, cluster_id: str, slot: str) -> str:
    listed = await driver.run(cluster_id, [*_QUEUE, f"--nodelist={slot}"])
    jobs = listed.stdout.splitlines()
    named = ", ".join(f"job {one}" for one in jobs[:_MOST_NAMED])
    more = f" and {len(jobs) - _MOST_NAMED} more" if len(jobs) > _MOST_NAMED else ""
    return f"{named}{more}" if jobs else "a job that is ending"
