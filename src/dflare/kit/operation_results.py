"""What came of a step's targets, and how that is said to people. Safe inside a workflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dflare.kit.plan import StepReport

_SHOWN_TARGETS, _SHOWN_REASONS, _SHOWN_CHARACTERS = 3, 5, 1_000


@dataclass
class Result:
    """Outcomes of ``total`` targets: done, failed with reasons, or left pending; ``results`` maps
    targets to the ids that the step made for them. Of those that failed, ``shared`` failed for a
    reason that is not theirs, and ``late`` were not heard of before the deadline."""

    total: int
    done: list[str] = field(default_factory=list[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    results: dict[str, str] = field(default_factory=dict[str, str])
    pending: list[str] = field(default_factory=list[str])
    shared: set[str] = field(default_factory=set[str])
    late: set[str] = field(default_factory=set[str])

    def add(self, report: StepReport) -> None:
        """Fold in what a call finished; its pending targets are the caller's to ask for again."""
        self.done.extend(report.done)
        self.failed |= report.failed
        self.results |= report.results
        self.shared.update(report.shared)

    def fail(self, targets: Sequence[str], reason: str) -> None:
        """All of ``targets`` failed for one reason."""
        self.failed |= dict.fromkeys(targets, reason)

    def expire(self, targets: Sequence[str], reason: str) -> None:
        """The deadline passed before anything was heard of ``targets``."""
        self.fail(targets, reason)
        self.late.update(targets)

    @property
    def beyond_replacing(self) -> bool:
        """Whether others in the place of those that failed would fail too: for a reason that is
        not theirs, or because not one was heard of in time and it is the site that is silent."""
        return bool(self.shared) or len(self.late) == self.total > 0

    def sort(self, targets: Sequence[str]) -> None:
        """Bring failures into the order of the targets, whichever batch came back first."""
        self.failed = {t: self.failed[t] for t in targets if t in self.failed}

    def describe(self, step: str) -> str:
        """The failures of ``step`` in one line."""
        return f"{step} failed for {len(self.failed)} of {self.total}: {in_short(self.failed)}"


def in_short(failed: Mapping[str, str]) -> str:
    """Failures for people: each reason with a few of its targets."""
    by_reason: dict[str, list[str]] = {}
    for target, reason in failed.items():
        by_reason.setdefault(reason, []).append(target)
    parts: list[str] = []
    for reason, targets in list(by_reason.items())[:_SHOWN_REASONS]:
        more = len(targets) - _SHOWN_TARGETS
        rest = f" and {more} more" if more > 0 else ""
        parts.append(f"{reason} ({', '.join(targets[:_SHOWN_TARGETS])}{rest})")
    return "; ".join(parts)[:_SHOWN_CHARACTERS]
