"""`dflare role`: who has which role where."""

from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.output import AGE, Output, OutputOption, columns, note, print_list, print_one

app = typer.Typer(help="Who has which role where.", no_args_is_help=True)

LIST = (*columns("subject_id", "role", "organization_id", "project_id"), AGE, *columns("id"))
Subject = Annotated[str, typer.Argument(help="A user by name or id, a service account by id.")]
RoleName = Annotated[
    str,
    typer.Argument(
        help="operator or auditor (of the platform), organization_admin, project_admin, member, "
        "viewer."
    ),
]
Organization = Annotated[str | None, typer.Option("--organization", help="Where: name or id.")]
Project = Annotated[str | None, typer.Option("--project", "-p", help="Where: name or id.")]


def register(root: typer.Typer) -> None:
    """Add `role`."""
    root.add_typer(app, name="role")


@app.command()
def bind(
    subject: Subject,
    role: RoleName,
    organization: Organization = None,
    project: Project = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a role within the platform, an organization or a project."""
    body = {"subject": subject, "role": role, "organization": organization, "project": project}
    with Api.of_environment() as api:
        given = {key: value for key, value in body.items() if value}
        print_one(api.change("POST", "/role-bindings", given), LIST, output)


@app.command()
def unbind(binding: Annotated[str, typer.Argument(help="Id; see `dflare role list`.")]) -> None:
    """Take a role back."""
    with Api.of_environment() as api:
        api.change("DELETE", f"/role-bindings/{segment(binding)}")
        note(f"Role binding {binding} is removed.")


@app.command("list")
def list_(
    subject: Annotated[str | None, typer.Option(help="Only those of this subject's id.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List role bindings."""
    with Api.of_environment() as api:
        items = api.items("/role-bindings", subject=subject)
        print_list(items, LIST, output, empty="There is no role binding that you may see.")
