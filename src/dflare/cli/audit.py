"""`dflare audit`: who did what, and what was refused."""

from typing import Annotated

import typer

from dflare.cli.client import Api
from dflare.cli.errors import Json
from dflare.cli.output import Column, Output, OutputOption, columns, print_list, time_cell

app = typer.Typer(help="Who did what.", no_args_is_help=True)

LIST = (
    Column("AT", "at", time_cell),
    *columns("principal", "action", "decision"),
    Column("RESOURCE", "resource_id"),
    Column("OPERATION", "operation_id"),
)


def register(root: typer.Typer) -> None:
    """Add `audit`."""
    root.add_typer(app, name="audit")


@app.command("list")
def list_(
    resource: Annotated[str | None, typer.Option(help="Only about this resource's id.")] = None,
    decision: Annotated[str | None, typer.Option(help="Only allowed, or only denied.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the audit log."""
    items: list[Json] = []
    with Api.of_environment() as api:
        for item in api.pages(
            "/audit", resource_id=resource, decision=decision, limit=min(limit, 500)
        ):
            items.append(item)
            if len(items) >= limit:
                break
    print_list(items, LIST, output, empty="Nothing is in the audit log that you may see.")
