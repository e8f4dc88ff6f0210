"""`dflare user`: people."""

import sys
from typing import Annotated

import typer

from dflare.cli.client import Api
from dflare.cli.errors import UsageError
from dflare.cli.output import AGE, Output, OutputOption, columns, is_terminal, print_list, print_one

app = typer.Typer(help="Users.", no_args_is_help=True)

LIST = (*columns("name", "email", "organization_id", "disabled"), AGE, *columns("id"))
SHOW = columns("id", "name", "email", "display_name", "organization_id", "disabled")


def register(root: typer.Typer) -> None:
    """Add `user`."""
    root.add_typer(app, name="user")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name to log in with.")],
    organization: Annotated[
        str | None, typer.Option("--organization", help="Home; left out for operators.")
    ] = None,
    email: Annotated[str, typer.Option(help="Address.")] = "",
    display_name: Annotated[str | None, typer.Option(help="As people write it.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a user."""
    body = {
        "name": name,
        "email": email,
        "password": _password(from_stdin=password_stdin),
        "organization": organization,
        "display_name": display_name,
    }
    with Api.of_environment() as api:
        given = {key: value for key, value in body.items() if value}
        print_one(api.change("POST", "/users", given), SHOW, output)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List users."""
    with Api.of_environment() as api:
        print_list(api.items("/users"), LIST, output, empty="There is no user that you may see.")


def _password(*, from_stdin: bool) -> str:
    if not from_stdin and is_terminal(sys.stdin):
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    password = sys.stdin.readline().rstrip("\n")
    if not password:
        raise UsageError(
            "no password came from standard input",
            next_step="Pipe it in with --password-stdin.",
        )
    return password
