"""The interpreter, with real Temporal and PostgreSQL and small fake steps."""

from lab import LabWorld
from sagakit import SagaBench

from dflare.kit.plan import OperationState


async def test_an_order_goes_through_all_steps_and_hands_over(
    bench: SagaBench, world: LabWorld
) -> None:
    final = await bench.run()

    assert final.state is OperationState.SUCCEEDED, final.reason
    assert final.snapshot["thing"] == "ready"
    assert final.snapshot["allocations"] == [("confirmed", True)] * 3
    assert final.snapshot["own_nodes"] == [(True, True)] * 3
    assert final.snapshot["claims"] == 0
