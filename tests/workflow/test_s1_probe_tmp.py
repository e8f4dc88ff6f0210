import time
from real_platform import real_platform
async def test_probe(database_url, temporal_address, tmp_path):
    t=time.perf_counter()
    async with real_platform(database_url, temporal_address, tmp_path) as p:
        print("up", time.perf_counter()-t)
        for lane in p.lanes[:3]:
            t=time.perf_counter(); c0=time.process_time()
            op=await p.order(lane)
            async def ended(): return (await p.row(op))["state"] in ("succeeded","failed","needs_operator")
            await p.until(ended,60)
            row=await p.row(op)
            print(row["state"],row["reason"],time.perf_counter()-t, time.process_time()-c0)
            t=time.perf_counter(); c0=time.process_time()
            op=await p.release(lane,row["resource_id"])
            await p.until(ended,60)
            row=await p.row(op)
            print(row["state"],row["reason"],time.perf_counter()-t, time.process_time()-c0)
