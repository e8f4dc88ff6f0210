"""`dflare alert`: what a person should look at."""

from typing import Annotated

import typer

from dflare.cli.listing import show_of_projects
from dflare.cli.output import (
    Column,
    Output,
    OutputOption,
    ProjectOption,
    WatchOption,
    age_cell,
    columns,
)

app = typer.Typer(help="What a person should look at.", no_args_is_help=True)

LIST = (
    *columns("severity", "rule", "state", "summary"),
    Column("SUBJECT", "subject_name"),
    Column("RAISED", "raised_at", age_cell),
    Column("RESOLVED", "resolved_at", age_cell),
)


def register(root: typer.Typer) -> None:
    """Add `alert`."""
    root.add_typer(app, name="alert")


@app.callback()
def _alerts() -> None:  # pyright: ignore[reportUnusedFunction] - Typer calls it
    """What a person should look at."""


@app.command("list")
def list_(
    all_projects: Annotated[
        bool, typer.Option("--all", "-A", help="Of every project that you may see, and of none.")
    ] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Those that are over too.")] = False,
    watch: WatchOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List alerts: dead GPUs, lost links, operations that are late."""
    show_of_projects(
        project,
        "/alerts",
        LIST,
        output,
        all_projects=all_projects,
        watch=watch,
        types="alert.",
        empty="There is no alert.",
        resolved=resolved or None,
    )
