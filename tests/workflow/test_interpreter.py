"""The interpreter, with real Temporal and PostgreSQL and small fake steps."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sagakit import Disturbance, SagaBench
from sqlalchemy import select, update

from dflare.kit import operation_control
from dflare.kit.clock import SystemClock
from dflare.kit.errors import StaleAttemptError
from dflare.kit.ids import new_id
from dflare.kit.plan import OperationState, StepCall
from dflare.kit.steps import DONE, Outcome, StepRunner
from dflare.services.orchestrator.reconciler import Sweeper
from dflare.services.orchestrator.tables import Allocation, Node
from lab import LAB_KIT, RELEASE, LabWorld, Machine


@pytest.fixture(autouse=True)
async def tidy(world: LabWorld) -> None:
    await world.clean("")


def failing(
    *nodes: str, reason: str = "broken", shared: bool = False
) -> Callable[[StepCall, str], Outcome]:
    """A fault that hits `nodes`, or every target where none is given; stand-ins help unless it is
    `shared`."""
    fault = Outcome("failed", reason, shared=shared)

    def verb(call: StepCall, target: str) -> Outcome:
        return fault if not nodes or target in nodes else DONE

    return verb


async def steps_of(world: LabWorld, operation_id: str) -> dict[str, str]:
    table = LAB_KIT.operation_step
    async with world.database.transaction("lab") as session:
        rows = await session.execute(
            select(table.c.name, table.c.state).where(table.c.operation_id == operation_id)
        )
        return {row.name: row.state for row in rows}


async def test_an_order_goes_through_all_steps_and_hands_over(
    bench: SagaBench, world: LabWorld
) -> None:
    final = await bench.run()

    assert final.state is OperationState.SUCCEEDED, final.reason
    assert final.snapshot["thing"] == "ready"
    assert final.snapshot["allocations"] == [("confirmed", True)] * 3
    assert final.snapshot["own_nodes"] == [(True, True)] * 3
    assert final.snapshot["claims"] == 0
    assert set((await steps_of(world, final.operation_id)).values()) == {"done"}


async def test_a_node_that_fails_is_replaced_and_its_steps_are_taken_back(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    victim = (await world.targets(operation_id))[0]
    world.faults["lab.write@1"] = failing(victim)
    await bench.starter.start()

    row = await bench.ended(operation_id)

    assert row["state"] == "succeeded", row["reason"]
    targets = await world.targets(operation_id)
    assert victim not in targets
    assert len(targets) == 3
    assert "replaced: lab.write@1 failed for 1 of 3: broken" in row["reason"]
    assert not world.machines[victim].connected
    assert not world.machines[victim].powered
    states = {a.node_id: (a.state, a.usage_from) for a in await world.allocations(operation_id)}
    assert states[victim] == ("ended", None)
    assert (await world.snapshot(operation_id))["own_nodes"] == [(True, True)] * 3


async def test_stand_ins_that_fail_too_are_replaced_for_three_rounds_then_all_is_undone(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    world.faults["lab.write@1"] = failing()
    await bench.starter.start()

    row = await bench.ended(operation_id)

    assert row["state"] == "failed"
    assert "stand-ins failed too: broken" in row["reason"]
    tried = await world.allocations(operation_id)
    assert len(tried) == 3 * (1 + 3)
    assert await world.snapshot(operation_id) == await world.untouched()


async def test_a_node_given_up_just_before_its_hand_over_ends_in_quarantine_if_it_is_not_cleaned(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    victim = (await world.targets(operation_id))[0]
    world.faults["lab.look@1"] = failing(victim, reason="it was taken into quarantine")
    world.faults["lab.erase@1"] = failing(victim, reason="the disk does not answer")
    await bench.starter.start()

    row = await bench.ended(operation_id)

    assert row["state"] == "succeeded", row["reason"]
    targets = await world.targets(operation_id)
    assert (len(targets), victim in targets) == (3, False)
    assert world.machines[victim].quarantined
    assert not world.machines[victim].connected
    ended = {a.node_id for a in await world.allocations(operation_id) if a.state == "ended"}
    assert ended == {victim}
    assert (await world.snapshot(operation_id))["own_nodes"] == [(True, True)] * 3


async def test_a_failure_that_stand_ins_would_share_costs_no_other_nodes(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    victim = (await world.targets(operation_id))[0]
    world.faults["lab.connect@1"] = failing(victim, reason="the pool is empty", shared=True)
    await bench.starter.start()

    row = await bench.ended(operation_id)

    assert row["state"] == "failed"
    assert row["reason"] == f"lab.connect@1 failed for 1 of 3: the pool is empty ({victim})"
    assert len(await world.allocations(operation_id)) == 3
    assert await world.snapshot(operation_id) == await world.untouched()


async def test_a_site_that_answers_for_no_node_at_all_costs_no_other_nodes(
    bench: SagaBench, world: LabWorld
) -> None:
    final = await bench.run(Disturbance("never_done", 3, "lab.hear@1"))

    assert final.state is OperationState.FAILED
    assert "lab.hear@1 failed for 3 of 3: deadline" in final.reason
    assert len(await world.allocations(final.operation_id)) == 3
    assert final.snapshot == await world.untouched()


async def test_an_order_without_a_stand_in_is_undone_and_says_why(
    bench: SagaBench, world: LabWorld
) -> None:
    world.count = len(world.machines)
    try:
        operation_id = await world.order()
    finally:
        world.count = 3
    victim = (await world.targets(operation_id))[5]
    world.faults["lab.write@1"] = failing(victim)
    await bench.starter.start()

    row = await bench.ended(operation_id)

    assert row["state"] == "failed"
    assert "broken" in row["reason"]
    assert "no free node of type gpu is left (24 held by other orders)" in row["reason"]
    assert await world.snapshot(operation_id) == await world.untouched()


async def test_a_node_whose_undo_fails_is_parked_and_a_person_resumes(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    targets = await world.targets(operation_id)
    world.faults["lab.look@1"] = failing(shared=True)
    world.faults["lab.erase@1"] = failing(targets[1], reason="the disk does not answer")
    await bench.starter.start()

    row = await bench.ended(operation_id)

    assert row["state"] == "needs_operator"
    assert "lab.look@1 failed for 3 of 3" in row["reason"]
    assert f"lab.erase@1: the disk does not answer ({targets[1]})" in row["reason"]
    assert row["targets"] == [targets[1]]
    assert world.machines[targets[1]].quarantined
    live = [a for a in await world.allocations(operation_id) if a.state != "ended"]
    assert [(a.node_id, a.usage_from) for a in live] == [(targets[1], None)]

    world.faults.clear()
    # What was freed may be another's by now, and must be left alone.
    world.machines[targets[0]].content = "another's"
    await operation_control.resume(world.database, LAB_KIT, operation_id, SystemClock())
    await bench.starter.start()
    row = await bench.ended(operation_id)

    assert (row["state"], row["attempt"]) == ("failed", 2)
    assert world.machines[targets[1]].content == ""
    assert world.machines[targets[0]].content == "another's"
    assert {a.state for a in await world.allocations(operation_id)} == {"ended"}


async def test_a_cancelled_order_is_undone_before_its_commit_step(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    reached, gate = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(call: StepCall, target: str) -> Outcome:
        loop.call_soon_threadsafe(reached.set)
        return DONE if gate.is_set() else Outcome("pending")

    world.faults["lab.write@1"] = wait
    await bench.starter.start()
    await asyncio.wait_for(reached.wait(), 60)
    document = await operation_control.cancel(world.database, LAB_KIT, operation_id, SystemClock())
    gate.set()

    row = await bench.ended(operation_id)

    assert document["cancel_requested"]
    assert (row["state"], row["reason"]) == ("cancelled", "cancelled")
    assert await world.snapshot(operation_id) == await world.untouched()


async def test_an_order_that_ended_or_was_committed_cannot_be_cancelled(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    world.faults["lab.ready@1"] = failing()
    await bench.starter.start()
    row = await bench.ended(operation_id)
    assert row["state"] == "needs_operator"

    with pytest.raises(operation_control.TooLateError):
        await operation_control.cancel(world.database, LAB_KIT, operation_id, SystemClock())

    world.faults.clear()
    await operation_control.resume(world.database, LAB_KIT, operation_id, SystemClock())
    await bench.starter.start()
    assert (await bench.ended(operation_id))["state"] == "succeeded"
    with pytest.raises(operation_control.OperationStateError):
        await operation_control.cancel(world.database, LAB_KIT, operation_id, SystemClock())


async def test_a_failed_order_is_retried_with_nodes_reserved_anew(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    world.faults["lab.look@1"] = failing(shared=True)
    await bench.starter.start()
    assert (await bench.ended(operation_id))["state"] == "failed"

    world.faults.clear()
    reservation = await world.service.reserve_again(operation_id)
    await operation_control.retry(
        world.database,
        LAB_KIT,
        operation_id,
        SystemClock(),
        [placed.node_id for placed in reservation.placed],
    )
    await bench.starter.start()
    row = await bench.ended(operation_id)

    assert (row["state"], row["attempt"], row["generation"]) == ("succeeded", 2, 2)
    assert (await world.snapshot(operation_id))["own_nodes"] == [(True, True)] * 3


async def test_a_release_puts_what_it_cannot_clean_into_quarantine_and_goes_on(
    bench: SagaBench, world: LabWorld
) -> None:
    ordered = await world.order()
    await bench.starter.start()
    assert (await bench.ended(ordered))["state"] == "succeeded"
    targets, thing = await world.targets(ordered), await world.thing_of(ordered)
    world.faults["lab.power_off@1"] = failing(targets[0], reason="the BMC is silent")
    release = new_id("op")
    await world.store(release, thing, RELEASE, targets)
    await bench.starter.start()

    row = await bench.ended(release)

    assert row["state"] == "succeeded", row["reason"]
    assert "in quarantine: lab.power_off@1 failed for 1 of 3: the BMC is silent" in row["reason"]
    assert world.machines[targets[0]].quarantined
    assert world.machines[targets[0]].content == thing
    assert [world.machines[t].content for t in targets[1:]] == ["", ""]
    assert world.things[thing] == "deleted"
    assert {a.state for a in await world.allocations(ordered)} == {"ended"}


async def test_a_release_that_cannot_begin_waits_for_a_person_and_a_retry_goes_on(
    bench: SagaBench, world: LabWorld
) -> None:
    ordered = await world.order()
    await bench.starter.start()
    assert (await bench.ended(ordered))["state"] == "succeeded"
    release = new_id("op")
    await world.store(release, await world.thing_of(ordered), RELEASE, await world.targets(ordered))
    world.faults["lab.begin_delete@1"] = failing()
    await bench.starter.start()

    row = await bench.ended(release)

    assert row["state"] == "needs_operator"
    assert "lab.begin_delete@1 failed for 1 of 1: broken" in row["reason"]
    assert f"go on with `dflare operation retry {release}`" in row["reason"]

    world.faults.clear()
    await operation_control.check_retry(world.database, LAB_KIT, release)
    await operation_control.retry(world.database, LAB_KIT, release, SystemClock())
    await bench.starter.start()
    row = await bench.ended(release)
    assert (row["state"], row["attempt"], row["reason"]) == ("succeeded", 2, "")
    assert {a.state for a in await world.allocations(ordered)} == {"ended"}


async def test_a_release_that_was_ordered_cannot_be_cancelled_before_it_begins_either(
    bench: SagaBench, world: LabWorld
) -> None:
    ordered = await world.order()
    await bench.starter.start()
    assert (await bench.ended(ordered))["state"] == "succeeded"
    release = new_id("op")
    await world.store(release, await world.thing_of(ordered), RELEASE, await world.targets(ordered))

    with pytest.raises(operation_control.TooLateError):
        await operation_control.cancel(world.database, LAB_KIT, release, SystemClock())

    await bench.starter.start()
    assert (await bench.ended(release))["state"] == "succeeded"


async def test_what_waits_for_a_person_behind_its_commit_is_not_retried(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    world.faults["lab.ready@1"] = failing()
    await bench.starter.start()
    assert (await bench.ended(operation_id))["state"] == "needs_operator"

    with pytest.raises(operation_control.OperationStateError):
        await operation_control.check_retry(world.database, LAB_KIT, operation_id)
    with pytest.raises(operation_control.OperationStateError):
        await operation_control.retry(world.database, LAB_KIT, operation_id, SystemClock())


async def test_a_workflow_that_vanished_is_started_again_and_ends_the_same(
    bench: SagaBench, world: LabWorld
) -> None:
    undisturbed = await bench.run()
    operation_id = await world.order()
    reached, gate = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(call: StepCall, target: str) -> Outcome:
        loop.call_soon_threadsafe(reached.set)
        return DONE if gate.is_set() else Outcome("pending")

    world.faults["lab.power_on@1"] = wait
    sweeper = Sweeper(
        world.database, bench.client, {"lab": LAB_KIT}, SystemClock(), settled=timedelta(0)
    )
    await bench.starter.start()
    await asyncio.wait_for(reached.wait(), 60)
    assert await sweeper.sweep() == 0

    await bench.kill(operation_id)
    assert await sweeper.sweep() == 1
    assert await sweeper.sweep() == 0
    gate.set()
    await bench.starter.start()
    row = await bench.ended(operation_id)

    assert (row["state"], row["attempt"]) == ("succeeded", 2)
    assert await world.snapshot(operation_id) == undisturbed.snapshot


async def test_a_replacement_that_was_cut_off_goes_on_in_the_next_attempt(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    victim = (await world.targets(operation_id))[0]
    world.faults["lab.write@1"] = failing(victim)
    reached, gate = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_stand_in(call: StepCall, target: str) -> Outcome:
        if call.targets == (target,) and not gate.is_set():
            loop.call_soon_threadsafe(reached.set)
            return Outcome("pending")
        return DONE

    world.faults["lab.connect@1"] = wait_for_stand_in
    await bench.starter.start()
    await asyncio.wait_for(reached.wait(), 60)
    row = await bench.row(operation_id)
    assert list(row["replacing"].values()) == [victim]

    await bench.kill(operation_id)
    sweeper = Sweeper(
        world.database, bench.client, {"lab": LAB_KIT}, SystemClock(), settled=timedelta(0)
    )
    assert await sweeper.sweep() == 1
    gate.set()
    await bench.starter.start()
    row = await bench.ended(operation_id)

    assert row["state"] == "succeeded", row["reason"]
    assert row["replacing"] == {}
    targets = await world.targets(operation_id)
    assert (len(targets), victim in targets) == (3, False)
    assert (await world.snapshot(operation_id))["own_nodes"] == [(True, True)] * 3


async def test_a_zombie_of_an_older_attempt_records_nothing(
    bench: SagaBench, world: LabWorld
) -> None:
    operation_id = await world.order()
    steps = {step.name: step for step in world.steps()}
    call = StepCall(
        operation_id=operation_id,
        ordering_service="lab",
        attempt=2,
        step="lab.connect@1",
        index=2,
        batch="0.1",
        resource_id="thing",
        targets=tuple(await world.targets(operation_id)),
        deadline_at=SystemClock().now() + timedelta(minutes=1),
    )
    zombie = call.model_copy(update={"attempt": 1, "batch": "0.9", "step": "lab.power_on@1"})
    runner = StepRunner(world.database, LAB_KIT, SystemClock())

    async def overtake(point: str, _: StepCall) -> None:
        if point == "after_call":
            await runner.run(steps["lab.connect@1"], call, 1)

    late = replace(runner, cut=overtake)
    await runner.run(steps["lab.connect@1"], zombie.model_copy(update={"step": call.step}), 1)
    with pytest.raises(StaleAttemptError):
        await late.run(steps["lab.power_on@1"], zombie, 1)

    table = LAB_KIT.step_outcome
    async with world.database.transaction("lab") as session:
        recorded = await session.scalars(
            select(table.c.step).where(table.c.operation_id == operation_id)
        )
        assert {step.partition("#")[0] for step in recorded} == {"lab.connect@1"}


async def test_a_large_order_keeps_its_history_below_five_thousand_events(
    bench: SagaBench, world: LabWorld
) -> None:
    extra = {f"node_big_{i:04}": Machine() for i in range(1024)}
    async with world.database.transaction("orchestrator") as session:
        session.add_all(
            Node(
                node_id=node_id,
                site_id=world.site_id,
                name=node_id,
                node_type="gpu",
                gpus=8,
                row="b",
                rack=f"x{i // 8}",
                block=f"y{i // 64}",
                state="available",
                version=1,
            )
            for i, node_id in enumerate(extra)
        )
    world.machines |= extra
    world.count = 1024
    try:
        operation_id = await world.order()
        await bench.starter.start()
        row = await bench.ended(operation_id, timeout_s=200)
    finally:
        world.count = 3
        async with world.database.transaction("orchestrator") as session:
            await session.execute(update(Node).where(Node.row == "b").values(retired=True))
            await session.execute(update(Allocation).values(state="ended"))
        for node_id in extra:
            del world.machines[node_id]
    assert row["state"] == "succeeded", row["reason"]
    assert await bench.history_length(operation_id) < 1_000
