"""The site as text: racks and their servers, each a sign whose colour and shape say its state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dflare.cli.errors import Json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

RACKS_AT_MOST = 48
GAP = "   "
FREE = ("·", "green", "free")
OTHERS = ("○", "blue", "of other tenants")
WORK = ("~", "yellow", "in work")
TROUBLE = ("x", "bold red", "set aside")
SIGNS = (("●", "bold cyan"), ("◆", "bold magenta"))
_AT_WORK = frozenset({"preparing", "provisioning", "cleaning", "enrolling", "declared", "rescue"})


def site_map(
    nodes: Sequence[Json], tenants: Mapping[str, str], width: int = 96
) -> "RenderableType":
    """Draw servers (documents of the API) by rack, and a legend with counts.

    ``tenants`` are at most two: the name that the legend says, by project id.
    """
    from rich.console import Group
    from rich.text import Text

    kinds = [_sign(node, tenants) for node in nodes]
    racks: dict[str, Text] = {}
    for node, (sign, style, _) in sorted(
        zip(nodes, kinds, strict=True), key=lambda pair: str(pair[0]["name"])
    ):
        rack = racks.setdefault(str(node["rack"]), Text())
        rack.append(sign, style=style)
    shown = sorted(racks)[:RACKS_AT_MOST]
    lines = _lines([(name, racks[name]) for name in shown], width)
    if len(racks) > len(shown):
        lines.append(Text(f"  and {len(racks) - len(shown)} more racks", style="dim"))
    counts: dict[tuple[str, str, str], int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    legend = Text("  ")
    for (sign, style, name), count in sorted(counts.items(), key=lambda item: -item[1]):
        legend.append(f"{sign} ", style=style)
        legend.append(f"{count} {name}   ")
    return Group(*lines, legend)


def _lines(racks: Sequence[tuple[str, "Text"]], width: int) -> list["Text"]:
    from rich.text import Text

    if not racks:
        return []
    name_width = max(len(name) for name, _ in racks)
    row_width = max(len(row) for _, row in racks)
    a_line = max(1, (width - 2) // (name_width + 1 + row_width + len(GAP)))
    lines: list[Text] = []
    for start in range(0, len(racks), a_line):
        line = Text("  ")
        for name, row in racks[start : start + a_line]:
            line.append(f"{name:<{name_width}} ", style="dim")
            line.append_text(row)
            line.append(" " * (row_width - len(row)) + GAP)
        line.rstrip()
        lines.append(line)
    return lines


def _sign(node: Json, tenants: Mapping[str, str]) -> tuple[str, str, str]:
    if node["state"] in ("failed", "quarantine", "unreachable", "maintenance"):
        return TROUBLE
    project = node["project_id"]
    if project in tenants:
        return (*SIGNS[list(tenants).index(project)], tenants[project])
    if project:
        return OTHERS
    return WORK if node["state"] in _AT_WORK else FREE
