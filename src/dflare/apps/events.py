"""Live events of the gateway: pages and a WebSocket, resumable by cursor.

The log is read once per process and fanned out. Every event is checked against the subscriber's
present scope when it is sent, so that a changed policy takes effect on open connections.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Depends, Query, WebSocket, WebSocketDisconnect
from pydantic import BaseModel
from sqlalchemy import ColumnElement, and_, or_

from dflare.kit import feed_tables
from dflare.kit.db import Database
from dflare.kit.errors import GoneError, InvalidError, UnauthenticatedError
from dflare.kit.feed import FeedEntry, FeedSignal, floor_position, head_position, read_feed
from dflare.kit.pagination import Limit, decode_cursor, encode_cursor
from dflare.kit.telemetry import log
from dflare.services.auth.contract import Authorizer, Principal, Scope

KEPT = 10_000
"""Newest events held in memory for subscribers; older ones are read from the log."""
HEARTBEAT_S = 15.0
CLOSE_UNAUTHENTICATED = 4401
CLOSE_GONE = 4410
_LAST_POSITION = 2**63 - 1


class EventAnswer(BaseModel):
    """One event. ``cursor`` continues behind it."""

    cursor: str
    type: str
    resource_kind: str
    resource_id: str
    resource_version: int
    operation_id: str | None
    project_id: str | None
    at: str
    data: dict[str, Any]


class EventPage(BaseModel):
    """A page of events and the cursor to go on from, which is never null."""

    items: list[EventAnswer]
    next_cursor: str


@dataclass(frozen=True)
class Filter:
    """What a subscriber wants: prefixes of types, and one operation."""

    prefixes: tuple[str, ...] = ()
    operation_id: str | None = None

    def condition(self, scope: Scope) -> ColumnElement[bool]:
        """The same as ``takes``, for the database."""
        columns = feed_tables.log.c
        wanted = [scope.where(columns.organization_id, columns.project_id)]
        if self.prefixes:
            wanted.append(
                or_(*(columns.type.startswith(p, autoescape=True) for p in self.prefixes))
            )
        if self.operation_id is not None:
            wanted.append(columns.operation_id == self.operation_id)
        return and_(*wanted)

    def takes(self, entry: FeedEntry, scope: Scope) -> bool:
        """Whether ``entry`` passes and the scope covers it."""
        return (
            scope.covers(entry.organization_id, entry.project_id)
            and (not self.prefixes or entry.type.startswith(self.prefixes))
            and (self.operation_id is None or entry.operation_id == self.operation_id)
        )


def position_of(cursor: str | None, default: int) -> int:
    """The position behind which to go on; ``default`` for no cursor.

    Raises:
        InvalidError: the cursor is not one of this API.
    """
    if cursor is None:
        return default
    text = decode_cursor(cursor)
    if text is None or not text.isdecimal() or int(text) > _LAST_POSITION:
        raise InvalidError(
            "the cursor is not one that this API gave",
            next_step="Subscribe without a cursor to start from now.",
        )
    return int(text)


def answer(entry: FeedEntry) -> EventAnswer:
    """An event as the API shows it."""
    return EventAnswer(
        cursor=encode_cursor(str(entry.position)),
        type=entry.type,
        resource_kind=entry.resource_kind,
        resource_id=entry.resource_id,
        resource_version=entry.resource_version,
        operation_id=entry.operation_id,
        project_id=entry.project_id,
        at=entry.at.isoformat(),
        data=_without_sealed(entry.data),
    )


def _without_sealed(value: Any) -> Any:
    """Event data as people may have it. Services hand each other secrets sealed; whoever reads the
    events of a project may not read its user data, and nobody needs to keep a ciphertext."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {
            name: _without_sealed(member)
            for name, member in members.items()
            if name != "secret" and not name.endswith("_sealed")
        }
    if isinstance(value, list):
        return [_without_sealed(one) for one in cast("list[Any]", value)]
    return value


