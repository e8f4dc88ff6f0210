"""`dflare events`: what happens, as it happens."""

import json
import sys
from typing import Annotated

import typer

from dflare.cli.client import Api
from dflare.cli.errors import ExitCode, Json
from dflare.cli.output import Output, OutputOption, note, print_data, time_cell
from dflare.cli.stream import HELLO, EventStream


def register(root: typer.Typer) -> None:
    """Add `events`."""
    root.command()(events)


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they happen.")] = False,
    after: Annotated[
        str | None, typer.Option(help="Only those behind this cursor; cursors are in -o json.")
    ] = None,
    types: Annotated[
        str, typer.Option(help="Beginnings of types by comma, such as cluster.,node.")
    ] = "",
    operation: Annotated[str | None, typer.Option(help="Only those of an operation.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Without --follow, at most so many.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print events: the kept ones behind a cursor, or with --follow those from now on."""
    with Api.of_environment() as api:
        if follow:
            _follow(api, EventStream(api, types, operation, after, notice=note), output)
            return
        items: list[Json] = []
        cursor = after
        while len(items) < limit:
            page = api.get(
                "/events",
                cursor=cursor,
                limit=min(500, limit - len(items)),
                types=types or None,
                operation=operation,
            )
            items += page["items"]
            cursor = page["next_cursor"]
            if not page["items"]:
                break
        for item in items:
            _print(item, output)
        if output is Output.TABLE and cursor:
            note(f"Go on by `dflare events --after {cursor}`.")


def _follow(api: Api, stream: EventStream, output: Output) -> None:
    try:
        for message in stream.messages():
            if message is not None and message["type"] != HELLO:
                _print(message, output)
                sys.stdout.flush()
    except KeyboardInterrupt:
        note(f"Go on by `dflare events --follow --after {stream.cursor}`.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _print(event: Json, output: Output) -> None:
    if output is Output.JSON:
        # One document a line: a stream has no end that an array could be closed at.
        print(json.dumps(event, ensure_ascii=False))
    elif output is Output.YAML:
        print("---")
        print_data(event, output)
    else:
        state = event["data"].get("state") or ""
        parts = [time_cell(event["at"]), f"{event['type']:<24}", event["resource_id"], state]
        if event.get("operation_id") and event["operation_id"] != event["resource_id"]:
            parts.append(event["operation_id"])
        print("  ".join(part for part in parts if part))
