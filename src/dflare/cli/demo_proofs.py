"""What the demonstration proves, from the simulator's ground truth and plain arithmetic alone.

Each function takes documents and returns what is wrong as sentences; an empty list is a proof. They
share nothing with the product that they judge.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from dflare.cli.errors import Json
from dflare.cli.output import parse_time

CENT = Decimal("0.01")
TECHNOLOGIES = {"ethernet": "Ethernet", "infiniband": "InfiniBand"}


@dataclass(frozen=True)
class Reach:
    """How many pairs of servers reach each other by a technology: inside the tenant's nodes, of how
    many; with the neighbour's; with all other servers of the site."""

    technology: str
    inside: int
    inside_of: int
    neighbour: int
    others: int


def peers(reachability: Mapping[str, Any], technology: str, host: str) -> frozenset[str]:
    """Every other host that ``host`` reaches. Members of an InfiniBand partition reach each other
    unless both are limited (InfiniBand Architecture 1.6, section 10.9.3)."""
    found: set[str] = set()
    for group in reachability[technology]:
        if technology == "ethernet":
            found |= set(group) if host in group else set()
        elif host in group["full"]:
            found |= {*group["full"], *group["limited"]}
        elif host in group["limited"]:
            found |= set(group["full"])
    return frozenset(found - {host})


def reach(
    reachability: Mapping[str, Any], technology: str, own: frozenset[str], neighbour: frozenset[str]
) -> Reach:
    """Count the pairs that ``own`` nodes are part of."""
    reached = {host: peers(reachability, technology, host) for host in own}
    return Reach(
        technology,
        inside=sum(len(found & own) for found in reached.values()) // 2,
        inside_of=len(own) * (len(own) - 1) // 2,
        neighbour=sum(len(found & neighbour) for found in reached.values()),
        others=sum(len(found - own - neighbour) for found in reached.values()),
    )


def isolation_problems(found: Reach, *, expected: bool = True) -> list[str]:
    """What of the isolation does not hold; ``expected`` is whether the nodes have the technology
    at all."""
    name = TECHNOLOGIES[found.technology]
    problems: list[str] = []
    if expected and found.inside != found.inside_of:
        problems.append(f"{name}: only {found.inside} of {found.inside_of} own pairs are connected")
    if found.neighbour or found.others:
        problems.append(
            f"{name}: {found.neighbour} pairs lead to the neighbour and {found.others} elsewhere"
        )
    return problems


@dataclass(frozen=True)
class Bracket:
    """Two moments of the simulator's log that something lies between."""

    earliest: datetime
    latest: datetime


def last_boot(entries: Sequence[Json], nodes: frozenset[str], public_key: str) -> datetime | None:
    """When the last of ``nodes`` came up with the tenant's key, by the simulator's log; None where
    one of them never did."""
    booted: dict[str, datetime] = {}
    for entry in entries:
        mine = entry["system"] == "tenant" and entry["ssh_keys"] == [public_key]
        if mine and entry["subject"] in nodes:
            booted.setdefault(str(entry["subject"]), parse_time(entry["at_wall"]))
    return max(booted.values()) if frozenset(booted) == nodes else None


@dataclass(frozen=True)
class Bill:
    """What is to be paid: as invoices say, as the ledger's intervals and the price give it, and the
    least and the most that the simulator's log allows. ``node_seconds`` are the ledger's."""

    invoiced: Decimal
    exact: Decimal
    least: Decimal
    most: Decimal
    node_seconds: Decimal

    def problems(self) -> list[str]:
        """What of the bill does not hold. A month's end in the middle rounds two bills."""
        found: list[str] = []
        if self.invoiced != self.exact:
            found.append(f"the invoice says {self.invoiced}, ledger and price give {self.exact}")
        if not self.least - CENT <= self.invoiced <= self.most + CENT:
            found.append(
                f"the invoice says {self.invoiced}, the log allows {self.least} to {self.most}"
            )
        if self.invoiced <= 0:
            found.append("nothing was billed")
        return found


