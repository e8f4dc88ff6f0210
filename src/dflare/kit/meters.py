"""What a process counts of itself, as Prometheus reads it (text format 0.0.4).

Names follow OpenTelemetry's conventions, as elsewhere (ADR 0019). Labels must be few: each new
combination is kept until the process ends.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MOST_SERIES = 5_000
"""Series of a process at most; what would be more of them is not counted."""

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Histogram:
    """How often a time fell below each bound, and the sum of all."""

    counts: list[int]
    seconds: float = 0.0


@dataclass
class Meters:
    """Histograms of times, in seconds, by name and labels."""

    _histograms: dict[tuple[str, Labels], Histogram] = field(
        default_factory=dict[tuple[str, Labels], Histogram]
    )

    def observe(self, name: str, labels: Labels, seconds: float) -> None:
        """Count one time."""
        found = self._histograms.get((name, labels))
        if found is None:
            if len(self._histograms) >= MOST_SERIES:
                return
            found = self._histograms[name, labels] = Histogram([0] * (len(BOUNDS_S) + 1))
        found.counts[bisect_left(BOUNDS_S, seconds)] += 1
        found.seconds += seconds

    def lines(self) -> Iterator[str]:
        """The samples, without a time."""
        for (name, labels), one in self._histograms.items():
            held, cumulated = 0, list[int]()
            for count in one.counts:
                held += count
                cumulated.append(held)
            yield from histogram_lines(name, dict(labels), BOUNDS_S, cumulated, one.seconds)


def histogram_lines(
    name: str,
    labels: Mapping[str, str],
    bounds: Sequence[float],
    cumulated: Sequence[int],
    seconds: float,
) -> Iterator[str]:
    """A histogram's samples; ``cumulated`` counts what each bound holds, and at its end all."""
    for bound, count in zip((*bounds, float("inf")), cumulated, strict=True):
        le = "+Inf" if bound == float("inf") else f"{bound:g}"
        yield sample_line(f"{name}_bucket", {**labels, "le": le}, count)
    yield sample_line(f"{name}_sum", labels, seconds)
    yield sample_line(f"{name}_count", labels, cumulated[-1])


def sample_line(name: str, labels: Mapping[str, str], value: float) -> str:
    """One sample: ``name{label="value"} number``. Values of labels have no control characters but
    newlines."""
    inside = ",".join(f'{key}="{escaped(value)}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}} {number(value)}"


def escaped(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    """A value as short as it can be written."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
