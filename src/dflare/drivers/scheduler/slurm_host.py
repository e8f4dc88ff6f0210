"""Slurm on a scheduler host: the host's API, and Slurm's own client programs run there.

Sources: ``docs/how-to/scheduler-host.md``; sbatch(1), scontrol(1), sacct(1) of Slurm 22.05.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dflare.drivers.scheduler.port import (
    ControllerState,
    DaemonObserved,
    HostAccess,
    JobRecord,
    JobScript,
    NoSuchClusterError,
    RunResult,
    SchedulerObserved,
    SchedulerRefusedError,
    SchedulerSpec,
    SchedulerState,
    SchedulerStatus,
    SchedulerUnreachableError,
    Slot,
    SlotObserved,
)
from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_accounts import SACCT, records_of

_RUN_S = 30.0
_READ = 'tail -c "+$1" -- "$2" | head -c "$3" | base64 -w0'
_EPOCH_TIMES = {"SLURM_TIME_FORMAT": "%s"}


class SlurmHost:
    """One host; ``rest`` is shared by those of a process."""

    def __init__(self, rest: HostRest, access: HostAccess) -> None:
        self._rest = rest
        self._access = access

    async def status(self) -> SchedulerStatus:
        """See ``SchedulerDriver.status``."""
        slurm = (await self._rest.call(self._access, "GET", "/v1/status"))["slurm"]
        return SchedulerStatus(
            SchedulerState(slurm["state"]), slurm.get("version"), slurm.get("reason") or ""
        )

    async def ensure(self, spec: SchedulerSpec) -> SchedulerObserved:
        """See ``SchedulerDriver.ensure``."""
        body = {
            "name": spec.name,
            "munge_key": base64.b64encode(spec.munge_key).decode(),
            "slots": [_slot(slot) for slot in spec.slots],
            "mounts": [
                {"source": m.source, "target": m.target, "read_only": m.read_only}
                for m in spec.mounts
            ],
            "account": spec.account,
        }
        return _observed(
            await self._rest.call(self._access, "PUT", _path(spec.cluster_id), body, longer_s=10)
        )

    async def observe(self, cluster_id: str) -> SchedulerObserved | None:
        """See ``SchedulerDriver.observe``."""
        try:
            return _observed(await self._rest.call(self._access, "GET", _path(cluster_id)))
        except NoSuchClusterError:
            return None

    async def remove(self, cluster_id: str) -> bool:
        """See ``SchedulerDriver.remove``."""
        try:
            await self._rest.call(self._access, "DELETE", _path(cluster_id))
        except NoSuchClusterError:
            return True
        return await self.observe(cluster_id) is None

    async def set_drain(self, cluster_id: str, slots: Sequence[str], reason: str | None) -> None:
        """See ``SchedulerDriver.set_drain``. A node that is undrained and is not drained would
        make Slurm complain, so only drained ones are touched."""
        seen = await self.observe(cluster_id)
        if seen is None:
            raise NoSuchClusterError(f"{self._access.name} runs no cluster {cluster_id}")
        wanted: list[str] = []
        for slot in slots:
            node = seen.nodes.get(slot)
            if node is None:
                raise SchedulerRefusedError(f"cluster {cluster_id} has no slot {slot}")
            drained = "DRAIN" in node.state
            # Slurm adds who and when to a reason.
            as_asked = drained and node.reason.startswith(reason) if reason else not drained
            if not as_asked:
                wanted.append(slot)
        if not wanted:
            return
        change = ["State=RESUME"] if reason is None else ["State=DRAIN", f"Reason={reason}"]
        names = f"NodeName={','.join(wanted)}"
        await self._ran(cluster_id, ["scontrol", "update", names, *change])

    async def submit(self, cluster_id: str, job: JobScript) -> str:
        """See ``SchedulerDriver.submit``. The script goes by standard input, and who it is for as
        options, which win over lines of the script and the environment."""
        argv = ["sbatch", "--parsable", *job.options]
        argv += [f"--job-name={job.name}"] if job.name else []
        argv += [f"--account={job.account}"] if job.account else []
        argv += [f"--wckey={job.wckey}"] if job.wckey else []
        done = await self._ran(
            cluster_id,
            argv,
            environment=job.environment,
            stdin=job.content.encode(),
            directory=job.directory,
        )
        return done.stdout.strip().partition(";")[0]

    async def run(
        self,
        cluster_id: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        directory: str | None = None,
        timeout_s: float = _RUN_S,
    ) -> RunResult:
        """See ``SchedulerDriver.run``."""
        body = {
            "argv": list(argv),
            "environment": dict(environment or {}),
            "stdin": base64.b64encode(stdin).decode(),
            "directory": directory,
            "timeout_s": timeout_s,
        }
        path = f"{_path(cluster_id)}/run"
        said = await self._rest.call(self._access, "POST", path, body, longer_s=timeout_s)
        return RunResult(int(said["code"]), said["stdout"], said["stderr"])

    async def jobs(self, cluster_id: str, since: datetime | None = None) -> Sequence[JobRecord]:
        """See ``JobAccounting.jobs``."""
        start = "1970-01-02" if since is None else since.strftime("%Y-%m-%dT%H:%M:%S")
        environment = {**_EPOCH_TIMES, "TZ": "UTC"}
        argv = [*SACCT, f"--starttime={start}"]
        done = await self._ran(cluster_id, argv, environment=environment)
        return records_of(done.stdout)

    async def output(self, cluster_id: str, job_id: str, offset: int, limit: int) -> bytes:
        """See ``JobAccounting.output``."""
        file = await self._output_file(cluster_id, job_id)
        argv = ["sh", "-c", _READ, "sh", str(offset + 1), file, str(limit)]
        done = await self.run(cluster_id, argv)
        try:
            return base64.b64decode(done.stdout.strip(), validate=True)
        except binascii.Error as error:
            raise SchedulerUnreachableError(f"{self._access.name}: output is not base64") from error

    async def _output_file(self, cluster_id: str, job_id: str) -> str:
        """Where the job writes: slurmctld knows, and for a job that it has forgotten sbatch(1)'s
        default in its working directory is taken, which accounting keeps."""
        shown = await self.run(cluster_id, ["scontrol", "--oneliner", "show", "job", job_id])
        _, found, rest = shown.stdout.partition(" StdOut=")
        if shown.code == 0 and found:
            return rest.split(" Power=")[0].split(" MailUser=")[0].strip()
        argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job_id]
        kept = await self._ran(cluster_id, [*argv, "--format=WorkDir"])
        folders = kept.stdout.split("\n")
        if not folders[0].strip():
            raise SchedulerRefusedError(f"Slurm of cluster {cluster_id} knows no job {job_id}")
        return f"{folders[0].strip()}/slurm-{job_id}.out"

    async def _ran(
        self,
        cluster_id: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        directory: str | None = None,
    ) -> RunResult:
        done = await self.run(
            cluster_id, argv, environment=environment, stdin=stdin, directory=directory
        )
        if done.code == 0:
            return done
        said = (done.stderr.strip() or done.stdout.strip())[:1000]
        if any(word in said for word in _OF_THE_MOMENT):
            raise SchedulerUnreachableError(f"{argv[0]} of cluster {cluster_id}: {said}")
        raise SchedulerRefusedError(f"{argv[0]} of cluster {cluster_id}: {said}")


_OF_THE_MOMENT = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Zero Bytes were transmitted",
    "Slurm temporarily unable to accept job",
    "Problem talking to the database",
)
"""What client programs say when a daemon is being started anew (slurm_errno.c)."""


def _path(cluster_id: str) -> str:
    return f"/v1/clusters/{cluster_id}"


def _slot(slot: Slot) -> dict[str, Any]:
    return {
        "name": slot.name,
        "partition": slot.partition,
        "cpus": slot.cpus,
        "memory_mib": slot.memory_mib,
        "gpus": slot.gpus,
        "gpu_type": slot.gpu_type,
        "switch": slot.switch,
    }


def _observed(document: Any) -> SchedulerObserved:
    return SchedulerObserved(
        ControllerState(document["state"]),
        document.get("reason") or "",
        {
            name: DaemonObserved(one["state"], one.get("restarts", 0), one.get("ended") or "")
            for name, one in document.get("services", {}).items()
        },
        {
            name: SlotObserved(
                one["state"], one.get("reason") or "", one["registered"], one.get("fault") or ""
            )
            for name, one in document.get("nodes", {}).items()
        },
    )
