"""Every step of the lab's saga failed, repeated and cut: the kit's own proof."""

import pytest
from sagakit import (
    FAILED,
    RECOVERED,
    Disturbance,
    Final,
    SagaBench,
    check_disturbance,
    disturbances,
    parted,
)

from dflare.kit.plan import OperationState
from lab import PLAN, LabWorld


@pytest.fixture(scope="module")
async def undisturbed(bench: SagaBench) -> Final:
    return await bench.run()


def _short(one: Disturbance) -> bool:
    """One way to recover a step, another one each; all failures. The rest is the longer run's."""
    return one.kind in FAILED or one.kind == RECOVERED[(one.index + one.undoing) % len(RECOVERED)]


@pytest.mark.parametrize("disturbance", parted(disturbances(PLAN), _short), ids=str)
async def test_a_disturbed_order_ends_as_an_undisturbed_one_or_undone(
    bench: SagaBench, undisturbed: Final, world: LabWorld, disturbance: Disturbance
) -> None:
    assert undisturbed.state is OperationState.SUCCEEDED

    await check_disturbance(bench, undisturbed, disturbance)
