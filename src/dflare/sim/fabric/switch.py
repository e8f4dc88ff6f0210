"""One NVUE switch: its revisions, how one is applied, and what the hardware then does.

States and transitions follow "NVUE API" and "NVUE CLI" (Cumulus Linux 5.13): ``pending`` →
``apply`` (waits its turn) → ``readying`` → (``ays``) → ``reloading`` → ``applied``, or ``invalid``
and ``ays_fail``; ``confirm`` where the client asked for a confirmed apply; an applied revision
that another one followed is ``inactive``.

Two things the documentation leaves open and the simulator decides: a revision is a branch, so when
another one was applied since it was made, only its own changes are merged in; and where both
changed the same leaf the switch asks (``ays``), and with ``ays_yes`` the later one wins.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from dflare.sim.clock import SimClock
from dflare.sim.config import EthernetSwitch
from dflare.sim.fabric import model
from dflare.sim.fabric.tree import Json, Path, Tree, branch, clash, diff, find, merge
from dflare.sim.fabric.view import SwitchView, compiled
from dflare.sim.faults import FaultPlan
from dflare.sim.network import PortState
from dflare.sim.truth import TruthLog

ANSWER_TIMEOUT_S = 60.0
_KEPT_REVISIONS = 64
_OVER = frozenset({"applied", "inactive", "invalid", "ays_fail", "confirm_fail"})


class State(StrEnum):
    """Where a revision stands."""

    PENDING = "pending"
    APPLY = "apply"
    READYING = "readying"
    AYS = "ays"
    AYS_FAIL = "ays_fail"
    RELOADING = "reloading"
    CONFIRM = "confirm"
    CONFIRM_FAIL = "confirm_fail"
    APPLIED = "applied"
    INACTIVE = "inactive"
    INVALID = "invalid"


class NotPending(Exception):  # noqa: N818 - a state of the revision
    """The revision is past being changed or applied."""


@dataclass(slots=True)
class Revision:
    """A branch of the configuration: made from ``base``, now ``tree``.

    ``issue`` and ``progress`` are the ``transition`` that a client reads.
    """

    id: str
    base: Tree
    tree: Tree
    state: State = State.PENDING
    issue: dict[str, Json] = field(default_factory=dict[str, Json])
    progress: str = ""
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    answered_yes: bool = False

    def document(self) -> dict[str, Json]:
        """The JSON object that ``GET /nvue_v1/revision/{id}`` answers."""
        issue: dict[str, Json] = dict(self.issue)
        return {
            "state": str(self.state),
            "transition": {"issue": issue, "progress": self.progress},
        }

    def fail(self, state: State, progress: str, code: str, message: str, data: Tree) -> None:
        """End in ``state`` with one issue of severity error."""
        self.state = state
        self.progress = progress
        self.issue = {
            "0": {"code": code, "data": data, "message": message, "severity": "error"},
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a client asked for an apply: answers given ahead, and seconds to wait for a confirm."""

    ays_yes: bool = False
    confirm_yes: bool = False
    confirm_s: float = 0.0


