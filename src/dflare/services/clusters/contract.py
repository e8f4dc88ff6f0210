"""What other services know of clusters.

Steps (queue ``clusters``, the target is the cluster): ``begin@1`` (state ``creating``; undo
``fail@1``), ``ready@1``, ``begin_delete@1``, ``deleted@1``. Steps on queue ``clusters.<site>``:
``start_scheduler@1`` (undo ``stop_scheduler@1``) and, on nodes, ``await_nodes@1``.

Events emitted: ``cluster.declared`` (data: ``ClusterDeclared``), ``cluster.changed``.
Events consumed: ``site.declared`` (which sites and node types exist), ``allocation.changed``.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

BARE, SLURM = "bare", "slurm"
"""Kinds of clusters: servers alone, and with a Slurm controller of the tenant's own."""


class ClusterState(StrEnum):
    """Life of a cluster."""

    PENDING = "pending"
    CREATING = "creating"
    READY = "ready"
    RESIZING = "resizing"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


class Mount(BaseModel):
    """A volume that every node of a cluster is to see at the absolute path ``target``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    volume_id: str
    target: str
    read_only: bool = False


class SchedulerSecret(BaseModel):
    """What a node needs to join its cluster's Slurm: the munge key (base64) that all of the cluster
    share, and where slurmd fetches its configuration (``host:port``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    munge_key: str
    controller: str


class ClusterDeclared(BaseModel):
    """Data of ``cluster.declared``: what its nodes boot with. ``user_data_sealed`` is base64 of
    ``kit.seal`` under the name ``user_data/<cluster_id>``, since it may hold secrets. So is
    ``scheduler_sealed``, a ``SchedulerSecret`` as JSON under the name ``scheduler/<cluster_id>``;
    a bare cluster has none. ``mounts`` are the volumes that the order names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster_id: str
    name: str
    organization_id: str
    project_id: str
    site_id: str
    image: str
    ssh_keys: tuple[str, ...]
    user_data_sealed: str | None = None
    kind: str = BARE
    scheduler_sealed: str | None = None
    mounts: tuple[Mount, ...] = ()
