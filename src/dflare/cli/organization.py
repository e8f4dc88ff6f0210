"""`dflare organization`: customers."""

from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.output import (
    AGE,
    Output,
    OutputOption,
    YesOption,
    columns,
    confirm,
    note,
    print_list,
    print_one,
)

app = typer.Typer(help="Organizations.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name or id.")]
LIST = (*columns("name", "display_name"), AGE, *columns("id"))
SHOW = columns("id", "name", "display_name", "created_at")


def register(root: typer.Typer) -> None:
    """Add `organization`."""
    root.add_typer(app, name="organization")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name; unique on the platform.")],
    display_name: Annotated[str | None, typer.Option(help="As people write it.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create an organization."""
    body = {"name": name, **({"display_name": display_name} if display_name else {})}
    with Api.of_environment() as api:
        print_one(api.change("POST", "/organizations", body), SHOW, output)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List organizations."""
    with Api.of_environment() as api:
        print_list(api.items("/organizations"), LIST, output, empty="There is no organization.")


@app.command()
def show(name: Name, output: OutputOption = Output.TABLE) -> None:
    """Show an organization."""
    with Api.of_environment() as api:
        print_one(api.get(f"/organizations/{segment(name)}"), SHOW, output)


@app.command()
def delete(name: Name, yes: YesOption = False) -> None:
    """Delete an organization that has no projects."""
    with Api.of_environment() as api:
        confirm(f"Delete the organization {name}?", yes=yes)
        api.change("DELETE", f"/organizations/{segment(name)}")
        note(f"Organization {name} is deleted.")
