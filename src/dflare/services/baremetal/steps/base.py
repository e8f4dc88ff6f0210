"""What all steps on nodes share: admission, one task a node, deadlines, and recording.

A step's ``work`` is written as "look, then do the next thing" for one node. It may be cut anywhere
and is then started again from the top, so it decides by what it sees: the BMC, and the agent
session's row.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.bmc.port import BiosDefaults, BmcAccess, BmcDriver, BmcError
from dflare.kit import outbox
from dflare.kit.clock import Clock, hardware_timeout_s
from dflare.kit.db import Database
from dflare.kit.outbox import Event
from dflare.kit.plan import StepCall
from dflare.kit.seal import Sealer
from dflare.kit.steps import Outcome
from dflare.kit.telemetry import log
from dflare.services.auth.contract import Scope
from dflare.services.baremetal import repository
from dflare.services.baremetal.agent_sessions import SCHEMA, AgentSessions, Conversation
from dflare.services.baremetal.contract import NodeState, NodeStateChanged
from dflare.services.baremetal.credentials import open_credentials
from dflare.services.baremetal.domain import allows, deadline_of
from dflare.services.baremetal.errors import NodeFailedError, StillWaitingError
from dflare.services.baremetal.image_files import ImageFiles
from dflare.services.baremetal.settings import BaremetalSettings
from dflare.services.baremetal.tables import KIT, Holder, Node

SCOPE = Scope.system("a step acts for the operation that holds the node")
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 1.0
_DEADLINE_MARGIN_S = 1.0
_WATCH_EVERY_S = 1.0
_STRAGGLERS_S = 8.0
_LAST_RETRY_S = 5.0

# Which operation it was is not said: it may be another tenant's.
_TAKEN = "the node was taken over by a newer operation"
_TAKEN_BY_OPERATOR = "the node was taken over by an operator"


def _nothing_measured(_node_id: str, _cluster_id: str) -> Mapping[str, str | float]:
    return {}


@dataclass(frozen=True)
class StepParts:
    """What the steps work with; made once a process by ``apps/wiring.py``.

    ``public_url`` is the agent API as nodes reach it, ``speed`` site seconds per wall second.
    ``measuring`` says what a cluster's system on a node is told of where its measurements go, by
    the node's and the cluster's id; nothing where nobody keeps any.
    """

    database: Database
    clock: Clock
    sealer: Sealer
    bmc: BmcDriver
    bios_defaults: BiosDefaults | None
    sessions: AgentSessions
    images: ImageFiles
    settings: BaremetalSettings
    public_url: str
    speed: float = 1.0
    measuring: Callable[[str, str], Mapping[str, str | float]] = _nothing_measured

    def patience_s(self) -> float:
        """Wall seconds that a boot may take before it is tried again."""
        settings = self.settings
        return max(settings.boot_patience_least_s, settings.boot_patience_s / self.speed)


@dataclass(frozen=True)
class NodeView:
    """A node as it was loaded."""

    id: str
    site_id: str
    name: str
    serial: str
    bmc: BmcAccess
    facts: dict[str, object] = field(repr=False)
    dirty: bool = False


@dataclass(frozen=True)
class Loaded:
    """The nodes to act on, and outcomes of those that are not acted on."""

    nodes: dict[str, NodeView]
    settled: dict[str, Outcome]
    extra: object = None


@dataclass
class NodeWork:
    """One node within one activity. Times are the event loop's."""

    node: NodeView
    call: StepCall
    parts: StepParts
    extra: object
    ends_at: float
    waits_for: str = ""
    conversation: Conversation | None = None
    _pause_s: float = FIRST_PAUSE_S

    @property
    def session(self) -> Conversation:
        """The agent session that ``prepare`` opened."""
        if self.conversation is None:
            raise NodeFailedError("this node has no agent session of this operation")
        return self.conversation

    def left_s(self) -> float:
        """Seconds until this activity must end."""
        return self.ends_at - asyncio.get_running_loop().time()

    async def pause(self, waits_for: str) -> None:
        """Let some time pass before the next look: little at first, then up to a second.

        Raises:
            StillWaitingError: this activity's time is over.
        """
        self.waits_for = waits_for
        if self.left_s() <= self._pause_s:
            raise StillWaitingError(waits_for)
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 1.5, LAST_PAUSE_S)

    async def until_changed(self, waits_for: str, at_most_s: float) -> None:
        """Wait for the agent, ``at_most_s``.

        Raises:
            StillWaitingError: this activity's time is over.
        """
        self.waits_for = waits_for
        left_s = self.left_s()
        if left_s <= 0:
            raise StillWaitingError(waits_for)
        await self.session.changed(min(at_most_s, left_s))


