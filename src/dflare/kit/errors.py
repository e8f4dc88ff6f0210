"""Errors that reach people: typed, with a stable type, what to do next and whether to retry.

They are rendered once, as problem+json (RFC 9457), by ``dflare.kit.problem``.
"""

from typing import ClassVar

from pydantic import JsonValue

TYPE_BASE = "https://dflare.dev/problems/"


class ProblemError(Exception):
    """An error with an answer for the caller.

    ``detail`` says what happened, ``next_step`` what to do about it. ``facts`` are extra members of
    the problem document, such as the missing count of a capacity error.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, next_step: str = "", **facts: JsonValue) -> None:
        super().__init__(detail)
        self.detail = detail
        self.next_step = next_step
        self.facts = facts

    def document(self) -> dict[str, JsonValue]:
        """The members of the problem document."""
        return {
            "type": TYPE_BASE + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "next_step": self.next_step,
            "retryable": self.retryable,
            **self.facts,
        }


class NotFoundError(ProblemError):
    """It does not exist, or the caller may not know that it does."""

    status, slug, title = 404, "not-found", "Not found"


class ForbiddenError(ProblemError):
    """The caller may read the thing but not do this to it."""

    status, slug, title = 403, "forbidden", "Forbidden"


class UnauthenticatedError(ProblemError):
    """No valid token came with the request."""

    status, slug, title = 401, "unauthenticated", "Log in first"


class InvalidError(ProblemError):
    """The input has the right form but a value that cannot be."""

    status, slug, title = 422, "invalid", "Invalid input"


class ConflictError(ProblemError):
    """The state of things does not allow it; an expected answer, never an alarm."""

    status, slug, title = 409, "conflict", "Conflict"


class NameTakenError(ConflictError):
    """Another resource of the project has that name."""

    slug, title = "name-taken", "Name taken"


class PreconditionError(ProblemError):
    """If-Match names another version than the present one."""

    status, slug, title = 412, "precondition-failed", "Changed meanwhile"


class IdempotencyMismatchError(ProblemError):
    """The idempotency key came before with another body."""

    status, slug, title = 422, "idempotency-key-reused", "Idempotency key reused"


class GoneError(ProblemError):
    """It existed; what is left is a link to where to go on."""

    status, slug, title = 410, "gone", "Gone"


class UnavailableError(ProblemError):
    """A part that is needed does not answer; trying again later may help."""

    status, slug, title, retryable = 503, "unavailable", "Unavailable", True


class StaleAttemptError(Exception):
    """A zombie tried to record: a newer attempt of the operation or the activity exists."""
