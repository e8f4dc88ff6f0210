"""Watching an operation: a live tree of its steps on a terminal, a line a change elsewhere."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import ApiProblem, CliError, ExitCode, Json
from dflare.cli.output import (
    STATE_STYLES,
    duration,
    is_terminal,
    new_console,
    note,
    parse_time,
)
from dflare.cli.stream import HELLO, EventStream

if TYPE_CHECKING:
    from rich.console import RenderableType

ENDED = frozenset({"succeeded", "failed", "cancelled", "needs_operator"})
"""States in which nothing moves any more by itself."""
REREAD_S = 10.0
UNKNOWN_REREAD_S = 1.0
KNOWN_WITHIN_S = 15.0
"""How long an operation may stay unknown after it was ordered: its list is fed by events."""
BAR_WIDTH = 24
COMMAND_IN_REASON = re.compile(r"`(dflare [^`]+)`")
MARKS = {
    "done": "✔",
    "succeeded": "✔",
    "failed": "✘",
    "needs_operator": "!",
    "cancelled": "-",
    "running": "●",
    "undoing": "↶",
    "undone": "↶",
}


def watch_operation(api: Api, operation_id: str, document: Json | None = None) -> Json:
    """Show an operation until it has ended; returns its last document. Ctrl-C leaves it running.

    ``document`` is what the order answered with, which is newer than what lists may know.
    """
    terminal = is_terminal(sys.stderr)
    try:
        if terminal:
            return _watch_live(api, operation_id, document)
        return _watch_plain(api, operation_id, document)
    except KeyboardInterrupt:
        note(
            f"\nThe operation goes on. Continue watching by "
            f"`dflare operation watch {operation_id}`, stop it by "
            f"`dflare operation cancel {operation_id}`."
        )
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def finish(document: Json) -> None:
    """End the command as the operation ended.

    Raises:
        CliError: it did not succeed.
    """
    if document["state"] == "succeeded":
        return
    operation_id = document["id"]
    way = {
        "failed": f"See `dflare operation trace {operation_id}`; order again by "
        f"`dflare operation retry {operation_id}`.",
        "cancelled": "Everything that it had done was taken back; order again when you want to.",
        "needs_operator": _way_on(document),
    }
    raise CliError(
        f"{document['kind']} {document['state'].replace('_', ' ')}{_because(document)}",
        next_step=way.get(document["state"], f"See `dflare operation show {operation_id}`."),
    )


def _way_on(document: Json) -> str:
    """What an operator does: the command that the reason names, where it names one. Some operations
    are resumed, one that never began is tried again."""
    named = COMMAND_IN_REASON.search(str(document.get("reason") or ""))
    if named is not None:
        return f"An operator repairs what is named and runs `{named.group(1)}`."
    return f"An operator repairs what is named and runs `dflare operation resume {document['id']}`."


def versions(
    api: Api,
    operation_id: str,
    document: Json | None = None,
    *,
    notice: Callable[[str], None] = note,
) -> Iterator[Json | None]:
    """Every newer document of an operation until it has ended; None while nothing happens."""
    known = document
    if known is not None:
        yield known
        if known["state"] in ENDED:
            return
    stream = EventStream(api, types="operation.", operation=operation_id, notice=notice)
    began = time.monotonic()
    read_due = began + REREAD_S
    for message in stream.messages():
        fresh: Json | None = None
        now = time.monotonic()
        if message is not None and message["type"] == "operation.changed":
            fresh = cast("Json", message["data"])
        elif (message is not None and message["type"] == HELLO) or now > read_due:
            patient = document is not None and now - began < KNOWN_WITHIN_S
            fresh = _read(api, operation_id, patient=patient)
            read_due = now + (UNKNOWN_REREAD_S if fresh is None else REREAD_S)
        if fresh is None or (known is not None and fresh["version"] <= known["version"]):
            yield None
            continue
        known, read_due = fresh, now + REREAD_S
        yield known
        if known["state"] in ENDED:
            return


def _read(api: Api, operation_id: str, *, patient: bool) -> Json | None:
    try:
        return api.get(f"/operations/{segment(operation_id)}")
    except ApiProblem as problem:
        if problem.status == 404 and patient:
            return None
        raise


def _watch_live(api: Api, operation_id: str, document: Json | None) -> Json:
    from rich.live import Live

    known: Json = document or {}
    with Live(console=new_console(stderr=True), refresh_per_second=8, transient=False) as live:
        for fresh in versions(api, operation_id, document, notice=live.console.print):
            known = fresh or known
            if known:
                live.update(operation_tree(known, datetime.now(UTC)))
    return known


def _watch_plain(api: Api, operation_id: str, document: Json | None) -> Json:
    known: Json = document or {}
    shown: dict[str, Any] = {}
    for fresh in versions(api, operation_id, document):
        if fresh is None:
            continue
        known = fresh
        for line in changed_lines(known, shown):
            note(line)
    return known


def changed_lines(document: Json, shown: dict[str, Any]) -> Iterator[str]:
    """A line for every step, and for the operation, that differs from what was ``shown``."""
    now = datetime.now(UTC)
    for step in document["steps"]:
        facts = (step["state"], step["done"], step["failed"], step["message"])
        if step["state"] == "planned" or shown.get(step["name"]) == facts:
            continue
        shown[step["name"]] = facts
        parts = [f"{step_name(step):<28}", f"{step['state']:<9}", _counts(step)]
        parts += [_elapsed(step, now), step["message"] or ""]
        yield "  ".join(part for part in parts if part).rstrip()
    state = (document["state"], document["reason"])
    if shown.get("") != state:
        shown[""] = state
        name = document["state"].replace("_", " ")
        yield f"{document['kind']} {document['id']} is {name}{_because(document)}"


def operation_tree(document: Json, now: datetime) -> "RenderableType":
    """The operation as a tree of its steps, each with its progress, time and failures."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    state = document["state"]
    head = Text.assemble(
        (f"{MARKS.get(state, '●')} ", STATE_STYLES.get(state, "")),
        (document["kind"], "bold"),
        f" {document['resource_id']}  ",
        (state.replace("_", " "), STATE_STYLES.get(state, "")),
        f"  {_operation_elapsed(document, now)}",
    )
    if document["attempt"] > 1:
        head.append(f"  attempt {document['attempt']}", style="dim")
    if document["cancel_requested"] and state not in ENDED:
        head.append("  cancelling", style="yellow")
    grid = Table.grid(padding=(0, 1))
    steps = document["steps"]
    for step in steps:
        last = step is steps[-1]
        style = STATE_STYLES.get(step["state"], "")
        bar: RenderableType = ""
        if step["state"] in ("running", "undoing") and step["total"] > 1:
            bar = ProgressBar(total=step["total"], completed=step["done"], width=BAR_WIDTH)
        grid.add_row(
            Text("└─" if last else "├─", style="dim"),
            Text(MARKS.get(step["state"], "○"), style=style),
            Text(step_name(step), style=style if step["state"] != "running" else "bold"),
            Text(_counts(step)),
            Text(_elapsed(step, now), style="dim"),
            bar,
            Text(step["message"] or "", style="red" if step["failed"] else "dim"),
        )
    parts: list[RenderableType] = [head, grid]
    if _because(document):
        parts.append(Text(f"   {document['reason']}", style=STATE_STYLES.get(state, "")))
    return Group(*parts)


def _because(document: Json) -> str:
    """The reason of an operation's state behind a colon, where it says more than the state."""
    reason = document.get("reason")
    return f": {reason}" if reason and reason != document["state"] else ""


def step_name(step: Json) -> str:
    """The name of a step without its version."""
    return str(step["name"]).partition("@")[0]


def _counts(step: Json) -> str:
    if step["total"] <= 1 and not step["failed"]:
        return ""
    failed = f", {step['failed']} failed" if step["failed"] else ""
    return f"{step['done']}/{step['total']}{failed}"


def _elapsed(step: Json, now: datetime) -> str:
    if not step["started_at"]:
        return ""
    end = parse_time(step["finished_at"]) if step["finished_at"] else now
    seconds = max(0.0, (end - parse_time(step["started_at"])).total_seconds())
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def _operation_elapsed(document: Json, now: datetime) -> str:
    ended = document["finished_at"] or (document["since"] if document["state"] in ENDED else None)
    end = parse_time(ended) if ended else now
    return duration((end - parse_time(document["created_at"])).total_seconds())
