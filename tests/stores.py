"""Fixtures of the real stores: one PostgreSQL and one Temporal per pytest process.

Both start at their first use and end with the run. Tests keep apart by databases and task
queues, never by starting stores of their own.
"""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from dflare.embedded.postgres import run_sql
from dflare.embedded.stores import running_postgres, running_temporal


def fresh_database(postgres_url: str, prefix: str = "test") -> str:
    """Makes an empty database with a random name and returns its URL (takes about 50 ms)."""
    name = f"{prefix}_{secrets.token_hex(6)}"
    run_sql(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE template0')
    return urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))


def drop_database(url: str) -> None:
    """Ends the sessions of a database of `fresh_database` and removes it."""
    parts = urlsplit(url)
    name = parts.path.removeprefix("/")
    run_sql(
        urlunsplit(parts._replace(path="/postgres")),
        f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
    )


@pytest.fixture(scope="session")
def stores_dir() -> Iterator[Path]:
    """A data directory outside pytest's own, which the database's user could not enter."""
    directory = Path(tempfile.mkdtemp(prefix="dflare-stores-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(stores_dir: Path) -> Iterator[str]:
    """The maintenance database of one real PostgreSQL, as superuser; give it to
    `fresh_database`. It does not wait for the disk."""
    with running_postgres(stores_dir, durable=False) as url:
        yield url


@pytest.fixture(scope="session")
def temporal_address(stores_dir: Path) -> Iterator[str]:
    """`host:port` of one real Temporal server with a database file, namespace `default`."""
    with running_temporal(stores_dir) as address:
        yield address


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty database for the test module, dropped after it."""
    url = fresh_database(postgres_url)
    yield url
    drop_database(url)
