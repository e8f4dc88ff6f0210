"""Temporal client and worker set-up, the same for every process."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from dflare.kit.settings import PlatformSettings


def queue_of(service: str, site_id: str | None = None) -> str:
    """The task queue of a service: ``<service>`` or ``<service>.<site>``."""
    return service if site_id is None else f"{service}.{site_id}"


async def connect(settings: PlatformSettings) -> Client:
    """A client; connects lazily, so that a process starts before Temporal does."""
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        data_converter=pydantic_data_converter,
        lazy=True,
    )


def build_worker(
    client: Client,
    queue: str,
    settings: PlatformSettings,
    *,
    activities: Sequence[Callable[..., Any]],
    workflows: Sequence[type] = (),
    max_activities: int = 32,
) -> Worker:
    """A worker of one queue. Activities heartbeat at ``settings.heartbeat_s``."""
    return Worker(
        client,
        task_queue=queue,
        activities=activities,
        workflows=workflows,
        max_concurrent_activities=max_activities,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=settings.sticky_queue_s),
        graceful_shutdown_timeout=timedelta(seconds=2),
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_modules(
                "dflare.kit.plan", "pydantic", "pydantic_core"
            )
        ),
    )
