"""A process that reads one URL at a steady rate until it is told to stop, then prints the times.

``python -m bench.read_load BASE TOKEN PATH RATE``; prints a JSON list of seconds. A read is timed
from when it was due, so that a stalled server is not spared the reads that could not leave.
"""

import asyncio
import json
import sys
import time

import aiohttp


async def main(base: str, token: str, path: str, rate: float) -> None:
    """Read until a line or the end of standard input comes."""
    times: list[float] = []
    under_way: set[asyncio.Task[None]] = set()
    stop = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(base, headers=headers) as client:

        async def read(due: float) -> None:
            async with client.get(path) as answer:
                await answer.read()
                answer.raise_for_status()
            times.append(time.perf_counter() - due)

        due = time.perf_counter()
        while not stop.done():
            due += 1 / rate
            await asyncio.sleep(max(0, due - time.perf_counter()))
            task = asyncio.create_task(read(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
    print(json.dumps(times))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
