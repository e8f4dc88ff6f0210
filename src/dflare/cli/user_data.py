"""`dflare user-data`: cloud-init user data that nodes boot with."""

from pathlib import Path
from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.output import (
    AGE,
    Output,
    OutputOption,
    ProjectOption,
    YesOption,
    columns,
    confirm,
    note,
    print_data,
    print_list,
    print_one,
)
from dflare.cli.ssh_key import read_text

app = typer.Typer(help="Cloud-init user data that nodes boot with.", no_args_is_help=True)

LIST = (*columns("name", "size_bytes", "sha256"), AGE, *columns("id"))
SHOW = columns("id", "name", "size_bytes", "sha256", "created_by", "created_at")


def register(root: typer.Typer) -> None:
    """Add `user-data`."""
    root.add_typer(app, name="user-data")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name; unique in the project.")],
    file: Annotated[Path, typer.Argument(help="The text; - is standard input.")],
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add user data of at most 64 KiB."""
    body = {"name": name, "text": read_text(file)}
    with Api.of_environment(project) as api:
        print_one(api.change("POST", f"/projects/{api.project()}/user-data", body), SHOW, output)


@app.command("list")
def list_(project: ProjectOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the project's user data, without the texts."""
    with Api.of_environment(project) as api:
        items = api.items(f"/projects/{api.project()}/user-data")
        print_list(items, LIST, output, empty="There is no user data.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name or id.")],
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the text of user data."""
    with Api.of_environment(project) as api:
        item = api.get(f"/projects/{api.project()}/user-data/{segment(name)}")
    if output is Output.TABLE:
        typer.echo(item["text"], nl=not str(item["text"]).endswith("\n"))
    else:
        print_data(item, output)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="Name or id.")],
    yes: YesOption = False,
    project: ProjectOption = None,
) -> None:
    """Remove user data that no cluster uses."""
    with Api.of_environment(project) as api:
        path = f"/projects/{api.project()}/user-data/{segment(name)}"
        confirm(f"Remove the user data {name}?", yes=yes)
        api.change("DELETE", path)
        note(f"User data {name} is removed.")
