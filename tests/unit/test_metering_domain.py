"""Promises of the arithmetic of invoices."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflare.services.metering.domain import (
    CENT,
    PriceStep,
    Usage,
    invoice_lines,
    month_bounds,
    seconds_between,
)
from dflare.services.metering.errors import InvalidMonthError

START = datetime(2026, 11, 1, tzinfo=UTC)
MONTH_US = 30 * 24 * 3600 * 1_000_000

moments = st.integers(0, MONTH_US).map(lambda us: START + timedelta(microseconds=us))
prices = st.decimals("0", "100", places=4)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    start, end = sorted((draw(moments), draw(moments)))
    return Usage(
        cluster_id=draw(st.sampled_from(["clu_1", "clu_2"])),
        site_id=draw(st.sampled_from(["site_1", "site_2"])),
        node_type=draw(st.sampled_from(["g8", "g1"])),
        gpus=draw(st.integers(0, 16)),
        start=start,
        end=end,
    )


@st.composite
def price_steps(draw: st.DrawFn) -> list[PriceStep]:
    return [
        PriceStep(
            site_id=site_id,
            node_type=node_type,
            valid_from=valid_from,
            price_per_node_hour=draw(prices),
            currency=draw(st.sampled_from(["EUR", "USD"])),
        )
        for site_id in ("site_1", "site_2")
        for node_type in ("g8", "g1")
        for valid_from in draw(st.lists(moments, max_size=4, unique=True))
    ]


def price_at(steps: Sequence[PriceStep], usage: Usage, at: datetime) -> tuple[Fraction, str]:
    """The price of an instant, found by looking rather than by cutting."""
    own = [s for s in steps if (s.site_id, s.node_type) == (usage.site_id, usage.node_type)]
    if not own:
        return Fraction(0), "-"
    before = [step for step in own if step.valid_from <= at]
    step = (
        max(before, key=lambda s: s.valid_from) if before else min(own, key=lambda s: s.valid_from)
    )
    return Fraction(step.price_per_node_hour), step.currency


def exact_bill(all_usage: Sequence[Usage], steps: Sequence[PriceStep]) -> dict[str, Fraction]:
    """What is owed in each currency, unrounded, from the price between any two moments at which
    something changes."""
    owed: dict[str, Fraction] = {}
    for usage in all_usage:
        cuts = {usage.start, usage.end}
        cuts |= {s.valid_from for s in steps if usage.start < s.valid_from < usage.end}
        ordered = sorted(cuts)
        for start, end in pairwise(ordered):
            price, currency = price_at(steps, usage, start)
            hours = Fraction((end - start) // timedelta(microseconds=1), 3_600_000_000)
            owed[currency] = owed.get(currency, Fraction(0)) + price * hours
    return owed


@given(st.lists(usages(), max_size=12), price_steps())
def test_lines_add_up_to_what_is_owed_within_half_a_cent_each(
    all_usage: list[Usage], steps: list[PriceStep]
) -> None:
    lines = invoice_lines(all_usage, steps)
    owed = exact_bill(all_usage, steps)
    for currency in {line.currency for line in lines} | set(owed):
        own = [line for line in lines if line.currency == currency]
        billed = sum((Fraction(line.amount) for line in own), Fraction(0))
        assert abs(billed - owed.get(currency, Fraction(0))) <= len(own) * Fraction(1, 200)


@given(st.lists(usages(), max_size=12), price_steps())
def test_no_second_is_lost_or_billed_twice_where_prices_change(
    all_usage: list[Usage], steps: list[PriceStep]
) -> None:
    lines = invoice_lines(all_usage, steps)
    seconds = [seconds_between(usage.start, usage.end) for usage in all_usage]
    assert sum((line.node_seconds for line in lines), Decimal(0)) == sum(seconds, Decimal(0))
    gpus = [second * usage.gpus for second, usage in zip(seconds, all_usage, strict=True)]
    assert sum((line.gpu_seconds for line in lines), Decimal(0)) == sum(gpus, Decimal(0))


@given(st.lists(usages(), max_size=8), price_steps(), st.randoms(use_true_random=False))
def test_the_order_of_the_ledger_does_not_change_the_bill(
    all_usage: list[Usage], steps: list[PriceStep], random: Random
) -> None:
    shuffled = random.sample(all_usage, len(all_usage))
    assert invoice_lines(shuffled, steps[::-1]) == invoice_lines(all_usage, steps)


@given(usages(), price_steps(), moments)
def test_an_interval_cut_in_two_costs_the_same(
    usage: Usage, steps: list[PriceStep], cut: datetime
) -> None:
    cut = min(max(cut, usage.start), usage.end)
    halves = [
        Usage(**{**vars(usage), "end": cut}),
        Usage(**{**vars(usage), "start": cut}),
    ]
    assert invoice_lines(halves, steps) == invoice_lines([usage], steps)


@given(usages(), price_steps())
def test_each_line_is_rounded_half_up_to_the_cent(usage: Usage, steps: list[PriceStep]) -> None:
    for line in invoice_lines([usage], steps):
        exact = Fraction(line.price_per_node_hour) * Fraction(line.node_seconds) / 3600
        cents = int(exact * 100 + Fraction(1, 2))
        assert line.amount == Decimal(cents) * CENT
        assert line.amount == line.amount.quantize(CENT, ROUND_HALF_UP)


def usage(hours: float, start: datetime = START, gpus: int = 8) -> Usage:
    return Usage("clu_1", "site_1", "g8", gpus, start, start + timedelta(hours=hours))


def step(price: str, hours: float = 0, currency: str = "EUR") -> PriceStep:
    return PriceStep("site_1", "g8", START + timedelta(hours=hours), Decimal(price), currency)


def test_a_price_change_splits_an_interval_at_its_very_moment() -> None:
    lines = invoice_lines([usage(3)], [step("10", -100), step("20", 1.5)])
    assert [(line.node_seconds, line.amount) for line in lines] == [
        (Decimal(5400), Decimal("15.00")),
        (Decimal(5400), Decimal("30.00")),
    ]
    assert [line.gpu_seconds for line in lines] == [Decimal(43_200)] * 2


def test_usage_before_the_first_price_has_the_first_price() -> None:
    (line,) = invoice_lines([usage(2)], [step("10", 1)])
    assert line.amount == Decimal("20.00")


def test_half_a_cent_is_rounded_up() -> None:
    (line,) = invoice_lines([usage(1)], [step("0.005")])
    assert line.amount == Decimal("0.01")
    (line,) = invoice_lines([usage(1)], [step("0.00499999")])
    assert line.amount == Decimal("0.00")


def test_usage_without_a_price_stands_on_the_invoice_at_zero() -> None:
    (line,) = invoice_lines([usage(1)], [])
    assert (line.currency, line.amount, line.node_seconds) == ("-", Decimal("0.00"), Decimal(3600))


def test_an_interval_of_no_length_is_no_line() -> None:
    assert invoice_lines([usage(0)], [step("10")]) == []
    assert invoice_lines([usage(0)], []) == []
    assert invoice_lines([usage(-1)], [step("10")]) == []


def test_a_month_of_five_thousand_nodes_adds_up_exactly() -> None:
    (line,) = invoice_lines([usage(720)] * 5_000, [step("31.4159")])
    assert line.amount == Decimal("113097240.00")


@pytest.mark.parametrize(
    ("month", "start", "end"),
    [
        ("2026-11", (2026, 11), (2026, 12)),
        ("2026-12", (2026, 12), (2027, 1)),
        ("2028-02", (2028, 2), (2028, 3)),
        ("1999-01", (1999, 1), (1999, 2)),
    ],
)
def test_a_month_ends_where_the_next_begins(
    month: str, start: tuple[int, int], end: tuple[int, int]
) -> None:
    assert month_bounds(month) == (
        datetime(*start, 1, tzinfo=UTC),
        datetime(*end, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    "month",
    [
        "",
        "2026",
        "2026-13",
        "2026-00",
        "2026-1",
        "26-11",
        "2026-11-01",
        " 2026-11",
        "9999-12",
        "0001-01",
        "٢٠٢٦-11",
        "2026-11\n",
    ],
)
def test_what_is_no_month_is_refused_with_the_form_to_write(month: str) -> None:
    with pytest.raises(InvalidMonthError) as refused:
        month_bounds(month)
    assert "YYYY-MM" in refused.value.next_step
