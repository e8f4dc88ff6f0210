"""Steps on queue ``clusters.<site>``: a cluster's Slurm is started, its nodes register, it stops.

The host keeps a cluster as it was last told and never reuses its id; so each step tells it what is
to be, looks at what is, and may be repeated at any time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.scheduler.port import (
    ControllerState,
    SchedulerError,
    SchedulerHostDriver,
    SchedulerObserved,
    SchedulerRefusedError,
    SchedulerSpec,
    SchedulerUnavailableError,
)
from dflare.kit.clock import Clock
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.services.clusters import repository_scheduler as rows
from dflare.services.clusters.domain_scheduler import (
    GONE,
    digest_of,
    is_up,
    nodes_document,
    why_not_usable,
)
from dflare.services.clusters.repository_scheduler import NotKnownYetError, SchedulerHosts
from dflare.services.clusters.tables import Scheduler

_LATE_S = 3.0
"""A step that still waits so shortly before its deadline has failed, with what it waited for."""


@dataclass(frozen=True)
class Parts:
    """What the steps work with."""

    hosts: SchedulerHosts
    clock: Clock


@dataclass
class Loaded:
    """What a step's first transaction found. ``waits`` says what it has to wait for first."""

    driver: SchedulerHostDriver | None = None
    spec: SchedulerSpec | None = None
    slots: dict[str, str] = field(default_factory=dict[str, str])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    cancelled: bool = False
    waits: str = ""
    told: str = ""
    observed: SchedulerObserved | None = None
    gone: bool = False


class SchedulerStep(ABC):
    """Loads a cluster's host, tells it something, and records what was seen there."""

    def __init__(self, name: str, parts: Parts) -> None:
        self.name = name
        self.parts = parts

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """The driver of the cluster's host; none where the cluster has no scheduler."""
        host = await rows.host_of(session, call.resource_id)
        if host is None:
            return Loaded()
        loaded = Loaded(self.parts.hosts.open(host))
        if host.frozen:
            loaded.waits = f"site {host.site_id} is frozen"
        else:
            await self.load_more(session, call, targets, loaded)
        return loaded

    @abstractmethod
    async def load_more(
        self, session: AsyncSession, call: StepCall, targets: Sequence[str], loaded: Loaded
    ) -> None:
        """What else the step needs."""

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Do it; faults of the moment are waited for until the deadline."""
        if loaded.driver is None:
            return dict.fromkeys(targets, self.without_scheduler())
        if loaded.waits:
            return self._all(call, targets, Outcome("pending", loaded.waits, shared=True))
        try:
            outcomes = await self.tell(loaded.driver, call, loaded, targets)
        except (SchedulerUnavailableError, SchedulerRefusedError) as error:
            return dict.fromkeys(targets, Outcome("failed", str(error), shared=True))
        except (SchedulerError, TimeoutError) as error:
            return self._all(call, targets, Outcome("pending", str(error), shared=True))
        return {target: self._late(call, outcome) for target, outcome in outcomes.items()}

    def without_scheduler(self) -> Outcome:
        """The outcome where the cluster has no scheduler at all."""
        return Outcome("failed", "the cluster has no scheduler", shared=True)

    @abstractmethod
    async def tell(
        self, driver: SchedulerHostDriver, call: StepCall, loaded: Loaded, targets: list[str]
    ) -> dict[str, Outcome]:
        """The step's own work; sets ``loaded.observed``, or ``loaded.gone``."""

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Keep what was seen."""
        scheduler = await session.get(Scheduler, call.resource_id)
        if scheduler is None or (loaded.observed is None and not loaded.gone):
            return
        keep_observed(scheduler, loaded.observed, self.parts.clock.now())
        if loaded.observed is not None and loaded.spec is not None:
            scheduler.told = loaded.told

    def _all(self, call: StepCall, targets: list[str], outcome: Outcome) -> dict[str, Outcome]:
        return dict.fromkeys(targets, self._late(call, outcome))

    def _late(self, call: StepCall, outcome: Outcome) -> Outcome:
        left_s = (call.deadline_at - self.parts.clock.now()).total_seconds()
        if outcome.state != "pending" or left_s > _LATE_S:
            return outcome
        return Outcome("failed", f"not in time: {outcome.reason}", shared=outcome.shared)


class _TellingStep(SchedulerStep):
    """A step that needs to know what the scheduler is to be."""

    async def load_more(
        self, session: AsyncSession, call: StepCall, targets: Sequence[str], loaded: Loaded
    ) -> None:
        """What the scheduler is to be, and what its host was last told."""
        try:
            loaded.spec = await rows.spec_of(session, self.parts.hosts.sealer, call.resource_id)
        except NotKnownYetError as error:
            loaded.waits = str(error)
        loaded.slots = await rows.slots_of_nodes(session, call.resource_id, targets)
        loaded.told = (await session.get_one(Scheduler, call.resource_id)).told

    async def observed(
        self, driver: SchedulerHostDriver, cluster_id: str, loaded: Loaded
    ) -> SchedulerObserved:
        """What is, after the host was told what is to be if it was not yet."""
        spec = loaded.spec
        assert spec is not None, "a step without it waits"
        seen = None
        if loaded.told == digest_of(spec):
            seen = await driver.observe(cluster_id)
        if seen is None:
            seen = await driver.ensure(spec)
        loaded.told, loaded.observed = digest_of(spec), seen
        return seen


class StartScheduler(_TellingStep):
    """The host begins to run the cluster's Slurm; it comes up while nodes are provisioned."""

    async def tell(
        self, driver: SchedulerHostDriver, call: StepCall, loaded: Loaded, targets: list[str]
    ) -> dict[str, Outcome]:
        """See ``SchedulerStep.tell``. What is there already is told again: a controller set that
        failed is started anew so."""
        loaded.told = ""
        seen = await self.observed(driver, call.resource_id, loaded)
        if seen.state is ControllerState.FAILED:
            # Its host tries again by itself.
            why = f"Slurm does not start: {seen.reason}"
            return dict.fromkeys(targets, Outcome("pending", why))
        return dict.fromkeys(targets, Outcome("done", observed={"state": str(seen.state)}))