class Switch:
    """A switch by itself. ``applied`` is what NVUE believes, ``programmed`` what the hardware does;
    the two differ after a dropped write.
    """

    def __init__(
        self,
        config: EthernetSwitch,
        number: int,
        hosts: dict[str, str],
        apply_s: float,
        clock: SimClock,
        log: TruthLog,
        faults: FaultPlan,
        spawn: Callable[[Coroutine[object, object, None]], None],
    ) -> None:
        """``number`` makes the loopback address; ``hosts`` is the host by front port; ``spawn``
        runs a task that the fabric ends.
        """
        self.name = config.name
        self.ports = config.ports
        self.hosts = hosts
        self.applied: Tree = day_zero(config, number)
        self.programmed: Tree = self.applied
        self.startup: Tree = self.applied
        self.previous: Tree = self.applied
        self.view: SwitchView = compiled(self.programmed, self.ports)
        self.generation = 0
        self.revisions: dict[str, Revision] = {}
        self._applied_id: str | None = None
        self._next_id = 1
        self._apply_s = apply_s
        self._clock = clock
        self._log = log
        self._faults = faults
        self._spawn = spawn
        self._turn = asyncio.Lock()
        self._booted_s = clock.now_s()

    @property
    def uptime_s(self) -> float:
        """Simulated seconds since the switch booted."""
        return self._clock.now_s() - self._booted_s

    def port_state(self, port: str) -> PortState:
        """The effective state of a front port.

        Raises:
            KeyError: there is no such port.
        """
        view = self.view.ports[port]
        return PortState(view.link_up, view.vlans)

    def create_revision(self) -> Revision:
        """A new branch of the applied configuration."""
        revision = Revision(str(self._next_id), self.applied, self.applied)
        self._next_id += 1
        self.revisions[revision.id] = revision
        self._forget_old()
        return revision

    def change(self, revision: Revision, tree: Tree) -> None:
        """Put ``tree`` in a pending revision.

        Raises:
            NotPending: it is applied or on its way.
        """
        if revision.state is not State.PENDING:
            raise NotPending(f"revision {revision.id} is {revision.state}, not pending")
        revision.tree = tree

    def apply(self, revision: Revision, wanted: Wanted) -> None:
        """Start to apply; with hardware that answers at once it is done on return.

        A revision that failed may be applied again.

        Raises:
            NotPending: it is applied, or on its way.
        """
        retry = {State.PENDING, State.INVALID, State.AYS_FAIL, State.CONFIRM_FAIL}
        if revision.state not in retry:
            raise NotPending(f"revision {revision.id} is {revision.state}, not pending")
        revision.state = State.APPLY
        revision.issue, revision.progress = {}, ""
        revision.answer = asyncio.Event()
        slow = self._faults.hit("nvue_slow", self.name)
        took_s = self._apply_s + (slow.seconds(60) if slow is not None else 0)
        at_once = took_s <= 0 and wanted.confirm_s <= 0 and not self._turn.locked()
        if at_once and (wanted.ays_yes or self._clash(revision) is None):
            self._commit(revision)
            return
        self._spawn(self._run(revision, wanted, took_s))

    def answer(self, revision: Revision, yes: bool) -> None:
        """Answer the question that a revision in ``ays`` or ``confirm`` asks.

        Raises:
            NotPending: it asks nothing.
        """
        if revision.state not in {State.AYS, State.CONFIRM}:
            raise NotPending(f"revision {revision.id} is {revision.state} and asks nothing")
        revision.answered_yes = yes
        revision.answer.set()

    def save(self) -> None:
        """Make the applied configuration the one that a reboot comes back with."""
        self.startup = self.applied

    def reset(self, to: Literal["factory", "previous"]) -> None:
        """Reboot into an empty configuration, or into the one before the last apply.

        Every revision is forgotten, as its store is not what the switch came back with.
        """
        comes_back: Tree = {} if to == "factory" else self.previous
        self.revisions.clear()
        self._applied_id = None
        self.applied = self.startup = self.previous = comes_back
        self._booted_s = self._clock.now_s()
        self._log.append("switch_reset", self.name, to=to)
        self._program(comes_back, None)

    async def _run(self, revision: Revision, wanted: Wanted, took_s: float) -> None:
        async with self._turn:
            if not await self._agreed(revision, wanted):
                return
            revision.state, revision.progress = State.RELOADING, "Reloading"
            await self._clock.sleep(took_s)
            if self.revisions.get(revision.id) is not revision:
                return
            before = self.applied
            if self._commit(revision) and wanted.confirm_s > 0:
                await self._confirmed(revision, wanted, before)

    async def _agreed(self, revision: Revision, wanted: Wanted) -> bool:
        revision.state = State.READYING
        where = self._clash(revision)
        if where is None or wanted.ays_yes:
            return True
        revision.state = State.AYS
        revision.issue = {
            "0": {
                "code": "config_conflict",
                "data": {"location": ".".join(where)},
                "message": f"{'.'.join(where)} was changed by another revision since.",
                "severity": "warning",
            }
        }
        if await self._heard(revision, ANSWER_TIMEOUT_S):
            revision.issue = {}
            return True
        revision.fail(
            State.AYS_FAIL,
            "Aborted apply after warnings",
            "client_timeout",
            "Timeout while waiting for client response",
            {},
        )
        return False

    async def _confirmed(self, revision: Revision, wanted: Wanted, before: Tree) -> None:
        if wanted.confirm_yes:
            return
        revision.state, revision.progress = State.CONFIRM, "Waiting for confirmation"
        if await self._heard(revision, wanted.confirm_s):
            revision.state, revision.progress = State.APPLIED, ""
            return
        revision.state, revision.progress = State.CONFIRM_FAIL, "Rolled back"
        self.applied = self.startup = before
        self._program(before, revision.id)

    async def _heard(self, revision: Revision, timeout_s: float) -> bool:
        """Whether the client answered yes within ``timeout_s`` simulated seconds."""
        revision.answered_yes = False
        revision.answer.clear()
        answer = asyncio.ensure_future(revision.answer.wait())
        timeout = asyncio.ensure_future(self._clock.sleep(timeout_s))
        try:
            await asyncio.wait({answer, timeout}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answer.cancel()
            timeout.cancel()
        return revision.answered_yes

    def _clash(self, revision: Revision) -> Path | None:
        if revision.base is self.applied:
            return None
        return clash(diff(revision.base, revision.tree), diff(revision.base, self.applied))

    def _commit(self, revision: Revision) -> bool:
        """Put the revision's changes in force; ``False`` when it ended as invalid."""
        fault = self._faults.hit("nvue_apply_fails", self.name)
        own = diff(revision.base, revision.tree)
        result = revision.tree if revision.base is self.applied else merge(self.applied, own)
        try:
            if fault is not None:
                reason = str(fault.params.get("reason", "the configuration could not be loaded"))
                raise model.Invalid("system", reason)
            model.check_config(result)
        except model.Invalid as invalid:
            data: Tree = {"location": invalid.location, "reason": invalid.reason}
            revision.fail(State.INVALID, "Invalid config", "config_invalid", str(invalid), data)
            return False
        if self._faults.hit("switch_reset", self.name) is not None:
            self.reset("factory")
            return False
        self._supersede(revision)
        self.previous, self.applied = self.applied, result
        auto_save = find(result, ("system", "config", "auto-save"))
        if not any(leaf in {"off", "disabled"} for leaf in branch(auto_save).values()):
            self.startup = result
        self._program(result, revision.id)
        return True

    def _supersede(self, revision: Revision) -> None:
        last = self.revisions.get(self._applied_id or "")
        if last is not None:
            last.state = State.INACTIVE
        revision.state, revision.progress = State.APPLIED, ""
        self._applied_id = revision.id

    def _program(self, wanted: Tree, revision: str | None) -> None:
        """Write ``wanted`` into the hardware, less what a fault drops, and log what changed.

        Without a revision the switch has booted, and then nothing is dropped.
        """
        old_tree, old_view = self.programmed, self.view
        interfaces: Tree = dict(branch(wanted, "interface"))
        before = branch(old_tree, "interface")
        for port in self.ports:
            if revision is None or interfaces.get(port) == before.get(port):
                continue
            if self._faults.hit("nvue_drops_write", f"{self.name}/{port}") is None:
                continue
            self._log.append("port_write_dropped", f"{self.name}/{port}", revision=revision)
            interfaces.pop(port, None)
            if port in before:
                interfaces[port] = before[port]
        self.programmed = {**wanted, "interface": interfaces} if interfaces else wanted
        self.view = compiled(self.programmed, self.ports)
        self.generation += 1
        self._log_changes(old_view, self.view, revision)

    def _log_changes(self, old: SwitchView, new: SwitchView, revision: str | None) -> None:
        for port, now in new.ports.items():
            was = old.ports[port]
            if was != now:
                self._log.append(
                    "port_moved",
                    f"{self.name}/{port}",
                    host=self.hosts.get(port),
                    revision=revision,
                    was_up=was.link_up,
                    up=now.link_up,
                    was_vlans=sorted(was.vlans),
                    vlans=sorted(now.vlans),
                    vrf=now.vrf,
                )
        if (old.vnis, old.svis, old.l3) != (new.vnis, new.svis, new.l3):
            self._log.append(
                "overlay_changed",
                self.name,
                revision=revision,
                vnis={str(vlan): vni for vlan, vni in sorted(new.vnis.items())},
                svis={str(vlan): vrf for vlan, vrf in sorted(new.svis.items())},
                l3_vnis={vrf: l3.vni for vrf, l3 in sorted(new.l3.items())},
            )

    def _forget_old(self) -> None:
        over = [r.id for r in self.revisions.values() if r.state in _OVER]
        for revision_id in over[: max(0, len(over) - _KEPT_REVISIONS)]:
            if revision_id != self._applied_id:
                del self.revisions[revision_id]


def day_zero(config: EthernetSwitch, number: int) -> Tree:
    """The configuration that zero-touch provisioning leaves: the underlay, and nothing of tenants.

    Front ports are not in it: they fail open.
    """
    loopback = f"10.255.{number // 250}.{number % 250 + 1}"
    bgp: Tree = {"enable": "on", "autonomous-system": 4_200_000_000 + number, "router-id": loopback}
    return {
        "bridge": {"domain": {model.BRIDGE: {"type": "vlan-aware"}}},
        "evpn": {"enable": "on"},
        "interface": {
            "eth0": {"type": "eth", "ip": {"address": {"dhcp": {}}, "vrf": "mgmt"}},
            "lo": {"type": "loopback", "ip": {"address": {f"{loopback}/32": {}}}},
        },
        "nve": {"vxlan": {"enable": "on", "source": {"address": loopback}}},
        "router": {"bgp": bgp},
        "system": {"hostname": config.name},
        "vrf": {"default": {"router": {"bgp": {"enable": "on"}}}},
    }
