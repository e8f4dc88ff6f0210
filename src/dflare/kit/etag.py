"""Entity tags from versions. Compare them only after the caller was authorized."""

from dflare.kit.errors import PreconditionError


def etag_of(version: int, of: str = "") -> str:
    """The strong entity tag of a version (RFC 9110 section 8.8.3). ``of`` is the resource's id,
    for what is found by a name that another resource may have later."""
    return f'"{of}-{version}"' if of else f'"{version}"'


def check_if_match(if_match: str | None, version: int, of: str = "") -> None:
    """Compare an ``If-Match`` header, which may be absent, with the present version.

    Raises:
        PreconditionError: it names other versions.
    """
    if if_match is None or if_match.strip() == "*":
        return
    if etag_of(version, of) not in {tag.strip() for tag in if_match.split(",")}:
        raise PreconditionError(
            f"the resource is at version {version}",
            next_step="Read it again, apply your change to what you read, and repeat.",
        )
