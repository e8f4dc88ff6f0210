"""The judge of a replay through the whole platform finds what is lost, doubled or billed wrong."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2]))

import pytest
from bench.replay_platform import Lived, lost_or_doubled, wrong_hours
from bench.replay_trace import Order

from running_platform import Tenant

T0 = datetime(2026, 11, 1, tzinfo=UTC)
# Nothing is asked of the tenant but its key.
TENANT = cast("Tenant", SimpleNamespace(public_key="key of red"))


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def lived(number: int, begin: float, *nodes: str) -> Lived:
    """An order that was submitted, ready 10 s later, and given back 100 s after that."""
    order = Order(f"job-{number}", "red", len(nodes), Decimal(8 * len(nodes)), 100, 0)
    times = [at(begin + seconds) for seconds in (0, 10, 110, 111)]
    return Lived(order, TENANT, f"clu_{number}", frozenset(nodes), 0.0, *times)


def interval(number: int, node: str, begin: float, end: float) -> dict[str, Any]:
    return {
        "cluster_id": f"clu_{number}",
        "node_name": node,
        "usage_from": at(begin).isoformat(),
        "usage_to": at(end).isoformat(),
    }


def boot(node: str, seconds: float) -> dict[str, Any]:
    return {
        "subject": node,
        "system": "tenant",
        "ssh_keys": ["key of red"],
        "at_wall": at(seconds).isoformat(),
    }


LIVED = [lived(1, 0, "n1", "n2"), lived(2, 200, "n1")]
LEDGER = {
    "clu_1": [interval(1, "n1", 9, 110.5), interval(1, "n2", 9, 110.5)],
    "clu_2": [interval(2, "n1", 209, 310.5)],
}
BOOTS = [boot("n1", 7), boot("n2", 8), boot("n1", 207)]


def test_what_is_right_is_found_right() -> None:
    assert lost_or_doubled(LIVED, LEDGER, BOOTS) == []
    assert wrong_hours(LIVED, LEDGER, BOOTS) == []


@pytest.mark.parametrize(
    ("ledger", "word"),
    [
        ({**LEDGER, "clu_1": LEDGER["clu_1"][:1]}, "2 nodes, billed 1"),
        ({**LEDGER, "clu_1": [*LEDGER["clu_1"], LEDGER["clu_1"][0]]}, "2 nodes, billed 3"),
        ({**LEDGER, "clu_9": [interval(9, "n7", 0, 1)]}, "never ordered: ['clu_9']"),
        ({**LEDGER, "clu_2": [interval(2, "n1", 100, 310.5)]}, "n1 is billed twice"),
    ],
)
def test_a_ledger_with_a_node_too_few_or_too_many_is_found(
    ledger: Mapping[str, list[dict[str, Any]]], word: str
) -> None:
    assert word in "\n".join(lost_or_doubled(LIVED, ledger, BOOTS))


@pytest.mark.parametrize("boots", [BOOTS[:2], [*BOOTS, boot("n2", 250)]])
def test_a_boot_that_nobody_pays_for_or_that_never_was_is_found(boots: list[Any]) -> None:
    assert "booted otherwise" in "\n".join(lost_or_doubled(LIVED, LEDGER, boots))


def test_an_order_with_fewer_nodes_than_it_asked_for_is_found() -> None:
    short = replace(LIVED[1], order=replace(LIVED[1].order, nodes=2))
    assert "job-2: 2 nodes, billed 1" in lost_or_doubled([LIVED[0], short], LEDGER, BOOTS)


@pytest.mark.parametrize(("begin", "end"), [(0, 110.5), (9, 130), (12, 60)])
def test_a_bill_that_the_log_does_not_allow_is_found(begin: float, end: float) -> None:
    billed = {**LEDGER, "clu_1": [interval(1, node, begin, end) for node in ("n1", "n2")]}
    (fault,) = wrong_hours(LIVED, billed, BOOTS)
    assert fault.startswith("red: ")
