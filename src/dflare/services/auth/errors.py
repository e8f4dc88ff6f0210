"""Auth's own errors."""

from dflare.kit.errors import ConflictError, ProblemError


class NotEmptyError(ConflictError):
    """Something still lies in what is to be removed."""

    slug, title = "not-empty", "Not empty"


class AmbiguousNameError(ConflictError):
    """Users of several organizations have that name."""

    slug, title = "ambiguous-name", "Several users of that name"


class WeakPasswordError(ProblemError):
    """The password does not reach the minimum."""

    status, slug, title = 422, "weak-password", "Password too weak"


class LoginRefusedError(ProblemError):
    """Name and password do not belong together, or the account is locked or disabled."""

    status, slug, title = 401, "login-refused", "Login refused"
