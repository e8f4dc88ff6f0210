"""How late the event loop runs what is due: what every answer of the process waits for at least."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

TICK_S = 0.01
_KEPT = 6_000
"""Samples kept: the last minute."""


@dataclass
class LoopLag:
    """Samples of the last minute, in milliseconds."""

    _samples: deque[float] = field(default_factory=lambda: deque[float](maxlen=_KEPT))

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self._samples.append(max(0.0, loop.time() - due) * 1000)

    def report(self) -> dict[str, float]:
        """Median, 99th percentile and maximum of the last minute, in milliseconds."""
        ordered = sorted(self._samples) or [0.0]
        last = len(ordered) - 1
        return {
            "p50_ms": round(ordered[last // 2], 2),
            "p99_ms": round(ordered[last * 99 // 100], 2),
            "max_ms": round(ordered[last], 2),
        }
