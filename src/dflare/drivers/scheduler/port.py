"""What clusters needs of a host of the operator that runs tenants' schedulers.

A driver object stands for one host. Verbs are re-entrant: ``ensure`` brings a cluster's controller
set to what it is told, whatever runs, and ``remove`` is done when nothing of it is left. They
return what was observed, never what was asked for. A cluster's id is unique for all time and names
it at the host, so that a late write can reach no other cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HostAccess:
    """How to reach a scheduler host: ``address`` is ``https://host:port``; the password never
    shows in ``repr``."""

    name: str
    address: str
    username: str
    password: str = field(repr=False)


class SchedulerState(StrEnum):
    """Whether a host can run schedulers. ``preparing`` becomes one of the others by itself."""

    READY = "ready"
    PREPARING = "preparing"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """What a host says of itself; ``reason`` tells a person what to install or to change."""

    state: SchedulerState
    version: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """A node that the scheduler may get, declared whether a server stands in for it yet or not.
    ``gpu_type`` is a word of gres; ``switch`` names the leaf it hangs on, where that is known."""

    name: str
    partition: str
    cpus: int
    memory_mib: int
    gpus: int
    gpu_type: str
    switch: str | None = None


@dataclass(frozen=True, slots=True)
class BoundVolume:
    """A volume in the storage's own form (``VolumeDriver.source``) and where jobs see it."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """A cluster's scheduler as it is to be. ``account`` is what jobs that name none are billed to;
    the munge key never shows in ``repr``."""

    cluster_id: str
    name: str
    munge_key: bytes = field(repr=False)
    slots: tuple[Slot, ...]
    mounts: tuple[BoundVolume, ...] = ()
    account: str = ""


class ControllerState(StrEnum):
    """Where a cluster's controller set stands. ``degraded``: it answers and part of it does not;
    ``failed``: it will not come up as it was asked for."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class SlotObserved:
    """A slot as the scheduler sees it: ``state`` and ``reason`` in its own words. ``registered``:
    a server stands in for it and has spoken; ``fault``: why none has, as far as the host can
    tell."""

    state: str
    reason: str = ""
    registered: bool = False
    fault: str = ""


@dataclass(frozen=True, slots=True)
class DaemonObserved:
    """One supervised process; ``ended`` says how its last life ended."""

    state: str
    restarts: int = 0
    ended: str = ""


@dataclass(frozen=True, slots=True)
class SchedulerObserved:
    """A cluster's scheduler as it is: daemons by their names, nodes by their slots."""

    state: ControllerState
    reason: str = ""
    daemons: Mapping[str, DaemonObserved] = field(default_factory=dict[str, DaemonObserved])
    nodes: Mapping[str, SlotObserved] = field(default_factory=dict[str, SlotObserved])


@dataclass(frozen=True, slots=True)
class RunResult:
    """A program that ended: its exit code and what it wrote."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class JobScript:
    """A batch job. ``options`` are the scheduler's own (``--nodes=16``), before which the script's
    own lines do not count; ``account`` and ``wckey`` say for whom, empty for the cluster's."""

    content: str
    name: str = ""
    options: tuple[str, ...] = ()
    account: str = ""
    wckey: str = ""
    directory: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job in the scheduler's own accounting.

    ``record_id`` is unique in the cluster; a job that is queued again has another one for each
    time. ``state`` is the scheduler's word without its remarks (``CANCELLED``). Times are UTC wall
    time; ``elapsed_s`` is what the scheduler counts as run, suspensions left out. ``gpus`` are all
    that the job holds. ``exit_code`` is negative for a signal.
    """

    record_id: str
    job_id: str
    name: str
    account: str
    wckey: str
    partition: str
    state: str
    submitted_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    elapsed_s: int
    nodes: tuple[str, ...]
    node_count: int
    gpus: int
    exit_code: int


class SchedulerError(Exception):
    """A call failed. The text names the host and what it said."""


class SchedulerUnreachableError(SchedulerError):
    """No answer, or one that says nothing; a write may have taken effect. Try again."""


class SchedulerUnavailableError(SchedulerError):
    """The host has not what it takes to run schedulers; the text says what a person has to do."""


class SchedulerRefusedError(SchedulerError):
    """The host or the scheduler said no, and would again."""


class SchedulerNotReadyError(SchedulerError):
    """The cluster's scheduler does not answer yet, or not now."""


class NoSuchClusterError(SchedulerError):
    """The host runs no scheduler for that cluster."""


class SchedulerDriver(Protocol):
    """A scheduler host. Every verb may raise ``SchedulerUnreachableError`` and
    ``SchedulerRefusedError``; time limits are of wall time."""

    async def status(self) -> SchedulerStatus:
        """Whether the host can run schedulers at all."""
        ...

    async def ensure(self, spec: SchedulerSpec) -> SchedulerObserved:
        """Make the cluster's scheduler what ``spec`` says; comes back at once, and what is left to
        do goes on at the host. Jobs that run are not disturbed by what changed.

        Raises:
            SchedulerUnavailableError: the host cannot run any.
        """
        ...

    async def observe(self, cluster_id: str) -> SchedulerObserved | None:
        """What runs of the cluster; ``None`` where nothing is left of it."""
        ...

    async def remove(self, cluster_id: str) -> bool:
        """End every job and daemon of the cluster, take its mounts away and delete its files;
        whether nothing is left. Call again until it is."""
        ...

    async def set_drain(self, cluster_id: str, slots: Sequence[str], reason: str | None) -> None:
        """Let no job begin on these slots, for ``reason``; ``None`` lets them begin again. A slot
        that already is as asked stays so.

        Raises:
            NoSuchClusterError, SchedulerNotReadyError: see there.
        """
        ...

    async def submit(self, cluster_id: str, job: JobScript) -> str:
        """Queue a job and return the scheduler's id of it. Not re-entrant: who repeats it looks
        for the job first, by its name.

        Raises:
            SchedulerRefusedError: with what the scheduler said of the job.
            NoSuchClusterError, SchedulerNotReadyError: see there.
        """
        ...

    async def run(
        self,
        cluster_id: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        directory: str | None = None,
        timeout_s: float = 30.0,
    ) -> RunResult:
        """Run one of the scheduler's own client programs as the cluster's user.

        Raises:
            NoSuchClusterError, SchedulerNotReadyError: see there.
            TimeoutError: it had not ended after ``timeout_s``; it was ended.
        """
        ...


class JobAccounting(Protocol):
    """A scheduler host whose schedulers keep accounts of jobs. Both raise what ``run`` does."""

    async def jobs(self, cluster_id: str, since: datetime | None = None) -> Sequence[JobRecord]:
        """Every job that waited, ran or ended after ``since`` (all without it), by record id."""
        ...

    async def output(self, cluster_id: str, job_id: str, offset: int, limit: int) -> bytes:
        """At most ``limit`` bytes of what the batch job wrote, from byte ``offset`` on; empty
        where there is nothing (yet).

        Raises:
            SchedulerRefusedError: the scheduler knows no such job any more.
        """
        ...


class SchedulerHostDriver(SchedulerDriver, JobAccounting, Protocol):
    """A host that does both, as every one does that this platform orders clusters from."""
