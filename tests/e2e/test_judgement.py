"""The judge condemns what it must: without this, a line that passes would mean little."""

from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import httpx
import pytest

import judgement
from judgement import Order, Story, Tenancy
from running_platform import Tenant

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEAST_CENTS = 6
PRICES = {"h100-8": Decimal("3600.36")}


def _tenancy(*nodes: str) -> Tenancy:
    tenant = Tenant("red", "org", "prj", "token", "key", httpx.AsyncClient())
    return Tenancy(
        tenant,
        Order("red", "h100-8", len(nodes), cents_from_log=LEAST_CENTS),
        frozenset(nodes),
        "secret",
        seen_ready_at=START + timedelta(seconds=10),
        booted_at=dict.fromkeys(nodes, START),
        release_asked=(START + timedelta(seconds=60), START + timedelta(seconds=61)),
    )


def _story(**reach: Any) -> Story:
    during = {"ethernet": [["a", "b"]], "infiniband": [{"pkey": "0x10", **_members("a", "b")}]}
    return Story(
        [_tenancy("a", "b")], PRICES, frozenset("abc"), during, {**during, **reach}, {}, {}
    )


def _members(*full: str, limited: tuple[str, ...] = ()) -> dict[str, list[str]]:
    return {"full": list(full), "limited": list(limited)}


def _billed(tenancy: Tenancy, seconds: str, amount: str) -> Tenancy:
    begin = START + timedelta(seconds=5)
    tenancy.usage["2026-03"] = [
        {
            "allocation_id": node,
            "cluster_id": "clu",
            "node_name": node,
            "node_type": "h100-8",
            "usage_from": begin.isoformat(),
            "usage_to": (begin + timedelta(seconds=55.5)).isoformat(),
        }
        for node in sorted(tenancy.nodes)
    ]
    line = {
        "cluster_id": "clu",
        "node_type": "h100-8",
        "price_per_node_hour": "3600.36",
        "node_seconds": seconds,
        "amount": amount,
    }
    tenancy.invoices["2026-03"] = {"lines": [line], "totals": {"EUR": amount}}
    return tenancy


def test_a_tenant_among_itself_is_acquitted() -> None:
    judgement.assert_isolated(_story())


@pytest.mark.parametrize(
    "reach",
    [
        {"ethernet": [["a", "b", "c"]]},
        {"ethernet": []},
        {"infiniband": [{"pkey": "0x10", **_members("a", "b", limited=("c",))}]},
        {"infiniband": [{"pkey": "0x10", **_members(limited=("a", "b"))}]},
    ],
    ids=["a stranger", "nobody", "a limited stranger", "limited among themselves"],
)
def test_a_leak_or_a_gap_is_condemned(reach: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        judgement.assert_isolated(_story(**reach))


def test_a_bill_to_the_cent_is_acquitted() -> None:
    tenancy = _billed(_tenancy("a", "b"), "111", "111.01")
    judgement.assert_usage_is_true(tenancy)
    judgement.assert_invoice_is_exact(tenancy, PRICES)


@pytest.mark.parametrize(("seconds", "amount"), [("111", "111.02"), ("111.001", "111.01")])
def test_a_bill_that_is_off_by_a_cent_or_a_millisecond_is_condemned(
    seconds: str, amount: str
) -> None:
    with pytest.raises(AssertionError):
        judgement.assert_invoice_is_exact(_billed(_tenancy("a", "b"), seconds, amount), PRICES)


def test_usage_before_the_boot_or_after_the_request_is_condemned() -> None:
    tenancy = _billed(_tenancy("a"), "55.5", "55.51")
    tenancy.booted_at["a"] = START + timedelta(seconds=6)
    with pytest.raises(AssertionError):
        judgement.assert_usage_is_true(tenancy)
    tenancy.booted_at["a"] = START
    tenancy.release_asked = (START, START + timedelta(seconds=60))
    with pytest.raises(AssertionError):
        judgement.assert_usage_is_true(tenancy)


CHEAP = {"h100-8": Decimal("4.50")}


def _cheap(amount: str) -> Tenancy:
    """Two nodes for about 40 seconds, whose hand-over may lie anywhere in a second."""
    tenancy = _tenancy("a", "b")
    tenancy.seen_ready_at = START + timedelta(seconds=1)
    asked = START + timedelta(seconds=40.4)
    tenancy.release_asked = (asked, asked + timedelta(milliseconds=100))
    tenancy.invoices["2026-03"] = {"totals": {"EUR": amount}}
    return tenancy


def test_the_bill_that_the_log_alone_gives_is_acquitted() -> None:
    judgement.assert_log_alone_gives_the_bill(_cheap("0.10"), CHEAP)


@pytest.mark.parametrize("amount", ["0.09", "0.11"])
def test_a_bill_that_is_a_cent_off_the_logs_is_condemned(amount: str) -> None:
    with pytest.raises(AssertionError):
        judgement.assert_log_alone_gives_the_bill(_cheap(amount), CHEAP)


def test_a_log_that_leaves_open_what_is_to_be_paid_gives_no_bill() -> None:
    tenancy = _cheap("0.10")
    asked, had_asked = tenancy.release_asked
    tenancy.release_asked = (asked + timedelta(seconds=2), had_asked + timedelta(seconds=2))
    with pytest.raises(AssertionError, match="the log allows"):
        judgement.assert_log_alone_gives_the_bill(tenancy, CHEAP)


@pytest.mark.parametrize("passed_s", [0.0, 5.0, 30.0, 41.3, 100.7])
def test_a_release_at_the_right_moment_leaves_one_bill(passed_s: float) -> None:
    tenancy = _cheap("")
    now = tenancy.seen_ready_at + timedelta(seconds=passed_s)
    asked = now + timedelta(seconds=judgement.seconds_to_a_certain_bill(tenancy, CHEAP, now))
    tenancy.release_asked = (asked, asked + timedelta(seconds=0.5))
    cents = [
        (node_s * CHEAP["h100-8"] / 36).to_integral_value(ROUND_HALF_UP)
        for node_s in judgement.log_bounds(tenancy, *tenancy.release_asked)
    ]
    assert cents[0] == cents[1] >= LEAST_CENTS
