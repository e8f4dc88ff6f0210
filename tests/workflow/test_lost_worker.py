"""A worker that vanishes with an activity in hand: the activity is soon given to another one."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import timedelta

import pytest
from sagakit import SagaBench, SagaWorkers, saga_workers
from temporalio import activity
from temporalio.api.enums.v1 import EventType, TimeoutType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollActivityTaskQueueRequest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from dflare.kit import operation_calls as calls
from dflare.kit.clock import SystemClock
from dflare.kit.operation_activities import OperationActivities
from dflare.kit.operations import lock_operation, operation_document
from dflare.services.orchestrator.reconciler import workflow_id
from lab import LAB_KIT, LabWorld

HEARTBEAT_S = 2


@pytest.fixture
async def workers(world: LabWorld, temporal_address: str) -> SagaWorkers:
    return await saga_workers(world.database, temporal_address, world, heartbeat_s=HEARTBEAT_S)


async def take_and_vanish(bench: SagaBench, queue: str) -> str:
    """Take one activity as a worker does and never be heard of again; returns its name."""
    while True:
        task = await bench.client.workflow_service.poll_activity_task_queue(
            PollActivityTaskQueueRequest(
                namespace=bench.client.namespace,
                task_queue=TaskQueue(name=queue),
                identity="a worker that is killed",
            ),
            timeout=timedelta(seconds=70),
        )
        if task.task_token:
            return task.activity_type.name


async def history(bench: SagaBench, operation_id: str) -> list[HistoryEvent]:
    handle = bench.client.get_workflow_handle(workflow_id(operation_id, 1))
    return list((await handle.fetch_history()).events)


def scheduled(events: Iterable[HistoryEvent]) -> dict[int, HistoryEvent]:
    kind = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    return {event.event_id: event for event in events if event.event_type == kind}


@pytest.mark.parametrize(
    ("service", "per_site", "name"),
    [("lab", False, "operation.load"), ("lab", True, "lab.connect@1")],
    ids=["the interpreter's own", "a step"],
)
async def test_an_activity_whose_worker_vanished_is_tried_again_after_its_heartbeat_time_out(
    workers: SagaWorkers, world: LabWorld, service: str, per_site: bool, name: str
) -> None:
    queue = f"{service}.{world.site_id}" if per_site else service
    async with workers.serving(but=queue) as bench:
        operation_id = await world.order()
        await bench.starter.start()
        assert await take_and_vanish(bench, queue) == name
        async with workers.serving(only=queue):
            row = await bench.ended(operation_id)
        events = await history(bench, operation_id)

    assert row["state"] == "succeeded", row["reason"]
    calls = scheduled(events)
    again = [
        (
            calls[event.activity_task_started_event_attributes.scheduled_event_id],
            event.activity_task_started_event_attributes,
        )
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED
        and event.activity_task_started_event_attributes.attempt > 1
    ]
    first, started = again[0]
    assert first.activity_task_scheduled_event_attributes.activity_type.name == name
    assert started.attempt == 2
    timeout = started.last_failure.timeout_failure_info
    assert timeout.timeout_type == TimeoutType.TIMEOUT_TYPE_HEARTBEAT


async def test_every_activity_and_every_task_is_given_up_after_seconds_without_a_sign_of_life(
    workers: SagaWorkers, world: LabWorld
) -> None:
    async with workers.serving() as bench:
        operation_id = await world.order()
        await bench.starter.start()
        assert (await bench.ended(operation_id))["state"] == "succeeded"
        events = await history(bench, operation_id)

    heartbeats = {
        call.activity_task_scheduled_event_attributes.activity_type.name: (
            call.activity_task_scheduled_event_attributes.heartbeat_timeout.ToTimedelta()
        )
        for call in scheduled(events).values()
    }
    assert len(heartbeats) > len(world.plan.steps)
    assert set(heartbeats.values()) == {timedelta(seconds=HEARTBEAT_S)}
    begun = events[0].workflow_execution_started_event_attributes
    assert begun.workflow_task_timeout.ToTimedelta() == timedelta(seconds=5)


async def test_an_activity_of_the_interpreter_that_its_retry_overtook_writes_nothing(
    world: LabWorld,
) -> None:
    operation_id = await world.order()
    ref = calls.OperationRef(operation_id=operation_id, ordering_service="lab", attempt=1)
    end = calls.EndStep(ref=ref, index=0, state="done", done=1, failed=0, advance=True)
    late = end.model_copy(update={"message": "late"})
    by_name = {
        activity_name(one): one
        for one in OperationActivities(world.database, LAB_KIT, SystemClock()).all()
    }
    end_step = by_name[calls.END_STEP]

    await as_attempt(2).run(end_step, end)
    with pytest.raises(ApplicationError, match="attempt 1, now 2"):
        await as_attempt(1).run(end_step, late)
    await as_attempt(3).run(end_step, end)

    async with world.database.transaction("lab") as session:
        row = await lock_operation(session, LAB_KIT, operation_id)
        document = await operation_document(session, LAB_KIT, row)
    assert (document["steps"][0]["state"], document["steps"][0]["message"]) == ("done", "")
    await world.clean(operation_id)


def activity_name(call: Callable[..., Awaitable[object]]) -> str:
    definition = activity._Definition.from_callable(call)
    assert definition is not None
    assert definition.name is not None
    return definition.name


def as_attempt(number: int) -> ActivityEnvironment:
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, activity_type=calls.END_STEP, attempt=number)
    return environment
