"""Snapshots in the passes of the reconciler: taken, dropped, and written down as they were seen."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.drivers.volumes.port import (
    SnapshotDriver,
    VolumeDriver,
    VolumeObserved,
    VolumeRefusedError,
)
from dflare.kit.outbox import Event
from dflare.kit.telemetry import log
from dflare.services.volumes import repository
from dflare.services.volumes.contract import SnapshotState
from dflare.services.volumes.domain import snapshot_event
from dflare.services.volumes.tables import Volume

KEPT = (SnapshotState.READY, SnapshotState.LOST)
"""A storage that has one of these is not to drop it, and none is taken anew."""


@dataclass(frozen=True)
class Brought:
    """A volume as it was seen last, why it takes no snapshots, and what went wrong with them;
    ``gave_up`` are those that it refuses to take."""

    seen: VolumeObserved
    refusal: str = ""
    gave_up: frozenset[str] = frozenset()
    trouble: str = ""


async def bring_snapshots(
    driver: VolumeDriver,
    volume_id: str,
    seen: VolumeObserved,
    take: AbstractSet[str],
    keep: AbstractSet[str],
) -> Brought:
    """Take what is to be taken, and drop what is not to be there. Access and size do not wait for
    this: what fails here leaves what was seen of them as it is."""
    if not isinstance(driver, SnapshotDriver):
        return Brought(seen, "this kind of storage keeps no snapshots", frozenset(take))
    refusal, gave_up, trouble = "", set[str](), ""
    try:
        refusal = await driver.snapshot_refusal(volume_id)
        for snapshot_id in sorted(take - seen.snapshots):
            try:
                seen = await driver.snapshot(volume_id, snapshot_id)
            except VolumeRefusedError as error:
                gave_up.add(snapshot_id)
                log.warning("snapshot_refused", volume_id=volume_id, error=str(error)[:300])
        for snapshot_id in sorted(seen.snapshots - take - keep):
            seen = await driver.drop_snapshot(volume_id, snapshot_id)
    except TimeoutError:
        raise
    except OSError as error:
        log.warning("snapshot_trouble", volume_id=volume_id, error=repr(error)[:300])
        trouble = f"a snapshot fails: {error.strerror or 'unknown error'}"
    return Brought(seen, refusal, frozenset(gave_up), trouble)


async def note_snapshots(
    session: AsyncSession,
    volume: Volume,
    seen: VolumeObserved,
    now: datetime,
    gave_up: AbstractSet[str] = frozenset(),
) -> list[Event]:
    """Write what was seen of each snapshot of a locked volume; what was to go and is gone is
    forgotten, and so is everything with a volume that is removed."""
    changed: list[Event] = []
    for row in await repository.snapshots_of(session, volume.id):
        state = SnapshotState.LOST
        if row.state != SnapshotState.CREATING or row.id not in gave_up:
            removed = not volume.present and not seen.present
            state = _next(SnapshotState(row.state), row.id in seen.snapshots, removed=removed)
        if state == row.state:
            continue
        row.state = state
        if state is SnapshotState.READY:
            row.taken_at = row.taken_at or now
        changed.append(snapshot_event(volume, row, now))
        if state is SnapshotState.DELETED:
            await session.delete(row)
    return changed


def _next(state: SnapshotState, there: bool, *, removed: bool) -> SnapshotState:
    if there and state is not SnapshotState.DELETING:
        return SnapshotState.READY
    if not there and (removed or state is SnapshotState.DELETING):
        return SnapshotState.DELETED
    if not there and state is SnapshotState.READY:
        return SnapshotState.LOST
    return state
