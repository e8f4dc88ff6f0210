"""`dflare service-account`: identities of programs."""

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

app = typer.Typer(help="Identities of programs.", no_args_is_help=True)

LIST = (*columns("name", "organization_id", "project_id", "disabled"), AGE, *columns("id"))
SHOW = columns("id", "name", "organization_id", "project_id", "disabled", "created_at")


def register(root: typer.Typer) -> None:
    """Add `service-account`."""
    root.add_typer(app, name="service-account")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name; unique where it belongs.")],
    organization: Annotated[
        str | None, typer.Option("--organization", help="Of an organization: name or id.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", "-p", help="Of a project: name or id.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a service account; `dflare token create` gives it a token."""
    body = {"name": name, "organization": organization, "project": project}
    with Api.of_environment() as api:
        given = {key: value for key, value in body.items() if value}
        print_one(api.change("POST", "/service-accounts", given), SHOW, output)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List service accounts."""
    with Api.of_environment() as api:
        items = api.items("/service-accounts")
        print_list(items, LIST, output, empty="There is no service account that you may see.")


@app.command()
def delete(account: Annotated[str, typer.Argument(help="Id.")], yes: YesOption = False) -> None:
    """Delete a service account and its tokens."""
    with Api.of_environment() as api:
        confirm(f"Delete the service account {account}?", yes=yes)
        api.change("DELETE", f"/service-accounts/{segment(account)}")
        note(f"Service account {account} is deleted.")
