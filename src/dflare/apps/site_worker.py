"""What may reach the devices of sites: step workers, reconcilers, the agents' API.

``python -m dflare.apps.site_worker [SERVICE ...]`` serves every declared site, and new ones as
they come.
"""

import asyncio

from dflare.apps.http import serve_http
from dflare.apps.process import Process, run_process
from dflare.apps.wiring import Platform
from dflare.kit.temporal import build_worker, connect_for_workers, queue_of

LOOK_EVERY_S = 0.5


async def serve(process: Process, platform: Platform | None = None) -> None:
    """Start the agents' API and follow the declared sites."""
    platform = platform or Platform(process)
    settings = process.settings
    process.at_end(platform.close_clients)
    if process.serves("baremetal"):
        await serve_http(
            process, platform.agent_app(), settings.agent_host, settings.agent_port, "agent-api"
        )
    for service, start in platform.site_tasks().items():
        if process.serves(service):
            for name, work in start():
                process.start(work, name)
    process.start(_follow_sites(process, platform), "sites")


async def _follow_sites(process: Process, platform: Platform) -> None:
    served: set[str] = set()
    temporal = await connect_for_workers(process.settings)
    while True:
        for site_id in set(await platform.site_ids()) - served:
            served.add(site_id)
            for service, activities in platform.site_activities().items():
                if not process.serves(service):
                    continue
                worker = build_worker(
                    temporal,
                    queue_of(service, site_id),
                    process.settings,
                    activities=activities,
                )
                process.start(worker.run(), f"worker-{service}-{site_id}")
        await asyncio.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    run_process("site-worker", serve, divisible=True)
