"""`dflare project`: where an organization's resources live."""

import os
from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.config import ConfigFile, resolve
from dflare.cli.errors import UsageError
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

app = typer.Typer(help="Projects.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name, id, or organization/name.")]
LIST = (*columns("organization", "name", "display_name"), AGE, *columns("id"))
SHOW = columns("id", "name", "organization_id", "display_name", "created_at")


def register(root: typer.Typer) -> None:
    """Add `project`."""
    root.add_typer(app, name="project")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name; unique in the organization.")],
    organization: Annotated[
        str | None, typer.Option("--organization", help="Name or id; not needed for a single one.")
    ] = None,
    display_name: Annotated[str | None, typer.Option(help="As people write it.")] = None,
    use_it: Annotated[bool, typer.Option("--use", help="Choose it for what follows.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a project."""
    with Api.of_environment() as api:
        body = {"name": name, "organization": organization or _only_organization(api)}
        if display_name:
            body["display_name"] = display_name
        item = api.change("POST", "/projects", body)
        print_one(item, SHOW, output)
    if use_it:
        _choose(str(item["id"]), name)


@app.command("list")
def list_(output: OutputOption = Output.TABLE) -> None:
    """List projects."""
    with Api.of_environment() as api:
        print_list(api.projects(), LIST, output, empty="There is no project that you may see.")


@app.command()
def show(name: Name, output: OutputOption = Output.TABLE) -> None:
    """Show a project."""
    with Api.of_environment() as api:
        print_one(api.get(f"/projects/{segment(_id(api, name))}"), SHOW, output)


@app.command()
def delete(name: Name, yes: YesOption = False) -> None:
    """Delete a project that has no clusters."""
    with Api.of_environment() as api:
        path = f"/projects/{segment(_id(api, name))}"
        confirm(f"Delete the project {name}?", yes=yes)
        api.change("DELETE", path)
        note(f"Project {name} is deleted.")


@app.command()
def use(name: Name) -> None:
    """Choose the project that commands of this context work in."""
    with Api.of_environment() as api:
        item = api.find_project(name)
    _choose(str(item["id"]), f"{item['organization']}/{item['name']}")


def _choose(project_id: str, name: str) -> None:
    file = ConfigFile.of(os.environ)
    context = resolve(file, os.environ, None).name
    if not context:
        raise UsageError(
            "there is no stored context to keep the choice in",
            next_step="Log in by `dflare login`, or set DFLARE_CLI_PROJECT.",
        )
    file.change_context(context, project=project_id, project_name=name)
    note(f"Commands work in project {name} now.")


def _id(api: Api, name: str) -> str:
    return str(api.find_project(name)["id"]) if "/" in name else name


def _only_organization(api: Api) -> str:
    names = [str(item["name"]) for item in api.items("/organizations")]
    if len(names) == 1:
        return names[0]
    raise UsageError(
        "say which organization the project is for",
        next_step=f"Add --organization with one of: {', '.join(names) or 'none yet'}.",
    )