@dataclass
class EventHub:
    """Reads the log once for all subscribers of this process."""

    database: Database
    signal: FeedSignal
    heartbeat_s: float = HEARTBEAT_S
    _kept: deque[FeedEntry] = field(default_factory=lambda: deque[FeedEntry](maxlen=KEPT))
    _newest: int | None = None
    _oldest: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self) -> None:
        """Keep reading until cancelled."""
        while True:
            mark = self.signal.mark()
            try:
                if self._newest is None:
                    await self._start_at(await head_position(self.database))
                    continue
                entries, position = await read_feed(self.database, self._newest)
            except GoneError:
                # This process slept longer than events are kept; subscribers find out the same way.
                self._kept.clear()
                self._newest = None
                continue
            except Exception as error:
                log.warning("event_hub_waits", error=str(error))
                await asyncio.sleep(1)
                continue
            if position == self._newest:
                await self.signal.wait(1.0, mark)
                continue
            async with self._changed:
                self._kept.extend(entries)
                self._newest = position
                if len(self._kept) == KEPT:
                    self._oldest = self._kept[0].position - 1
                self._changed.notify_all()

    async def _start_at(self, position: int) -> None:
        async with self._changed:
            self._newest = self._oldest = position
            self._changed.notify_all()

    async def after(self, position: int) -> tuple[list[FeedEntry], int]:
        """Events behind ``position`` and where to go on; waits up to a heartbeat for one.

        Raises:
            GoneError: retention removed them.
        """
        async with self._changed:
            if not self._behind(position):
                try:
                    await asyncio.wait_for(
                        self._changed.wait_for(lambda: self._behind(position)), self.heartbeat_s
                    )
                except TimeoutError:
                    return [], position
            if self._newest is not None and position >= self._oldest:
                newer = takewhile(lambda entry: entry.position > position, reversed(self._kept))
                return list(newer)[::-1], self._newest
        return await read_feed(self.database, position)

    def _behind(self, position: int) -> bool:
        return position < self._oldest or (self._newest is not None and self._newest > position)

    async def newest(self) -> int:
        """The position of the newest event of the log."""
        return await head_position(self.database)


def router(
    hub: EventHub,
    authorizer: Authorizer,
    principal: Callable[..., Awaitable[Principal]],
) -> APIRouter:
    """``GET /events`` and the WebSocket of the same path, relative to ``/v1``."""
    routes = APIRouter(tags=["events"])

    @routes.get("/events")
    async def list_events(
        caller: Principal = Depends(principal),
        cursor: str | None = None,
        limit: Limit = 100,
        types: Annotated[str, Query(description="Prefixes of types, by comma")] = "",
        operation: str | None = None,
    ) -> EventPage:
        """A page of events behind a cursor (from the oldest kept for an empty one)."""
        wanted = Filter(_prefixes(types), operation).condition(authorizer.scope(caller))
        start = position_of(cursor, await floor_position(hub.database))
        found, position = await read_feed(hub.database, start, condition=wanted, limit=limit)
        return EventPage(
            items=[answer(entry) for entry in found], next_cursor=encode_cursor(str(position))
        )

    @routes.websocket("/events")
    async def stream_events(
        socket: WebSocket,
        cursor: str | None = None,
        types: str = "",
        operation: str | None = None,
        access_token: str | None = None,
    ) -> None:
        """Events as they happen, from a cursor on or from now."""
        await socket.accept()
        try:
            token = _token(socket, access_token)
            await authorizer.authenticate(token)
            position = position_of(cursor, await hub.newest())
            wanted = Filter(_prefixes(types), operation)
            gone = asyncio.create_task(_until_closed(socket))
            sending = asyncio.create_task(_send(socket, hub, authorizer, token, wanted, position))
            try:
                await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                gone.cancel()
                sending.cancel()
        except UnauthenticatedError as error:
            await socket.close(CLOSE_UNAUTHENTICATED, error.detail[:120])
        except GoneError as error:
            await socket.close(CLOSE_GONE, error.detail[:120])
        except InvalidError as error:
            await socket.close(1008, error.detail[:120])
        except WebSocketDisconnect:
            return

    return routes


def _prefixes(types: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in types.split(",") if part.strip())


def _token(socket: WebSocket, access_token: str | None) -> str:
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token
    if access_token:
        return access_token
    raise UnauthenticatedError("no token came with the request", next_step="Run `dflare login`.")


async def _until_closed(socket: WebSocket) -> None:
    """Return when the subscriber hangs up; what it says is not listened to."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        continue


async def _send(
    socket: WebSocket,
    hub: EventHub,
    authorizer: Authorizer,
    token: str,
    wanted: Filter,
    position: int,
) -> None:
    await _send_json(socket, {"type": "hello", "cursor": encode_cursor(str(position))})
    async for entries, cursor in _batches(hub, position):
        # The caller is authenticated anew for each batch: tokens expire and rights change while a
        # connection stays open.
        scope = authorizer.scope(await authorizer.authenticate(token))
        fitting = [entry for entry in entries if wanted.takes(entry, scope)]
        for entry in fitting:
            await _send_json(socket, answer(entry).model_dump())
        if not entries:
            await _send_json(socket, {"type": "heartbeat", "cursor": encode_cursor(str(cursor))})


async def _batches(hub: EventHub, position: int) -> AsyncGenerator[tuple[list[FeedEntry], int]]:
    while True:
        entries, position = await hub.after(position)
        yield entries, position


async def _send_json(socket: WebSocket, document: dict[str, Any]) -> None:
    await socket.send_text(orjson.dumps(document).decode())
