"""How long steps took, as histograms. Pure."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

BOUNDS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
"""Upper bounds of the buckets; one more has the rest."""

_OUTCOMES = {"done": "done", "failed": "failed", "undone": "undone"}


@dataclass(frozen=True)
class Took:
    """One step that has finished."""

    saga: str
    step: str
    outcome: str
    seconds: float
    finished_at: datetime


def finished_steps(document: Mapping[str, Any], after: datetime | None) -> Iterator[Took]:
    """The steps in an operation's document that finished after ``after``."""
    steps: Sequence[Mapping[str, Any]] = document["steps"]
    for step in steps:
        outcome = _OUTCOMES.get(step["state"])
        if outcome is None or not step["started_at"] or not step["finished_at"]:
            continue
        started = datetime.fromisoformat(step["started_at"])
        finished = datetime.fromisoformat(step["finished_at"])
        if after is None or finished > after:
            seconds = max(0.0, (finished - started).total_seconds())
            yield Took(document["kind"], step["name"], outcome, seconds, finished)


def counted(buckets: Sequence[int], seconds: float) -> list[int]:
    """``buckets`` (each counts what its bound holds, so later ones hold the earlier) with one more
    step in them; none yet where they are empty."""
    first = bisect_left(BOUNDS_S, seconds)
    known = list(buckets) or [0] * (len(BOUNDS_S) + 1)
    return [count + (index >= first) for index, count in enumerate(known)]
