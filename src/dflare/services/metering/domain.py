"""Pure arithmetic of money: intervals, prices and rounding.

A line of an invoice is all usage of one node type by one cluster at one price. Seconds are whole
microseconds summed exactly; a line is rounded half up to the cent, and a total is the sum of its
rounded lines, so that what a reader adds up is what stands below.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

from dflare.services.metering.errors import InvalidMonthError

CENT = Decimal("0.01")
_HOUR = Decimal(3600)
_MONTH = re.compile(r"(?P<year>[12][0-9]{3})-(?P<month>0[1-9]|1[0-2])")


@dataclass(frozen=True)
class Usage:
    """One closed interval of one node, already cut to the period asked for."""

    cluster_id: str
    site_id: str
    node_type: str
    gpus: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class PriceStep:
    """A price from ``valid_from`` on, until the next step of its site and node type."""

    site_id: str
    node_type: str
    valid_from: datetime
    price_per_node_hour: Decimal
    currency: str


@dataclass(frozen=True)
class Line:
    """One line: ``node_seconds`` and ``gpu_seconds`` exact, ``amount`` rounded to the cent."""

    cluster_id: str
    site_id: str
    node_type: str
    price_per_node_hour: Decimal
    currency: str
    node_seconds: Decimal
    gpu_seconds: Decimal
    amount: Decimal


def month_bounds(month: str) -> tuple[datetime, datetime]:
    """Begin and end (exclusive) of a month such as ``2026-11``, in UTC.

    Raises:
        InvalidMonthError: it is not a month.
    """
    found = _MONTH.fullmatch(month)
    if found is None:
        raise InvalidMonthError(
            f"{month} is not a month", next_step="Write it as YYYY-MM, such as 2026-11."
        )
    start = datetime(int(found["year"]), int(found["month"]), 1, tzinfo=UTC)
    return start, (start + timedelta(days=32)).replace(day=1)


def seconds_between(start: datetime, end: datetime) -> Decimal:
    """Exact seconds of an interval; an interval that ends before it begins has none."""
    microseconds = (end - start) // timedelta(microseconds=1)
    return Decimal(max(microseconds, 0)) / 1_000_000


def invoice_lines(usages: Iterable[Usage], prices: Sequence[PriceStep]) -> list[Line]:
    """Sum usage into lines, cutting intervals where a price changes.

    Usage without any price (its type was never priced) is billed at zero under currency ``-``, and
    so stands on the invoice for someone to see. Usage before the first price has that price.
    """
    steps: defaultdict[tuple[str, str], list[PriceStep]] = defaultdict(list)
    for step in sorted(prices, key=lambda step: step.valid_from):
        steps[step.site_id, step.node_type].append(step)
    totals: dict[tuple[str, str, str, Decimal, str], tuple[Decimal, Decimal]] = {}
    for usage in usages:
        for price, currency, seconds in _priced(usage, steps[usage.site_id, usage.node_type]):
            if seconds == 0:
                continue
            key = (usage.cluster_id, usage.site_id, usage.node_type, price, currency)
            nodes, gpus = totals.get(key, (Decimal(0), Decimal(0)))
            totals[key] = (nodes + seconds, gpus + seconds * usage.gpus)
    return [
        Line(
            *key,
            node_seconds=nodes,
            gpu_seconds=gpus,
            amount=(key[3] * nodes / _HOUR).quantize(CENT, ROUND_HALF_UP),
        )
        for key, (nodes, gpus) in sorted(totals.items())
    ]


def _priced(usage: Usage, steps: Sequence[PriceStep]) -> Iterable[tuple[Decimal, str, Decimal]]:
    if not steps:
        yield Decimal(0), "-", seconds_between(usage.start, usage.end)
        return
    ends = [step.valid_from for step in steps[1:]] + [usage.end]
    for index, (step, until) in enumerate(zip(steps, ends, strict=True)):
        start = usage.start if index == 0 else max(usage.start, step.valid_from)
        seconds = seconds_between(start, min(until, usage.end))
        yield step.price_per_node_hour, step.currency, seconds