def bill(
    invoices: Sequence[Json],
    usage: Mapping[str, Sequence[Json]],
    price_per_node_hour: Decimal,
    handed_over: Bracket,
    asked: Bracket,
    nodes: int,
) -> Bill:
    """Compare a bill. ``usage`` is the ledger by month; ``handed_over`` and ``asked`` say between
    which moments all ``nodes`` were handed over, and the request that ends the usage."""
    seconds = Decimal(0)
    exact = Decimal(0)
    for invoice in invoices:
        first, last = _month(invoice["month"])
        end = min(last, parse_time(invoice["as_of"]))
        month = Decimal(0)
        for one in usage[invoice["month"]]:
            until = parse_time(one["usage_to"]) if one["usage_to"] else end
            month += _seconds(max(parse_time(one["usage_from"]), first), min(until, last))
        seconds += month
        exact += _money(month, price_per_node_hour)
    # What a volume costs stands in lines of its own.
    invoiced = sum(
        (Decimal(line["amount"]) for one in invoices for line in one["lines"]), Decimal(0)
    )
    least = max(Decimal(0), _seconds(handed_over.latest, asked.earliest)) * nodes
    most = _seconds(handed_over.earliest, asked.latest) * nodes
    return Bill(
        invoiced=invoiced,
        exact=exact,
        least=_money(least, price_per_node_hour),
        most=_money(most, price_per_node_hour),
        node_seconds=seconds,
    )


_GPUS = re.compile(r"(\S+) has GPUs ([0-9]+(?:,[0-9]+)*)")


def job_problems(job: Json, lines: Sequence[str], nodes: int, gpus: int) -> list[str]:
    """What is wrong with a job that had to print a line a server, with the GPUs that it saw there.
    ``gpus`` are those of one server."""
    found: list[str] = []
    if job["state"] != "ended" or job["exit_code"] != 0:
        found.append(f"it is {job['state']} with exit code {job['exit_code']}: {job['reason']}")
    seen: dict[str, int] = {}
    for line in lines:
        match = _GPUS.fullmatch(line.strip())
        if match is None:
            found.append(f"it printed: {line[:80]}")
        else:
            seen[match[1]] = len(set(match[2].split(",")))
    if len(seen) != nodes or any(count != gpus for count in seen.values()):
        found.append(f"{len(seen)} servers printed, with {sum(seen.values())} GPUs")
    if (job["nodes"], job["gpus"]) != (nodes, nodes * gpus):
        found.append(f"accounting says {job['nodes']} servers and {job['gpus']} GPUs")
    return found


def job_bill_problems(invoices: Sequence[Json], job: Json) -> list[str]:
    """What is wrong with what invoices tell of jobs, where this was the only one."""
    told = sum((Decimal(one["gpu_seconds"]) for i in invoices for one in i["jobs"]), Decimal(0))
    had = Decimal(job["gpu_seconds"])
    if told == had:
        return []
    return [f"invoices say that jobs had {told} GPU-seconds, Slurm's accounting {had}"]


def traces(
    hosts: Mapping[str, Json],
    nodes: frozenset[str],
    places: Sequence[Mapping[str, str]],
    reachability: Mapping[str, Any],
) -> list[str]:
    """What is left of a tenant on the servers that it had. ``places`` are those where the text that
    the tenant wrote everywhere still stands."""
    found = [f"{place['host']}: the tenant's data is on {place['place']}" for place in places]
    for name in sorted(nodes):
        truth = hosts[name]
        if not all(disk["blank"] for disk in truth["disks"]):
            found.append(f"{name}: a disk is not blank")
        if truth["ssh_keys_on_disk"] or truth["ssh_keys_running"]:
            found.append(f"{name}: an SSH key lets somebody in")
        if truth["power"] != "Off":
            found.append(f"{name}: the power is {truth['power']}")
        if truth["virtual_media"]:
            found.append(f"{name}: a medium is still inserted")
        for technology, spoken in TECHNOLOGIES.items():
            if reached := peers(reachability, technology, name):
                found.append(f"{name}: reaches {len(reached)} servers by {spoken}")
    return found


def _month(month: str) -> tuple[datetime, datetime]:
    year, number = map(int, month.split("-"))
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return datetime(year, number, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)


def _seconds(begin: datetime, end: datetime) -> Decimal:
    span = end - begin
    whole = Decimal(span.days * 86_400 + span.seconds)
    return whole + Decimal(span.microseconds) / 1_000_000


def _money(seconds: Decimal, price_per_hour: Decimal) -> Decimal:
    return (seconds * price_per_hour / 3600).quantize(CENT, ROUND_HALF_UP)
