"""What the supervisor needs to know of one process, and the checks that say it is ready."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import httpx

Check = Callable[[], Awaitable[bool]]


class AbsentError(Exception):
    """What `prepare` raises when an optional component cannot be had on this machine: it is left
    out until the next start. The text says why and what to do."""


class RestartPolicy(StrEnum):
    """`always` keeps a server running; `until-success` repeats a step until it exits with 0."""

    ALWAYS = "always"
    UNTIL_SUCCESS = "until-success"


@dataclass(frozen=True)
class Component:
    """One process to keep running, or (without `argv`) an outside server to watch.

    `prepare` blocks and runs in a thread before every start; what it raises counts as a failed
    start, except `AbsentError`. `ready` must answer within a few seconds and never raise.
    `stop_signal` asks for the end; after `grace_s` the process group is killed. `advice` says what
    a person can do when it does not get ready. An `optional` one counts in nobody's readiness.
    """

    name: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    ready: Check | None = None
    prepare: Callable[[], None] | None = None
    depends_on: tuple[str, ...] = ()
    restart: RestartPolicy = RestartPolicy.ALWAYS
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 15.0
    start_timeout_s: float = 90.0
    advice: str = ""
    optional: bool = False

    @property
    def external(self) -> bool:
        return not self.argv


def http_client(url: str) -> httpx.AsyncClient:
    """A client for one check of `url` that waits for two seconds.

    Loading the machine's certificates takes 35 ms of the processor, and a start checks each
    component ten times a second, so they are loaded only where the check is over TLS.
    """
    return httpx.AsyncClient(timeout=2, trust_env=False, verify=not url.startswith("http://"))


def http_ok(url: str) -> Check:
    """A check that `GET url` is answered with a 2xx within two seconds."""

    async def check() -> bool:
        async with http_client(url) as client:
            try:
                return (await client.get(url)).is_success
            except httpx.HTTPError:
                return False

    return check


def listening(host: str, port: int) -> Check:
    """A check that a TCP connection is accepted within two seconds."""

    async def check() -> bool:
        try:
            async with asyncio.timeout(2):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    return check


class ReadyFile:
    """Readiness of a process without a port: it creates the file named in its environment by
    `SUPERVISED_READY_FILE`; one that does not know of it is ready once it lived for `alive_s`."""

    def __init__(self, path: Path, *, alive_s: float) -> None:
        self._path = path
        self._alive_s = alive_s
        self._prepared_at = time.monotonic()

    def prepare(self) -> None:
        """Forgets the last start."""
        self._path.unlink(missing_ok=True)
        self._prepared_at = time.monotonic()

    async def check(self) -> bool:
        return self._path.exists() or time.monotonic() - self._prepared_at > self._alive_s
