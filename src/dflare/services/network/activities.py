"""The steps of network. They set desired state and wait for what the reconcilers observed.

Everything a step changes is in its first transaction, behind the runner's fence; acting is waiting,
and a repeated step changes nothing more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.services.network import repository
from dflare.services.network.domain import LIVE, NodeEpoch
from dflare.services.network.errors import PoolExhaustedError
from dflare.services.network.reconciler import SCHEMA
from dflare.services.network.settings import NetworkSettings
from dflare.services.network.signals import Signals
from dflare.services.orchestrator.contract import AllocationState

_PAUSE_FIRST_S = 0.02
_PAUSE_MOST_S = 1.0
_LAG_S = 0.2

Looks = dict[str, tuple[Outcome, Sequence[str]]]
"""For each target: its outcome, and the devices that it waits for."""

Look = Callable[[AsyncSession, Sequence[str]], Awaitable[Looks]]


@dataclass(frozen=True)
class Waiting:
    """What steps share. ``speed`` is that of the site's clock."""

    database: Database
    clock: Clock
    settings: NetworkSettings
    signals: Signals
    speed: float

    async def until(self, call: StepCall, targets: Sequence[str], look: Look) -> dict[str, Outcome]:
        """Look again and again until no target is pending, or the time of this call is over."""
        loop = asyncio.get_running_loop()
        left_s = (call.deadline_at - self.clock.now()).total_seconds() - 1
        until = loop.time() + min(self.settings.step_wait_s, left_s)
        outcomes: dict[str, Outcome] = {}
        pause_s = _PAUSE_FIRST_S
        while True:
            before = self.signals.passes()
            todo = [t for t in targets if t not in outcomes or outcomes[t].state == "pending"]
            async with self.database.transaction(SCHEMA) as session:
                looks = await look(session, todo)
            outcomes |= {target: outcome for target, (outcome, _) in looks.items()}
            if all(outcome.state != "pending" for outcome in outcomes.values()):
                return outcomes
            if loop.time() >= until:
                return outcomes
            devices = {device for _, waits_for in looks.values() for device in waits_for}
            if devices and devices <= before.keys():
                # Reconciled in this process, which says when it is worth looking again.
                await self.signals.more_passes({d: before[d] for d in devices}, _PAUSE_MOST_S)
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(_PAUSE_MOST_S, pause_s * 1.6)


@dataclass
class Loaded:
    """What a step's first transaction decided: outcomes that stand already, devices to wake.

    ``network_id`` is that of the ordering cluster; ``asked`` the read-backs that were asked for.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    devices: list[str] = field(default_factory=list[str])
    network_id: str | None = None
    asked: dict[str, int] = field(default_factory=dict[str, int])


def steps(
    database: Database,
    clock: Clock,
    settings: NetworkSettings,
    signals: Signals,
    speed: float,
) -> list[Step[Any]]:
    """All steps of network, for queue ``network.<site>``."""
    waiting = Waiting(database, clock, settings, signals, speed)
    return [
        Attach(waiting),
        Await(waiting),
        Verify(waiting),
        Detach(waiting),
        AwaitDrained(waiting),
        Withdraw(waiting),
        Close(waiting),
        Seclude(waiting),
    ]


class Attach:
    """Desire the order's network on the nodes' ports; it gets its identifiers here, once."""

    name = "network.attach@1"

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Set desired state for nodes whose allocation has arrived in the read model."""
        epochs = await repository.node_epochs(session, targets)
        declared = await repository.nodes_with_ports(session, targets)
        ready = [
            epoch
            for node, epoch in epochs.items()
            if node in declared and epoch.cluster_id == call.resource_id and epoch.state in LIVE
        ]
        loaded = Loaded(
            {target: Outcome("pending", "no live allocation yet") for target in targets}
        )
        if ready:
            await self._attach(session, call, ready, loaded)
        return loaded

    async def _attach(
        self, session: AsyncSession, call: StepCall, ready: list[NodeEpoch], loaded: Loaded
    ) -> None:
        now = self._waiting.clock.now()
        nodes = [epoch.node_id for epoch in ready]
        try:
            async with session.begin_nested():
                network = await repository.ensure_network(session, call, now)
        except PoolExhaustedError as error:
            refused = Outcome("failed", error.detail, shared=True)
            loaded.outcomes |= dict.fromkeys(nodes, refused)
            return
        if network is None:
            loaded.outcomes |= dict.fromkeys(nodes, Outcome("pending", "the network still drains"))
            return
        loaded.devices = await repository.ask_devices(session, nodes)
        attached = await repository.open_ports(session, network, ready, call.operation_id, now)
        # One that was overtaken may have given identifiers to a network that has no member now.
        await repository.drain_if_empty(session, network, now)
        for epoch in ready:
            loaded.outcomes[epoch.node_id] = (
                Outcome("done", observed={"network": network.id, "epoch": epoch.epoch})
                if epoch.node_id in attached
                else Outcome("failed", "its ports were closed for this order, or are a newer one's")
            )

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Wake the reconcilers; what waits for events is given a moment."""
        self._waiting.signals.wake(loaded.devices)
        if any(outcome.state == "pending" for outcome in loaded.outcomes.values()):
            await asyncio.sleep(_LAG_S)
        return loaded.outcomes

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Everything was written in the first transaction."""


