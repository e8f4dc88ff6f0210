"""Injected clocks. Nothing else in the platform reads the time of day."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

HARDWARE_FLOOR_S = 30.0
"""Wall seconds that any deadline on hardware has at least, whatever the site's clock speed."""


class Clock(Protocol):
    """Wall time for tokens, leases and usage."""

    def now(self) -> datetime:
        """The time in UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` of this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class ManualClock:
    """A clock that a test moves; ``sleep`` moves it and yields."""

    at: datetime

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        await asyncio.sleep(0)


HARDWARE_FLOOR_PER_TARGET_S = 0.25
"""Wall seconds more for each target of a step: a fast clock makes no computer faster."""


def hardware_timeout_s(site_seconds: float, speed: float, targets: int = 0) -> float:
    """Wall seconds to grant hardware that needs ``site_seconds`` of its site's clock.

    ``speed`` is site seconds per wall second: 1 for real sites, up to 600 for simulated ones.
    """
    floor_s = HARDWARE_FLOOR_S + targets * HARDWARE_FLOOR_PER_TARGET_S
    return max(floor_s, site_seconds / speed)
