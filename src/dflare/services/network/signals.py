"""How steps and reconcilers of one process wake each other.

It only saves waiting: what counts stands in the database, where other processes find it by polling.
"""

import asyncio
from collections.abc import Iterable, Mapping


class Signals:
    """Shared by the reconcilers and the steps of a process."""

    def __init__(self) -> None:
        self._wanted: dict[str, asyncio.Event] = {}
        self._busy: set[str] = set()
        self._passes: dict[str, int] = {}
        self._any = asyncio.Event()

    def wake(self, device_ids: Iterable[str]) -> None:
        """Let the reconcilers of these devices look at once."""
        for device_id in device_ids:
            self._wanted.setdefault(device_id, asyncio.Event()).set()

    def remind(self, device_ids: Iterable[str]) -> None:
        """Wake those that are not in the middle of a pass, which looks for more at its end."""
        self.wake(set(device_ids) - self._busy)

    def begun(self, device_id: str) -> None:
        """A pass begins: it sees everything that the device was woken for until now."""
        self._busy.add(device_id)
        self._wanted.setdefault(device_id, asyncio.Event()).clear()

    def over(self, device_id: str) -> None:
        """The pass is over, whatever came of it."""
        self._busy.discard(device_id)

    async def wanted(self, device_id: str, timeout_s: float) -> bool:
        """Return when the device is woken, or after ``timeout_s``; whether it was woken."""
        event = self._wanted.setdefault(device_id, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True

    def passed(self, device_id: str) -> None:
        """A pass of the device was recorded by this process."""
        self._passes[device_id] = self._passes.get(device_id, 0) + 1
        event, self._any = self._any, asyncio.Event()
        event.set()

    def passes(self) -> dict[str, int]:
        """How often each device of this process was recorded."""
        return dict(self._passes)

    async def more_passes(self, than: Mapping[str, int], timeout_s: float) -> None:
        """Return when each device of ``than`` was recorded more often than that, or after
        ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                while any(self._passes.get(device, 0) <= count for device, count in than.items()):
                    await self._any.wait()
        except TimeoutError:
            return
