"""Simulated time: wall time multiplied by a speed that may change while the simulator runs."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

MIN_SPEED = 1.0
MAX_SPEED = 600.0


class SimClock:
    """A monotonic clock that runs ``speed`` simulated seconds a wall second.

    A change of speed keeps the simulated time continuous and re-arms every sleeper.
    """

    def __init__(self, speed: float, wall: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._speed = _checked(speed)
        self._anchor_wall = wall()
        self._anchor_sim = 0.0
        self._started_at = datetime.now(UTC)
        self._sleepers: set[asyncio.Future[None]] = set()

    @property
    def speed(self) -> float:
        """Simulated seconds a wall second."""
        return self._speed

    def now_s(self) -> float:
        """Simulated seconds since the start."""
        return self._anchor_sim + (self._wall() - self._anchor_wall) * self._speed

    def utc(self) -> datetime:
        """Simulated UTC: the real start time plus the simulated seconds."""
        return self._started_at + timedelta(seconds=self.now_s())

    def set_speed(self, speed: float) -> None:
        """Run at ``speed`` from now on.

        Raises:
            ValueError: it is not between 1 and 600.
        """
        checked = _checked(speed)
        self._anchor_sim, self._anchor_wall = self.now_s(), self._wall()
        self._speed = checked
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep(self, sim_s: float) -> None:
        """Return after ``sim_s`` simulated seconds; zero gives up one turn of the loop only."""
        if sim_s <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        until = self.now_s() + sim_s
        while (left := until - self.now_s()) > 0:
            sleeper = loop.create_future()
            timer = loop.call_later(left / self._speed, _wake, sleeper)
            self._sleepers.add(sleeper)
            try:
                await sleeper
            finally:
                timer.cancel()
                self._sleepers.discard(sleeper)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _checked(speed: float) -> float:
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise ValueError(f"speed {speed} is not between {MIN_SPEED:g} and {MAX_SPEED:g}")
    return speed
