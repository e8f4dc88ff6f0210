"""Keeps one component running: start, readiness, watch, restart with back-off, stop."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dflare.embedded.component import AbsentError, Component, RestartPolicy
from dflare.embedded.identity import (
    COMPONENT_VARIABLE,
    MARK_VARIABLE,
    ProcessIdentity,
    end_processes,
    marked_processes,
)
from dflare.embedded.state import ComponentState, ComponentStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeepingPolicy:
    """When a component is started again and when it counts as hung. All times in seconds.

    The delay before a restart doubles from `first_delay_s` to `longest_delay_s` and starts anew
    after `forgiven_after_s` of health. A component whose check fails `hung_after_checks` times in
    a row is killed and started again.
    """

    first_delay_s: float = 1.0
    longest_delay_s: float = 30.0
    forgiven_after_s: float = 60.0
    ready_poll_s: float = 0.1
    health_poll_s: float = 5.0
    hung_after_checks: int = 12

    def delay_s(self, failures: int) -> float:
        """The pause after this many failures in a row (1 or more)."""
        return min(self.first_delay_s * 2 ** min(failures - 1, 16), self.longest_delay_s)


class Keeper:
    """The life of one component; `healthy` is set while others may rely on it."""

    def __init__(
        self,
        component: Component,
        *,
        data_dir: Path,
        log: Path,
        policy: KeepingPolicy,
        changed: Callable[[], None],
    ) -> None:
        self.component = component
        self.status = ComponentStatus(
            name=component.name,
            external=component.external,
            optional=component.optional,
            log="" if component.external else str(log),
        )
        self.healthy = asyncio.Event()
        self._data_dir = data_dir
        self._log = log
        self._policy = policy
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._health_s = 0.0

    async def run(self, dependencies: Sequence["Keeper"]) -> None:
        """Keeps the component running until cancelled; returns for a step that ran once, and for
        what this machine cannot have."""
        if self.component.external:
            await self._watch_external()
            return
        failures = 0
        while True:
            self._show(ComponentState.WAITING, process=None, failures=failures)
            for dependency in dependencies:
                await dependency.healthy.wait()
            try:
                ended = await self._live()
            except AbsentError as reason:
                self._show(ComponentState.ABSENT, process=None, detail=str(reason), failures=0)
                return
            if ended == "" and self.component.restart is RestartPolicy.UNTIL_SUCCESS:
                self.healthy.set()
                self._show(ComponentState.DONE, process=None, detail="", failures=0)
                return
            failures = 1 if self._health_s >= self._policy.forgiven_after_s else failures + 1
            delay_s = self._policy.delay_s(failures)
            logger.warning(
                "%s %s; next start in %.1f s", self.component.name, ended or "exited", delay_s
            )
            self._show(
                ComponentState.BACKING_OFF,
                process=None,
                detail=ended or "exited with code 0",
                failures=failures,
                restarts=self.status.restarts + 1,
            )
            await asyncio.sleep(delay_s)

    async def stop(self) -> None:
        """Ends the process and whatever it left behind; call it after `run` was cancelled."""
        self.healthy.clear()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.component.stop_signal)
            try:
                async with asyncio.timeout(self.component.grace_s):
                    await process.wait()
            except TimeoutError:
                logger.warning("%s did not end in its grace; killing it", self.component.name)
                self._kill_group(process.pid)
                await process.wait()
        if process is not None:
            await self._end_remains(process.pid)
        if self.status.state not in {ComponentState.DONE, ComponentState.ABSENT}:
            self._show(ComponentState.STOPPED, process=None)

    async def _live(self) -> str:
        """One start to its end; returns why it ended, empty for exit code 0."""
        self._health_s = 0.0
        try:
            await self._start()
        except AbsentError:
            raise
        # What a preparation raises is its own affair; for the keeper it is a failed start.
        except Exception as error:
            logger.exception("%s could not be started", self.component.name)
            return str(error) or type(error).__name__
        process = self._process
        assert process is not None
        exited = asyncio.create_task(process.wait())
        try:
            complaint = await self._until_ready(exited)
            if complaint == "" and not exited.done():
                complaint = await self._watch(exited)
            if not exited.done():
                self._kill_group(process.pid)
            code = await exited
        finally:
            self.healthy.clear()
            if not exited.done():
                exited.cancel()
        await self._end_remains(process.pid)
        return complaint or _explain(code)

    async def _start(self) -> None:
        component = self.component
        if component.prepare is not None:
            self._show(ComponentState.PREPARING)
            await asyncio.to_thread(component.prepare)
        environment = {
            **os.environ,
            **component.env,
            MARK_VARIABLE: str(self._data_dir),
            COMPONENT_VARIABLE: component.name,
        }
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *component.argv,
                cwd="/",
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        self._show(ComponentState.STARTING, process=ProcessIdentity.of(self._process.pid))

    async def _until_ready(self, exited: "asyncio.Task[int]") -> str:
        """Waits for readiness; returns a complaint, or nothing when ready or exited."""
        check = self.component.ready
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.component.start_timeout_s
        while not exited.done():
            if check is not None and await check():
                self.healthy.set()
                self._show(ComponentState.HEALTHY, detail="")
                return ""
            if loop.time() > deadline:
                return f"was not ready within {self.component.start_timeout_s:.0f} s"
            await asyncio.wait({exited}, timeout=self._policy.ready_poll_s)
        return ""

    async def _watch(self, exited: "asyncio.Task[int]") -> str:
        """Checks health until the process exits; returns a complaint if it hangs."""
        check = self.component.ready
        loop = asyncio.get_running_loop()
        began = loop.time()
        misses = 0
        while misses < self._policy.hung_after_checks:
            await asyncio.wait({exited}, timeout=self._policy.health_poll_s)
            self._health_s = loop.time() - began
            if exited.done():
                return ""
            misses = 0 if check is None or await check() else misses + 1
            if misses == 0 and self.status.state is not ComponentState.HEALTHY:
                self._show(ComponentState.HEALTHY, detail="")
            elif misses >= 2 and self.status.state is ComponentState.HEALTHY:
                self._show(ComponentState.UNHEALTHY, detail="does not answer its check")
        return f"did not answer {misses} checks in a row"

    async def _watch_external(self) -> None:
        """Follows a server that somebody else runs; it can only be reported, not restarted."""
        check = self.component.ready
        assert check is not None, "an outside server needs a check"
        while True:
            if await check():
                self.healthy.set()
                if self.status.state is not ComponentState.HEALTHY:
                    self._show(ComponentState.HEALTHY, detail="")
                await asyncio.sleep(self._policy.health_poll_s)
            else:
                self.healthy.clear()
                if self.status.state is not ComponentState.UNHEALTHY:
                    detail = f"the outside server does not answer; {self.component.advice}"
                    self._show(ComponentState.UNHEALTHY, detail=detail)
                await asyncio.sleep(min(1.0, self._policy.health_poll_s))

    async def _end_remains(self, group: int) -> None:
        """Ends what a component left behind: its process group, and processes that left the group
        but still carry its mark."""
        self._kill_group(group)
        remains = await asyncio.to_thread(marked_processes, self._data_dir, self.component.name)
        if remains:
            await asyncio.to_thread(end_processes, remains, 2.0)

    def _kill_group(self, group: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)

    def _show(self, state: ComponentState, **changes: Any) -> None:
        if state is not self.status.state:
            changes["since"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.status = self.status.model_copy(update={"state": state, **changes})
        self._changed()


def _explain(code: int) -> str:
    if code == 0:
        return ""
    if code > 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
