"""What other services know of volumes.

Steps on queue ``volumes`` (the target is the volume): ``begin@1`` (state ``creating``; undo
``fail@1``), ``ready@1`` (usage begins), ``resized@1`` (size and usage change), ``begin_delete@1``,
``deleted@1`` (the name is free). Steps on queue ``volumes.<site>``, which set desired state and
wait for the site's reconciler: ``provide@1`` (undo ``withdraw@1``), ``set_size@1`` (param
``size_gib``; undo ``size_back@1``), ``await@1``, ``remove@1``, ``await_removed@1``. On the same
queue, for orders of clusters (the target is the cluster): ``grant@1`` gives it the volumes that
``cluster.declared`` names and waits until the storage was seen to (undo ``revoke@1``);
``revoke@1`` takes every volume from it and waits until that was seen.

Events emitted: ``volume.changed`` (its ``source`` is what hosts mount, empty until the storage has
the volume), ``volume.over_quota`` (a scan found more in it than before and than its size; data as
of ``volume.changed``), ``volume.access_changed`` (data: ``AccessFacts``),
``volume.snapshot_changed`` (data: ``SnapshotFacts``),
``volume.usage_changed`` (data: ``VolumeUsage``).
Events consumed: ``site.declared``, ``site.frozen``, ``cluster.declared`` (what orders mount),
``cluster.changed`` (who may be given access),
``quota.changed`` (of ``QUOTA``).
"""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

QUOTA = "volume-gib"
"""Under this name metering keeps how many GiB the volumes of a project may have together."""


class VolumeState(StrEnum):
    """Life of a volume."""

    PENDING = "pending"
    CREATING = "creating"
    READY = "ready"
    RESIZING = "resizing"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


class AccessMode(StrEnum):
    """What a cluster may do with a volume; ``none`` while its access is being taken away."""

    NONE = "none"
    READ_ONLY = "ro"
    READ_WRITE = "rw"


class SnapshotState(StrEnum):
    """Life of a snapshot. ``lost``: the storage refused to take it, or it was there and is not any
    more, though nobody asked for that; it is not taken anew, since it would hold something else."""

    CREATING = "creating"
    READY = "ready"
    LOST = "lost"
    DELETING = "deleting"
    DELETED = "deleted"


class _Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AccessFacts(_Contract):
    """Data of ``volume.access_changed``: what a cluster is to have, and what the storage was seen
    to grant."""

    volume_id: str
    volume_name: str
    organization_id: str
    project_id: str
    site_id: str
    cluster_id: str
    desired: AccessMode
    observed: AccessMode


class SnapshotFacts(_Contract):
    """Data of ``volume.snapshot_changed``. ``path`` is where hosts read it, below the mount."""

    id: str
    name: str
    volume_id: str
    volume_name: str
    organization_id: str
    project_id: str
    site_id: str
    state: SnapshotState
    path: str
    taken_at: datetime | None = None


class VolumeUsage(_Contract):
    """Data of ``volume.usage_changed``: ``size_gib`` GiB were had from ``usage_from`` to
    ``usage_to``, UTC wall time, or still are. A volume has one interval for each of its sizes;
    ``version`` rises with every change of the interval, so that a ledger is idempotent by both."""

    interval_id: str
    version: int
    volume_id: str
    organization_id: str
    project_id: str
    site_id: str
    size_gib: int
    usage_from: datetime
    usage_to: datetime | None = None
