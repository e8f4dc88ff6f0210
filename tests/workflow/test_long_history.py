"""A history that grows long is left for a new one, in the middle of whatever goes on."""

import pytest
from sagakit import Disturbance, SagaWorkers, saga_workers
from temporalio.client import WorkflowExecutionStatus

from dflare.kit.plan import OperationState
from dflare.services.orchestrator.reconciler import workflow_id
from lab import LabWorld

SHORT, WHOLE = 45, 1_000
"""Events: a few steps, and more than any order here needs."""


async def statuses(workers: SagaWorkers, operation_id: str) -> list[WorkflowExecutionStatus | None]:
    await workers.bench.client.get_workflow_handle(workflow_id(operation_id, 1)).result()
    query = f"WorkflowId = '{workflow_id(operation_id, 1)}'"
    runs = [run async for run in workers.bench.client.list_workflows(query)]
    return [run.status for run in sorted(runs, key=lambda run: run.start_time)]


@pytest.mark.parametrize(
    "disturbance",
    [
        None,
        Disturbance("cut_after_call", 5, "lab.write@1"),
        Disturbance("fail_all", 7, "orchestrator.hand_over@1"),
        Disturbance("cut_after_record", 4, "lab.power_off@1", undoing=True, fail_at=7),
    ],
    ids=["forward", "forward and cut", "backward", "backward and cut"],
)
async def test_an_operation_that_outgrows_its_history_ends_as_one_that_does_not(
    world: LabWorld, temporal_address: str, disturbance: Disturbance | None
) -> None:
    finals = {}
    for events in (SHORT, WHOLE):
        workers = await saga_workers(world.database, temporal_address, world, max_history=events)
        async with workers.serving() as bench:
            finals[events] = await bench.run(disturbance)
            runs = await statuses(workers, finals[events].operation_id)
        assert runs[-1] is WorkflowExecutionStatus.COMPLETED
        left = {WorkflowExecutionStatus.CONTINUED_AS_NEW} if events == SHORT else set()
        assert set(runs[:-1]) == left

    short, whole = finals[SHORT], finals[WHOLE]
    assert (short.state, short.reason.split(":")[0]) == (whole.state, whole.reason.split(":")[0])
    assert short.snapshot == whole.snapshot
    assert short.state is (
        OperationState.FAILED
        if disturbance and (disturbance.fail_at or disturbance.kind == "fail_all")
        else OperationState.SUCCEEDED
    )


async def test_a_replacement_goes_on_in_the_next_history(
    world: LabWorld, temporal_address: str
) -> None:
    # Long enough for the longest exchange, short enough to be passed in the middle of it.
    workers = await saga_workers(world.database, temporal_address, world, max_history=240)
    async with workers.serving() as bench:
        final = await bench.run(Disturbance("fail_one", 6, "lab.look@1"))
        runs = await statuses(workers, final.operation_id)

    assert final.state is OperationState.SUCCEEDED, final.reason
    assert len(runs) > 1
    assert final.snapshot["own_nodes"] == [(True, True)] * 3
