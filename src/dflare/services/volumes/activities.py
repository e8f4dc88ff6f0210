"""Steps of the volumes service and its read models. Steps at a site set desired state and wait
until the site's reconciler has seen it: it alone writes to the storage."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.errors import ConflictError
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.services.auth.contract import Scope
from dflare.services.volumes import repository
from dflare.services.volumes.activities_access import Grant, Revoke
from dflare.services.volumes.activities_parts import Parts
from dflare.services.volumes.contract import AccessMode, VolumeState
from dflare.services.volumes.domain import check_transition, enter, volume_event
from dflare.services.volumes.tables import KIT, Volume

_SCOPE = Scope.system("step of an operation on the volume")
_BEYOND = frozenset({VolumeState.DELETING, VolumeState.DELETED})
"""A release came after the order: there is nothing of the volume left to take back."""


@dataclass(frozen=True)
class SetState:
    """Moves the volume of an operation to ``state``; nothing of the outside world is touched."""

    name: str
    state: VolumeState
    clock: Clock
    used: bool = False

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> VolumeState:
        """The volume's present state."""
        volume = await repository.lock_volume(session, _SCOPE, call.resource_id)
        return VolumeState(volume.state)

    async def act(
        self, call: StepCall, loaded: VolumeState, targets: list[str]
    ) -> dict[str, Outcome]:
        """A step that comes too late for its volume fails, since trying again would not help."""
        if call.undoing and loaded in _BEYOND:
            return dict.fromkeys(targets, DONE)
        try:
            check_transition(loaded, self.state)
        except ConflictError as error:
            return dict.fromkeys(targets, Outcome("failed", error.detail))
        return dict.fromkeys(targets, DONE)

    async def record(
        self,
        session: AsyncSession,
        call: StepCall,
        loaded: VolumeState,
        outcomes: dict[str, Outcome],
    ) -> None:
        """Change the state and emit ``volume.changed``; repeating changes nothing. A volume that
        is ``used`` from now on begins an interval of its size."""
        if any(outcome.state != "done" for outcome in outcomes.values()):
            return
        volume = await repository.lock_volume(session, _SCOPE, call.resource_id)
        old, now = VolumeState(volume.state), self.clock.now()
        if old is self.state or (call.undoing and old in _BEYOND):
            return
        failed = self.state is VolumeState.FAILED
        if failed and old is VolumeState.READY:
            # It became ready, but nobody heard of it in time: its tenant never had it.
            await repository.end_usage(session, volume, volume.created_at)
        enter(volume, self.state, now, f"operation {call.operation_id} was undone" * failed)
        if self.used:
            volume.size_gib = volume.wanted_gib
        await session.flush()
        await outbox.emit(session, KIT, [volume_event(volume, now)])
        if self.used:
            await repository.begin_usage(session, volume, now)


@dataclass(frozen=True)
class Desired:
    """What a step waits for: the revision that the storage has to be seen to fulfil."""

    site_id: str
    revision: int
    failed: str = ""


class _SiteStep:
    """Sets what the storage is to have, and waits until it is seen to have it where ``waits``."""

    waits = True

    def __init__(self, name: str, parts: Parts) -> None:
        self.name = name
        self.parts = parts

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Desired:
        """Set desired state, in the transaction before anything is waited for."""
        volume = await self.lock(session, call)
        before = (volume.present, volume.desired_gib, volume.state)
        try:
            await self.change(session, volume, call)
        except ConflictError as error:
            await session.refresh(volume)
            return Desired(volume.site_id, volume.revision, error.detail)
        if (volume.present, volume.desired_gib) != before[:2]:
            volume.revision += 1
        elif volume.refused and volume.trouble_revision == volume.revision and call.undoing:
            # What was refused is asked for once more: an undo has no other way to go.
            volume.revision += 1
        if (volume.present, volume.desired_gib, volume.state) != before:
            volume.version += 1
            await session.flush()
            await outbox.emit(session, KIT, [volume_event(volume, self.parts.clock.now())])
        return Desired(volume.site_id, volume.revision)

    async def lock(self, session: AsyncSession, call: StepCall) -> Volume:
        """The volume, locked."""
        return await repository.lock_volume(session, _SCOPE, call.resource_id)

    async def change(self, session: AsyncSession, volume: Volume, call: StepCall) -> None:
        """Alter what is desired of a locked volume; nothing where the step only waits."""

    async def act(self, call: StepCall, loaded: Desired, targets: list[str]) -> dict[str, Outcome]:
        """Wake the reconciler and look at what it saw."""
        if loaded.failed:
            return dict.fromkeys(targets, Outcome("failed", loaded.failed))
        parts = self.parts
        parts.signals.wake()
        if not self.waits:
            return dict.fromkeys(targets, DONE)
        outcome = await self._look(call, loaded)
        if outcome.state == "pending":
            await parts.signals.passed(parts.settings.step_wait_s)
            outcome = await self._look(call, loaded)
        return dict.fromkeys(targets, outcome)

    async def _look(self, call: StepCall, loaded: Desired) -> Outcome:
        async with self.parts.database.reading(KIT.schema) as session:
            volume = await session.get_one(Volume, call.resource_id)
        if volume.observed_revision >= loaded.revision:
            return Outcome(
                "done",
                observed={"present": volume.observed_present, "size_gib": volume.observed_gib},
            )
        if volume.refused and volume.trouble_revision >= loaded.revision:
            return Outcome("failed", f"the storage refuses: {volume.trouble}")
        return Outcome("pending", volume.trouble)

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Desired, outcomes: dict[str, Outcome]
    ) -> None:
        """Everything was written in the first transaction."""


