"""Pure arithmetic of money: intervals, prices and rounding.

A line of an invoice is all usage of one node type by one cluster, or of one volume, at one price.
Seconds are whole microseconds summed exactly; a line is rounded half up to the cent, and a total is
the sum of its rounded lines, so that what a reader adds up is what stands below. What jobs had of
the GPUs is told beside it and costs nothing more: the nodes that they ran on are billed whole.
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
_INSTANT = timedelta(microseconds=1)
_PER_SECOND = 1_000_000
_PER_GPU = 1_000
UNPRICED = "-"
"""The currency of what nobody priced."""
_Step = tuple[datetime, Decimal, str]
"""A price and its currency, and from when on."""
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


@dataclass(frozen=True)
class VolumeUsage:
    """One closed interval of one size of a volume, already cut to the period asked for."""

    volume_id: str
    site_id: str
    size_gib: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class VolumePriceStep:
    """A site's price of volumes from ``valid_from`` on; None where it names none."""

    site_id: str
    valid_from: datetime
    price_per_gib_hour: Decimal | None
    currency: str


@dataclass(frozen=True)
class VolumeLine:
    """One line: ``gib_seconds`` exact, ``amount`` rounded to the cent."""

    volume_id: str
    site_id: str
    price_per_gib_hour: Decimal
    currency: str
    gib_seconds: Decimal
    amount: Decimal


@dataclass(frozen=True)
class JobUsage:
    """One run of a job, already cut to the period asked for; ``gpu_milli`` are thousandths of a
    GPU."""

    cluster_id: str
    account: str
    member: str
    gpu_milli: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class JobLine:
    """What the jobs of one member had of one cluster: ``gpu_seconds`` exact, in so many runs."""

    cluster_id: str
    account: str
    member: str
    runs: int
    gpu_seconds: Decimal


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
    return Decimal(_microseconds(start, end)) / _PER_SECOND


def invoice_lines(usages: Iterable[Usage], prices: Sequence[PriceStep]) -> list[Line]:
    """Sum usage into lines, cutting intervals where a price changes.

    Usage without any price (its type was never priced) is billed at zero under currency ``-``, and
    so stands on the invoice for someone to see. Usage before the first price has that price.
    """
    steps: defaultdict[tuple[str, str], list[_Step]] = defaultdict(list)
    for step in sorted(prices, key=lambda step: step.valid_from):
        priced = (step.valid_from, step.price_per_node_hour, step.currency)
        steps[step.site_id, step.node_type].append(priced)
    totals: dict[tuple[str, str, str, Decimal, str], tuple[Decimal, Decimal]] = {}
    for usage in usages:
        own = steps[usage.site_id, usage.node_type]
        for price, currency, seconds in _priced(usage.start, usage.end, own):
            key = (usage.cluster_id, usage.site_id, usage.node_type, price, currency)
            nodes, gpus = totals.get(key, (Decimal(0), Decimal(0)))
            totals[key] = (nodes + seconds, gpus + seconds * usage.gpus)
    return [
        Line(*key, node_seconds=nodes, gpu_seconds=gpus, amount=_amount(key[3], nodes))
        for key, (nodes, gpus) in sorted(totals.items())
    ]


def volume_lines(
    usages: Iterable[VolumeUsage], prices: Sequence[VolumePriceStep]
) -> list[VolumeLine]:
    """Sum the usage of volumes into lines. While a site names no price, its volumes cost nothing
    in its currency."""
    steps: defaultdict[str, list[_Step]] = defaultdict(list)
    for step in sorted(prices, key=lambda step: step.valid_from):
        price = step.price_per_gib_hour or Decimal(0)
        steps[step.site_id].append((step.valid_from, price, step.currency))
    totals: defaultdict[tuple[str, str, Decimal, str], Decimal] = defaultdict(Decimal)
    for usage in usages:
        for price, currency, seconds in _priced(usage.start, usage.end, steps[usage.site_id]):
            totals[usage.volume_id, usage.site_id, price, currency] += seconds * usage.size_gib
    return [
        VolumeLine(*key, gib_seconds=used, amount=_amount(key[2], used))
        for key, used in sorted(totals.items())
    ]


def job_lines(usages: Iterable[JobUsage]) -> list[JobLine]:
    """Sum what jobs had, by cluster, account and member; runs without GPUs count too."""
    # Whole thousandths of a GPU for whole microseconds, so that no digit is lost however many.
    used: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    runs: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    for usage in usages:
        key = (usage.cluster_id, usage.account, usage.member)
        used[key] += usage.gpu_milli * _microseconds(usage.start, usage.end)
        runs[key] += 1
    return [
        JobLine(*key, runs=runs[key], gpu_seconds=Decimal(used[key]) / (_PER_GPU * _PER_SECOND))
        for key in sorted(used)
    ]


def totals_of(lines: Iterable[Line | VolumeLine]) -> dict[str, Decimal]:
    """The sum of lines as they are printed, by currency."""
    totals: dict[str, Decimal] = {}
    for line in lines:
        totals[line.currency] = totals.get(line.currency, Decimal("0.00")) + line.amount
    return totals


def _microseconds(start: datetime, end: datetime) -> int:
    return max((end - start) // _INSTANT, 0)


def _amount(price_per_hour: Decimal, used_seconds: Decimal) -> Decimal:
    return (price_per_hour * used_seconds / _HOUR).quantize(CENT, ROUND_HALF_UP)


def _priced(
    start: datetime, end: datetime, steps: Sequence[_Step]
) -> Iterable[tuple[Decimal, str, Decimal]]:
    """Price, currency and seconds of the parts that an interval has at different prices."""
    if not steps:
        steps = [(start, Decimal(0), UNPRICED)]
    ends = [valid_from for valid_from, _, _ in steps[1:]] + [end]
    for index, ((valid_from, price, currency), until) in enumerate(zip(steps, ends, strict=True)):
        begin = start if index == 0 else max(start, valid_from)
        if seconds := seconds_between(begin, min(until, end)):
            yield price, currency, seconds
