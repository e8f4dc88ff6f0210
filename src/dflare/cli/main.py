"""The program `dflare`."""

import typer

from dflare.cli import local

app = typer.Typer(
    name="dflare",
    help="A multi-tenant cloud out of racks of GPU servers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
local.register(app)


def main() -> None:
    """The entry point of the installed program."""
    app()


if __name__ == "__main__":
    main()
