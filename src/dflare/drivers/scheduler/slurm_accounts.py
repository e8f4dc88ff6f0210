"""What sacct(1) prints, read into records."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from dflare.drivers.scheduler.port import JobRecord

_FIELDS = (
    "DBIndex",
    "JobID",
    "JobName",
    "Account",
    "WCKey",
    "Partition",
    "State",
    "Submit",
    "Start",
    "End",
    "ElapsedRaw",
    "NNodes",
    "AllocTRES",
    "ExitCode",
    "NodeList",
)
# A byte that no name of a job can hold: Slurm escapes control characters.
_BETWEEN = "\x1f"
SACCT = (
    "sacct",
    "--allusers",
    "--allocations",
    "--duplicates",
    "--noheader",
    "--parsable2",
    f"--delimiter={_BETWEEN}",
    f"--format={','.join(_FIELDS)}",
)
"""Every run of every job, those of one that was queued again too; times as SLURM_TIME_FORMAT
says, which the caller sets to seconds since the epoch."""

_GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)")
_RANGE = re.compile(r"\[([^\]]*)\]")


def records_of(printed: str) -> Sequence[JobRecord]:
    """The records that ``SACCT`` printed; a line that is none is left out."""
    rows = (line.split(_BETWEEN) for line in printed.split("\n"))
    return [_record(row) for row in rows if len(row) == len(_FIELDS)]


def _record(row: Sequence[str]) -> JobRecord:
    of = dict(zip(_FIELDS, row, strict=True))
    gpus = _GPUS.search(of["AllocTRES"])
    code, _, signal = of["ExitCode"].partition(":")
    return JobRecord(
        record_id=of["DBIndex"],
        job_id=of["JobID"],
        name=of["JobName"],
        account=of["Account"],
        # An asterisk marks a key that is the user's default (sacct(1), WCKey).
        wckey=of["WCKey"].lstrip("*"),
        partition=of["Partition"],
        # A cancelled job says by whom behind the word.
        state=of["State"].partition(" ")[0],
        submitted_at=_time(of["Submit"]),
        started_at=_time(of["Start"]),
        ended_at=_time(of["End"]),
        elapsed_s=int(of["ElapsedRaw"] or 0),
        nodes=() if of["NodeList"].startswith("None") else tuple(host_names(of["NodeList"])),
        node_count=int(of["NNodes"] or 0),
        gpus=int(gpus[1]) if gpus else 0,
        exit_code=-int(signal) if signal and signal != "0" else int(code or 0),
    )


def host_names(hosts: str) -> list[str]:
    """The names of a host list such as ``gpu-[0-2,5],cpu-1`` (scontrol(1), show hostnames)."""
    names: list[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", hosts):
        ranges = _RANGE.search(part)
        if ranges is None:
            names.append(part)
            continue
        for one in ranges[1].split(","):
            first, _, last = one.partition("-")
            width = len(first)
            numbers = range(int(first), int(last or first) + 1)
            names += [part[: ranges.start()] + str(n).zfill(width) for n in numbers]
    return names


def _time(text: str) -> datetime | None:
    """A time in seconds since the epoch; ``None`` for what has not happened."""
    return datetime.fromtimestamp(int(text), UTC) if text.isdigit() and int(text) else None
