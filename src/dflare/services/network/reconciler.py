"""One reconciler a device: the only writer of that switch or manager.

A pass reads the difference between desired and last seen in one transaction that also commits the
intents of what it is going to write; looks once more whether the write may leave; writes with no
transaction open; reads the whole device back; and records that and the intents that are settled in
another transaction. A write whose outcome is unknown keeps its intent open until its hard deadline.
Source: DESIGN section 5, "One actor a thing" and "Epochs and intents".
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar, cast

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.fabric.port import (
    DeviceAccess,
    DeviceError,
    DeviceRefusedError,
    DeviceUnreachableError,
)
from dflare.kit.clock import Clock, hardware_timeout_s
from dflare.kit.db import Database
from dflare.kit.seal import Sealer, SealError
from dflare.kit.telemetry import log, span
from dflare.services.network import device_rows
from dflare.services.network.device_rows import Pass, Recorded
from dflare.services.network.domain import DeviceHealth
from dflare.services.network.errors import LeaseLostError
from dflare.services.network.fabric import DeviceView, Fabric, FabricPlan, PortVersion, Written
from dflare.services.network.settings import NetworkSettings
from dflare.services.network.signals import Signals
from dflare.services.network.tables import Device

SCHEMA = "network"
TRANSACTIONS = 5
"""Transactions of a process's reconcilers at once; the other connections are for its steps."""
PASSES = 24
"""Passes of a process at once. Without a bound every device's intents would be committed before the
first write leaves, and on a busy machine they would be too old by then."""
MANY_PORTS = 256
"""Devices with more ports are planned and judged off the event loop."""
_NEVER = datetime.max.replace(tzinfo=UTC)
_QUICK_MOST_S = 2.0
_AGAIN_S = 5.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Settled = tuple[dict[str, str], dict[str, tuple[tuple[str, ...], bool]]]


@dataclass(frozen=True)
class Tools:
    """What all reconcilers of a process share. ``fabrics`` are by the driver's name in the site
    document; ``holder`` is this process's name in the leases."""

    database: Database
    clock: Clock
    speed: float
    settings: NetworkSettings
    sealer: Sealer
    fabrics: Mapping[str, Fabric[Any, Any]]
    signals: Signals
    holder: str
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(TRANSACTIONS))
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PASSES))

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """A transaction of a reconciler, when it is its turn."""
        async with self.gate, self.database.transaction(SCHEMA) as session:
            yield session

    @property
    def lands_within_s(self) -> float:
        """Wall seconds after leaving within which a write takes effect or never does."""
        settings = self.settings
        return settings.request_timeout_s + hardware_timeout_s(settings.job_timeout_s, self.speed)


@dataclass
class _Sent:
    """A write under way, and its ports, which need not be sent again: until its jobs end, or where
    the device names none until ``again_at`` of the loop's clock."""

    ports: frozenset[PortVersion]
    jobs: frozenset[str]
    again_at: float


@dataclass
class _State:
    """What a reconciler remembers between passes; nothing in it is needed after a restart."""

    access: DeviceAccess | None = None
    fabric: Fabric[Any, Any] | None = None
    seen: Any = None
    sent: dict[str, _Sent] = field(default_factory=dict[str, _Sent])
    quick: int = 0
    failures: int = 0


