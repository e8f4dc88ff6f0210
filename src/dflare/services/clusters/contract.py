"""What other services know of clusters.

Steps (queue ``clusters``, the target is the cluster): ``begin@1`` (state ``creating``; param
``placement``: why an order that waited got its nodes; undo ``fail@1``), ``ready@1``,
``begin_delete@1``, ``deleted@1``, ``begin_grow@1`` and ``begin_shrink@1`` (state ``resizing``; undo
``resize_undone@1``), ``grown@1`` (params ``pool``, ``added``; ``replaces`` and ``drain`` where the
new node takes another's place), ``let_go@1``, ``shrunk@1`` (params ``pool``, ``removed``), and on
nodes ``drain@1`` (undo ``undrain@1``). Steps on queue ``clusters.<site>``: ``start_scheduler@1``
(undo ``stop_scheduler@1``) and, on nodes, ``await_nodes@1``, ``await_idle@1`` (param ``jobs``:
``wait``, ``refuse`` or ``now``; undo ``resume_nodes@1``), ``resume_nodes@1``.

Events emitted: ``cluster.declared`` (data: ``ClusterDeclared``), ``cluster.changed``,
``cluster.expiring`` (the same data, once before its end), ``job.changed`` (data: ``JobFacts``).
Events consumed: ``site.declared`` (which sites and node types exist), ``site.frozen``,
``node.declared``, ``node.state_changed``, ``allocation.changed``, ``volume.changed``.
"""

from datetime import datetime
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


class JobState(StrEnum):
    """Life of a job: ``pending`` is not with the scheduler yet, ``submitting`` may be, and
    ``submitted`` waits there for nodes. ``refused`` is final; a scheduler may queue one that has
    ``ended`` again."""

    PENDING = "pending"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    RUNNING = "running"
    ENDED = "ended"
    REFUSED = "refused"


class JobRun(BaseModel):
    """One time that a job ran; requeued, it runs again under the next number. ``gpu_milli`` are
    thousandths of a GPU that it had, ``nodes`` servers. It had them from ``usage_from`` to
    ``usage_to``, UTC wall time, as the scheduler's own accounting says: time in which it was
    suspended is left out at its end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    nodes: int
    gpu_milli: int
    usage_from: datetime
    usage_to: datetime | None = None


class JobFacts(BaseModel):
    """Data of ``job.changed``. ``account`` and ``member`` are the scheduler's account and wckey:
    the project, and who submitted it; ``member`` is empty where nobody said so. ``scheduler_id`` is
    the scheduler's number of the job. ``version`` rises with every change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str
    version: int
    organization_id: str
    project_id: str
    site_id: str
    cluster_id: str
    name: str
    account: str
    member: str
    scheduler_id: str | None
    state: JobState
    runs: tuple[JobRun, ...] = ()
