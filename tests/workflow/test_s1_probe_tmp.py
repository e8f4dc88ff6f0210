import asyncio
import cProfile
import pstats
import time

from real_platform import real_platform


async def test_probe(database_url, temporal_address, tmp_path):
    t = time.perf_counter()
    async with real_platform(database_url, temporal_address, tmp_path) as p:
        print("up", time.perf_counter() - t)
        t = time.perf_counter()
        c0 = time.process_time()
        await asyncio.sleep(8)
        print("idle", time.perf_counter() - t, time.process_time() - c0)

        async def life(lane):
            op = await p.order(lane)

            async def ended():
                return (await p.row(op))["state"] in ("succeeded", "failed", "needs_operator")

            await p.until(ended, 200)
            row = await p.row(op)
            print(row["state"], row["reason"])
            op = await p.release(lane, row["resource_id"])
            await p.until(ended, 200)
            row = await p.row(op)
            print(row["state"], row["reason"])

        pr = cProfile.Profile()
        pr.enable()
        t = time.perf_counter()
        c0 = time.process_time()
        await asyncio.gather(*map(life, p.lanes))
        print("six", time.perf_counter() - t, time.process_time() - c0)
        pr.disable()
        st = pstats.Stats(pr)
        st.sort_stats("tottime").print_stats(45)
        st.sort_stats("cumtime").print_stats(60)
