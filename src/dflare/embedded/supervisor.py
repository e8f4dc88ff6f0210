"""Runs all components of one data directory; `python -m dflare.embedded.supervisor` is detached
from the terminal by `dflare up`."""

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from dflare.embedded.component import Component
from dflare.embedded.disk import running_warning
from dflare.embedded.identity import ProcessIdentity, end_processes, marked_processes
from dflare.embedded.keeper import Keeper, KeepingPolicy
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.plan import Plan, PlanError, make_plan
from dflare.embedded.state import SupervisorState, read_state, write_state

logger = logging.getLogger(__name__)

LOG_LIMIT_BYTES = 64 * 1024 * 1024
HOUSEKEEPING_S = 5.0
PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """Starts components by their dependencies in parallel, keeps them, stops them in reverse."""

    def __init__(self, layout: Layout, plan: Plan, *, policy: KeepingPolicy | None = None) -> None:
        identity = ProcessIdentity.of(os.getpid())
        assert identity is not None, "this process lives"
        self._identity = identity
        self._layout = layout
        self._plan = plan
        self._stopped = False
        self._warnings = tuple(plan.warnings)
        chosen = policy or KeepingPolicy()
        self._keepers = {
            component.name: Keeper(
                component,
                data_dir=layout.root,
                log=layout.log_file(component.name),
                policy=chosen,
                changed=self._publish,
            )
            for component in plan.components
        }
        self._levels = dependency_levels(plan.components)

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; returns when every process has ended."""
        self._publish()
        tasks = {
            name: asyncio.create_task(keeper.run(self._dependencies(keeper)), name=name)
            for name, keeper in self._keepers.items()
        }
        housekeeping = asyncio.create_task(self._keep_house())
        stopping = asyncio.create_task(stop.wait())
        try:
            watched = {housekeeping, stopping, *tasks.values()}
            while not stopping.done():
                done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    # A step that ran once ends its task in peace; an error here is a defect of
                    # the supervisor, which must not go on half blind.
                    task.result()
        finally:
            for task in (housekeeping, stopping, *tasks.values()):
                task.cancel()
            await asyncio.gather(housekeeping, stopping, *tasks.values(), return_exceptions=True)
            await self._stop_all()

    def _dependencies(self, keeper: Keeper) -> list[Keeper]:
        return [self._keepers[name] for name in keeper.component.depends_on]

    async def _stop_all(self) -> None:
        for level in reversed(self._levels):
            await asyncio.gather(*(self._keepers[name].stop() for name in level))
        remains = await asyncio.to_thread(marked_processes, self._layout.root)
        await asyncio.to_thread(end_processes, remains, 2.0)
        self._stopped = True
        self._publish()

    def _publish(self) -> None:
        state = SupervisorState(
            supervisor=self._identity,
            version=version("dflare"),
            urls=dict(self._plan.urls),
            components=tuple(keeper.status for keeper in self._keepers.values()),
            warnings=self._warnings,
            stopped=self._stopped,
        )
        try:
            write_state(self._layout.state_file, state)
        except OSError:
            # A full disk must not end the processes that may still help to empty it.
            logger.exception("The state could not be written to %s", self._layout.state_file)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self._reap_orphans()
            for name in (*self._keepers, "supervisor"):
                shorten_log(self._layout.log_file(name))
            self._watch_disk()

    def _watch_disk(self) -> None:
        warning = running_warning(self._layout.root)
        warnings = [*self._plan.warnings, *([warning] if warning else [])]
        if tuple(warnings) != self._warnings:
            self._warnings = tuple(warnings)
            self._publish()

    def _reap_orphans(self) -> None:
        """Collects ended processes that this subreaper inherited from its components."""
        known = {
            keeper.status.process.pid for keeper in self._keepers.values() if keeper.status.process
        }
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            pid = int(child)
            if pid not in known and ProcessIdentity.of(pid) is None:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def dependency_levels(components: Sequence[Component]) -> list[list[str]]:
    """Names in start order, each level needing only earlier ones.

    Raises `ValueError` for an unknown or circular dependency.
    """
    waiting = {component.name: set(component.depends_on) for component in components}
    levels: list[list[str]] = []
    while waiting:
        level = [name for name, needs in waiting.items() if not needs & waiting.keys()]
        unknown = set[str]().union(*waiting.values()) - {c.name for c in components}
        if not level or unknown:
            raise ValueError(f"Circular or unknown dependency among {sorted(waiting)} {unknown}")
        levels.append(level)
        for name in level:
            del waiting[name]
    return levels


def shorten_log(log: Path) -> None:
    """Moves a log above 64 MiB to `<name>.log.1`; its writer appends, so it may go on meanwhile."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_LIMIT_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def take_lock(layout: Layout) -> int | None:
    """The lock that one supervisor of a data directory holds as long as it lives; None if held.

    The file tells readers who holds it, so that nobody has to try the lock to know.
    """
    descriptor = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None, "this process lives"
    os.truncate(descriptor, 0)
    os.write(descriptor, identity.model_dump_json().encode())
    return descriptor


def clear_remains(layout: Layout, grace_s: float = 10.0) -> list[int]:
    """Ends processes that a killed supervisor left behind; returns the pids that were alive."""
    state = read_state(layout.state_file)
    recorded = state.processes if state is not None else []
    found = {process.pid: process for process in (*recorded, *marked_processes(layout.root))}
    alive = [process for process in found.values() if process.is_alive()]
    end_processes(alive, grace_s)
    return [process.pid for process in alive]


async def supervise(layout: Layout, options: UpOptions) -> int:
    """Plans and runs the components; returns the exit code."""
    remains = clear_remains(layout)
    if remains:
        logger.warning("Ended processes of a supervisor that was killed: %s", remains)
    try:
        plan = make_plan(layout, options)
    except PlanError as error:
        logger.error("Nothing was started: %s", error)
        _publish_failure(layout, str(error))
        return 1
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Supervisor(layout, plan).run(stop)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes the lock and supervises until SIGTERM or SIGINT; leaves at once if the lock is held."""
    parser = argparse.ArgumentParser(prog="dflare.embedded.supervisor")
    parser.add_argument("--data-dir", type=Path, required=True)
    layout = Layout.of(parser.parse_args(arguments).data_dir)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    # Its line for each request would fill the log with health checks.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if take_lock(layout) is None:
        logger.info("Another supervisor runs in %s", layout.root)
        return 0
    # Orphans of a component come to this process instead of init, so that none is lost.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return asyncio.run(supervise(layout, UpOptions.read(layout.options_file)))


def _publish_failure(layout: Layout, failure: str) -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None, "this process lives"
    state = SupervisorState(supervisor=identity, version=version("dflare"), failure=failure)
    with contextlib.suppress(OSError):
        write_state(layout.state_file, state)


if __name__ == "__main__":
    sys.exit(main())
