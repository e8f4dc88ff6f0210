"""Clients that hold a connection without using it are cut off: slow heads, bodies and readers."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dflare.kit import problem
from dflare.kit.errors import TYPE_BASE

HEAD_WITHIN_S = 10.0
MAX_HEAD_BYTES = 64 * 1024
READ_WITHIN_S = 60.0
BODY_GRACE_S = 30.0
BODY_BYTES_PER_S = 10 * 1024


class ImpatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 that closes a connection whose request's head is not there within 10 s or is longer
    than 64 KiB, and one that takes nothing of an answer for 60 s. Keep-alive has its own time."""

    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """The clock of the first head runs from here: nothing may be sent at all."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._head_is_there()
        self._is_reading()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """The clock of a later head runs from its first byte."""
        if self._head is None:
            self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop the clock of the head."""
        self._head_is_there()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bound what a head may hold: the parser does not."""
        if self._head is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head is not None and self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        if self._reading is None:
            self._reading = self.loop.call_later(READ_WITHIN_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It took what waited."""
        self._is_reading()
        super().resume_writing()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head = self.loop.call_later(HEAD_WITHIN_S, self.transport.abort)

    def _head_is_there(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _is_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


@dataclass(frozen=True)
class BodyDeadline:
    """ASGI middleware that answers 408 where a body comes slower than 10 KiB a second, after a
    grace of 30 s. Only the time that the service waits for the client counts."""

    app: ASGIApp
    grace_s: float = BODY_GRACE_S
    bytes_per_s: float = BODY_BYTES_PER_S
    steady: Callable[[], float] = time.monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 408."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        waited, seen, complete = 0.0, 0, False
        too_slow = began = False

        async def timed() -> Message:
            nonlocal waited, seen, complete, too_slow
            if complete:
                # Now it waits for the client to leave, which may take as long as the answer.
                return await receive()
            if too_slow:
                return {"type": "http.disconnect"}
            since = self.steady()
            try:
                async with asyncio.timeout(self.grace_s + seen / self.bytes_per_s - waited):
                    message = await receive()
            except TimeoutError:
                too_slow = True
                return {"type": "http.disconnect"}
            waited += self.steady() - since
            seen += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            nonlocal began
            if too_slow and not began:
                # Whatever the service makes of half a body is not the answer.
                return
            began = True
            await send(message)

        try:
            await self.app(scope, timed, sent)
        except Exception:
            # A service that was left in the middle of a body has failed for that alone.
            if not too_slow:
                raise
        if too_slow and not began:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        document = {
            "type": TYPE_BASE + "body-too-slow",
            "title": "Body too slow",
            "status": 408,
            "detail": f"a body must come at {self.bytes_per_s / 1024:g} KiB a second",
            "next_step": "Send it again, all at once.",
            "retryable": True,
        }
        await problem.render(document, {"Connection": "close"})(scope, receive, send)
