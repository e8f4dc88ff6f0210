"""Refusals of the metering service."""

from dflare.kit.errors import InvalidError


class InvalidMonthError(InvalidError):
    """The month is not of the form YYYY-MM."""

    slug, title = "invalid-month", "Invalid month"
