"""Entity tags from versions. Compare them only after the caller was authorized."""

from dflare.kit.errors import PreconditionError


def etag_of(version: int) -> str:
    """The strong entity tag of a version (RFC 9110 section 8.8.3)."""
    return f'"{version}"'


def check_if_match(if_match: str | None, version: int) -> None:
    """Compare an ``If-Match`` header, which may be absent, with the present version.

    Raises:
        PreconditionError: it names other versions.
    """
    if if_match is None or if_match.strip() == "*":
        return
    if etag_of(version) not in {tag.strip() for tag in if_match.split(",")}:
        raise PreconditionError(
            f"the resource is at version {version}",
            next_step="Read it again, apply your change to what you read, and repeat.",
        )
