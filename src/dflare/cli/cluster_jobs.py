"""`dflare cluster submit|jobs|logs`: jobs of clusters that have a scheduler."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dflare.cli.client import Api, segment
from dflare.cli.cluster_path import cluster_path
from dflare.cli.errors import CliError, ExitCode, Json, UsageError
from dflare.cli.listing import show_list
from dflare.cli.output import (
    AGE,
    Column,
    Output,
    OutputOption,
    ProjectOption,
    WatchOption,
    columns,
    note,
    print_one,
)

ClusterArgument = Annotated[str, typer.Argument(help="Cluster by name or id.")]

LOOK_S = 0.5
MOST_LOOK_S = 5.0
PIECE = 262_144
OVER = ("ended", "refused")


def register(clusters: typer.Typer) -> None:
    """Add the commands to `dflare cluster`."""
    for name, command in (("submit", submit), ("jobs", jobs), ("logs", logs)):
        clusters.command(name)(command)


def _hours_cell(value: Any) -> str:
    return f"{float(value) / 3600:.3f}"


def _by_cell(value: Any) -> str:
    return str(value) if value else "(on the cluster)"


LIST = (
    Column("JOB", "scheduler_id"),
    *columns("name", "state"),
    Column("SLURM", "scheduler_state"),
    *columns("nodes", "gpus"),
    Column("GPU HOURS", "gpu_seconds", _hours_cell),
    Column("EXIT", "exit_code"),
    Column("BY", "submitted_by", _by_cell),
    AGE,
    *columns("id"),
)
SHOW = (
    *columns("id", "name", "state", "reason", "scheduler_id", "scheduler_state", "account"),
    *columns("member", "submitted_by", "nodes", "gpus"),
    Column("GPU HOURS", "gpu_seconds", _hours_cell),
    *columns("exit_code"),
    AGE,
)


def submit(
    cluster: ClusterArgument,
    script: Annotated[str, typer.Argument(help="Batch script; `-` reads it from the input.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Options of sbatch behind `--`, such as -- --nodes=16 --gres=gpu:8."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the job; the script's unless told.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE; repeat it for more.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Print what it writes until it has ended.")
    ] = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Submit a batch job. It bills the project, for you."""
    body = {
        "script": _read(script),
        "options": options or [],
        "environment": _environment(env or []),
        "name": name or _name_of(script),
    }
    with Api.of_environment(project) as api:
        path = cluster_path(api, cluster)
        job = api.order("POST", f"{path}/jobs", body)
        if not wait:
            print_one(job, SHOW, output)
            return
        note(f"Job {job['id']} was submitted.")
        _follow(api, f"{path}/jobs/{job['id']}", 0)


def jobs(
    cluster: ClusterArgument,
    watch: WatchOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the jobs of a cluster, newest first, whoever submitted them and how."""
    with Api.of_environment(project) as api:
        path = f"{cluster_path(api, cluster)}/jobs"
        show_list(
            api,
            lambda: api.items(path),
            LIST,
            output,
            watch=watch,
            types="job.changed",
            empty="No job was submitted yet.",
        )


def logs(
    cluster: ClusterArgument,
    job: Annotated[str, typer.Argument(help="Job by the scheduler's number or by id.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
    project: ProjectOption = None,
) -> None:
    """Print what a job wrote, as far as it was read."""
    with Api.of_environment(project) as api:
        path = f"{cluster_path(api, cluster)}/jobs/{segment(job)}"
        if follow:
            _follow(api, path, 0)
            return
        offset, state = _print_output(api, path, 0)
        if state == "truncated":
            note(f"It wrote more than the {offset} bytes that are kept; see the file itself.")


def _follow(api: Api, path: str, offset: int) -> None:
    """Print what a job writes until it has ended; leaves with exit code 1 where it failed."""
    pause_s = LOOK_S
    try:
        while True:
            job = api.get(path)
            before = offset
            offset, state = _print_output(api, path, offset)
            if job["state"] in OVER and state != "open":
                _conclude(job)
                return
            # Patience grows while nothing comes.
            pause_s = LOOK_S if offset > before else min(pause_s * 1.3, MOST_LOOK_S)
            time.sleep(pause_s)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _print_output(api: Api, path: str, offset: int) -> tuple[int, str]:
    """Print everything there is behind ``offset``; returns where it ends, and its state."""
    while True:
        part = api.get(f"{path}/output", offset=offset, limit=PIECE)
        sys.stdout.write(part["text"])
        sys.stdout.flush()
        offset = int(part["next_offset"])
        if not part["text"] or part["state"] != "open":
            return offset, str(part["state"])


def _conclude(job: Json) -> None:
    if job["state"] == "refused":
        raise CliError(f"the job was refused: {job['reason']}", exit_code=ExitCode.REFUSED)
    if job["exit_code"] or job["scheduler_state"] != "COMPLETED":
        how = f"{job['scheduler_state']}, exit code {job['exit_code']}"
        raise CliError(
            f"job {job['scheduler_id']} did not succeed: {how}", exit_code=ExitCode.FAILURE
        )
    hours = _hours_cell(job["gpu_seconds"])
    note(f"Job {job['scheduler_id']} has ended: {job['gpus']} GPUs, {hours} GPU-hours.")


def _read(script: str) -> str:
    """The script's text.

    Raises:
        UsageError: there is no such file, or it is no script.
    """
    try:
        text = sys.stdin.read() if script == "-" else Path(script).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{script} cannot be read: {error}", next_step="Name a file that holds a batch script."
        ) from error
    if not text.startswith("#!"):
        raise UsageError(
            f"{script} is no script", next_step="Begin it with a line such as #!/bin/bash."
        )
    return text


def _name_of(script: str) -> str:
    """A job's name from its file, in letters that every scheduler takes."""
    stem = "" if script == "-" else Path(script).stem
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem)
    return kept.lstrip("._-")[:128] or "job"


def _environment(pairs: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"{pair!r} sets nothing", next_step="Write it as NAME=VALUE.")
        found[name] = value
    return found
