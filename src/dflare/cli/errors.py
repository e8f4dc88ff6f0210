"""What goes wrong at the command line: one sentence, what to do next, and an exit code."""

import sys
from enum import IntEnum
from typing import Any

Json = dict[str, Any]


class ExitCode(IntEnum):
    """Exit codes of every command; 0 is success, 130 a command that Ctrl-C ended."""

    FAILURE = 1
    USAGE = 2
    NOT_LOGGED_IN = 3
    REFUSED = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130


class CliError(Exception):
    """An error for people: ``detail`` says what happened, ``next_step`` what to do about it."""

    def __init__(
        self, detail: str, *, next_step: str = "", exit_code: ExitCode = ExitCode.FAILURE
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.next_step = next_step
        self.exit_code = exit_code


class UsageError(CliError):
    """The command was called in a way that cannot work."""

    def __init__(self, detail: str, *, next_step: str = "") -> None:
        super().__init__(detail, next_step=next_step, exit_code=ExitCode.USAGE)


class NotLoggedInError(CliError):
    """There is no token, or it does not serve any more."""

    def __init__(self, detail: str, *, next_step: str = "Run `dflare login`.") -> None:
        super().__init__(detail, next_step=next_step, exit_code=ExitCode.NOT_LOGGED_IN)


class UnreachableError(CliError):
    """The API does not answer."""

    def __init__(self, detail: str, *, next_step: str = "") -> None:
        super().__init__(detail, next_step=next_step, exit_code=ExitCode.UNAVAILABLE)


class ApiProblem(CliError):  # noqa: N818 - RFC 9457 calls it a problem
    """A problem document that the API answered with; ``document`` holds all of its members."""

    def __init__(self, status: int, document: Json) -> None:
        detail = str(document.get("detail") or document.get("title") or f"HTTP status {status}")
        super().__init__(
            detail,
            next_step=str(document.get("next_step") or ""),
            exit_code=exit_code_of(status),
        )
        self.status = status
        self.document = document


def exit_code_of(status: int) -> ExitCode:
    """The exit code that stands for an HTTP status."""
    match status:
        case 401:
            return ExitCode.NOT_LOGGED_IN
        case 403 | 404:
            return ExitCode.REFUSED
        case 502 | 503 | 504:
            return ExitCode.UNAVAILABLE
        case _:
            return ExitCode.FAILURE


def report(error: CliError) -> None:
    """Print an error on stderr, in the two lines that scripts and people look for."""
    print(f"error: {error.detail}", file=sys.stderr)
    if error.next_step:
        print(f"next: {error.next_step}", file=sys.stderr)
