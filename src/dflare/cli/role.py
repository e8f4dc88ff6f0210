"""`dflare role`: who has which role where."""

from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import CliError
from dflare.cli.output import AGE, Output, OutputOption, columns, note, print_list, print_one

app = typer.Typer(help="Who has which role where.", no_args_is_help=True)

LIST = (*columns("subject_id", "role", "organization_id", "project_id"), AGE, *columns("id"))
Subject = Annotated[str, typer.Argument(help="Name or id of a user or service account.")]
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
    with Api.of_environment() as api:
        body = {
            "subject_id": _subject_id(api, subject),
            "role": role,
            **_where(api, organization, project),
        }
        print_one(api.change("POST", "/role-bindings", body), LIST, output)


@app.command()
def unbind(binding: Annotated[str, typer.Argument(help="Id; see `dflare role list`.")]) -> None:
    """Take a role back."""
    with Api.of_environment() as api:
        api.change("DELETE", f"/role-bindings/{segment(binding)}")
        note(f"Role binding {binding} is removed.")


@app.command("list")
def list_(
    subject: Annotated[str | None, typer.Option(help="Only those of this subject.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List role bindings."""
    with Api.of_environment() as api:
        items = api.items("/role-bindings")
        if subject:
            wanted = _subject_id(api, subject)
            items = [item for item in items if item["subject_id"] == wanted]
        print_list(items, LIST, output, empty="There is no role binding that you may see.")


def _subject_id(api: Api, subject: str) -> str:
    for path in ("/users", "/service-accounts"):
        for item in api.pages(path):
            if subject in (item["id"], item["name"]):
                return str(item["id"])
    raise CliError(
        f"there is no user or service account {subject!r} that you may see",
        next_step="See `dflare user list`.",
    )


def _where(api: Api, organization: str | None, project: str | None) -> dict[str, str]:
    if project:
        found = api.find_project(f"{organization}/{project}" if organization else project)
        return {"organization_id": found["organization_id"], "project_id": found["id"]}
    if organization:
        found = api.get(f"/organizations/{segment(organization)}")
        return {"organization_id": found["id"]}
    return {}
