"""Migrations: one Alembic environment a schema, run by one program for all of them.

A service's ``migrations/env.py`` calls ``run_environment`` with its metadata; revisions stand in
``migrations/versions``. ``upgrade_all`` first makes what only the owner of the database can:
schemas, roles and the rights to read the feed.
"""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from alembic import command, context
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from dflare.kit.db import async_url, role_of

READER = "feed_reader"


def _config(schema: str, location: Path, connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(location))
    config.set_main_option("version_path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["schema"] = schema
    return config


def _only(schema: str | None) -> Any:
    """Alembic's filter that looks at one schema alone."""

    def include(name: str | None, kind: str, _: Mapping[str, Any]) -> bool:
        return name == schema if kind == "schema" else True

    return include


def run_environment(metadata: MetaData) -> None:
    """What a service's ``env.py`` does: configure Alembic for its schema and run."""
    connection: Connection = context.config.attributes["connection"]
    schema = metadata.schema
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=schema,
        include_schemas=True,
        include_name=_only(schema),
        compare_type=True,
        compare_server_default=False,
    )
    context.run_migrations()


def _prepare(connection: Connection, schemas: Sequence[str]) -> None:
    for schema in (*schemas, READER):
        role = role_of(schema)
        connection.execute(
            text(
                f"DO $$ BEGIN CREATE ROLE {role}; "
                "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            )
        )
        connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
    for schema in schemas:
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
        connection.execute(text(f"ALTER SCHEMA {schema} OWNER TO {role_of(schema)}"))


def _grant(connection: Connection, schema: str) -> None:
    role = role_of(schema)
    for kind in ("TABLES", "SEQUENCES"):
        connection.execute(text(f"GRANT ALL ON ALL {kind} IN SCHEMA {schema} TO {role}"))
    if schema == "feed":
        connection.execute(text(f"GRANT USAGE ON SCHEMA feed TO {role_of(READER)}"))
        connection.execute(text(f"GRANT SELECT ON feed.log, feed.head TO {role_of(READER)}"))
        connection.execute(text("INSERT INTO feed.head VALUES (1, 0, 0) ON CONFLICT DO NOTHING"))


async def upgrade_all(postgres_url: str, locations: Mapping[str, Path]) -> None:
    """Bring every schema to its newest revision. ``locations`` maps a schema to its folder."""
    engine = create_async_engine(async_url(postgres_url), poolclass=NullPool)

    def upgrade(connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(7233001)"))
        _prepare(connection, list(locations))
        for schema, location in locations.items():
            command.upgrade(_config(schema, location, connection), "head")
            _grant(connection, schema)

    try:
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)
    finally:
        await engine.dispose()


async def new_revision(postgres_url: str, schema: str, location: Path, message: str) -> None:
    """Write a revision from the difference between the tables and the database, which is first
    brought up to the revisions that exist."""
    (location / "versions").mkdir(exist_ok=True)
    await upgrade_all(postgres_url, {schema: location})
    template = location / "script.py.mako"
    shutil.copy(Path(__file__).with_name("revision.py.mako"), template)
    engine = create_async_engine(async_url(postgres_url), poolclass=NullPool)

    def revise(connection: Connection) -> None:
        number = len(list((location / "versions").glob("*.py"))) + 1
        command.revision(
            _config(schema, location, connection),
            message,
            autogenerate=True,
            rev_id=f"{number:04d}",
        )

    try:
        async with engine.begin() as connection:
            await connection.run_sync(revise)
    finally:
        template.unlink()
        await engine.dispose()


async def differences(
    postgres_url: str, schema: str, location: Path, metadata: MetaData
) -> list[Any]:
    """What the tables in code have that the migrated schema has not, or the reverse."""
    engine = create_async_engine(async_url(postgres_url), poolclass=NullPool)

    def compare(connection: Connection) -> list[Any]:
        options: dict[str, Any] = {
            "include_schemas": True,
            "version_table_schema": schema,
            "include_name": _only(schema),
            "compare_type": True,
        }
        return list(
            compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        )

    try:
        async with engine.connect() as connection:
            return await connection.run_sync(compare)
    finally:
        await engine.dispose()


async def ensure_database(postgres_url: str) -> None:
    """Create the URL's database if the server lacks it; needs the right to, only then."""
    parts = urlsplit(postgres_url)
    name = parts.path.removeprefix("/")
    maintenance = urlunsplit(parts._replace(path="/postgres"))
    engine = create_async_engine(async_url(maintenance), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            known = await connection.scalar(
                text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}
            )
            if known is None:
                quoted = connection.dialect.identifier_preparer.quote(name)
                await connection.execute(text(f"CREATE DATABASE {quoted} TEMPLATE template0"))
    finally:
        await engine.dispose()


def run_upgrade(postgres_url: str, locations: Mapping[str, Path]) -> None:
    """Make the database if need be and bring every schema up to date, from a program."""

    async def run() -> None:
        await ensure_database(postgres_url)
        await upgrade_all(postgres_url, locations)

    asyncio.run(run())
