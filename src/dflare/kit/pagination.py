"""Pages of lists: an opaque cursor and a bounded limit."""

import base64
from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, Field

from dflare.kit.errors import InvalidError

MAX_LIMIT = 500

T = TypeVar("T")

Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="Items a page")]
Cursor = Annotated[str | None, Field(description="`next_cursor` of the page before")]


class Page(BaseModel, Generic[T]):
    """One page; ``next_cursor`` is null on the last."""

    items: list[T]
    next_cursor: str | None = None


def cut(rows: Sequence[T], limit: int) -> tuple[Sequence[T], T | None]:
    """The page out of ``limit + 1`` rows asked for, and its last row where more follow."""
    return (rows[:limit], rows[limit - 1]) if len(rows) > limit else (rows, None)


def encode_cursor(last_key: str) -> str:
    """The cursor that continues behind the item with ``last_key``."""
    return base64.urlsafe_b64encode(last_key.encode()).decode().rstrip("=")


def next_cursor(last_key: str | None) -> str | None:
    """The cursor of a page whose last key is ``last_key``; none where nothing follows."""
    return None if last_key is None else encode_cursor(last_key)


def decode_cursor(cursor: str | None) -> str | None:
    """The key to continue behind.

    Raises:
        InvalidError: it is not a cursor that this API gave.
    """
    if cursor is None:
        return None
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError as error:
        raise InvalidError(
            "the cursor is not one that this API gave",
            next_step="Start again without `cursor`.",
        ) from error
