"""Temporal client and worker set-up, the same for every process."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from dflare.kit.settings import PlatformSettings
from dflare.kit.telemetry import log


def queue_of(service: str, site_id: str | None = None) -> str:
    """The task queue of a service: ``<service>`` or ``<service>.<site>``."""
    return service if site_id is None else f"{service}.{site_id}"


async def connect(settings: PlatformSettings) -> Client:
    """A client that connects at its first call, so that a process starts before Temporal does.

    It cannot serve workers: they need ``connect_for_workers``.
    """
    return await _connect(settings, lazy=True)


async def connect_for_workers(settings: PlatformSettings) -> Client:
    """A connected client; waits, without limit, until Temporal answers."""
    pause_s = 0.2
    while True:
        try:
            return await _connect(settings, lazy=False)
        except (RPCError, RuntimeError) as error:
            log.warning("temporal_does_not_answer", error=str(error)[:200])
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5)


async def _connect(settings: PlatformSettings, *, lazy: bool) -> Client:
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        data_converter=pydantic_data_converter,
        lazy=lazy,
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
