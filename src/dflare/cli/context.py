"""`dflare context`: which installation the commands talk to."""

import os
from dataclasses import replace
from typing import Annotated

import typer

from dflare.cli.config import Config, ConfigFile, Context, known_context, resolve
from dflare.cli.errors import Json
from dflare.cli.output import (
    Output,
    OutputOption,
    columns,
    note,
    print_list,
    print_one,
    time_cell,
)

app = typer.Typer(help="Which installation the commands talk to.", no_args_is_help=True)

SHOWN = columns("current", "name", "url", "project", "login")


def register(root: typer.Typer) -> None:
    """Add `context`."""
    root.add_typer(app, name="context")


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List contexts; tokens are not shown."""
    config = ConfigFile.of(os.environ).load()
    items = [
        _facts(name, context, current=name == config.current)
        for name, context in sorted(config.contexts.items())
    ]
    print_list(items, SHOWN, output, empty="There is no context yet; `dflare login` makes one.")


@app.command()
def use(name: Annotated[str, typer.Argument(help="Name of a context.")]) -> None:
    """Make a context the current one."""
    file = ConfigFile.of(os.environ)
    with file.locked():
        config = file.load()
        known_context(config, name)
        file.save(Config(name, config.contexts))
    note(f"The commands talk to {config.contexts[name].url} now.")


@app.command()
def show(output: OutputOption = Output.TABLE) -> None:
    """Show what the commands use, with what the environment overrides."""
    connection = resolve(ConfigFile.of(os.environ), os.environ, None)
    context = replace(connection.context)
    print_one(_facts(connection.name or "(none)", context, current=True), SHOWN, output)


def _facts(name: str, context: Context, *, current: bool) -> Json:
    login = "no"
    if context.access_token:
        renewed = "renewed by itself" if context.refresh_token else None
        until = f"until {time_of(context.expires_at)}" if context.expires_at else "a token"
        login = renewed or until
    return {
        "name": name,
        "current": current,
        "url": context.url,
        "project": context.project_name or context.project,
        "login": login,
    }


def time_of(seconds: float) -> str:
    """Seconds of the epoch as people read them."""
    from datetime import UTC, datetime

    return time_cell(datetime.fromtimestamp(seconds, UTC).isoformat())
