"""The one actor on a site's storage: brings about what is desired of volumes, and records what was
observed. Source: DESIGN section 5, "One actor a thing" and "Epochs and intents".

A pass acts on volumes that are behind: it commits an intent, calls the driver with no transaction
open, and records what the driver observed. An intent that its holder did not close, because it died
or the storage hangs, keeps others away until its deadline. Ids of volumes are never used again, so
that even a later write reaches nobody else's content.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.volumes.port import (
    VolumeDriver,
    VolumeObserved,
    VolumeRefusedError,
)
from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ProblemError
from dflare.kit.lease import Lease
from dflare.kit.outbox import Event
from dflare.kit.telemetry import log
from dflare.services.auth.contract import Scope
from dflare.services.volumes import repository
from dflare.services.volumes.contract import AccessMode, SnapshotState
from dflare.services.volumes.domain import access_event, volume_event
from dflare.services.volumes.reconciler_snapshots import KEPT, bring_snapshots, note_snapshots
from dflare.services.volumes.settings import VolumesSettings
from dflare.services.volumes.signals import Signals
from dflare.services.volumes.tables import KIT, KnownSite, Volume

SCHEMA = "volumes"
AT_ONCE = 8
"""Volumes of a site that are acted on side by side."""

_SCOPE = Scope.system("reconciler of a site's storage")
_GRACE_S = 2.0
"""An intent outlives the call that it announces by so much."""


@dataclass(frozen=True)
class Tools:
    """What the reconciler works with. ``drivers`` gives the storage of a site; ``holder`` names
    this process among all."""

    database: Database
    clock: Clock
    settings: VolumesSettings
    drivers: Callable[[str], VolumeDriver]
    signals: Signals
    holder: str


@dataclass(frozen=True)
class Wanted:
    """What the storage is to have of a volume at a revision; ``known`` if it was seen to exist. Of
    snapshots it is to ``take`` some, and to ``keep`` some that it has, or had."""

    volume_id: str
    revision: int
    present: bool
    size_gib: int
    access: Mapping[str, bool]
    known: bool
    take: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()

    def is_met(self, seen: VolumeObserved) -> bool:
        """Whether the storage has it so."""
        if not self.present:
            return not seen.present
        return (
            seen.size_gib == self.size_gib
            and dict(seen.access) == dict(self.access)
            and self.take <= seen.snapshots <= self.take | self.keep
        )


@dataclass(frozen=True)
class Found:
    """What came of a call: what was seen, and what of it is not as it should be. ``open``: it may
    still take effect; ``refused``: trying again does not help; ``lost``: the storage no longer has
    the volume. ``gave_up`` are snapshots that it refuses to take."""

    seen: VolumeObserved | None = None
    source: str = ""
    no_snapshots: str = ""
    gave_up: frozenset[str] = frozenset()
    trouble: str = ""
    refused: bool = False
    lost: bool = False
    open: bool = False


class _LostError(VolumeRefusedError):
    """The storage no longer has a volume that it was seen to have."""


@dataclass
class VolumeReconciler:
    """``run`` until cancelled; ``look`` is one pass over every site whose lease can be had."""

    tools: Tools
    _tries: dict[str, int] = field(default_factory=dict[str, int])
    _not_before: dict[str, datetime] = field(default_factory=dict[str, datetime])
    _leases: dict[str, Lease] = field(default_factory=dict[str, Lease])

    async def run(self) -> None:
        """Look when woken and every ``poll_s``; a database that is down is waited for."""
        try:
            while True:
                try:
                    busy = await self.look()
                except (SQLAlchemyError, OSError, ProblemError) as error:
                    log.warning("volumes_wait", error=repr(error)[:300])
                    busy = False
                self.tools.signals.over()
                if not busy:
                    await self.tools.signals.wanted(self.tools.settings.poll_s)
        finally:
            for lease in self._leases.values():
                await asyncio.shield(let_go(lease))

    async def look(self) -> bool:
        """One pass; whether there is more to do at once."""
        async with self.tools.database.reading(SCHEMA) as session:
            site_ids = await repository.open_sites(session)
        busy = False
        for site_id in site_ids:
            lease = self._lease(site_id)
            behind = await self._behind(site_id)
            if behind and await lease.take():
                goes_on = await asyncio.gather(*(self._bring_about(one) for one in behind))
                busy = busy or any(goes_on) or len(behind) == AT_ONCE
        return busy

    def _lease(self, site_id: str) -> Lease:
        tools = self.tools
        if site_id not in self._leases:
            name, ttl_s = f"volumes/{site_id}", tools.settings.lease_s
            self._leases[site_id] = Lease(tools.database, name, tools.holder, ttl_s)
        return self._leases[site_id]

    async def _behind(self, site_id: str) -> list[str]:
        """Volumes that are behind and may be tried now."""
        now = self.tools.clock.now()
        behind = select(Volume.id).where(
            Volume.site_id == site_id,
            Volume.observed_revision < Volume.revision,
            ~(Volume.refused & (Volume.trouble_revision == Volume.revision)),
        )
        async with self.tools.database.reading(SCHEMA) as session:
            late = (await session.scalars(behind.order_by(Volume.id).limit(512))).all()
        return [one for one in late if self._not_before.get(one, now) <= now][:AT_ONCE]

    async def _bring_about(self, volume_id: str) -> bool:
        """Act on one volume; whether it is to be looked at again at once."""
        begun = await self._begin(volume_id)
        if begun is None:
            return False
        wanted, driver = begun
        found = await self._act(driver, wanted)
        await self._record(wanted, found)
        goes_on = found.seen is not None and not wanted.present
        if goes_on or (found.seen is not None and wanted.is_met(found.seen)):
            self._tries.pop(volume_id, None)
            self._not_before.pop(volume_id, None)
            return goes_on
        tries = self._tries[volume_id] = self._tries.get(volume_id, 0) + 1
        settings = self.tools.settings
        pause_s = min(settings.backoff_first_s * 2 ** (tries - 1), settings.backoff_most_s)
        self._not_before[volume_id] = self.tools.clock.now() + timedelta(seconds=pause_s)
        return False

    async def _begin(self, volume_id: str) -> tuple[Wanted, VolumeDriver] | None:
        """Commit the intent to act, unless somebody else's is open or the site was frozen."""
        tools = self.tools
        async with tools.database.transaction(SCHEMA) as session:
            volume = await repository.lock_volume(session, _SCOPE, volume_id)
            now = tools.clock.now()
            if volume.observed_revision >= volume.revision or _is_open(volume, now):
                return None
            site = await session.get_one(KnownSite, volume.site_id)
            if site.frozen:
                return None
            volume.intent_revision, volume.intent_holder = volume.revision, tools.holder
            volume.intent_until = now + timedelta(seconds=tools.settings.intent_s)
            return await wanted_of(session, volume), tools.drivers(volume.site_id)

    async def _act(self, driver: VolumeDriver, wanted: Wanted) -> Found:
        try:
            async with asyncio.timeout(self.tools.settings.intent_s - _GRACE_S):
                seen = await self._write(driver, wanted)
                if not wanted.present:
                    return Found(seen)
                kept = await bring_snapshots(
                    driver, wanted.volume_id, seen, wanted.take, wanted.keep
                )
                source = driver.source(wanted.volume_id)
                return Found(kept.seen, source, kept.refusal, kept.gave_up, kept.trouble)
        except VolumeRefusedError as error:
            lost = isinstance(error, _LostError)
            return Found(trouble=str(error)[:300], refused=True, lost=lost)
        except TimeoutError:
            return Found(trouble="the storage does not answer in time", open=True)
        except OSError as error:
            # The text would name places of the machine to tenants; its log may.
            log.warning("volume_trouble", volume_id=wanted.volume_id, error=repr(error)[:300])
            return Found(trouble=f"the storage fails: {error.strerror or 'unknown error'}")

    async def _write(self, driver: VolumeDriver, wanted: Wanted) -> VolumeObserved:
        if not wanted.present:
            return await driver.remove(wanted.volume_id, self.tools.settings.act_s)
        if wanted.known:
            seen = (await driver.observe([wanted.volume_id]))[wanted.volume_id]
            if not seen.present:
                # Making it again would hide from its tenant that the content is lost.
                raise _LostError("the storage has lost this volume")
        seen = await driver.ensure(wanted.volume_id)
        if seen.size_gib != wanted.size_gib:
            seen = await driver.set_quota(wanted.volume_id, wanted.size_gib)
        if dict(seen.access) != dict(wanted.access):
            seen = await driver.set_access(wanted.volume_id, wanted.access)
        return seen

    async def _record(self, wanted: Wanted, found: Found) -> None:
        """Write what was observed, unless another holder has taken the volume over meanwhile."""
        tools = self.tools
        async with tools.database.transaction(SCHEMA) as session:
            volume = await repository.lock_volume(session, _SCOPE, wanted.volume_id)
            mine = (tools.holder, wanted.revision)
            if (volume.intent_holder, volume.intent_revision) != mine:
                return
            now = tools.clock.now()
            if not found.open:
                volume.intent_revision = volume.intent_until = None
                volume.intent_holder = ""
            before = shown(volume)
            changed: list[Event] = []
            volume.trouble, volume.refused = found.trouble, found.refused
            volume.trouble_revision = wanted.revision
            if found.seen is not None:
                _note(volume, found, now)
                if replace(wanted, take=wanted.take - found.gave_up).is_met(found.seen):
                    volume.observed_revision = wanted.revision
                changed += await _note_access(session, volume, found.seen, now)
                changed += await note_snapshots(session, volume, found.seen, now, found.gave_up)
            elif found.lost:
                # Nobody has access to what is not there: releases of clusters need not wait.
                nothing = VolumeObserved(present=False)
                changed += await _note_access(session, volume, nothing, now)
                changed += await note_snapshots(session, volume, nothing, now)
            await emit_shown(session, volume, before, changed, now)