class Provide(_SiteStep):
    """The volume is to exist, in the size that was ordered."""

    waits = False

    async def change(self, session: AsyncSession, volume: Volume, call: StepCall) -> None:
        """Nothing is made for a volume whose release has begun.

        Raises:
            ConflictError: it has.
        """
        check_transition(VolumeState(volume.state), VolumeState.READY)
        volume.present = True


class Remove(_SiteStep):
    """The volume is to be gone: its content first, then its name in the storage."""

    def __init__(self, name: str, parts: Parts, *, waits: bool) -> None:
        super().__init__(name, parts)
        self.waits = waits

    async def change(self, session: AsyncSession, volume: Volume, call: StepCall) -> None:
        """Gone is gone for everybody."""
        volume.present = False
        for row in await repository.access_of(session, [volume.id], lock=True):
            row.mode = AccessMode.NONE


class SetSize(_SiteStep):
    """The storage is to grant the size in param ``size_gib``. A retry of an order that was undone
    asks for the quota again."""

    waits = False

    async def lock(self, session: AsyncSession, call: StepCall) -> Volume:
        """The volume, locked behind the quota, as orders lock them."""
        if call.project_id is not None:
            await repository.lock_quota(session, call.project_id)
        return await super().lock(session, call)

    async def change(self, session: AsyncSession, volume: Volume, call: StepCall) -> None:
        """Desire the new size.

        Raises:
            ConflictError: the volume is not there to be resized, or the quota has no room any more.
        """
        size_gib = int(call.params["size_gib"])
        check_transition(VolumeState(volume.state), VolumeState.RESIZING)
        if volume.wanted_gib != size_gib or volume.state != VolumeState.RESIZING:
            await repository.check_quota(session, volume.project_id, size_gib, volume.id)
            enter(volume, VolumeState.RESIZING, self.parts.clock.now())
        volume.wanted_gib = volume.desired_gib = size_gib


class SizeBack(_SiteStep):
    """The storage is to grant the size that the tenant has; seen so, the volume is ready again."""

    async def change(self, session: AsyncSession, volume: Volume, call: StepCall) -> None:
        """Desire the present size."""
        if volume.state == VolumeState.RESIZING:
            volume.wanted_gib = volume.desired_gib = volume.size_gib

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Desired, outcomes: dict[str, Outcome]
    ) -> None:
        """Ready, where the storage was seen to grant the old size."""
        if any(outcome.state != "done" for outcome in outcomes.values()):
            return
        volume = await self.lock(session, call)
        if volume.state == VolumeState.RESIZING:
            now = self.parts.clock.now()
            enter(volume, VolumeState.READY, now, f"operation {call.operation_id} was undone")
            await session.flush()
            await outbox.emit(session, KIT, [volume_event(volume, now)])


def steps(clock: Clock) -> list[Step[Any]]:
    """The steps that touch no storage."""
    return [
        SetState("volumes.begin@1", VolumeState.CREATING, clock),
        SetState("volumes.fail@1", VolumeState.FAILED, clock),
        SetState("volumes.ready@1", VolumeState.READY, clock, used=True),
        SetState("volumes.resized@1", VolumeState.READY, clock, used=True),
        SetState("volumes.begin_delete@1", VolumeState.DELETING, clock),
        SetState("volumes.deleted@1", VolumeState.DELETED, clock),
    ]


def site_steps(parts: Parts) -> list[Step[Any]]:
    """The steps of a site's queue."""
    return [
        Provide("volumes.provide@1", parts),
        Remove("volumes.withdraw@1", parts, waits=True),
        _SiteStep("volumes.await@1", parts),
        SetSize("volumes.set_size@1", parts),
        SizeBack("volumes.size_back@1", parts),
        Remove("volumes.remove@1", parts, waits=False),
        Remove("volumes.await_removed@1", parts, waits=True),
        Grant("volumes.grant@1", parts),
        Revoke("volumes.revoke@1", parts),
    ]