class Seclude(Attach):
    """Desire a network of its own on a node that no order holds, while it is cleaned.

    The operation stands in the place of an allocation: what it closed it cannot open again.
    """

    name = "network.seclude@1"

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Set desired state where the last order's end has arrived in the read model."""
        epochs = await repository.node_epochs(session, targets)
        declared = await repository.nodes_with_ports(session, targets)
        held = {node for node, one in epochs.items() if one.state != AllocationState.ENDED}
        loaded = Loaded({target: Outcome("pending", "an order holds it") for target in targets})
        strangers = [target for target in targets if target != call.resource_id]
        loaded.outcomes |= dict.fromkeys(strangers, Outcome("failed", "it was not ordered alone"))
        alone = [
            NodeEpoch(
                target,
                call.resource_id,
                f"{call.operation_id}/{call.generation}",
                AllocationState.ENDED,
                epochs[target].epoch if target in epochs else 0,
            )
            for target in declared - held - set(strangers)
        ]
        if alone:
            await self._attach(session, call, alone, loaded)
        return loaded


class _OfNetwork:
    """A step about the ordering cluster's network that changes nothing at first."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Which network it is about."""
        return Loaded(network_id=await repository.network_of(session, call.resource_id))

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Observations are the reconcilers' to record."""


class Await(_OfNetwork):
    """Wait until the fabrics were read back as desired."""

    name = "network.await@1"

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Pending until each port of a node was seen in the network and in nothing else."""

        async def look(session: AsyncSession, todo: Sequence[str]) -> Looks:
            return await _seen_in_network(session, todo, loaded.network_id)

        return await self._waiting.until(call, targets, look)


class Verify(_OfNetwork):
    """One more read-back after hand-over, made for this step."""

    name = "network.verify@1"

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Ask every device of the nodes for a read-back."""
        loaded = await super().load(session, call, targets)
        loaded.devices = await repository.ask_devices(session, targets)
        loaded.asked = await repository.asked_versions(session, loaded.devices)
        return loaded

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Pending until those read-backs were made and show what is desired."""
        self._waiting.signals.wake(loaded.devices)

        async def look(session: AsyncSession, todo: Sequence[str]) -> Looks:
            late = await repository.unanswered(session, loaded.asked)
            if late:
                waits = (Outcome("pending", "; ".join(late.values())[:500]), list(late))
                return dict.fromkeys(todo, waits)
            return await _seen_in_network(session, todo, loaded.network_id)

        return await self._waiting.until(call, targets, look)


class _Closing:
    """The first transaction of everything that takes nodes out of the order's network."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Desire the nodes' ports closed; a network without members starts draining."""
        now = self._waiting.clock.now()
        network = await repository.lock_network(session, call.resource_id)
        if network is None:
            return Loaded()
        devices = await repository.ask_devices(session, targets)
        await repository.close_ports(session, targets, network.id, call.operation_id, now)
        await repository.drain_if_empty(session, network, now)
        return Loaded(devices=devices, network_id=network.id)


class Detach(_Closing):
    """Desire these nodes' ports closed."""

    name = "network.detach@1"

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Wake the reconcilers."""
        self._waiting.signals.wake(loaded.devices)
        return dict.fromkeys(targets, DONE)

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Everything was written in the first transaction."""


