"""Errors of the metrics service."""

from typing import ClassVar

from dflare.kit.errors import InvalidError, ProblemError


class ArgumentError(InvalidError):
    """A query carries an argument that is not taken, or not like this."""

    slug, title = "metrics-argument", "Argument not taken"


class BusyError(ProblemError):
    """A project asks too much at once."""

    status: ClassVar[int] = 429
    slug: ClassVar[str] = "metrics-busy"
    title: ClassVar[str] = "Too many queries at once"
    retryable: ClassVar[bool] = True
