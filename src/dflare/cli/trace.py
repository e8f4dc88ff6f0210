"""The spans of an operation as an indented story."""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from dflare.cli.errors import Json
from dflare.cli.output import members, parse_time

if TYPE_CHECKING:
    from rich.text import Text

ALIKE_AT_MOST = 3
"""Spans of one name beside each other that are shown one by one; more are summed up."""
SHOWN_ATTRIBUTES_AT_MOST = 4


def trace_lines(document: Json) -> Iterator["Text"]:
    """A line for every span: offset from the start, duration, name, what matters of it."""
    roots = members(document, "spans")
    if not roots:
        return
    start = min(parse_time(span["started_at"]) for span in roots)
    yield from _lines(roots, start, 0)


def _lines(spans: list[Json], start: datetime, depth: int) -> Iterator["Text"]:
    groups: dict[str, list[Json]] = {}
    for span in sorted(spans, key=lambda item: str(item["started_at"])):
        groups.setdefault(_key(span), []).append(span)
    for group in groups.values():
        if len(group) <= ALIKE_AT_MOST:
            for span in group:
                yield _line(span, start, depth)
                yield from _lines(members(span, "children"), start, depth + 1)
        else:
            yield _summary(group, start, depth)
            nested = [child for span in group for child in members(span, "children")]
            yield from _lines(nested, start, depth + 1)


def _key(span: Json) -> str:
    return f"{span['name']}{' (failed)' if span.get('error') else ''}"


def _line(span: Json, start: datetime, depth: int) -> "Text":
    attributes = cast("dict[str, Any]", span.get("attributes") or {})
    shown = [
        f"{key}={value}"
        for key, value in attributes.items()
        if key != "operation_id" and len(str(value)) <= 60
    ][:SHOWN_ATTRIBUTES_AT_MOST]
    return _text(span, start, depth, _seconds(span), " ".join(shown), str(span.get("error") or ""))


def _summary(group: list[Json], start: datetime, depth: int) -> "Text":
    seconds = sorted(_seconds(span) for span in group)
    facts = f"x{len(group)}, median {_short(seconds[len(seconds) // 2])}"
    errors = {str(span["error"]) for span in group if span.get("error")}
    return _text(group[0], start, depth, seconds[-1], facts, "; ".join(sorted(errors)[:2]))


def _text(
    span: Json, start: datetime, depth: int, seconds: float, facts: str, error: str
) -> "Text":
    from rich.text import Text

    offset = (parse_time(span["started_at"]) - start).total_seconds()
    line = Text(f"{offset:>9.3f}s {_short(seconds):>8}  ", style="dim")
    line.append(f"{'  ' * depth}{span['name']}", style="red" if error else "default")
    if facts:
        line.append(f"  {facts}", style="dim")
    if span.get("process"):
        line.append(f"  [{span['process']}]", style="dim")
    if error:
        line.append(f"  {error}", style="red")
    return line


def _seconds(span: Json) -> float:
    return float(span["duration_ms"]) / 1000


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.1f}ms" if seconds < 1 else f"{seconds:.2f}s"
