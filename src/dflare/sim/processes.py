"""Real process groups that a simulated host owns: they live while its system runs."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence


class HostProcesses:
    """Process groups of one host; cutting the power kills them all."""

    def __init__(self) -> None:
        self._running: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start ``argv`` as the leader of a new process group and return the group's id.

        Raises:
            OSError: the program cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *argv, env=dict(env), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        self._running[process.pid] = process
        return process.pid

    def groups(self) -> list[int]:
        """The ids of the groups whose leader was not killed by ``kill``."""
        return sorted(self._running)

    async def kill(self) -> None:
        """Kill every group at once, members that outlived their leader included."""
        killed, self._running = self._running, {}
        for group in killed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in killed.values()))
