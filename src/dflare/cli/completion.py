"""`dflare completion` and `dflare version`."""

from enum import StrEnum
from typing import Annotated

import typer

import dflare


class Shell(StrEnum):
    """Shells whose completion is known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(root: typer.Typer) -> None:
    """Add `completion` and `version`."""
    root.command()(completion)
    root.command()(version)


def completion(
    shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")],
) -> None:
    """Print the completion script of a shell, as in `source <(dflare completion bash)`."""
    # Typer speaks the protocol of its own scripts; it documents no other way to print one.
    from typer.completion import (
        get_completion_script,  # pyright: ignore[reportPrivateImportUsage]
    )

    print(
        get_completion_script(
            prog_name="dflare", complete_var="_DFLARE_COMPLETE", shell=shell.value
        )
    )


def version() -> None:
    """Print the version."""
    print(f"dflare {dflare.__version__}")
