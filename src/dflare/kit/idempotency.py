"""Idempotency keys: one order however often a client repeats, wherever the first try died.

The row is written in a first short transaction with the operation's id; the transaction that
writes the resource completes it. Source: DESIGN section 4.2; the header is that of the IETF draft
``draft-ietf-httpapi-idempotency-key-header``.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Table, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.db import Database
from dflare.kit.errors import ConflictError, IdempotencyMismatchError
from dflare.kit.ids import new_id
from dflare.kit.tables import KitTables


@dataclass(frozen=True)
class RequestKey:
    """What identifies a request: who, what route, the key, and a hash of the body."""

    caller: str
    route: str
    key: str
    body_sha256: str

    def within(self, table: Table) -> ColumnElement[bool]:
        """The condition for its row."""
        return (
            (table.c.caller == self.caller)
            & (table.c.route == self.route)
            & (table.c.key == self.key)
        )


class RequestSupersededError(ConflictError):
    """A try with the same key was refused meanwhile and yet another one took its place."""

    slug, title, retryable = "request-superseded", "Request superseded", True


@dataclass(frozen=True)
class Begun:
    """The operation id to use, and the stored answer where the order was completed before."""

    request: RequestKey
    operation_id: str
    answer: dict[str, Any] | None
    status: int | None


def request_key(caller: str, route: str, key: str | None, body: bytes) -> RequestKey:
    """The key of a request; one without an ``Idempotency-Key`` header gets a key of its own."""
    return RequestKey(caller, route, key or new_id("idem"), hashlib.sha256(body).hexdigest())


async def begin(database: Database, kit: KitTables, request: RequestKey, now: datetime) -> Begun:
    """The first transaction of an order.

    Raises:
        IdempotencyMismatchError: the key came before with another body.
    """
    async with database.transaction(kit.schema) as session:
        await _insert(session, kit, request, new_id("op"), now)
        query = select(kit.idempotency).where(request.within(kit.idempotency))
        row = (await session.execute(query)).mappings().one()
    return _begun(request, row)


async def earlier(database: Database, kit: KitTables, request: RequestKey) -> Begun | None:
    """What came of an earlier try of the request, if there was one; starts nothing.

    Raises:
        IdempotencyMismatchError: the key came before with another body.
    """
    async with database.transaction(kit.schema) as session:
        query = select(kit.idempotency).where(request.within(kit.idempotency))
        row = (await session.execute(query)).mappings().first()
    return None if row is None else _begun(request, row)


async def claim(session: AsyncSession, kit: KitTables, begun: Begun, now: datetime) -> Begun:
    """Lock the request's row, first thing in the transaction that writes the resource.

    Of two tries at once the later one finds the earlier one's answer in the result.

    Raises:
        RequestSupersededError: another operation has the request's key now.
    """
    request = begun.request
    # The row is missing where a try beside this one was refused and forgotten.
    await _insert(session, kit, request, begun.operation_id, now)
    query = select(kit.idempotency).where(request.within(kit.idempotency)).with_for_update()
    claimed = _begun(request, (await session.execute(query)).mappings().one())
    if claimed.operation_id != begun.operation_id:
        raise RequestSupersededError(
            "another try with this idempotency key is under way",
            next_step="Repeat with the same key to get its answer.",
        )
    return claimed


async def _insert(
    session: AsyncSession, kit: KitTables, request: RequestKey, operation_id: str, now: datetime
) -> None:
    await session.execute(
        insert(kit.idempotency)
        .values(**vars(request), operation_id=operation_id, state="in_progress", created_at=now)
        .on_conflict_do_nothing()
    )


def _begun(request: RequestKey, row: RowMapping) -> Begun:
    if row["body_sha256"] != request.body_sha256:
        raise IdempotencyMismatchError(
            "this idempotency key was used before with another body",
            next_step="Use a new key for a new request.",
        )
    return Begun(request, row["operation_id"], row["answer"], row["status"])


async def complete(
    session: AsyncSession, kit: KitTables, begun: Begun, status: int, answer: dict[str, Any]
) -> None:
    """Store the answer, in the transaction that claimed the request and writes the resource."""
    table = kit.idempotency
    await session.execute(
        update(table)
        .where(begun.request.within(table), table.c.operation_id == begun.operation_id)
        .values(state="completed", status=status, answer=answer)
    )


async def forget(database: Database, kit: KitTables, begun: Begun) -> None:
    """Remove the row of a refused order, so that the same key may try again."""
    table = kit.idempotency
    async with database.transaction(kit.schema) as session:
        await session.execute(
            delete(table).where(
                begun.request.within(table),
                table.c.operation_id == begun.operation_id,
                table.c.state == "in_progress",
            )
        )
