"""What every process of the platform has: settings, stores, signals, and tasks that end with it."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import uvloop
from temporalio.client import Client

from dflare.apps.deployables import SERVICES
from dflare.kit import telemetry
from dflare.kit.cache import Cache
from dflare.kit.clock import Clock, SystemClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedSignal
from dflare.kit.objects import ObjectStore
from dflare.kit.seal import Sealer, SealError
from dflare.kit.settings import PlatformSettings, SettingsError
from dflare.kit.temporal import connect

EXIT_SETTINGS = 78
"""``EX_CONFIG`` of sysexits.h: the environment is at fault, starting again does not help."""

CLOSE_WITHIN_S = 5.0
"""How long each closing work of a process may take."""

COLLECT_AFTER = (20_000, 20, 50)
"""Objects that make the collector look at the youngest, and how often the older ones follow."""


@dataclass
class Process:
    """The parts of one running process. ``tasks`` end it when one of them fails; ``services`` are
    those it was told to serve, none meaning all."""

    name: str
    settings: PlatformSettings
    database: Database
    clock: Clock
    sealer: Sealer
    feed: FeedSignal
    temporal: Client
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    services: frozenset[str] = frozenset()
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    failure: BaseException | None = None
    closing: list[Callable[[], Awaitable[None]]] = field(
        default_factory=list[Callable[[], Awaitable[None]]]
    )

    @cached_property
    def cache(self) -> Cache:
        """Valkey, connected by the first call that needs it."""
        cache = Cache(self.settings.valkey_url)
        self.at_end(cache.close)
        return cache

    @cached_property
    def objects(self) -> ObjectStore:
        """The S3 store, connected by the first call that needs it."""
        objects = ObjectStore(self.settings, self.clock)
        self.at_end(objects.close)
        return objects

    def serves(self, service: str) -> bool:
        """Whether this process is to serve ``service``."""
        return not self.services or service in self.services

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run ``work`` until the process ends; if it fails, the process ends with it."""
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def at_end(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have ``close`` called when all tasks have ended; what was given last comes first."""
        self.closing.append(close)

    async def close(self) -> None:
        """End every task, then do the closing works. One that fails or hangs keeps none of the
        others from being done."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        while self.closing:
            close = self.closing.pop()
            try:
                await asyncio.wait_for(close(), CLOSE_WITHIN_S)
            except Exception as error:
                telemetry.log.warning("not_closed", process=self.name, error=repr(error))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            telemetry.log.error("task_failed", task=task.get_name(), error=repr(error))
            self.failure = error
            self.stopping.set()

    async def stopped(self) -> None:
        """Return when the process is asked to end, or raise what ended it."""
        await self.stopping.wait()
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def running_process(
    name: str,
    settings: PlatformSettings,
    clock: Clock | None = None,
    services: frozenset[str] = frozenset(),
) -> AsyncGenerator[Process]:
    """The parts, connected; at the end every task is cancelled and every connection closed."""
    spans = telemetry.configure_spans(name)
    process = Process(
        name=name,
        settings=settings,
        database=Database(settings.postgres_url, application=f"dflare-{name}"),
        clock=clock or SystemClock(),
        sealer=Sealer.from_file(Path(settings.secret_key_file)),
        feed=FeedSignal(settings.postgres_url),
        temporal=await connect(settings),
        services=services,
    )
    process.start(process.feed.run(), "feed-signal")
    process.start(spans.run(process.database), "spans")
    try:
        yield process
    finally:
        await process.close()
        try:
            await asyncio.wait_for(spans.flush(process.database), 2)
        except Exception as error:
            telemetry.log.warning("spans_not_written", error=str(error))
        await process.database.dispose()


def run_process(
    name: str, serve: Callable[[Process], Awaitable[None]], *, divisible: bool = False
) -> None:
    """The main program of a process: ``serve`` sets up and returns, tasks run until SIGTERM.

    The program's arguments are the services to serve, where it is ``divisible``.

    Where a supervisor names a file by ``SUPERVISED_READY_FILE``, it is made when ``serve`` returns.
    """
    services = frozenset(sys.argv[1:])
    if unknown := services - set(SERVICES if divisible else ()):
        known = ", ".join(SERVICES) if divisible else "none: it serves all of them"
        sys.exit(f"dflare {name}: cannot serve {', '.join(sorted(unknown))}; to choose: {known}")
    try:
        settings = PlatformSettings.read()
        telemetry.configure_logs(name, level=settings.log_level, form=settings.log_format)
        uvloop.run(_main(name, settings, serve, services))
    except (SettingsError, SealError, FileNotFoundError, PermissionError) as error:
        print(f"dflare {name}: {error}", file=sys.stderr)  # noqa: T201 (no log is set up yet)
        sys.exit(EXIT_SETTINGS)


async def _main(
    name: str,
    settings: PlatformSettings,
    serve: Callable[[Process], Awaitable[None]],
    services: frozenset[str],
) -> None:
    async with running_process(name, settings, services=services) as process:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stopping.set)
        await serve(process)
        _spare_collector()
        if ready_file := os.environ.get("SUPERVISED_READY_FILE"):
            await asyncio.to_thread(Path(ready_file).touch)
        telemetry.log.info("started")
        await process.stopped()
        telemetry.log.info("stopping")


def _spare_collector() -> None:
    """Let the collector of cycles look less often, and never at what the start has loaded: a step
    on a thousand nodes holds so many objects that its looks cost a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