class _Drains:
    """The end of everything that takes nodes out of the order's network."""

    _waiting: Waiting

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Pending until a node's ports were seen closed and no older write can open them."""
        self._waiting.signals.wake(loaded.devices)

        async def look(session: AsyncSession, todo: Sequence[str]) -> Looks:
            return await _drained(session, todo, loaded.network_id)

        return await self._waiting.until(call, targets, look)

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Give the identifiers into cooldown when this was the last of the network."""
        network = await repository.lock_network(session, call.resource_id)
        if network is not None:
            now = self._waiting.clock.now()
            await repository.release_if_drained(session, network, now, self._waiting.speed)


class AwaitDrained(_Drains, _OfNetwork):
    """Wait until nothing of the nodes' membership is left or can come back."""

    name = "network.await_drained@1"


class Withdraw(_Drains, _Closing):
    """Detach and wait until drained, as the undo of attach."""

    name = "network.withdraw@1"


class Close:
    """Close a node's ports whatever holds it, for quarantine."""

    name = "network.close@1"

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Desire every port of the nodes closed."""
        now = self._waiting.clock.now()
        networks = await repository.lock_networks_of(session, targets)
        devices = await repository.ask_devices(session, targets)
        await repository.close_ports(session, targets, None, call.operation_id, now)
        for network in networks:
            await repository.drain_if_empty(session, network, now)
        return Loaded(devices=devices)

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Pending until they were seen closed and nothing can open them again."""
        self._waiting.signals.wake(loaded.devices)

        async def look(session: AsyncSession, todo: Sequence[str]) -> Looks:
            # A node whose declaration has not arrived here has no rows that could be unmet.
            declared = await repository.nodes_with_ports(session, todo)
            unknown = Outcome("pending", "its ports are not declared here yet")
            looks: Looks = {node: (unknown, ()) for node in todo if node not in declared}
            return looks | await _drained(session, [n for n in todo if n in declared], None)

        return await self._waiting.until(call, targets, look)

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """The sweep gives the identifiers into cooldown."""


async def _seen_in_network(
    session: AsyncSession, todo: Sequence[str], network_id: str | None
) -> Looks:
    others = await repository.not_of_network(session, todo, network_id)
    unmet = await repository.unmet_ports(session, todo)
    looks: Looks = {}
    for node in todo:
        if network_id is None or node in others:
            looks[node] = (Outcome("failed", "its ports do not belong to this order"), ())
        elif node in unmet:
            where = ", ".join(unmet[node])
            looks[node] = (Outcome("pending", f"not seen as desired on {where}"), unmet[node])
        else:
            looks[node] = (Outcome("done", observed={"network": network_id}), ())
    return looks


async def _drained(session: AsyncSession, todo: Sequence[str], network_id: str | None) -> Looks:
    """``network_id`` is ``None`` for every network there is."""
    members = await repository.members_of(session, todo, network_id)
    unmet = await repository.unmet_ports(session, todo)
    kept = await repository.nodes_kept_by_intents(session, todo, network_id)
    looks: Looks = {}
    for node in todo:
        if node in members:
            looks[node] = (Outcome("pending", "its ports are still desired open"), ())
        elif node in unmet:
            where = ", ".join(unmet[node])
            looks[node] = (Outcome("pending", f"not seen closed on {where}"), unmet[node])
        elif node in kept:
            reason = f"a write to {kept[node]} may still take effect"
            looks[node] = (Outcome("pending", reason), (kept[node],))
        else:
            looks[node] = (DONE, ())
    return looks