async def wanted_of(session: AsyncSession, volume: Volume) -> Wanted:
    """What the storage is to have of a volume now."""
    rows = await repository.access_of(session, [volume.id])
    snapshots = await repository.snapshots_of(session, volume.id)
    return Wanted(
        volume.id,
        volume.revision,
        volume.present,
        volume.desired_gib,
        repository.desired_access(rows),
        volume.observed_present,
        frozenset(one.id for one in snapshots if one.state == SnapshotState.CREATING),
        frozenset(one.id for one in snapshots if one.state in KEPT),
    )


async def emit_shown(
    session: AsyncSession,
    volume: Volume,
    before: tuple[object, ...],
    changed: Sequence[Event],
    now: datetime,
) -> None:
    """Tell what people see of a locked volume, where that is something else than before, and what
    changed of its access and snapshots."""
    if shown(volume) == before and not changed:
        return
    volume.version += 1
    await session.flush()
    changes = [replace(event, resource_version=volume.version) for event in changed]
    await outbox.emit(session, KIT, [volume_event(volume, now), *changes])


def _is_open(volume: Volume, now: datetime) -> bool:
    """Whether a write may still be under way. One's own is when its call did not return in time."""
    return volume.intent_until is not None and volume.intent_until > now


def _note(volume: Volume, found: Found, now: datetime) -> None:
    seen = found.seen or VolumeObserved(present=False)
    volume.no_snapshots = found.no_snapshots
    volume.observed_present, volume.observed_gib = seen.present, seen.size_gib
    volume.quota = str(seen.quota or "")
    volume.source = found.source if seen.present else ""
    volume.observed_at = now


async def _note_access(
    session: AsyncSession, volume: Volume, seen: VolumeObserved, now: datetime
) -> list[Event]:
    """Write what each cluster was seen to have; who has and is to have nothing is forgotten."""
    changed: list[Event] = []
    for row in await repository.access_of(session, [volume.id], lock=True):
        observed = AccessMode.NONE
        if row.cluster_id in seen.access:
            may_write = seen.access[row.cluster_id]
            observed = AccessMode.READ_WRITE if may_write else AccessMode.READ_ONLY
        if observed != row.observed or observed == row.mode == AccessMode.NONE:
            row.observed = observed
            changed.append(access_event(volume, row, now))
        if observed == row.mode == AccessMode.NONE:
            await session.delete(row)
    return changed


def shown(volume: Volume) -> tuple[object, ...]:
    """What people see of a volume that the reconciler changes."""
    shown = (volume.trouble, volume.quota, volume.used_bytes, volume.observed_gib)
    return (*shown, volume.source, volume.no_snapshots)


async def let_go(lease: Lease) -> None:
    try:
        await lease.give_back()
    except (SQLAlchemyError, OSError, ProblemError) as error:
        log.warning("lease_not_given_back", lease=lease.name, error=repr(error)[:200])
