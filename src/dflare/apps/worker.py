"""Temporal workers and read models of the control plane. ``python -m dflare.apps.worker``."""

from dflare.apps.own_metrics import push_platform
from dflare.apps.process import Process, run_process
from dflare.apps.wiring import Platform
from dflare.kit.feed import run_projections
from dflare.kit.temporal import build_worker, connect_for_workers, queue_of
from dflare.services.orchestrator.workflow import OperationWorkflow


async def serve(process: Process, platform: Platform | None = None) -> None:
    """Start a worker for the queue of every service and fold every read model."""
    platform = platform or Platform(process)
    temporal = await connect_for_workers(process.settings)
    for service, activities in platform.central_activities().items():
        if not process.serves(service):
            continue
        worker = build_worker(
            temporal,
            queue_of(service),
            process.settings,
            activities=activities,
            workflows=[OperationWorkflow] if service == "orchestrator" else [],
        )
        process.start(worker.run(), f"worker-{service}")
    for service, start in platform.central_tasks().items():
        if process.serves(service):
            for name, work in start():
                process.start(work, name)
    if process.serves("metrics") and platform.series.present:
        process.start(push_platform(platform), "platform-numbers")
    projections = [one for one in platform.projections() if process.serves(one.kit.schema)]
    process.start(run_projections(process.database, process.feed, projections), "projections")


if __name__ == "__main__":
    run_process("worker", serve, divisible=True)
