"""The program `dflare`. Modules of commands are imported only when one of theirs is called, so that
help and completion answer at once."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from dflare.cli.errors import CliError, ExitCode, report

LOCAL = "This machine"
ACCESS = "Who and where"
TENANTS = "Work"
OPERATORS = "Data centers"
FOLLOW = "What happens"

# name: (module in this package, help, panel of the help page)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("local", "Start everything and return when it is healthy.", LOCAL),
    "down": ("local", "Stop everything; the next start finds the data again.", LOCAL),
    "status": ("local", "Show each component of the local platform.", LOCAL),
    "doctor": ("local", "Say what is wrong on this machine and what to do.", LOCAL),
    "logs": ("local", "Print the log of a component.", LOCAL),
    "serve": ("local", "Become one process of the platform.", LOCAL),
    "demo": ("demo", "Show what the platform does, and prove it.", LOCAL),
    "login": ("login", "Log in.", ACCESS),
    "logout": ("login", "Log out.", ACCESS),
    "whoami": ("login", "Show who you are and what you may do.", ACCESS),
    "token": ("token", "Tokens for programs.", ACCESS),
    "context": ("context", "Which installation the commands talk to.", ACCESS),
    "organization": ("organization", "Organizations.", ACCESS),
    "project": ("project", "Projects.", ACCESS),
    "user": ("user", "Users.", ACCESS),
    "service-account": ("service_account", "Identities of programs.", ACCESS),
    "role": ("role", "Who has which role where.", ACCESS),
    "apply": ("apply", "Make clusters what a file says.", TENANTS),
    "cluster": ("cluster", "Clusters.", TENANTS),
    "volume": ("volume", "Shared volumes.", TENANTS),
    "registry": ("registry", "The registry of images.", TENANTS),
    "repository": ("registry", "Repositories of images.", TENANTS),
    "node": ("node", "Servers.", TENANTS),
    "ssh-key": ("ssh_key", "SSH keys that nodes accept.", TENANTS),
    "user-data": ("user_data", "Cloud-init user data that nodes boot with.", TENANTS),
    "network": ("network", "Isolated networks of clusters.", TENANTS),
    "reservation": ("reservation", "Whole blocks kept for a project.", TENANTS),
    "quota": ("quota", "How much a project may hold.", TENANTS),
    "usage": ("billing", "Usage that is billed.", TENANTS),
    "invoice": ("billing", "Invoices.", TENANTS),
    "site": ("site", "Sites: describe, apply, freeze.", OPERATORS),
    "operation": ("operation", "Orders under way and their steps.", FOLLOW),
    "alert": ("alert", "What a person should look at.", FOLLOW),
    "events": ("events", "Print events.", FOLLOW),
    "audit": ("audit", "Who did what.", FOLLOW),
    "completion": ("completion", "Print the completion script of a shell.", LOCAL),
    "version": ("completion", "Print the version.", LOCAL),
}


class _Commands(TyperGroup):
    """The top level: commands out of ``COMMANDS``, and errors as two lines with an exit code."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:
        if cmd_name not in COMMANDS:
            return None
        module, text, panel = COMMANDS[cmd_name]
        if self._listing:
            return TyperCommand(cmd_name, help=text, rich_help_panel=panel)
        loaded = self.commands.get(cmd_name)
        if loaded is None:
            part = typer.Typer()
            import_module(f"dflare.cli.{module}").register(part)
            self.commands.update(get_group(part).commands)
            loaded = self.commands[cmd_name]
        assert isinstance(loaded, TyperCommand | TyperGroup)
        return loaded

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._names_only():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        with self._names_only():
            return super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            report(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None

    @contextmanager
    def _names_only(self) -> Generator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False


app = typer.Typer(
    name="dflare",
    cls=_Commands,
    help="A multi-tenant cloud out of racks of GPU servers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:  # pyright: ignore[reportUnusedFunction] - Typer calls it
    """A multi-tenant cloud out of racks of GPU servers."""


def main() -> None:
    """The entry point of the installed program."""
    app(prog_name="dflare")


if __name__ == "__main__":
    sys.exit(main())
