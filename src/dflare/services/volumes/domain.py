"""Lifecycle of a volume: one enum (in the contract), one transition function, its public state."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from dflare.drivers.volumes.port import SNAPSHOTS
from dflare.kit.errors import ConflictError
from dflare.kit.outbox import Event
from dflare.services.volumes.contract import (
    AccessFacts,
    AccessMode,
    SnapshotFacts,
    SnapshotState,
    VolumeState,
    VolumeUsage,
)
from dflare.services.volumes.errors import VolumeBusyError, VolumeInUseError
from dflare.services.volumes.tables import Access, Snapshot, UsageInterval, Volume

_ALLOWED: Mapping[VolumeState, frozenset[VolumeState]] = {
    VolumeState.PENDING: frozenset({VolumeState.CREATING, VolumeState.FAILED}),
    VolumeState.CREATING: frozenset({VolumeState.READY, VolumeState.FAILED}),
    # Failed comes after ready only by the undo of an order whose last step was not heard of.
    VolumeState.READY: frozenset({VolumeState.RESIZING, VolumeState.DELETING, VolumeState.FAILED}),
    VolumeState.RESIZING: frozenset({VolumeState.READY}),
    VolumeState.FAILED: frozenset({VolumeState.CREATING, VolumeState.DELETING}),
    VolumeState.DELETING: frozenset({VolumeState.DELETED}),
    VolumeState.DELETED: frozenset(),
}

ORDER_DEADLINE = timedelta(hours=1)
"""How long an order may take before someone should look."""

BYTES_PER_GIB = 2**30


def check_transition(old: VolumeState, new: VolumeState) -> None:
    """Whether ``new`` may follow ``old``; the same state again is allowed, for repeated steps.

    Raises:
        ConflictError: it may not.
    """
    if new is not old and new not in _ALLOWED[old]:
        raise ConflictError(
            f"a volume that is {old} cannot become {new}",
            next_step="Look at it with `dflare volume show`.",
        )


def check_ready(volume: Volume) -> None:
    """Whether it may be resized, or given to a cluster.

    Raises:
        VolumeBusyError: it is anything but ready.
    """
    if VolumeState(volume.state) is not VolumeState.READY:
        raise _busy(volume)


def check_deletable(volume: Volume, access: Sequence[Access]) -> None:
    """Whether its release may be ordered now.

    Raises:
        VolumeBusyError: an operation acts on it.
        VolumeInUseError: clusters have access, or were not yet seen to have lost it.
    """
    if VolumeState(volume.state) not in {VolumeState.READY, VolumeState.FAILED}:
        raise _busy(volume)
    if access:
        clusters = ", ".join(row.cluster_id for row in access[:5])
        raise VolumeInUseError(
            f"volume {volume.name} is attached to {len(access)} clusters: {clusters}",
            next_step=f"Detach it first: dflare volume detach {volume.name} CLUSTER",
        )


def check_not_mounted(volume: Volume, access: Access) -> None:
    """Whether a cluster's access may be changed while the cluster lives.

    Raises:
        VolumeInUseError: its order mounts the volume: what its hosts have mounted stays mounted.
    """
    if access.mounted:
        raise VolumeInUseError(
            f"volume {volume.name} is mounted by the order of cluster {access.cluster_id}",
            next_step="It is taken away with the cluster: dflare cluster delete CLUSTER",
        )


def _busy(volume: Volume) -> VolumeBusyError:
    return VolumeBusyError(
        f"volume {volume.name} is {volume.state}",
        next_step="Look at it with `dflare volume show`, and delete it if it failed."
        if volume.state == VolumeState.FAILED
        else f"Follow its operation: dflare operation watch {volume.operation_id}",
    )


def enter(volume: Volume, state: VolumeState, now: datetime, reason: str = "") -> None:
    """Move a locked volume to ``state``; its deadline follows from it.

    Raises:
        ConflictError: the state may not follow the present one.
    """
    check_transition(VolumeState(volume.state), state)
    acting = state in {VolumeState.CREATING, VolumeState.RESIZING, VolumeState.DELETING}
    if volume.state != state:
        volume.since = now
        volume.deadline = now + ORDER_DEADLINE if acting else None
    volume.state, volume.reason = state, reason
    volume.version += 1


def volume_id_of(operation_id: str) -> str:
    """The id of the volume that a create operation makes: a repeat finds the same."""
    return "vol_" + operation_id.partition("_")[2]


def over_quota(volume: Volume) -> bool:
    """Whether the last scan found more in it than it may hold."""
    return volume.used_bytes is not None and volume.used_bytes > volume.size_gib * BYTES_PER_GIB


def volume_document(volume: Volume) -> dict[str, Any]:
    """Public state of a volume, the data of ``volume.changed``."""
    return {
        "id": volume.id,
        "name": volume.name,
        "organization_id": volume.organization_id,
        "project_id": volume.project_id,
        "site_id": volume.site_id,
        "size_gib": volume.size_gib,
        "state": volume.state,
        "reason": volume.reason,
        "trouble": volume.trouble,
        "quota": volume.quota,
        "source": volume.source,
        "used_bytes": volume.used_bytes,
        "over_quota": over_quota(volume),
        "since": volume.since.isoformat(),
        "operation_id": volume.operation_id,
        "version": volume.version,
    }


def volume_event(volume: Volume, now: datetime) -> Event:
    """``volume.changed`` for a locked volume whose version was raised."""
    return _event(volume, "volume.changed", volume.id, volume.version, now, volume_document(volume))


def over_quota_event(volume: Volume, now: datetime) -> Event:
    """``volume.over_quota`` for a locked volume whose version was raised."""
    data = volume_document(volume)
    return _event(volume, "volume.over_quota", volume.id, volume.version, now, data)


def access_event(volume: Volume, access: Access, now: datetime) -> Event:
    """``volume.access_changed`` for a locked volume whose version was raised."""
    facts = AccessFacts(
        volume_id=volume.id,
        volume_name=volume.name,
        organization_id=volume.organization_id,
        project_id=volume.project_id,
        site_id=volume.site_id,
        cluster_id=access.cluster_id,
        desired=AccessMode(access.mode),
        observed=AccessMode(access.observed),
    )
    return _event(
        volume,
        "volume.access_changed",
        f"{volume.id}/{access.cluster_id}",
        volume.version,
        now,
        facts.model_dump(mode="json"),
        kind="volume_access",
    )


def snapshot_facts(volume: Volume, snapshot: Snapshot) -> SnapshotFacts:
    """Public state of a snapshot."""
    return SnapshotFacts(
        id=snapshot.id,
        name=snapshot.name,
        volume_id=volume.id,
        volume_name=volume.name,
        organization_id=volume.organization_id,
        project_id=volume.project_id,
        site_id=volume.site_id,
        state=SnapshotState(snapshot.state),
        path=f"{SNAPSHOTS}/{snapshot.id}",
        taken_at=snapshot.taken_at,
    )


def snapshot_event(volume: Volume, snapshot: Snapshot, now: datetime) -> Event:
    """``volume.snapshot_changed`` for a locked volume whose version was raised."""
    facts = snapshot_facts(volume, snapshot).model_dump(mode="json")
    kind = "volume_snapshot"
    at_version = volume.version
    return _event(volume, "volume.snapshot_changed", snapshot.id, at_version, now, facts, kind=kind)


def usage_event(volume: Volume, interval: UsageInterval, now: datetime) -> Event:
    """``volume.usage_changed`` for an interval of a locked volume."""
    facts = VolumeUsage(
        interval_id=interval.id,
        version=interval.version,
        volume_id=volume.id,
        organization_id=volume.organization_id,
        project_id=volume.project_id,
        site_id=volume.site_id,
        size_gib=interval.size_gib,
        usage_from=interval.usage_from,
        usage_to=interval.usage_to,
    )
    return _event(
        volume,
        "volume.usage_changed",
        interval.id,
        interval.version,
        now,
        facts.model_dump(mode="json"),
        kind="volume_usage",
    )


def _event(
    volume: Volume,
    type_: str,
    resource_id: str,
    version: int,
    now: datetime,
    data: dict[str, Any],
    *,
    kind: str = "volume",
) -> Event:
    return Event(
        type=type_,
        resource_kind=kind,
        resource_id=resource_id,
        resource_version=version,
        at=now,
        data=data,
        organization_id=volume.organization_id,
        project_id=volume.project_id,
        site_id=volume.site_id,
        operation_id=volume.operation_id,
    )
