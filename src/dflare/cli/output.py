"""How answers are printed: tables for people, JSON and YAML for programs."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer

from dflare.cli.errors import Json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


class Output(StrEnum):
    """The forms of an answer."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="table, json or yaml.", show_default=True)
]
ProjectOption = Annotated[
    str | None,
    typer.Option("--project", "-p", help="Project by id, name or organization/name."),
]
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Show it again whenever it changes.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until the operation has ended.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

STATE_STYLES = {
    state: style
    for style, states in (
        ("green", "active available ready succeeded done confirmed online healthy"),
        (
            "yellow",
            "pending running creating deleting preparing provisioning cleaning enrolling",
        ),
        ("yellow", "held releasing undoing draining cooldown rescue maintenance declared"),
        ("red", "failed quarantine needs_operator unreachable refused"),
        ("dim", "cancelled deleted ended planned free undone"),
    )
    for state in states.split()
}


def text_cell(value: Any) -> str:
    """A value as a table shows it; a list by its items, nothing as a dash."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(text_cell(item) for item in cast("list[Any]", value))
    if isinstance(value, dict):
        pairs = cast("Json", value).items()
        return ", ".join(f"{key} {text_cell(item)}" for key, item in pairs)
    return str(value)


def age_cell(value: Any) -> str:
    """How long ago a time was: ``45s``, ``3m``, ``5h``, ``12d``."""
    if not value:
        return "-"
    return duration((datetime.now(UTC) - parse_time(str(value))).total_seconds())


def time_cell(value: Any) -> str:
    """A time in UTC to the second."""
    return parse_time(str(value)).strftime("%Y-%m-%d %H:%M:%SZ") if value else "-"


def size_cell(value: Any) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    size = float(value or 0)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def count_cell(value: Any) -> str:
    """How many items a list has."""
    return str(len(value or []))


def parse_time(text: str) -> datetime:
    """A time of the API; one without a zone is UTC."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def duration(seconds: float) -> str:
    """Seconds as kubectl shows ages; two units below ten minutes and below two days."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    minutes, seconds_left = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}m{seconds_left}s" if seconds_left else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, minutes_left = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{minutes_left}m" if minutes_left else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    return f"{hours // 24}d"


def members(item: Json, name: str) -> list[Json]:
    """The documents that ``item`` holds in a list; none where it has no such list."""
    return cast("list[Json]", item.get(name) or [])


@dataclass(frozen=True)
class Column:
    """A column of a table, or a line of one thing: a title, the member's name (dots lead into
    members of members), and how its value is written."""

    title: str
    member: str
    cell: Callable[[Any], str] = text_cell

    def value(self, item: Json) -> Any:
        """The member of ``item``; None where it has none."""
        found: Any = item
        for part in self.member.split("."):
            if not isinstance(found, dict):
                return None
            found = cast("Json", found).get(part)
        return found

    def text(self, item: Json) -> str:
        """The cell of ``item``."""
        return self.cell(self.value(item))


def columns(*specs: str | Column) -> tuple[Column, ...]:
    """Columns from members' names; the title is the name in capitals."""
    return tuple(
        spec
        if isinstance(spec, Column)
        else Column(spec.rpartition(".")[2].replace("_", " ").upper(), spec)
        for spec in specs
    )


AGE = Column("AGE", "created_at", age_cell)
SINCE = Column("SINCE", "since", age_cell)


def print_list(
    items: Sequence[Json], shown: Sequence[Column], output: Output, *, empty: str = "There is none."
) -> None:
    """Print a list; ``empty`` is what a person reads where nothing is in it."""
    if output is not Output.TABLE:
        print_data(list(items), output)
    elif items:
        print_table(items, shown)
    else:
        print(empty, file=sys.stderr)


def print_one(item: Json, shown: Sequence[Column], output: Output) -> None:
    """Print one thing, a member a line."""
    if output is not Output.TABLE:
        print_data(item, output)
        return
    width = max(len(column.title) for column in shown)
    console = new_console()
    for column in shown:
        line = console.render_str(f"{column.title.lower():<{width}}  ", markup=False)
        line.append_text(_styled(column.text(item)))
        console.print(line, soft_wrap=True, highlight=False)


def print_data(data: Any, output: Output) -> None:
    """Print data as JSON or YAML."""
    if output is Output.YAML:
        import yaml

        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        return
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(items: Iterable[Json], shown: Sequence[Column]) -> None:
    """Print a table: coloured on a terminal, columns by spaces elsewhere."""
    console = new_console()
    if console.is_terminal:
        console.print(table(items, shown), highlight=False)
        return
    rows = [[column.title for column in shown]]
    rows += [[column.text(item) for column in shown] for item in items]
    widths = [max(len(row[index]) for row in rows) for index in range(len(shown))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def table(items: Iterable[Json], shown: Sequence[Column]) -> "RenderableType":
    """A table for a terminal."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        grid.add_column(column.title, overflow="fold")
    for item in items:
        grid.add_row(*(_styled(column.text(item)) for column in shown))
    return grid


def _styled(text: str) -> "Text":
    from rich.text import Text

    return Text(text, style=STATE_STYLES.get(text, ""))


def new_console(*, stderr: bool = False) -> "Console":
    """The console of stdout or stderr as they are now."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=False)


def is_terminal(stream: IO[str]) -> bool:
    """Whether a person looks at the stream."""
    return bool(stream.isatty())


def note(text: str) -> None:
    """Tell a person something beside the answer, on stderr, so that pipes stay clean."""
    print(text, file=sys.stderr)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be taken back; without a terminal ``--yes`` is needed."""
    if yes:
        return
    if not is_terminal(sys.stdin):
        from dflare.cli.errors import UsageError

        raise UsageError(f"{question} Nobody is here to ask.", next_step="Add --yes.")
    typer.confirm(question, abort=True, err=True)
