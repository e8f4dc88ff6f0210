"""`dflare ssh-key`: public keys that nodes accept."""

from pathlib import Path
from typing import Annotated

import typer

from dflare.cli.client import Api, segment
from dflare.cli.errors import CliError, UsageError
from dflare.cli.output import (
    AGE,
    Output,
    OutputOption,
    ProjectOption,
    YesOption,
    columns,
    confirm,
    note,
    print_list,
    print_one,
)

app = typer.Typer(help="SSH keys that nodes accept.", no_args_is_help=True)

LIST = (*columns("name", "fingerprint"), AGE, *columns("id"))
SHOW = columns("id", "name", "fingerprint", "public_key", "created_by", "created_at")
DEFAULT_KEYS = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")


def register(root: typer.Typer) -> None:
    """Add `ssh-key`."""
    root.add_typer(app, name="ssh-key")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name; unique in the project.")],
    file: Annotated[
        Path | None, typer.Argument(help="Public key; the one in ~/.ssh unless told.")
    ] = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a public key."""
    text = read_text(file or _default_key()).strip()
    if "PRIVATE KEY" in text:
        raise UsageError(
            f"{file} is a private key, which belongs nowhere else",
            next_step="Name the file that ends in .pub.",
        )
    with Api.of_environment(project) as api:
        body = {"name": name, "public_key": text}
        print_one(api.change("POST", f"/projects/{api.project()}/ssh-keys", body), SHOW, output)


@app.command("list")
def list_(project: ProjectOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the project's keys."""
    with Api.of_environment(project) as api:
        items = api.items(f"/projects/{api.project()}/ssh-keys")
        print_list(items, LIST, output, empty="There is no SSH key.")


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="Name or id.")],
    yes: YesOption = False,
    project: ProjectOption = None,
) -> None:
    """Remove a key that no cluster uses."""
    with Api.of_environment(project) as api:
        path = f"/projects/{api.project()}/ssh-keys/{segment(name)}"
        confirm(f"Remove the SSH key {name}?", yes=yes)
        api.change("DELETE", path)
        note(f"SSH key {name} is removed.")


def read_text(path: Path) -> str:
    """A text file that a command was given; ``-`` is standard input.

    Raises:
        CliError: it cannot be read.
    """
    try:
        if str(path) == "-":
            return typer.get_text_stream("stdin").read()
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(
            f"{path} cannot be read: {error.strerror}", next_step="Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise CliError(
            f"{path} is not UTF-8 text", next_step="Check that it is the right file."
        ) from error


def _default_key() -> Path:
    folder = Path.home() / ".ssh"
    for name in DEFAULT_KEYS:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(
        f"there is no public key in {folder}",
        next_step="Make one by `ssh-keygen -t ed25519`, or name a file.",
    )
