"""Temporal workers and read models of the control plane. ``python -m dflare.apps.worker``."""

from dflare.apps.process import Process, run_process
from dflare.apps.wiring import Platform
from dflare.kit.feed import run_projection
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
    for projection in platform.projections():
        if not process.serves(projection.kit.schema):
            continue
        process.start(
            run_projection(process.database, process.feed, projection),
            f"projection-{projection.name}",
        )


if __name__ == "__main__":
    run_process("worker", serve, divisible=True)