class NodeStep:
    """Base of the steps; a subclass sets ``name`` and writes ``work``.

    ``entering`` is the state while it acts, ``leaving`` that after success, ``failing`` that after
    failure; ``None`` keeps the state. ``lenient``: it acts on a node whoever holds it.
    """

    name: ClassVar[str]
    entering: ClassVar[NodeState | None] = None
    leaving: ClassVar[NodeState | None] = None
    failing: ClassVar[NodeState | None] = None
    lenient: ClassVar[bool] = False
    releases: ClassVar[bool] = False
    """Whether nobody acts on the node after it."""

    def __init__(self, parts: StepParts) -> None:
        self.parts = parts

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Loaded:
        """Admit the nodes, take them over for the operation, and read what ``act`` needs."""
        now = self.parts.clock.now()
        frozen = await repository.frozen(session, call.site_id)
        if frozen is not None:
            waits = self._late(call, Outcome("pending", _frozen(frozen)))
            return Loaded({}, dict.fromkeys(targets, waits))
        rows = await repository.lock_nodes(session, SCOPE, targets)
        holders = await repository.holders(session, SCOPE, targets)
        claims = await repository.claims(session, targets)
        settled: dict[str, Outcome] = {}
        admitted: list[Node] = []
        events: list[Event] = []
        for target in targets:
            row = rows.get(target)
            if row is None:
                settled[target] = Outcome("failed", "there is no such node")
                continue
            outcome = (
                None
                if self.lenient
                else _not_holding(row, claims.get(target, []), holders.get(target), call)
            )
            outcome = outcome or self.admit(row, call)
            if outcome is not None:
                settled[target] = self._late(call, outcome)
                continue
            row.acting_operation_id = call.operation_id
            self.enter(row, call, now, events)
            admitted.append(row)
        if admitted:
            ids = [row.id for row in admitted]
            await repository.close_sessions(session, ids, call.operation_id)
        await outbox.emit(session, KIT, events)
        credentials = await open_credentials(session, self.parts.sealer, admitted)
        nodes = {row.id: node_view(row, credentials) for row in admitted}
        return Loaded(nodes, settled, await self.load_extra(session, call))

    def admit(self, row: Node, call: StepCall) -> Outcome | None:
        """Why a node that the operation holds is not acted on; ``None`` when it is."""
        entering = self.entering_state(row, call)
        if entering is not None and not allows(NodeState(row.state), entering):
            reason = f" ({row.reason})" if row.reason else ""
            return Outcome("failed", f"the node is {row.state}{reason}")
        return None

    def entering_state(self, row: Node, call: StepCall) -> NodeState | None:
        """The state while the step acts on ``row``."""
        return self.entering

    def enter(self, row: Node, call: StepCall, now: datetime, events: list[Event]) -> None:
        """Change the row before the step acts."""
        entering = self.entering_state(row, call)
        if entering is not None:
            reason = f"operation {call.operation_id}"
            change_state(row, entering, reason, now, call, events)

    async def load_extra(self, session: AsyncSession, call: StepCall) -> object:
        """What the step needs beside the nodes."""
        return None

    async def prepare(self, call: StepCall, loaded: Loaded) -> dict[str, Conversation]:
        """Agent sessions by node, for steps that talk to agents. No transaction is open."""
        return {}

    async def work(self, work: NodeWork) -> Outcome:
        """Act on one node.

        Raises:
            NodeFailedError: it failed for good.
            StillWaitingError: the activity's time is over.
            BmcError: the BMC did not do it; the work starts again from the top.
        """
        raise AssertionError(f"{self.name} acts on no device ({work.node.name})")

    async def act(self, call: StepCall, loaded: Loaded, targets: list[str]) -> dict[str, Outcome]:
        """Work on all nodes side by side; returns before the deadline and within the window."""
        outcomes = dict(loaded.settled)
        self.parts.sessions.closed(loaded.nodes, but_of=call.operation_id)
        conversations = await self.prepare(call, loaded)
        ends_at = asyncio.get_running_loop().time() + self._window_s(call)
        works = {
            id_: NodeWork(
                node, call, self.parts, loaded.extra, ends_at, conversation=conversations.get(id_)
            )
            for id_, node in loaded.nodes.items()
        }
        tasks = {id_: asyncio.create_task(self._node(work)) for id_, work in works.items()}
        taken: dict[str, str | None] = {}
        watcher = asyncio.create_task(self._watch(call, works, tasks, taken))
        try:
            await self._until_done(tasks.values())
        finally:
            for task in (watcher, *tasks.values()):
                task.cancel()
            await asyncio.gather(watcher, *tasks.values(), return_exceptions=True)
        for id_, task in tasks.items():
            if not task.cancelled() and task.exception() is None:
                outcomes[id_] = task.result()
            elif id_ in taken:
                outcomes[id_] = Outcome("failed", _TAKEN if taken[id_] else _TAKEN_BY_OPERATOR)
            elif task.cancelled():
                waits_for = works[id_].waits_for
                outcomes[id_] = self._late(call, Outcome("pending", waits_for))
            else:
                raise RuntimeError(f"{self.name} on {id_}") from task.exception()
        return {target: outcomes[target] for target in targets}

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Loaded, outcomes: dict[str, Outcome]
    ) -> None:
        """Write what was observed to the nodes' rows."""
        now = self.parts.clock.now()
        settled = [
            id_ for id_, o in outcomes.items() if o.state != "pending" and id_ in loaded.nodes
        ]
        rows = await repository.lock_nodes(session, SCOPE, settled)
        events: list[Event] = []
        ended: list[str] = []
        for id_, row in rows.items():
            if row.acting_operation_id != call.operation_id:
                continue
            outcome = outcomes[id_]
            if outcome.state == "done":
                self.succeeded(row, outcome, call, now, events)
            else:
                self.failed(row, outcome, call, now, events)
            if self.releases or (outcome.state == "failed" and call.ordering_service == SCHEMA):
                row.acting_operation_id = None
                ended.append(id_)
        if ended:
            await repository.close_sessions(session, ended, None)
            self.parts.sessions.closed(ended, but_of=None)
        await outbox.emit(session, KIT, events)

    def succeeded(
        self,
        row: Node,
        outcome: Outcome,
        call: StepCall,
        now: datetime,
        events: list[Event],
    ) -> None:
        """Change the row after success."""
        if self.leaving is not None and allows(NodeState(row.state), self.leaving):
            change_state(row, self.leaving, "", now, call, events)

    def failed(
        self, row: Node, outcome: Outcome, call: StepCall, now: datetime, events: list[Event]
    ) -> None:
        """Change the row after failure; a fault of the hardware stays noted until enrolment."""
        if outcome.observed.get("fault"):
            row.fault = f"{self.name}: {outcome.reason}"
        state = self.failing or NodeState(row.state)
        if not allows(NodeState(row.state), state):
            state = NodeState(row.state)
        change_state(row, state, outcome.reason, now, call, events)

    async def _node(self, work: NodeWork) -> Outcome:
        retry_s = 0.2
        while True:
            try:
                return await self.work(work)
            except NodeFailedError as error:
                return Outcome("failed", str(error), {"fault": error.fault})
            except StillWaitingError as error:
                return self._late(work.call, Outcome("pending", str(error)))
            except BmcError as error:
                if not error.transient:
                    return Outcome("failed", str(error), {"fault": True})
                work.waits_for = str(error)
            if work.left_s() <= retry_s:
                return self._late(work.call, Outcome("pending", work.waits_for))
            await asyncio.sleep(retry_s * (0.5 + secrets.randbelow(500) / 1000))
            retry_s = min(retry_s * 2, _LAST_RETRY_S)

    async def _until_done(self, tasks: Iterable[asyncio.Task[Outcome]]) -> None:
        """Until all are done, or some are and the others have not moved for a while: finished nodes
        are recorded before stragglers are waited for again."""
        waiting = set(tasks)
        some_done = False
        while waiting:
            done, waiting = await asyncio.wait(
                waiting,
                timeout=_STRAGGLERS_S if some_done else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done:
                return
            some_done = True

    async def _watch(
        self,
        call: StepCall,
        works: dict[str, NodeWork],
        tasks: dict[str, asyncio.Task[Outcome]],
        taken: dict[str, str | None],
    ) -> None:
        """End the work on nodes that another operation has taken over (a release beats others), and
        on all of them when an operator freezes the site."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            live = [id_ for id_, task in tasks.items() if not task.done()]
            try:
                async with self.parts.database.transaction(SCHEMA) as session:
                    lost = await repository.taken_nodes(session, live, call.operation_id)
                    frozen = await repository.frozen(session, call.site_id)
            except Exception as error:
                log.warning("claims_not_read", step=self.name, error=str(error)[:200])
                continue
            for id_, by in lost.items():
                taken[id_] = by
                tasks[id_].cancel()
            if frozen is not None:
                for id_ in live:
                    works[id_].waits_for = _frozen(frozen)
                    tasks[id_].cancel()

    def _window_s(self, call: StepCall) -> float:
        left_s = (call.deadline_at - self.parts.clock.now()).total_seconds()
        return max(0.0, min(self.parts.settings.act_window_s, left_s - _DEADLINE_MARGIN_S))

    def _late(self, call: StepCall, outcome: Outcome) -> Outcome:
        """A node that still waits at the step's deadline has failed, with what it waited for."""
        left_s = (call.deadline_at - self.parts.clock.now()).total_seconds()
        if outcome.state != "pending" or left_s > _DEADLINE_MARGIN_S * 2:
            return outcome
        return replace(outcome, state="failed", reason=f"not in time: {outcome.reason}")


def node_view(row: Node, credentials: dict[tuple[str, str], tuple[str, str]]) -> NodeView:
    """The loaded form of a row."""
    username, password = credentials[row.site_id, row.credential]
    return NodeView(
        id=row.id,
        site_id=row.site_id,
        name=row.name,
        serial=row.serial,
        bmc=BmcAccess(row.bmc_address, username, password, row.vendor),
        facts=dict(row.facts),
        dirty=row.dirty,
    )


def change_state(
    row: Node,
    state: NodeState,
    reason: str,
    now: datetime,
    call: StepCall | None,
    events: list[Event],
) -> None:
    """Change a locked row whose transition was checked, and note its event."""
    if row.state == state and row.reason == reason:
        return
    if row.state != state:
        row.since = now
        timeout_s = hardware_timeout_s(0, 1.0)
        if call is not None:
            timeout_s = (call.deadline_at - now).total_seconds()
        row.deadline = deadline_of(state, now, timeout_s)
    row.state, row.reason = state, reason
    row.version += 1
    events.append(state_event(row, now, call.operation_id if call else None))


def state_event(row: Node, now: datetime, operation_id: str | None) -> Event:
    """``node.state_changed`` of a locked row."""
    data = NodeStateChanged(
        node_id=row.id,
        site_id=row.site_id,
        name=row.name,
        state=NodeState(row.state),
        reason=row.reason,
        cordoned=row.cordoned,
    )
    return Event(
        type="node.state_changed",
        resource_kind="node",
        resource_id=row.id,
        resource_version=row.version,
        at=now,
        data=data.model_dump(mode="json"),
        site_id=row.site_id,
        operation_id=operation_id,
    )


def _frozen(reason: str) -> str:
    return f"the site is frozen ({reason})" if reason else "the site is frozen"


def _not_holding(
    row: Node, claims: list[str], holder: Holder | None, call: StepCall
) -> Outcome | None:
    """Whether the operation may not act on the node (yet).

    The claim gives the right. Where nobody has one, it is the operation that its allocation names:
    an undo may come after its claim ended with a hand-over. An older operation never takes a node
    back from a newer one; ids of operations sort by their time.
    """
    operation = call.operation_id
    newest = max([*claims, row.acting_operation_id or ""])
    if newest > operation:
        return Outcome("failed", _TAKEN)
    if operation in claims:
        return None
    ordered_by = holder.operation_id if holder is not None and holder.state != "ended" else None
    if not claims and ordered_by == operation:
        return None
    return Outcome("pending", "the claim's event has not come yet")
