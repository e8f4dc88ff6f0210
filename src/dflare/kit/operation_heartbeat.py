"""Signs of life of activities: what lets Temporal give one to another worker soon after a kill."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from temporalio import activity

_BEATS_IN_TIMEOUT = 3


@asynccontextmanager
async def beating() -> AsyncGenerator[None]:
    """Heartbeat the running activity while the block runs, as often as its caller's time-out asks.

    The interval comes from the activity itself, so that no process can be set to beat more slowly
    than the workflow that waits for it expects. One without a time-out asks for no beats.
    """
    timeout = activity.info().heartbeat_timeout
    if not timeout:
        yield
        return
    task = asyncio.create_task(_beat(timeout.total_seconds() / _BEATS_IN_TIMEOUT))
    try:
        yield
    finally:
        task.cancel()


async def _beat(every_s: float) -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(every_s)
