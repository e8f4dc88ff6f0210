"""Events as they happen: the WebSocket, resumed by cursor, and polling where there is none."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection

from dflare.cli.client import Api, unreachable
from dflare.cli.errors import ApiProblem, Json, NotLoggedInError, UnreachableError

CLOSE_UNAUTHENTICATED = 4401
CLOSE_GONE = 4410
IDLE_S = 1.0
"""How often a reader is woken while nothing happens."""
SILENCE_S = 45.0
"""Three heartbeats: a connection that says nothing for so long is dead."""
POLL_S = 1.0
PAUSE_AT_MOST_S = 5.0
GIVE_UP_S = 300.0

HELLO = "hello"
"""A message of this type says: read the state of things anew, then fold what follows."""


@dataclass
class EventStream:
    """Events behind ``cursor`` (from now without one) whose type has one of the prefixes.

    ``cursor`` follows what was yielded, so another stream may go on from it.
    """

    api: Api
    types: str = ""
    operation: str | None = None
    cursor: str | None = None
    sleep: Callable[[float], None] = time.sleep
    notice: Callable[[str], None] = field(default=lambda _: None)

    def messages(self) -> Iterator[Json | None]:
        """Yield events; ``hello`` after each new connection, None while nothing happens.

        A ``hello`` also follows where events were missed because the cursor was too old.

        Raises:
            NotLoggedInError: the login ended and could not be renewed.
            UnreachableError: the API was away for five minutes.
        """
        lost_at: float | None = None
        pause_s = 0.2
        while True:
            error: Exception = UnreachableError("the connection ended")
            try:
                for message in self._connected():
                    lost_at, pause_s = None, 0.2
                    yield message
            except ConnectionClosed as closed:
                error = closed
                code = closed.rcvd.code if closed.rcvd else None
                if code == CLOSE_UNAUTHENTICATED and not self.api.renew():
                    raise NotLoggedInError("the login ended while watching") from closed
                if code == CLOSE_GONE:
                    self.cursor = None
                    self.notice("some events were missed; going on from now")
            except InvalidHandshake:
                # Something between here and the API does not let WebSockets pass.
                yield from self._polled()
                return
            except (OSError, TimeoutError, UnreachableError) as failure:
                error = failure
            now = time.monotonic()
            if lost_at is None:
                lost_at = now
            elif now - lost_at > GIVE_UP_S:
                raise unreachable(self.api.context, error)
            elif now - lost_at > 1:
                self.notice("the connection is lost; trying again")
            yield None
            self.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_AT_MOST_S)

    def _connected(self) -> Iterator[Json | None]:
        query = {"types": self.types, "operation": self.operation, "cursor": self.cursor}
        with self.api.events({key: value for key, value in query.items() if value}) as socket:
            yield from self._received(socket)

    def _received(self, socket: ClientConnection) -> Iterator[Json | None]:
        heard_at = time.monotonic()
        while True:
            try:
                text = socket.recv(timeout=IDLE_S)
            except TimeoutError:
                if time.monotonic() - heard_at > SILENCE_S:
                    raise
                yield None
                continue
            heard_at = time.monotonic()
            message = cast("Json", json.loads(text))
            self.cursor = str(message.get("cursor") or self.cursor or "") or None
            if message.get("type") == "heartbeat":
                yield None
            else:
                yield message

    def _polled(self) -> Iterator[Json | None]:
        self.notice("live events cannot pass here; asking every second instead")
        if self.cursor is None:
            self._skip_to_now()
        yield {"type": HELLO, "cursor": self.cursor}
        while True:
            try:
                page = self._page()
            except ApiProblem as problem:
                if problem.status != 410:
                    raise
                self.cursor = None
                self._skip_to_now()
                yield {"type": HELLO, "cursor": self.cursor}
                continue
            yield from page
            if not page:
                yield None
                self.sleep(POLL_S)

    def _page(self) -> list[Json]:
        page = self.api.get(
            "/events",
            cursor=self.cursor,
            limit=100,
            types=self.types or None,
            operation=self.operation,
        )
        self.cursor = page["next_cursor"]
        return cast("list[Json]", page["items"])

    def _skip_to_now(self) -> None:
        """Without a WebSocket only the end of all pages says what the newest cursor is."""
        while True:
            before = self.cursor
            if not self._page() and self.cursor == before:
                return
