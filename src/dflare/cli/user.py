"""`dflare user`: people."""

import sys
from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import Json, UsageError
from dflare.cli.output import (
    AGE,
    Output,
    OutputOption,
    YesOption,
    columns,
    confirm,
    is_terminal,
    note,
    print_list,
    print_one,
)

app = typer.Typer(help="Users.", no_args_is_help=True)

LIST = (*columns("login", "display_name", "email", "disabled"), AGE, *columns("id"))
SHOW = columns("id", "login", "name", "email", "display_name", "organization_id", "disabled")
Name = Annotated[str, typer.Argument(help="Name, NAME@ORGANIZATION, or id.")]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]


def register(root: typer.Typer) -> None:
    """Add `user`."""
    root.add_typer(app, name="user")


@app.command()
def create(
    name: Annotated[
        str,
        typer.Argument(
            help="Name; unique in the organization. Its people log in as NAME@ORGANIZATION."
        ),
    ],
    organization: Annotated[
        str | None, typer.Option("--organization", help="Home; left out for operators.")
    ] = None,
    email: Annotated[str, typer.Option(help="Address.")] = "",
    display_name: Annotated[str | None, typer.Option(help="As people write it.")] = None,
    password_stdin: PasswordStdin = False,
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
        (item,) = _with_logins(api, [api.change("POST", "/users", given)])
        print_one(item, SHOW, output)
        note(f"Logs in as {item['login']}.")


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List users."""
    with Api.of_environment() as api:
        items = _with_logins(api, api.items("/users"))
        print_list(items, LIST, output, empty="There is no user that you may see.")


@app.command()
def show(name: Name, output: OutputOption = Output.TABLE) -> None:
    """Show a user."""
    with Api.of_environment() as api:
        (item,) = _with_logins(api, [api.get(f"/users/{segment(name)}")])
        print_one(item, SHOW, output)


@app.command()
def password(name: Name, password_stdin: PasswordStdin = False) -> None:
    """Set a password, your own or that of a user that you administer; it ends its logins."""
    with Api.of_environment() as api:
        body = {"password": _password(from_stdin=password_stdin)}
        api.change("PUT", f"/users/{segment(name)}/password", body)
        note(f"The password of {name} is set; log in anew.")


@app.command()
def disable(name: Name) -> None:
    """Shut a user out at once; its roles stay for when it is enabled again."""
    _set_disabled(name, disabled=True)


@app.command()
def enable(name: Name) -> None:
    """Let a disabled user in again."""
    _set_disabled(name, disabled=False)


@app.command()
def delete(name: Name, yes: YesOption = False) -> None:
    """Delete a user with its roles and tokens."""
    with Api.of_environment() as api:
        found = api.get(f"/users/{segment(name)}")
        confirm(f"Delete the user {name}, its roles and its tokens?", yes=yes)
        api.change("DELETE", f"/users/{segment(found['id'])}", etag=found.get("etag"))
        note(f"User {name} is deleted.")


def _set_disabled(name: str, *, disabled: bool) -> None:
    with Api.of_environment() as api:
        api.change("PATCH", f"/users/{segment(name)}", {"disabled": disabled})
        note(f"User {name} is {'disabled' if disabled else 'enabled'}.")


def _with_logins(api: Api, users: list[Json]) -> list[Json]:
    """Users with the name that each logs in with, as far as the caller may know organizations."""
    names = {item["id"]: item["name"] for item in api.items("/organizations")}
    return [{**user, "login": _login(user, names)} for user in users]


def _login(user: Json, organizations: dict[str, str]) -> str:
    home = user["organization_id"]
    return f"{user['name']}@{organizations.get(home, home)}" if home else str(user["name"])


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
