"""What an apply would change, as lines that start with +, ~ and -."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dflare.cli.errors import Json
from dflare.cli.output import members

if TYPE_CHECKING:
    from rich.text import Text

ALIKE_AT_MOST = 20
"""Parts of one kind that are named one by one; the others are counted."""


def diff_lines(diff: Json) -> Iterator["Text"]:
    """A line for every part that is added, changed (with its values) or removed."""
    from rich.text import Text

    if not (diff.get("added") or diff.get("changed") or diff.get("removed")):
        yield Text("No change.")
        return
    yield from _parts("+", "green", members(diff, "added"))
    shown: dict[str, int] = {}
    for part in members(diff, "changed"):
        shown[part["kind"]] = shown.get(part["kind"], 0) + 1
        if shown[part["kind"]] > ALIKE_AT_MOST:
            continue
        yield Text(f"~ {part['kind']} {part['name']}", style="yellow")
        for field in members(part, "fields"):
            yield Text(f"    {field['path']}: {_value(field['old'])} -> {_value(field['new'])}")
    for kind, count in shown.items():
        if count > ALIKE_AT_MOST:
            yield Text(f"~ {count - ALIKE_AT_MOST} more of {kind}", style="yellow")
    yield from _parts("-", "red", members(diff, "removed"))


def _parts(mark: str, style: str, parts: list[Json]) -> Iterator["Text"]:
    from rich.text import Text

    by_kind: dict[str, list[str]] = {}
    for part in parts:
        by_kind.setdefault(part["kind"], []).append(part["name"])
    for kind, names in by_kind.items():
        if len(names) > ALIKE_AT_MOST:
            yield Text(f"{mark} {len(names)} of {kind}: {names[0]} … {names[-1]}", style=style)
        else:
            for name in names:
                yield Text(f"{mark} {kind} {name}", style=style)


def _value(value: str | None) -> str:
    return "(nothing)" if value is None else value
