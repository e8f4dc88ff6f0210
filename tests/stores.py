"""Fixtures of the real stores: one of each per pytest process.

They start at their first use and end with the run. Tests keep apart by databases, task queues,
keys and labels, never by starting stores of their own.
"""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from dflare.embedded.component import AbsentError
from dflare.embedded.packages import VICTORIA_METRICS, PackageCache
from dflare.embedded.postgres import run_sql
from dflare.embedded.seaweedfs import S3Login
from dflare.embedded.stores import (
    running_postgres,
    running_seaweedfs,
    running_temporal,
    running_valkey,
    running_victoria,
)
from dflare.kit.objects import ObjectStore
from dflare.kit.settings import PlatformSettings

VICTORIA_PACKAGES = PackageCache(
    Path(__file__).parent.parent / ".lab" / "victoriametrics", VICTORIA_METRICS
)
"""Fetched once a checkout."""


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


@pytest.fixture(scope="session")
def valkey_url(stores_dir: Path) -> Iterator[str]:
    """One real Valkey, with its password in the URL. Tests use keys of their own."""
    with running_valkey(stores_dir) as url:
        yield url


@pytest.fixture(scope="session")
def s3_login(stores_dir: Path) -> Iterator[S3Login]:
    """How to reach one real SeaweedFS."""
    with running_seaweedfs(stores_dir) as login:
        yield login


@pytest.fixture(scope="session")
def s3_settings(s3_login: S3Login) -> PlatformSettings:
    """Settings with that S3 store and no other."""
    return PlatformSettings(
        postgres_url="",
        temporal_address="",
        secret_key_file="",
        s3_url=s3_login.url,
        s3_access_key=s3_login.access_key,
        s3_secret_key_file=str(s3_login.secret_key_file),
        s3_bucket=s3_login.bucket,
    )


@pytest.fixture(scope="session")
async def s3(s3_settings: PlatformSettings) -> AsyncIterator[ObjectStore]:
    """The platform's way to that store. Tests use keys of their own."""
    objects = ObjectStore(s3_settings)
    yield objects
    await objects.close()


@pytest.fixture(scope="session")
def victoria_url(stores_dir: Path) -> Iterator[str]:
    """One real VictoriaMetrics, with its login in the URL. Tests use labels of their own."""
    starting = running_victoria(stores_dir, VICTORIA_PACKAGES)
    try:
        url = starting.__enter__()
    except AbsentError as reason:
        pytest.skip(f"VictoriaMetrics {reason}")
    yield url
    starting.__exit__(None, None, None)


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty database for the test module, dropped after it."""
    url = fresh_database(postgres_url)
    yield url
    drop_database(url)