class DeviceReconciler:
    """Brings one device to what is desired, and back to it, until cancelled."""

    def __init__(self, device_id: str, tools: Tools) -> None:
        self._device_id = device_id
        self._tools = tools
        self._state = _State()

    async def run(self) -> None:
        """Pass after pass; ends when the lease is lost."""
        tools, state = self._tools, self._state
        while True:
            try:
                async with tools.slots:
                    tools.signals.begun(self._device_id)
                    rest_s = await self.reconcile()
            except LeaseLostError:
                log.info("lease_lost", device=self._device_id)
                return
            except Exception as error:
                if isinstance(error, DeviceError | SQLAlchemyError | OSError):
                    log.warning("device_failed", device=self._device_id, error=str(error)[:500])
                else:
                    log.exception("reconcile_failed", device=self._device_id, error=str(error))
                state.seen = None
                await tools.clock.sleep(self._backoff_s())
                continue
            finally:
                tools.signals.over(self._device_id)
            if not await tools.signals.wanted(self._device_id, rest_s) and not state.quick:
                # Nobody asked: this is the periodic read-back that finds drift.
                state.seen = None

    async def reconcile(self) -> float:
        """One pass; returns the seconds until the next one that nobody asks for.

        Raises:
            LeaseLostError: another process reconciles the device now.
            DeviceError: it could not be read back, or a write failed; recorded already.
        """
        if self._state.seen is None:
            await self._look()
        view, plan, intents = await self._prepare()
        first, *others = (plan.operations if intents else ()) or (None,)
        for other in others:
            # A pass serves several orders at once; the calls stand in the trace of the first.
            with span(f"reconcile {view.name}", operation_id=other, together_with=str(first)):
                pass
        # What stands below a pass of several orders is kept from tenants (``orders`` says so).
        with span(
            f"reconcile {view.name}",
            operation_id=first,
            ports=len(plan.ports),
            orders=len(others) + 1,
        ):
            written = await self._send(view, plan, intents) if intents else None
            if intents and written is None:
                return 0
            recorded = await self._read_back(view, plan, intents, written)
        self._tools.signals.passed(self._device_id)
        if written is not None and written.error is not None:
            raise written.error
        self._state.failures = 0
        return self._rest_s(view, plan, recorded)

    async def _look(self) -> None:
        """The first observation, or one after a failure or a quiet time."""
        tools, state = self._tools, self._state
        async with tools.transaction() as session:
            devices = await device_rows.find_devices(session, [self._device_id])
        if not devices:
            raise LeaseLostError(self._device_id)
        try:
            state.access = _access(devices[0], tools.sealer)
            state.fabric = _fabric(devices[0], tools)
            state.seen = await state.fabric.observe(state.access)
        except DeviceError as error:
            await self._failed({}, error)
            raise

    async def _prepare(self) -> tuple[DeviceView, FabricPlan[Any], list[str]]:
        """The difference, and the committed intents of what is going to be written."""
        tools, state = self._tools, self._state
        fabric = self._fabric()
        async with tools.transaction() as session:
            view = await device_rows.load_view(session, self._device_id, tools.holder)
            in_flight = frozenset[PortVersion]().union(*(s.ports for s in state.sent.values()))
            plan = await _off_loop(view, fabric.plan, view, state.seen, in_flight)
            if not plan.needed or view.frozen:
                return view, plan, []
            intents = await device_rows.add_intents(
                session,
                self._device_id,
                tools.holder,
                plan.touches,
                tools.clock.now(),
                leave_within_s=tools.settings.leave_within_s,
                lands_within_s=tools.lands_within_s,
            )
        return view, plan, intents

    async def _send(
        self, view: DeviceView, plan: FabricPlan[Any], intents: list[str]
    ) -> Written | None:
        """Write, unless the last look refuses it; then nothing has left."""
        tools = self._tools
        async with tools.transaction() as session:
            now = tools.clock.now()
            if not await device_rows.may_leave(
                session, self._device_id, tools.holder, intents, now
            ):
                await device_rows.close_unsent(session, intents, now)
                log.info("write_refused", device=view.name, intents=len(intents))
                return None
        return await self._fabric().write(self._access(), plan.change, tools.settings.wait_s)

    async def _read_back(
        self,
        view: DeviceView,
        plan: FabricPlan[Any],
        intents: list[str],
        written: Written | None,
    ) -> Recorded:
        """Settle intents, observe, judge, record. What is settled was so before the read-back."""
        tools, state, fabric = self._tools, self._state, self._fabric()
        fates = {i.id: (i.jobs, i.certain, i.deadline) for i in view.intents}
        if written is not None:
            fate = (tuple(written.jobs), written.certain, _NEVER)
            fates |= dict.fromkeys(intents, fate)
            if written.error is None and not (written.certain and not written.jobs):
                again_at = asyncio.get_running_loop().time() + _AGAIN_S
                state.sent[intents[0]] = _Sent(plan.ports, frozenset(written.jobs), again_at)
        try:
            closed, waiting = await self._settle(fates)
            read_at = tools.clock.now()
            state.seen = await fabric.observe(self._access())
        except DeviceError as error:
            await self._failed({i: fates[i][:2] for i in intents}, error)
            raise
        hazard = fabric.hazard(state.seen)
        health, reason = (DeviceHealth.UNSAFE, hazard) if hazard else (DeviceHealth.HEALTHY, "")
        if written is not None and written.error is not None:
            health, reason = _failure(written.error)
        done = Pass(
            judged=await _off_loop(view, fabric.judge, view, state.seen),
            gone=fabric.gone(view, state.seen),
            closed=closed,
            waiting=waiting,
            health=health,
            reason=reason,
            read_at=read_at,
            repaired=_drifted(view, plan) if intents else 0,
        )
        async with tools.transaction() as session:
            return await device_rows.record(session, view, tools.holder, done, tools.clock.now())

    async def _settle(self, fates: Mapping[str, tuple[tuple[str, ...], bool, datetime]]) -> Settled:
        """Which intents are over, and what the others wait for."""
        jobs = {job for jobs, _, _ in fates.values() for job in jobs}
        running: frozenset[str] = frozenset()
        if jobs:
            running = await self._fabric().unfinished(self._access(), sorted(jobs))
        now = self._tools.clock.now()
        others: frozenset[str] = frozenset()
        if any(not certain and now >= deadline for _, certain, deadline in fates.values()):
            others = await self._fabric().running(self._access())
        closed: dict[str, str] = {}
        waiting: dict[str, tuple[tuple[str, ...], bool]] = {}
        for intent, (own, certain, deadline) in fates.items():
            left = tuple(job for job in own if job in running)
            if left:
                waiting[intent] = (left, certain)
            elif certain:
                closed[intent] = "settled"
            elif now >= deadline and others:
                # Any of these may be the write that nobody knows the fate of.
                waiting[intent] = (tuple(sorted(others)), True)
            elif now >= deadline:
                closed[intent] = "expired"
            else:
                waiting[intent] = ((), False)
        sent, at = self._state.sent, asyncio.get_running_loop().time()
        for intent in list(sent):
            sent[intent].jobs &= running
            if not sent[intent].jobs and (intent in closed or at >= sent[intent].again_at):
                del sent[intent]
        return closed, waiting

    async def _failed(
        self, waiting: Mapping[str, tuple[tuple[str, ...], bool]], error: DeviceError
    ) -> None:
        tools = self._tools
        health, reason = _failure(error)
        async with tools.transaction() as session:
            await device_rows.record_failure(
                session, self._device_id, waiting, health, reason, tools.clock.now()
            )
        tools.signals.passed(self._device_id)

    def _rest_s(self, view: DeviceView, plan: FabricPlan[Any], recorded: Recorded) -> float:
        """At once when more is desired; soon while something is under way; else the usual time."""
        state, settings = self._state, self._tools.settings
        if recorded.wanted_more:
            state.quick = 0
            return 0
        busy = recorded.open_intents or (recorded.unmet > len(plan.refused) and not view.frozen)
        if not busy:
            state.quick = 0
            return settings.read_back_every_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        state.quick = 1 if plan.needed and not state.quick else state.quick + 1
        return min(_QUICK_MOST_S, 0.01 * 1.6 ** min(state.quick, 20))

    def _backoff_s(self) -> float:
        state, settings = self._state, self._tools.settings
        state.failures += 1
        most_s = settings.backoff_first_s * 2 ** min(state.failures - 1, 16)
        return min(settings.backoff_most_s, most_s) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def _fabric(self) -> Fabric[Any, Any]:
        assert self._state.fabric is not None
        return self._state.fabric

    def _access(self) -> DeviceAccess:
        assert self._state.access is not None
        return self._state.access


