"""How steps and the reconciler of one process wake each other. It only saves waiting: what counts
stands in the database, where other processes find it by polling."""

import asyncio


class Signals:
    """Shared by the reconciler and the steps of a process."""

    def __init__(self) -> None:
        self._wanted = asyncio.Event()
        self._pass = asyncio.Event()

    def wake(self) -> None:
        """Let the reconciler look at once."""
        self._wanted.set()

    async def wanted(self, timeout_s: float) -> None:
        """Return when the reconciler is woken, or after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wanted.wait()
        except TimeoutError:
            return
        finally:
            self._wanted.clear()

    def over(self) -> None:
        """A pass was recorded."""
        event, self._pass = self._pass, asyncio.Event()
        event.set()

    async def passed(self, timeout_s: float) -> None:
        """Return when the next pass is over, or after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._pass.wait()
        except TimeoutError:
            return
