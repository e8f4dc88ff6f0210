"""`dflare token`: tokens for programs."""

from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.output import (
    AGE,
    Column,
    Output,
    OutputOption,
    age_cell,
    columns,
    note,
    print_data,
    print_list,
    time_cell,
)

app = typer.Typer(help="Tokens for programs.", no_args_is_help=True)

DAY_S = 86_400
LIST = (
    *columns("name", "hint", "subject_id"),
    AGE,
    Column("EXPIRES", "expires_at", time_cell),
    Column("LAST USED", "last_used_at", age_cell),
    Column("REVOKED", "revoked_at", time_cell),
    *columns("id"),
)


def register(root: typer.Typer) -> None:
    """Add `token`."""
    root.add_typer(app, name="token")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    days: Annotated[int, typer.Option(min=1, max=365, help="Days that it is valid.")] = 30,
    service_account: Annotated[
        str | None, typer.Option(help="For a service account, by id; for you unless told.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a token and print it; it is shown this once."""
    with Api.of_environment() as api:
        owner = f"/service-accounts/{segment(service_account)}" if service_account else ""
        body = {"name": name, "expires_in_s": days * DAY_S}
        item = api.change("POST", f"{owner}/tokens", body)
    if output is not Output.TABLE:
        print_data(item, output)
        return
    print(item["secret"])
    note(f"It is valid until {time_cell(item['expires_at'])} and is not shown again.")
    note("Programs use it as DFLARE_CLI_TOKEN or as a bearer token.")


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List tokens, without their secrets."""
    with Api.of_environment() as api:
        print_list(api.items("/tokens"), LIST, output, empty="There is no token.")


@app.command()
def revoke(token: Annotated[str, typer.Argument(help="Id; see `dflare token list`.")]) -> None:
    """Revoke a token at once."""
    with Api.of_environment() as api:
        api.change("DELETE", f"/tokens/{segment(token)}")
        note(f"Token {token} is revoked.")
