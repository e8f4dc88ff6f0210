"""Which process is meant: a pid alone may have been given to another program since."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

MARK_VARIABLE = "SUPERVISED_DATA_DIR"
COMPONENT_VARIABLE = "SUPERVISED_COMPONENT"


class ProcessIdentity(BaseModel):
    """A process of this boot: its pid and its start in clock ticks since the boot (proc(5))."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """The identity of a living process; None for one that ended (a zombie has ended)."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        if fields[0] in "ZX":
            return None
        # The text after the name begins with field 3 (state); field 22 is the start time.
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id)

    def is_alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Signals the process if it is still the same one."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def marked_processes(data_dir: Path, component: str | None = None) -> list[ProcessIdentity]:
    """Every process that descends from a supervisor of this data directory, whoever is its parent
    now; with `component` only that component's. Processes of other users may stay unseen."""
    found: list[ProcessIdentity] = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        if environment.get(MARK_VARIABLE) != str(data_dir) or process.pid == os.getpid():
            continue
        if component is not None and environment.get(COMPONENT_VARIABLE) != component:
            continue
        identity = ProcessIdentity.of(process.pid)
        if identity is not None:
            found.append(identity)
    return found


def end_processes(processes: Iterable[ProcessIdentity], grace_s: float) -> list[int]:
    """Asks each process to end, kills what remains after the grace, and waits until all are gone.

    Returns the pids that had to be killed. SIGINT is sent because it is PostgreSQL's orderly
    shutdown and ends Python programs too.
    """
    remaining = [process for process in processes if process.is_alive()]
    for process in remaining:
        process.send(signal.SIGINT)
    remaining = _wait_gone(remaining, grace_s)
    for process in remaining:
        process.send(signal.SIGKILL)
    _wait_gone(remaining, 10)
    return [process.pid for process in remaining]


def _wait_gone(processes: list[ProcessIdentity], timeout_s: float) -> list[ProcessIdentity]:
    deadline = time.monotonic() + timeout_s
    remaining = processes
    while remaining and time.monotonic() < deadline:
        time.sleep(0.05)
        remaining = [process for process in remaining if process.is_alive()]
    return remaining
