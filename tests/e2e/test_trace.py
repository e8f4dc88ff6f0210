"""``operation trace`` tells the story from the API's request to the calls of the devices."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import pytest

from running_platform import CliResult, ok, running_platform
from site_files import PlatformWish

# The fixture of the module holds everything that takes time.
pytestmark = pytest.mark.timeout(900)

NODES = 4
STEPS = (
    "orchestrator.confirm@1",
    "network.attach@1",
    "network.await@1",
    "baremetal.profile@1",
    "baremetal.provision@1",
    "baremetal.start@1",
    "orchestrator.hand_over@1",
    "clusters.ready@1",
)


class Trace:
    """The spans of one order as trees and flat, the ids of their traces as they are kept, and what
    the program printed of them."""

    def __init__(
        self, trees: Sequence[Mapping[str, Any]], trace_ids: set[str], printed: CliResult
    ) -> None:
        self.trees = trees
        self.spans = list(_flat(trees))
        self.trace_ids = trace_ids
        self.printed = printed

    def named(self, prefix: str) -> list[Mapping[str, Any]]:
        """Spans whose name begins so."""
        return [span for span in self.spans if span["name"].lower().startswith(prefix)]


def _flat(spans: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for span in spans:
        yield span
        yield from _flat(span["children"])


@pytest.fixture(scope="module")
async def trace() -> AsyncIterator[Trace]:
    """The trace of a finished order."""
    async with running_platform(PlatformWish(nodes=NODES)) as platform:
        await platform.apply_site()
        tenant = await platform.tenant("red", {"h100-8": NODES})
        operation = await platform.order(tenant, "traced", "h100-8", 2)
        await platform.wait(operation)
        path = f"/v1/operations/{operation['id']}/trace"

        async def trees() -> Sequence[Mapping[str, Any]]:
            return ok(await platform.operator.get(path))["spans"]

        async def whole() -> bool:
            last = "step clusters.ready"
            return any(span["name"].startswith(last) for span in _flat(await trees()))

        # Spans are written in batches, half a second after they end.
        await platform.until(whole)
        async with platform.database() as database:
            ids = await database.fetch(
                "SELECT DISTINCT trace_id FROM trace.span WHERE operation_id = $1", operation["id"]
            )
        printed = await platform.cli("operation", "trace", operation["id"])
        yield Trace(await trees(), {row["trace_id"] for row in ids}, printed)


def test_an_orders_spans_have_one_trace_id(trace: Trace) -> None:
    assert len(trace.trace_ids) == 1


def test_every_step_of_an_order_is_a_span_of_the_process_that_acted(trace: Trace) -> None:
    for step in STEPS:
        found = trace.named(f"step {step}")
        assert found, step
        site_step = step.startswith(("network.", "baremetal."))
        assert {span["process"] for span in found} == {"site-worker" if site_step else "worker"}


@pytest.mark.parametrize("protocol", ["redfish", "nvue", "ufm"])
def test_calls_of_devices_are_spans_below_the_orders(trace: Trace, protocol: str) -> None:
    assert trace.named(protocol)


def test_the_request_and_the_reservation_begin_the_story(trace: Trace) -> None:
    first = min(trace.spans, key=lambda span: span["started_at"])
    assert (first["name"], first["process"]) == ("clusters.create", "gateway")
    assert trace.named("orchestrator.reserve")


def test_steps_and_their_calls_of_bmcs_hang_below_the_request(trace: Trace) -> None:
    request = next(tree for tree in trace.trees if tree["name"] == "clusters.create")
    below = [span["name"].lower() for span in _flat(request["children"])]
    for step in STEPS:
        assert any(name.startswith(f"step {step}") for name in below), step
    assert any(name.startswith("redfish") for name in below)


def test_the_program_prints_every_step_and_every_kind_of_device_call(trace: Trace) -> None:
    assert trace.printed.exit_code == 0, trace.printed.err
    for text in (*STEPS, "redfish", "nvue", "ufm"):
        assert text in trace.printed.out.lower(), text
