"""`dflare registry` and `dflare repository`: container images of projects."""

import os
import platform
import shutil
import subprocess
from typing import Annotated
from urllib.parse import urlsplit

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import CliError, ExitCode, Json, UsageError
from dflare.cli.listing import show_list
from dflare.cli.output import (
    AGE,
    Column,
    Output,
    OutputOption,
    ProjectOption,
    WatchOption,
    YesOption,
    age_cell,
    columns,
    confirm,
    note,
    print_list,
    print_one,
    size_cell,
)

registry_app = typer.Typer(help="The registry of images.", no_args_is_help=True)
repository_app = typer.Typer(help="Repositories of images.", no_args_is_help=True)

RepositoryArgument = Annotated[
    str, typer.Argument(help="Name behind organization and project, or id.")
]

CLIENTS = ("docker", "podman", "skopeo", "buildah")
"""Programs that log in the same way, the first one found is taken."""

DAY_S = 86_400

SHOW = (
    *columns("host", "prefix"),
    Column("STORED", "stored_bytes", size_cell),
    Column("BEING PUSHED", "uploading_bytes", size_cell),
    Column("ALLOWED", "limit_bytes", size_cell),
)
LIST = (
    *columns("name", "tags"),
    Column("SIZE", "size_bytes", size_cell),
    Column("PUSHED", "pushed_at", age_cell),
    *columns("reference"),
)
ONE = (
    *columns("id", "name", "reference", "tags", "manifests"),
    Column("SIZE", "size_bytes", size_cell),
    Column("PUSHED", "pushed_at", age_cell),
    *columns("created_by"),
    AGE,
)
TAGS = (
    *columns("name"),
    Column("SIZE", "size_bytes", size_cell),
    Column("PUSHED", "updated_at", age_cell),
    Column("BY", "updated_by"),
    *columns("digest"),
)


def register(root: typer.Typer) -> None:
    """Add `registry` and `repository`."""
    root.add_typer(registry_app, name="registry")
    root.add_typer(repository_app, name="repository")


@registry_app.command()
def login(
    client: Annotated[
        str | None,
        typer.Option("--with", help=f"Program to log in: {', '.join(CLIENTS)}; the first found."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="Days that the login is valid.")] = 30,
) -> None:
    """Log docker, podman or skopeo in, by a new token of yours that it keeps."""
    program = _client(client)
    with Api.of_environment() as api:
        parts = urlsplit(api.context.url)
        name = str(api.get("/whoami")["name"])
        body = {"name": f"{program} on {platform.node()}", "expires_in_s": days * DAY_S}
        token = api.change("POST", "/tokens", body)
        command = [program, "login", "--username", name, "--password-stdin", parts.netloc]
        if parts.scheme == "http" and program != "docker":
            command.insert(2, "--tls-verify=false")
        # The program is one of a fixed list; what it is told are a name, a host and no more.
        ended = subprocess.run(  # noqa: S603
            command, input=token["secret"], text=True, check=False
        )
        if ended.returncode:
            api.change("DELETE", f"/tokens/{segment(token['id'])}")
            raise CliError(
                f"{program} could not log in at {parts.netloc}; its token is revoked again",
                next_step="Read what it says above, or log in yourself with a token of "
                "`dflare token create NAME`.",
            )
    note(f"Its token is {token['id']}; `dflare token revoke {token['id']}` ends it.")
    note("See `dflare registry show` for the names to push to.")


@registry_app.command()
def show(project: ProjectOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show how a project's images are called, what they hold and may hold."""
    with Api.of_environment(project) as api:
        item = api.get(f"/projects/{api.project()}/registry")
    print_one(item, SHOW, output)
    if output is Output.TABLE:
        note(f"Push by: docker push {item['prefix']}NAME:TAG")


@repository_app.command("list")
def list_(
    all_projects: Annotated[
        bool, typer.Option("--all", "-A", help="Of every project that you may see.")
    ] = False,
    watch: WatchOption = False,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List repositories."""
    with Api.of_environment(project) as api:
        everywhere = all_projects or not api.context.project
        path = "/repositories" if everywhere else f"/projects/{api.project()}/repositories"
        show_list(
            api,
            lambda: api.items(path),
            LIST,
            output,
            watch=watch,
            types="repository.",
            empty="There is no repository; the first push makes one.",
        )


@repository_app.command("show")
def show_repository(
    repository: RepositoryArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a repository."""
    with Api.of_environment(project) as api:
        print_one(_found(api, repository), ONE, output)


@repository_app.command()
def tags(
    repository: RepositoryArgument,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the tags of a repository."""
    with Api.of_environment(project) as api:
        items = api.items(f"{_path(_found(api, repository))}/tags")
        print_list(items, TAGS, output, empty="The repository has no tag.")


@repository_app.command()
def delete(
    repository: Annotated[str, typer.Argument(help="NAME, or NAME:TAG for one tag alone.")],
    yes: YesOption = False,
    project: ProjectOption = None,
) -> None:
    """Delete a repository with all its tags, or one tag with what no other tag names."""
    name, colon, tag = repository.partition(":")
    with Api.of_environment(project) as api:
        found = _found(api, name)
        if colon:
            confirm(f"Delete tag {tag} of {found['name']} for good?", yes=yes)
            api.change("DELETE", f"{_path(found)}/tags/{segment(tag)}")
            note(f"Tag {tag} of {found['name']} is deleted.")
            return
        confirm(
            f"Delete repository {found['name']} with {found['tags']} tags and "
            f"{size_cell(found['size_bytes'])} for good?",
            yes=yes,
        )
        # By id, so that what is deleted is what was looked at and agreed to.
        api.change("DELETE", _path(found))
        note(f"Repository {found['name']} is deleted.")


def _client(wanted: str | None) -> str:
    if wanted is not None and wanted not in CLIENTS:
        raise UsageError(
            f"{wanted!r} is none of {', '.join(CLIENTS)}", next_step="Choose one of those."
        )
    for one in (wanted,) if wanted else CLIENTS:
        if shutil.which(one, path=os.environ.get("PATH")):
            return one
    raise UsageError(
        f"{wanted or 'none of ' + ', '.join(CLIENTS)} is installed here",
        next_step="Install one, or log in elsewhere with a token of `dflare token create NAME` as "
        "the password.",
    )


def _found(api: Api, repository: str) -> Json:
    """A repository of the chosen project, by name or id."""
    path = f"/projects/{api.project()}/repositories"
    if "/" not in repository:
        return api.get(f"{path}/{segment(repository)}")
    items = api.items(path, name=repository)
    if not items:
        raise CliError(
            f"there is no repository {repository} in this project",
            next_step="See `dflare repository list`.",
            exit_code=ExitCode.REFUSED,
        )
    return items[0]


def _path(repository: Json) -> str:
    project, own = segment(repository["project_id"]), segment(repository["id"])
    return f"/projects/{project}/repositories/{own}"
