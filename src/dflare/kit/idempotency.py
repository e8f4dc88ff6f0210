"""Idempotency keys: one order however often a client repeats, wherever the first try died.

The row is written in a first short transaction with the operation's id; the transaction that
writes the resource completes it. Source: DESIGN section 4.2; the header is that of the IETF draft
``draft-ietf-httpapi-idempotency-key-header``.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.db import Database
from dflare.kit.errors import IdempotencyMismatchError
from dflare.kit.ids import new_id
from dflare.kit.tables import KitTables


@dataclass(frozen=True)
class RequestKey:
    """What identifies a request: who, what route, the key, and a hash of the body."""

    caller: str
    route: str
    key: str
    body_sha256: str


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
    table = kit.idempotency
    identity = (
        (table.c.caller == request.caller)
        & (table.c.route == request.route)
        & (table.c.key == request.key)
    )
    async with database.transaction(kit.schema) as session:
        await session.execute(
            insert(table)
            .values(
                caller=request.caller,
                route=request.route,
                key=request.key,
                body_sha256=request.body_sha256,
                operation_id=new_id("op"),
                state="in_progress",
                created_at=now,
            )
            .on_conflict_do_nothing()
        )
        row = (await session.execute(select(table).where(identity))).mappings().one()
    if row["body_sha256"] != request.body_sha256:
        raise IdempotencyMismatchError(
            "this idempotency key was used before with another body",
            next_step="Use a new key for a new request.",
        )
    return Begun(request, row["operation_id"], row["answer"], row["status"])


async def complete(
    session: AsyncSession, kit: KitTables, begun: Begun, status: int, answer: dict[str, Any]
) -> None:
    """Store the answer, in the transaction that writes the resource."""
    table = kit.idempotency
    await session.execute(
        update(table)
        .where(table.c.operation_id == begun.operation_id)
        .values(state="completed", status=status, answer=answer)
    )


async def forget(database: Database, kit: KitTables, begun: Begun) -> None:
    """Remove the row of a refused order, so that the same key may try again."""
    table = kit.idempotency
    async with database.transaction(kit.schema) as session:
        await session.execute(
            delete(table).where(
                table.c.operation_id == begun.operation_id, table.c.state == "in_progress"
            )
        )
