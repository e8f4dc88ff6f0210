"""`dflare reservation`: whole blocks of nodes for one project, from a time to a time."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import UsageError
from dflare.cli.listing import show_list
from dflare.cli.output import (
    AGE,
    Column,
    Output,
    OutputOption,
    ProjectOption,
    WatchOption,
    YesOption,
    columns,
    confirm,
    note,
    print_one,
    time_cell,
)

app = typer.Typer(help="Whole blocks kept for a project.", no_args_is_help=True)

ReservationArgument = Annotated[str, typer.Argument(help="Name or id.")]


class Level(StrEnum):
    """A group of nodes that is reserved whole, as the API names it."""

    BLOCK = "block"
    RAIL_BLOCK = "rail-block"
    LEAF = "leaf"
    NVLINK_DOMAIN = "nvlink-domain"


def register(root: typer.Typer) -> None:
    """Add `reservation`."""
    root.add_typer(app, name="reservation")


def _count_cell(names: list[Any] | None) -> str:
    return str(len(names or []))


LIST = (
    *columns("name", "state"),
    Column("BLOCKS", "blocks", _count_cell),
    Column("NODES", "nodes", _count_cell),
    *columns("node_type"),
    Column("START", "starts_at", time_cell),
    Column("END", "ends_at", time_cell),
    *columns("id"),
)
SHOW = (
    *columns("id", "name", "state", "project_id", "site_id", "node_type", "level", "blocks"),
    *columns("nodes", "held_by_others"),
    Column("START", "starts_at", time_cell),
    Column("END", "ends_at", time_cell),
    *columns("created_by"),
    AGE,
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name; unique in the project.")],
    blocks: Annotated[int, typer.Option("--blocks", "-b", min=1, help="How many groups.")],
    node_type: Annotated[str, typer.Option("--type", "-t", help="Of which node type.")],
    end: Annotated[str, typer.Option("--end", help="When it ends, such as 2026-12-24T18:00Z.")],
    start: Annotated[
        str | None, typer.Option("--start", help="When it starts; now unless told.")
    ] = None,
    of: Annotated[Level, typer.Option("--of", help="What is taken whole.")] = Level.BLOCK,
    site: Annotated[str | None, typer.Option(help="Site; not needed where there is one.")] = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Reserve whole blocks for a project, all or nothing (operators)."""
    body = {
        "name": name,
        "site": site,
        "node_type": node_type,
        "blocks": blocks,
        "level": of.value,
        "starts_at": _time(start) if start else None,
        "ends_at": _time(end),
    }
    with Api.of_environment(project) as api:
        made = api.change("POST", f"/projects/{api.project()}/reservations", body)
        print_one(made, SHOW, output)


@app.command("list")
def list_(
    watch: WatchOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a project's reservations."""
    with Api.of_environment(project) as api:
        path = f"/projects/{api.project()}/reservations"
        show_list(
            api,
            lambda: api.items(path),
            LIST,
            output,
            watch=watch,
            types="reservation.",
            empty="There is no reservation.",
        )


@app.command()
def show(
    reservation: ReservationArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a reservation and its nodes."""
    with Api.of_environment(project) as api:
        path = f"/projects/{api.project()}/reservations/{segment(reservation)}"
        print_one(api.get(path), SHOW, output)


@app.command()
def delete(
    reservation: ReservationArgument,
    yes: YesOption = False,
    project: ProjectOption = None,
) -> None:
    """End a reservation now (operators)."""
    with Api.of_environment(project) as api:
        path = f"/projects/{api.project()}/reservations/{segment(reservation)}"
        found = api.get(path)
        confirm(f"End reservation {found['name']} of {len(found['nodes'])} nodes?", yes=yes)
        api.change("DELETE", path, etag=found.get("etag"))
        note(f"Reservation {found['name']} is ended.")


def _time(text: str) -> str:
    """A time with its zone; one without is local time."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a time", next_step="Write it as 2026-12-24T18:00 or with a zone."
        ) from error
    return (at if at.tzinfo else at.astimezone()).isoformat()
