"""What volumes hold, and whether storages still have them as they should be. Looking costs, where
nothing but a walk over all files can tell: it has bounds of its own, and no order waits for it."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.volumes.port import VolumeObserved, VolumeRefusedError, VolumeUse
from dflare.kit import outbox
from dflare.kit.errors import ProblemError
from dflare.kit.lease import Lease
from dflare.kit.telemetry import log
from dflare.services.auth.contract import Scope
from dflare.services.volumes import repository
from dflare.services.volumes.contract import SnapshotState, VolumeState
from dflare.services.volumes.domain import over_quota, over_quota_event
from dflare.services.volumes.reconciler import SCHEMA, Tools, emit_shown, let_go, shown, wanted_of
from dflare.services.volumes.tables import KIT, Snapshot, Volume

SCANS_AT_ONCE = 2
"""Volumes of a site that are looked at side by side."""

_SCOPE = Scope.system("scan of a site's storage")
_GRACE_S = 2.0


@dataclass(frozen=True)
class _Found:
    """What a look gave; nothing of what failed, or came too late."""

    seen: VolumeObserved | None = None
    use: VolumeUse | None = None


@dataclass
class VolumeScanner:
    """``run`` until cancelled; ``look`` is one pass over every site whose lease can be had."""

    tools: Tools
    _resting: dict[str, datetime] = field(default_factory=dict[str, datetime])
    _leases: dict[str, Lease] = field(default_factory=dict[str, Lease])

    async def run(self) -> None:
        """Look every ``poll_s``; a database that is down is waited for."""
        try:
            while True:
                try:
                    await self.look()
                except (SQLAlchemyError, OSError, ProblemError) as error:
                    log.warning("volume_scans_wait", error=repr(error)[:300])
                await asyncio.sleep(self.tools.settings.poll_s)
        finally:
            for lease in self._leases.values():
                await asyncio.shield(let_go(lease))

    async def look(self) -> None:
        """Scan the volumes that are due at each site, those that waited longest first."""
        async with self.tools.database.reading(SCHEMA) as session:
            site_ids = await repository.open_sites(session)
        for site_id in site_ids:
            due = await self._due(site_id)
            if due and await self._lease(site_id).take():
                await asyncio.gather(*(self._scan(site_id, one) for one in due))

    def _lease(self, site_id: str) -> Lease:
        tools = self.tools
        if site_id not in self._leases:
            name, ttl_s = f"volume-scans/{site_id}", tools.settings.scan_s + tools.settings.lease_s
            self._leases[site_id] = Lease(tools.database, name, tools.holder, ttl_s)
        return self._leases[site_id]

    async def _due(self, site_id: str) -> list[str]:
        now = self.tools.clock.now()
        before = now - timedelta(seconds=self.tools.settings.scan_every_s)
        query = select(Volume.id).where(
            Volume.site_id == site_id,
            Volume.state.in_([VolumeState.READY, VolumeState.RESIZING]),
            Volume.observed_revision == Volume.revision,
            Volume.scanned_at.is_(None) | (Volume.scanned_at < before),
        )
        async with self.tools.database.reading(SCHEMA) as session:
            old = (await session.scalars(query.order_by(Volume.scanned_at).limit(512))).all()
        self._resting = {one: until for one, until in self._resting.items() if until > now}
        return [one for one in old if one not in self._resting][:SCANS_AT_ONCE]

    async def _scan(self, site_id: str, volume_id: str) -> None:
        """Count what a volume holds, and see whether the storage still has it as it should be."""
        tools = self.tools
        began = time.monotonic()
        found = await self._find(site_id, volume_id)
        rest_s = (time.monotonic() - began) * tools.settings.scan_rest
        self._resting[volume_id] = tools.clock.now() + timedelta(seconds=rest_s)
        async with tools.database.transaction(SCHEMA) as session:
            volume = await repository.lock_volume(session, _SCOPE, volume_id)
            now = tools.clock.now()
            before, was_over = shown(volume), over_quota(volume)
            volume.scanned_at = now
            if found.use is not None:
                volume.used_bytes, volume.used_complete = found.use.used_bytes, found.use.complete
            if found.seen is not None:
                await _put_right(session, volume, found.seen)
            await emit_shown(session, volume, before, (), now)
            if over_quota(volume) and not was_over:
                await outbox.emit(session, KIT, [over_quota_event(volume, now)])

    async def _find(self, site_id: str, volume_id: str) -> _Found:
        driver, scan_s = self.tools.drivers(site_id), self.tools.settings.scan_s
        seen: VolumeObserved | None = None
        try:
            async with asyncio.timeout(scan_s + _GRACE_S):
                seen = (await driver.observe([volume_id]))[volume_id]
                return _Found(seen, await driver.usage(volume_id, scan_s) if seen.present else None)
        except (VolumeRefusedError, OSError) as error:
            log.warning("volume_scan_failed", volume_id=volume_id, error=repr(error)[:300])
            return _Found(seen)


async def _put_right(session: AsyncSession, volume: Volume, seen: VolumeObserved) -> None:
    """Ask for a locked volume once more where the storage no longer has it as it was seen."""
    if volume.observed_revision != volume.revision:
        return
    wanted = await wanted_of(session, volume)
    had = {one.id for one in await repository.snapshots_of(session, volume.id) if _is_ready(one)}
    if had - seen.snapshots or not wanted.is_met(seen):
        volume.revision += 1
        log.warning("volume_drift", volume_id=volume.id, seen=repr(seen)[:300])


def _is_ready(snapshot: Snapshot) -> bool:
    return snapshot.state == SnapshotState.READY
