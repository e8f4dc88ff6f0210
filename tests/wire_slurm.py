"""Slurm's client programs as a scheduler host runs them, for tests that need no real Slurm; they
print in the form of Slurm 22.05, which ``tests/lab/test_jobs_lab.py`` compares with."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenancy import NOW

EPOCH = int(NOW.timestamp())


@dataclass
class SlurmJob:
    """A job as Slurm's programs print it; times are seconds since the test began."""

    number: int
    submit_line: str
    account: str = "training"
    wckey: str = ""
    comment: str = ""
    name: str = "job"
    forgotten: bool = False
    controller: str = "PENDING"
    output: bytes = b""
    records: list[tuple[int, str, int | None, int | None, int, str]] = field(
        default_factory=list[tuple[int, str, int | None, int | None, int, str]]
    )


@dataclass
class Slurm:
    """Slurm's client programs as the host runs them. ``lost``: the answer to sbatch does not come,
    though it takes effect; ``down`` and ``refuses`` are what it says instead."""

    jobs: dict[int, SlurmJob] = field(default_factory=dict[int, SlurmJob])
    lost: bool = False
    refuses: str = ""
    submissions: int = 0
    record_ids: int = 0

    def __call__(self, body: dict[str, Any]) -> tuple[int, str, str]:
        program, *argv = body["argv"]
        return getattr(self, f"_{program}")(argv, body)

    def add(self, **facts: Any) -> SlurmJob:
        """A job that waits."""
        number = len(self.jobs) + 1
        job = self.jobs[number] = SlurmJob(number, **facts)
        self.turn(number, "PENDING")
        return job

    def turn(
        self,
        number: int,
        state: str,
        *,
        start: int | None = None,
        end: int | None = None,
        elapsed: int = 0,
        code: str = "0:0",
        again: bool = False,
    ) -> None:
        """Change the latest record of a job, or begin another one."""
        records = self.jobs[number].records
        if again or not records:
            self.record_ids += 1
            records.append((self.record_ids, state, start, end, elapsed, code))
        else:
            records[-1] = (records[-1][0], state, start, end, elapsed, code)

    def _sbatch(self, argv: list[str], body: dict[str, Any]) -> tuple[int, str, str]:
        if self.refuses:
            return 1, "", f"sbatch: error: {self.refuses}"
        self.submissions += 1
        options = dict(one.partition("=")[::2] for one in argv)
        job = self.add(
            submit_line=" ".join(["sbatch", *argv]),
            account=options["--account"],
            wckey=options["--wckey"],
            comment=options["--comment"],
            name=options["--job-name"],
        )
        return (504, "", "") if self.lost else (0, f"{job.number}\n", "")

    def _squeue(self, argv: list[str], body: dict[str, Any]) -> tuple[int, str, str]:
        kept = [job for job in self.jobs.values() if not job.forgotten]
        if "--format=%F|%T" in argv:
            return 0, "".join(f"{job.number}|{job.controller}\n" for job in kept), ""
        lines = [f"{job.number}|{job.comment}" for job in kept]
        return 0, "".join(f"{line}\n" for line in lines), ""

    def _sacct(self, argv: list[str], body: dict[str, Any]) -> tuple[int, str, str]:
        if "--format=JobID,SubmitLine" in argv:
            return 0, "".join(f"{j.number}|{j.submit_line}\n" for j in self.jobs.values()), ""
        lines = [self._line(job, record) for job in self.jobs.values() for record in job.records]
        return 0, "".join(f"{line}\n" for line in lines), ""

    def _line(
        self, job: SlurmJob, record: tuple[int, str, int | None, int | None, int, str]
    ) -> str:
        index, state, start, end, elapsed, code = record
        ran = start is not None
        return "\x1f".join(
            [
                *(str(index), str(job.number), job.name, job.account, job.wckey, "main", state),
                str(EPOCH),
                str(EPOCH + start) if start is not None else "Unknown",
                str(EPOCH + end) if end is not None else "Unknown",
                str(elapsed),
                "2",
                "billing=2,cpu=2,gres/gpu=16,node=2" if ran else "",
                code,
                "main-[0-1]" if ran else "None assigned",
            ]
        )

    def _scontrol(self, argv: list[str], body: dict[str, Any]) -> tuple[int, str, str]:
        return 0, f"JobId={argv[-1]} StdOut=/scratch/{argv[-1]}.out Power= ", ""

    def _sh(self, argv: list[str], body: dict[str, Any]) -> tuple[int, str, str]:
        first, path, limit = argv[-3:]
        job = self.jobs[int(Path(path).stem)]
        part = job.output[int(first) - 1 :][: int(limit)]
        return 0, base64.b64encode(part).decode(), ""