async def _off_loop(
    view: DeviceView,
    pure: Callable[Arguments, Result],
    *args: Arguments.args,
    **kw: Arguments.kwargs,
) -> Result:
    """Call ``pure``, in a thread where the device has many ports."""
    if len(view.ports) > MANY_PORTS:
        return await asyncio.to_thread(pure, *args, **kw)
    return pure(*args, **kw)


def _access(device: Device, sealer: Sealer) -> DeviceAccess:
    """Open the device's credentials (``kit.seal`` name ``device/<site_id>/<name>``)."""
    try:
        plain = sealer.open(f"device/{device.site_id}/{device.name}", device.sealed)
    except SealError as error:
        raise DeviceRefusedError(f"{device.name}: its credentials do not open") from error
    # The document's form is fixed by baremetal's contract.
    login = cast("dict[str, str]", json.loads(plain))
    return DeviceAccess(device.name, device.address, login["username"], login["password"])


def _fabric(device: Device, tools: Tools) -> Fabric[Any, Any]:
    fabric = tools.fabrics.get(device.driver)
    if fabric is None:
        known = ", ".join(sorted(tools.fabrics))
        raise DeviceRefusedError(f"{device.name}: no driver {device.driver!r}; known: {known}")
    return fabric


def _failure(error: DeviceError) -> tuple[DeviceHealth, str]:
    if isinstance(error, DeviceUnreachableError):
        return DeviceHealth.UNREACHABLE, str(error)
    return DeviceHealth.REFUSING, str(error)


def _drifted(view: DeviceView, plan: FabricPlan[Any]) -> int:
    """Ports that were as desired at the last read-back and were not any more."""
    return sum(
        port.matches and port.compared_version == port.version
        for port in view.ports
        if (port.port_id, port.version) in plan.ports
    )
