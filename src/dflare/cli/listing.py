"""Lists as commands show them: once, or again whenever something in them changes."""

import json
import sys
import time
from collections.abc import Callable, Sequence

import typer

from dflare.cli.client import Api
from dflare.cli.errors import ExitCode, Json
from dflare.cli.output import (
    Column,
    Output,
    columns,
    is_terminal,
    new_console,
    print_data,
    print_list,
    print_table,
    table,
)
from dflare.cli.stream import EventStream

REFRESH_S = 0.5
"""Events that come closer together are shown by one reading."""
REREAD_S = 30.0


def show_list(
    api: Api,
    read: Callable[[], list[Json]],
    shown: Sequence[Column],
    output: Output,
    *,
    watch: bool = False,
    types: str = "",
    empty: str = "There is none.",
) -> None:
    """Print what ``read`` returns; with ``watch`` again after events of ``types`` until Ctrl-C."""
    if not watch:
        print_list(read(), shown, output, empty=empty)
        return
    try:
        if output is Output.TABLE and is_terminal(sys.stdout):
            _live(api, read, shown, types)
        else:
            _repeat(api, read, shown, output, types)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def show_of_projects(
    project: str | None,
    path: str,
    shown: Sequence[Column],
    output: Output,
    *,
    all_projects: bool,
    watch: bool,
    types: str,
    empty: str,
    **only: bool | None,
) -> None:
    """Print what a project has below ``path``, or, where all are asked for or none was chosen, what
    every project has that the caller may see. ``only`` are the list's own filters."""
    with Api.of_environment(project) as api:
        everywhere = all_projects or not api.context.project
        where = path if everywhere else f"/projects/{api.project()}{path}"
        show_list(
            api,
            lambda: api.items(where, **only),
            (*shown, *columns("project_id")) if everywhere else shown,
            output,
            watch=watch,
            types=types,
            empty=empty,
        )


def _live(api: Api, read: Callable[[], list[Json]], shown: Sequence[Column], types: str) -> None:
    from rich.live import Live

    with Live(console=new_console(), refresh_per_second=4, transient=False) as live:

        def update(items: list[Json]) -> None:
            live.update(table(items, shown))

        _follow(api, read, update, types, live.console.print)


def _repeat(
    api: Api,
    read: Callable[[], list[Json]],
    shown: Sequence[Column],
    output: Output,
    types: str,
) -> None:
    before: list[str] = []

    def update(items: list[Json]) -> None:
        text = json.dumps(items)
        if before == [text]:
            return
        if output is Output.JSON:
            # One document a line, so that a reader can tell them apart.
            print(json.dumps(items, ensure_ascii=False))
        elif output is Output.YAML:
            print("---")
            print_data(items, output)
        else:
            if before:
                print()
            print_table(items, shown)
        before[:] = [text]
        sys.stdout.flush()

    _follow(api, read, update, types, lambda text: print(text, file=sys.stderr))


def _follow(
    api: Api,
    read: Callable[[], list[Json]],
    update: Callable[[list[Json]], None],
    types: str,
    notice: Callable[[str], None],
) -> None:
    update(read())
    read_at = time.monotonic()
    changed = False
    for message in EventStream(api, types=types, notice=notice).messages():
        changed = changed or message is not None
        age = time.monotonic() - read_at
        if (changed and age > REFRESH_S) or age > REREAD_S:
            update(read())
            read_at, changed = time.monotonic(), False
