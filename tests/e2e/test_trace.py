"""``operation trace`` tells the story from the API's request to the calls of the devices."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import pytest

from running_platform import CliResult, ok, running_platform
from site_files import PlatformWish

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
    """The spans of one order, and what the program printed of them."""

    def __init__(self, document: Mapping[str, Any], printed: CliResult) -> None:
        self.spans = list(_flat(document.get("spans") or document["items"]))
        self.printed = printed

    def named(self, prefix: str) -> list[Mapping[str, Any]]:
        """Spans whose name begins so."""
        return [span for span in self.spans if span["name"].lower().startswith(prefix)]


def _flat(spans: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for span in spans:
        yield span
        yield from _flat(span.get("children") or [])


@pytest.fixture(scope="module")
async def trace() -> AsyncIterator[Trace]:
    """The trace of a finished order."""
    async with running_platform(PlatformWish(nodes=NODES)) as platform:
        await platform.apply_site()
        tenant = await platform.tenant("red", {"h100-8": NODES})
        operation = await platform.order(tenant, "traced", "h100-8", 2)
        await platform.wait(operation)
        path = f"/v1/operations/{operation['id']}/trace"

        async def spans() -> Mapping[str, Any]:
            return ok(await platform.operator.get(path))

        async def whole() -> bool:
            trace = Trace(await spans(), CliResult(0, "", ""))
            return bool(trace.named("step clusters.ready"))

        # Spans are written in batches, half a second after they end.
        await platform.until(whole)
        yield Trace(await spans(), await platform.cli("operation", "trace", operation["id"]))


def test_an_orders_spans_have_one_trace_id(trace: Trace) -> None:
    assert len({span["trace_id"] for span in trace.spans}) == 1


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


def test_spans_hang_together_below_the_request(trace: Trace) -> None:
    by_id = {span["span_id"]: span for span in trace.spans}
    roots = [span for span in trace.spans if span["parent_id"] not in by_id]
    assert [root["name"] for root in roots] == ["clusters.create"]


def test_the_program_prints_every_step_and_every_kind_of_device_call(trace: Trace) -> None:
    assert trace.printed.exit_code == 0, trace.printed.err
    for text in (*STEPS, "redfish", "nvue", "ufm"):
        assert text in trace.printed.out.lower(), text
