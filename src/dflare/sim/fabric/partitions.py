"""What the InfiniBand fabric manager has programmed: partitions, and the jobs that change them.

A write answers before it works. It becomes a job that takes ``times.ufm_job_s`` simulated seconds,
and a job that a fault makes late runs when its time has come, whatever happened meanwhile: it adds
a port to a partition that was removed since and so makes the partition again, as in the field.

Faults of jobs are looked up twice: as ``<manager>/<verb>/<pkey>`` (``ufm1/add/0x12``; the verbs are
create, add, set, remove, delete and qos), then as ``<manager>``. So one kind of write can be made
late alone.
"""

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from dflare.sim.clock import SimClock
from dflare.sim.faults import Fault, FaultPlan
from dflare.sim.truth import TruthLog

DEFAULT_PKEY = 0x7FFF
_KEPT_JOBS = 4096

Membership = Literal["full", "limited"]


@dataclass(frozen=True, slots=True)
class Member:
    """How a port is in a partition; ``index0``: the key stands first in the port's table."""

    membership: Membership = "full"
    index0: bool = False


@dataclass(frozen=True, slots=True)
class Qos:
    """A partition's ``qos_conf``: MTU in KiB, service level 0 to 15, rate in Gb/s."""

    mtu_limit: int = 2
    service_level: int = 0
    rate_limit: float = 2.5


@dataclass(slots=True)
class Partition:
    """A partition in force. ``kept``: it was made empty, so it stays when its last port leaves."""

    pkey: int
    name: str
    ip_over_ib: bool = True
    kept: bool = False
    qos: Qos = field(default_factory=Qos)
    members: dict[str, Member] = field(default_factory=dict[str, Member])


class JobStatus(StrEnum):
    """A job's ``Status`` (UFM Enterprise REST API Guide 6.22, "Jobs REST API")."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Completed With Errors"
    ABORTED = "Aborted"


@dataclass(slots=True)
class Job:
    """One asynchronous write. Times are simulated UTC."""

    id: str
    operation: str
    pkey: int
    description: str
    related: tuple[str, ...]
    created: datetime
    updated: datetime
    status: JobStatus = JobStatus.RUNNING
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What a job will do to partition ``pkey``.

    ``members`` are put in, ``removed`` taken out; ``exact`` takes out everyone else too; ``create``
    makes the partition even without members; ``delete`` ends it.
    """

    pkey: int
    members: Mapping[str, Member] = field(default_factory=dict[str, Member])
    removed: frozenset[str] = frozenset()
    exact: bool = False
    create: bool = False
    delete: bool = False
    name: str | None = None
    ip_over_ib: bool | None = None
    qos: Qos | None = None

    @property
    def verb(self) -> str:
        """What it does, in one word."""
        if self.delete:
            return "delete"
        if self.create:
            return "create"
        if self.exact:
            return "set"
        if self.members:
            return "add"
        return "remove" if self.removed else "qos"


class Partitions:
    """The manager's programmed state and its jobs."""

    def __init__(
        self,
        manager: str,
        hosts: Mapping[str, str],
        job_s: float,
        default_membership: Membership,
        clock: SimClock,
        log: TruthLog,
        faults: FaultPlan,
        spawn: Callable[[Coroutine[object, object, None]], None],
    ) -> None:
        """``hosts`` is the host by port GUID, for the log."""
        self.manager = manager
        self.default_membership: Membership = default_membership
        self.by_pkey: dict[int, Partition] = {DEFAULT_PKEY: _management()}
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self._hosts = hosts
        self._job_s = job_s
        self._clock = clock
        self._log = log
        self._faults = faults
        self._spawn = spawn
        self._next_id = 1

    def set_default_membership(self, membership: Membership) -> None:
        """What ``default_membership`` of the manager's own ``gv.cfg`` and a restart do: how ports
        that nobody configured are in 0x7fff. There is no REST call for it.
        """
        self._log.append(
            "default_membership", self.manager, was=self.default_membership, membership=membership
        )
        self.default_membership = membership

    def submit(self, operation: str, description: str, change: Change) -> Job:
        """Start a job; with a manager that answers at once it is done on return."""
        now = self._clock.utc()
        related = tuple(change.members) or tuple(sorted(change.removed))
        job = Job(str(self._next_id), operation, change.pkey, description, related, now, now)
        self._next_id += 1
        self.jobs[job.id] = job
        while len(self.jobs) > _KEPT_JOBS:
            self.jobs.popitem(last=False)
        late = self._struck("ufm_job_late", change)
        took_s = self._job_s + (late.seconds(60) if late is not None else 0)
        if late is not None:
            self._log.append("ufm_job_late", self.manager, job=job.id, took_s=took_s)
        if took_s <= 0:
            self._finish(job, change)
        else:
            self._spawn(self._later(job, change, took_s))
        return job

    def abort(self, jobs: Iterable[Job]) -> None:
        """Abort those that still run."""
        for job in jobs:
            if job.status is JobStatus.RUNNING:
                job.status, job.updated = JobStatus.ABORTED, self._clock.utc()

    def _struck(self, kind: str, change: Change) -> Fault | None:
        narrow = f"{self.manager}/{change.verb}/{change.pkey:#x}"
        return self._faults.hit(kind, narrow) or self._faults.hit(kind, self.manager)

    async def _later(self, job: Job, change: Change, took_s: float) -> None:
        await self._clock.sleep(took_s)
        self._finish(job, change)

    def _finish(self, job: Job, change: Change) -> None:
        if job.status is not JobStatus.RUNNING:
            return
        job.updated = self._clock.utc()
        fault = self._struck("ufm_job_fails", change)
        if fault is not None:
            job.status = JobStatus.FAILED
            job.summary = str(fault.params.get("reason", "the subnet manager refused the change"))
            self._log.append("ufm_job_failed", self.manager, job=job.id, reason=job.summary)
            return
        self._make(job, change)
        job.status = JobStatus.COMPLETED

    def _make(self, job: Job, change: Change) -> None:
        before = self.by_pkey.get(change.pkey)
        was = {} if before is None else dict(before.members)
        after = None if change.delete else self._changed(before, change)
        if after is not None and not after.members and not after.kept:
            after = None
        if change.pkey == DEFAULT_PKEY and after is None:
            after = _management()
        if after is None:
            self.by_pkey.pop(change.pkey, None)
        else:
            self.by_pkey[change.pkey] = after
        now = {} if after is None else after.members
        added = {guid: m.membership for guid, m in now.items() if was.get(guid) != m}
        removed = sorted(was.keys() - now.keys())
        self._log.append(
            "pkey_changed",
            hex(change.pkey),
            job=job.id,
            operation=job.operation,
            exists=after is not None,
            added=added,
            removed=removed,
            hosts=sorted({self._hosts.get(guid, guid) for guid in (*added, *removed)}),
        )

    @staticmethod
    def _changed(before: Partition | None, change: Change) -> Partition | None:
        if before is None and not change.members and not change.create:
            return None
        base = before or Partition(change.pkey, f"api_pkey_{change.pkey:#x}")
        members = {} if change.exact else dict(base.members)
        members.update(change.members)
        for guid in change.removed:
            members.pop(guid, None)
        return replace(
            base,
            members=members,
            name=change.name or base.name,
            ip_over_ib=base.ip_over_ib if change.ip_over_ib is None else change.ip_over_ib,
            qos=change.qos or base.qos,
            kept=base.kept or change.create,
        )


def _management() -> Partition:
    return Partition(DEFAULT_PKEY, "management", kept=True)