class AwaitNodes(_TellingStep):
    """Nodes that have registered, and that jobs can run on."""

    async def tell(
        self, driver: SchedulerHostDriver, call: StepCall, loaded: Loaded, targets: list[str]
    ) -> dict[str, Outcome]:
        """See ``SchedulerStep.tell``. While the controller is not up, no node is at fault."""
        seen = await self.observed(driver, call.resource_id, loaded)
        if not is_up(seen):
            reason = f"Slurm is {seen.state}{': ' * bool(seen.reason)}{seen.reason}"
            return dict.fromkeys(targets, Outcome("pending", reason, shared=True))
        return {target: self._look(seen, loaded.slots.get(target)) for target in targets}

    def _look(self, seen: SchedulerObserved, slot: str | None) -> Outcome:
        if slot is None:
            return Outcome("pending", "the node's place in its cluster has not come yet")
        why = why_not_usable(seen.nodes.get(slot))
        if why is not None:
            return Outcome("pending", f"{slot}: {why}")
        return Outcome("done", observed={"slot": slot, "state": seen.nodes[slot].state})


class StopScheduler(SchedulerStep):
    """Nothing of the cluster's Slurm is left: no process, no mount, no file."""

    def without_scheduler(self) -> Outcome:
        """See ``SchedulerStep.without_scheduler``."""
        return DONE

    async def load_more(
        self, session: AsyncSession, call: StepCall, targets: Sequence[str], loaded: Loaded
    ) -> None:
        """See ``SchedulerStep.load_more``: the cluster's id is enough."""

    async def tell(
        self, driver: SchedulerHostDriver, call: StepCall, loaded: Loaded, targets: list[str]
    ) -> dict[str, Outcome]:
        """See ``SchedulerStep.tell``."""
        loaded.gone = await driver.remove(call.resource_id)
        outcome = DONE if loaded.gone else Outcome("pending", "its Slurm has not ended yet")
        return dict.fromkeys(targets, outcome)

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Keep what was seen; the key of a released cluster opens nothing any more. An order that
        was undone may be tried again, with the key that its nodes are told."""
        await super().record(session, call, loaded, outcomes)
        if loaded.gone and not call.undoing:
            await rows.drop_key(session, call.resource_id)


def keep_observed(scheduler: Scheduler, observed: SchedulerObserved | None, now: datetime) -> None:
    """Write what was seen of a cluster's scheduler to its row; ``None``: nothing is left."""
    scheduler.state = GONE if observed is None else str(observed.state)
    scheduler.reason = "" if observed is None else observed.reason
    scheduler.nodes = {} if observed is None else nodes_document(observed)
    scheduler.checked_at = now


def site_steps(hosts: SchedulerHosts, clock: Clock) -> list[Step[Any]]:
    """The steps of a site's queue."""
    parts = Parts(hosts, clock)
    return [
        StartScheduler("clusters.start_scheduler@1", parts),
        StopScheduler("clusters.stop_scheduler@1", parts),
        AwaitNodes("clusters.await_nodes@1", parts),
    ]
