"""Starts, asks and stops the supervisor of a data directory, from the outside."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from dflare.embedded.disk import start_refusal
from dflare.embedded.identity import ProcessIdentity
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.plan import explain_os_error
from dflare.embedded.state import ComponentState, ComponentStatus, SupervisorState, read_state
from dflare.embedded.stores import last_lines
from dflare.embedded.supervisor import clear_remains

UP_TIMEOUT_S = 120.0
DOWN_TIMEOUT_S = 90.0
OUTSIDE_STORE_PATIENCE_S = 5.0
POLL_S = 0.1


class StartError(Exception):
    """The start failed; the text says which part, why, and what to do next."""


class PurgeRefusedError(Exception):
    """The directory is not a stopped data directory, so nothing was deleted."""


@dataclass(frozen=True)
class Started:
    """A healthy start. `already_running` says that an earlier one was found."""

    state: SupervisorState
    already_running: bool
    took_s: float


def running_supervisor(layout: Layout) -> ProcessIdentity | None:
    """The living supervisor of the data directory, if any."""
    try:
        identity = ProcessIdentity.model_validate_json(layout.lock_file.read_bytes())
    except (OSError, ValidationError):
        return None
    return identity if identity.is_alive() else None


def up(layout: Layout, options: UpOptions, *, timeout_s: float = UP_TIMEOUT_S) -> Started:
    """Starts the supervisor detached unless one runs, and waits until all is healthy.

    Raises `StartError`; the supervisor then goes on trying unless it could not begin at all.
    """
    began = time.monotonic()
    if running_supervisor(layout) is not None:
        state = _wait_until_ready(layout, None, began + timeout_s)
        if state is not None:
            return Started(state, already_running=True, took_s=time.monotonic() - began)
    if refusal := start_refusal(layout.root):
        # Said before anything is made, so that a disk that is too small holds nothing of us.
        raise StartError(refusal)
    try:
        layout.create()
        options.write(layout.options_file)
        supervisor = _spawn(layout)
    except OSError as error:
        raise StartError(explain_os_error(error, layout.root)) from error
    state = _wait_until_ready(layout, supervisor, began + timeout_s)
    if state is None:
        raise StartError("Another start or stop went on at the same time; run `dflare up` again.")
    return Started(state, already_running=False, took_s=time.monotonic() - began)


def down(layout: Layout) -> list[str]:
    """Stops everything of the data directory; returns what was noteworthy, nothing if all went
    in order. Stopping what does not run is no error."""
    notes: list[str] = []
    supervisor = running_supervisor(layout)
    if supervisor is not None:
        supervisor.send(signal.SIGTERM)
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while supervisor.is_alive() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if supervisor.is_alive():
            notes.append(f"The supervisor (pid {supervisor.pid}) did not end and was killed.")
            supervisor.send(signal.SIGKILL)
    if layout.state_file.exists():
        remains = clear_remains(layout)
        if remains:
            notes.append(f"Processes without a supervisor were ended: {remains}.")
    return notes


def purge(layout: Layout) -> list[Path]:
    """Deletes what Dflare keeps in a stopped data directory; returns foreign files left there.

    Raises `PurgeRefusedError` when it runs, or does not look like a data directory.
    """
    if running_supervisor(layout) is not None:
        raise PurgeRefusedError(f"{layout.root} is in use; run `dflare down` first.")
    if not layout.run.is_dir() or not layout.secrets.is_dir():
        raise PurgeRefusedError(f"{layout.root} is no data directory of Dflare; nothing deleted.")
    for directory in (
        layout.postgres,
        layout.temporal,
        layout.simulator,
        layout.logs,
        layout.run,
        layout.secrets,
    ):
        shutil.rmtree(directory, ignore_errors=False)
    for directory in (
        layout.packages,
        layout.valkey,
        layout.seaweedfs,
        layout.victoriametrics,
    ):
        if directory.is_dir():
            shutil.rmtree(directory, ignore_errors=False)
    for file in (layout.site_file, layout.simulator_file):
        file.unlink(missing_ok=True)
    left = sorted(layout.root.iterdir())
    if not left:
        layout.root.rmdir()
    return left


def _spawn(layout: Layout) -> subprocess.Popen[bytes]:
    with layout.log_file("supervisor").open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
            [sys.executable, "-m", "dflare.embedded.supervisor", "--data-dir", str(layout.root)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # A caller that outlives the supervisor must collect it, or it would stay as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    return process


def _wait_until_ready(
    layout: Layout, supervisor: subprocess.Popen[bytes] | None, deadline: float
) -> SupervisorState | None:
    """The healthy state; None when the supervisor that was found running was on its way out."""
    while True:
        state = read_state(layout.state_file)
        running = running_supervisor(layout)
        if running is None and supervisor is None:
            return None
        alive = state is not None and state.supervisor == running
        if state is not None and alive:
            if state.is_ready:
                return state
            _raise_if_hopeless(layout, state)
        _raise_if_ended(layout, state, supervisor)
        if time.monotonic() > deadline:
            raise StartError(_describe_unready(layout, state if alive else None))
        time.sleep(POLL_S)


def _raise_if_ended(
    layout: Layout,
    state: SupervisorState | None,
    supervisor: subprocess.Popen[bytes] | None,
) -> None:
    if supervisor is None or supervisor.poll() is None or running_supervisor(layout) is not None:
        return
    if state is not None and state.supervisor.pid == supervisor.pid and state.failure:
        raise StartError(state.failure)
    log = layout.log_file("supervisor")
    raise StartError(f"The supervisor ended at once. {log} ends:\n{last_lines(log)}")


def _raise_if_hopeless(layout: Layout, state: SupervisorState) -> None:
    """Waiting longer helps neither a crash loop nor an outside store that is down."""
    for component in state.components:
        if component.optional:
            continue
        if component.in_crash_loop or (component.external and _is_down(component)):
            raise StartError(_describe_unready(layout, state))


def _is_down(component: ComponentStatus) -> bool:
    if component.state is not ComponentState.UNHEALTHY:
        return False
    since = datetime.fromisoformat(component.since)
    return (datetime.now(UTC) - since).total_seconds() > OUTSIDE_STORE_PATIENCE_S


def _describe_unready(layout: Layout, state: SupervisorState | None) -> str:
    """Which components are not ready and the end of the log of those that are to blame."""
    if state is None:
        return (
            "The supervisor did not report in time. Its log ends:\n"
            f"{last_lines(layout.log_file('supervisor'))}"
        )
    unready = [item for item in state.components if not (item.is_ready or item.optional)]
    parts = ["Not everything is healthy:"]
    parts += [
        f"  {item.name}: {item.state.value}{f' ({item.detail})' if item.detail else ''}"
        for item in unready
    ]
    for item in unready:
        if item.log and item.state is not ComponentState.WAITING:
            parts += [f"The log of {item.name} ({item.log}) ends:", last_lines(Path(item.log))]
    parts.append(
        "The supervisor goes on trying: `dflare status` shows how it stands, `dflare down` stops."
    )
    return "\n".join(parts)
