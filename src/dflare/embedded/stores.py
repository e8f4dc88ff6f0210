"""The embedded stores as context managers, for tests, benchmarks and tools that need them alone.

`dflare up` uses the supervisor instead, which also restarts what crashed.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dflare.embedded.component import AbsentError
from dflare.embedded.layout import Layout
from dflare.embedded.packages import PackageCache
from dflare.embedded.ports import free_port
from dflare.embedded.postgres import EmbeddedPostgres
from dflare.embedded.seaweedfs import PORT_NAMES, EmbeddedSeaweed, S3Login
from dflare.embedded.secret_files import ensure_password
from dflare.embedded.temporal import EmbeddedTemporal
from dflare.embedded.valkey import EmbeddedValkey
from dflare.embedded.victoria import EmbeddedVictoria

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05


class StoreStartError(Exception):
    """A store did not become ready; the text ends with the last lines of its log."""


@dataclass(frozen=True)
class StoreUrls:
    """Where the stores answer.

    `postgres_url` is `postgresql://…/postgres`, a superuser's login to the maintenance database;
    `temporal_address` is `host:port`, namespace `default`.
    """

    postgres_url: str
    temporal_address: str


@contextmanager
def running_stores(data_dir: Path, *, durable: bool = True) -> Generator[StoreUrls]:
    """PostgreSQL and Temporal below `data_dir`, on free ports, until the block ends.

    Call it from the main thread: the stores end with the thread that started them.
    """
    with (
        running_postgres(data_dir, durable=durable) as postgres_url,
        running_temporal(data_dir) as temporal_address,
    ):
        yield StoreUrls(postgres_url, temporal_address)


@contextmanager
def running_postgres(data_dir: Path, *, durable: bool = True) -> Generator[str]:
    """PostgreSQL below `data_dir` until the block ends; gives the maintenance database's URL."""
    layout = Layout.of(data_dir)
    layout.create()
    postgres = EmbeddedPostgres(
        layout.postgres, free_port(), ensure_password(layout.postgres_password_file), durable
    )
    postgres.initialise()
    log = layout.log_file("postgres")
    with _running(postgres.argv(), log, postgres.is_ready, signal.SIGINT):
        yield postgres.url()


@contextmanager
def running_temporal(data_dir: Path) -> Generator[str]:
    """Temporal below `data_dir` until the block ends; gives `host:port`."""
    layout = Layout.of(data_dir)
    layout.create()
    temporal = EmbeddedTemporal(layout.temporal, free_port(), free_port(), free_port())
    log = layout.log_file("temporal")
    with _running(temporal.argv(), log, temporal.is_ready, signal.SIGTERM):
        yield temporal.address


@contextmanager
def running_valkey(data_dir: Path) -> Generator[str]:
    """Valkey below `data_dir` until the block ends; gives `valkey://:password@host:port/0`."""
    layout = Layout.of(data_dir)
    layout.create()
    password = ensure_password(layout.valkey_password_file)
    valkey = EmbeddedValkey(layout.valkey, free_port(), password)
    valkey.prepare()
    with _running(valkey.argv(), layout.log_file("valkey"), valkey.is_ready, signal.SIGTERM):
        yield valkey.url


@contextmanager
def running_seaweedfs(data_dir: Path) -> Generator[S3Login]:
    """SeaweedFS below `data_dir` until the block ends."""
    layout = Layout.of(data_dir)
    layout.create()
    ensure_password(layout.s3_secret_key_file)
    ports: list[int] = []
    for _ in range(len(PORT_NAMES) + 1):
        ports.append(free_port(ports))
    seaweedfs = EmbeddedSeaweed(
        layout.seaweedfs,
        layout.seaweedfs_keys,
        layout.s3_secret_key_file,
        port=ports[0],
        ports=tuple(ports[1:]),
    )
    seaweedfs.prepare()
    log = layout.log_file("seaweedfs")
    environment = seaweedfs.environment
    with _running(seaweedfs.argv(), log, seaweedfs.is_ready, signal.SIGKILL, environment):
        yield seaweedfs.login


@contextmanager
def running_victoria(data_dir: Path, packages: PackageCache) -> Generator[str]:
    """VictoriaMetrics below `data_dir` until the block ends; gives its URL with the password.

    Raises `AbsentError` where neither the machine nor the packages, which are fetched if they are
    not there yet, have it.
    """
    layout = Layout.of(data_dir)
    layout.create()
    password = ensure_password(layout.victoriametrics_password_file)
    server = EmbeddedVictoria(layout.victoriametrics, free_port(), password, packages)
    try:
        server.prepare()
    except AbsentError:
        packages.prepare()
        server.prepare()
    log = layout.log_file("victoriametrics")
    with _running(server.argv(), log, server.is_ready, signal.SIGTERM, server.environment):
        yield server.url


@contextmanager
def _running(
    argv: list[str],
    log: Path,
    is_ready: Callable[[], Awaitable[bool]],
    stop: signal.Signals,
    environment: Mapping[str, str] | None = None,
) -> Generator[None]:
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - argv is built here, no shell
            argv,
            cwd="/",
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_ready(process, log, is_ready)
        yield
    finally:
        _stop(process, stop)


def _wait_ready(
    process: subprocess.Popen[bytes], log: Path, is_ready: Callable[[], Awaitable[bool]]
) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with asyncio.Runner() as runner:
        while not runner.run(_as_coroutine(is_ready)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StoreStartError(f"{log.stem} did not start. Its log ends: {last_lines(log)}")
            time.sleep(POLL_S)


async def _as_coroutine(is_ready: Callable[[], Awaitable[bool]]) -> bool:
    return await is_ready()


def _stop(process: subprocess.Popen[bytes], first: signal.Signals) -> None:
    process.send_signal(first)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)


def last_lines(log: Path, count: int = 20) -> str:
    """The last lines of a log file, at most 16 KiB of it."""
    if not log.exists():
        return "(no log)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-count:])
