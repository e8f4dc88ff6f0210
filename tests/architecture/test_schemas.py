"""Each service keeps its own schema: what migrations make is what the code says, and nothing
reaches across (DESIGN section 2)."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import dflare
from dflare.apps.migrate import locations
from dflare.kit import feed_tables, trace_tables
from dflare.kit.db import async_url, role_of
from dflare.kit.migrations import READER, differences, upgrade_all
from dflare.kit.tables import KitTables, service_metadata

SERVICES = Path(dflare.__file__).parent / "services"
SCHEMAS = sorted(locations())


def metadata_of(schema: str) -> MetaData:
    kit = {"feed": feed_tables.metadata, "trace": trace_tables.metadata}
    if schema in kit:
        return kit[schema]
    package = import_module(f"dflare.services.{schema}")
    for module in iter_modules(package.__path__):
        if module.name.startswith("tables_"):
            import_module(f"{package.__name__}.{module.name}")
    return import_module(f"dflare.services.{schema}.tables").Base.metadata


@pytest.fixture(scope="module")
async def migrated_url(database_url: str) -> str:
    await upgrade_all(database_url, locations())
    return database_url


def test_every_service_with_tables_is_migrated() -> None:
    with_tables = {path.parent.name for path in SERVICES.glob("*/tables.py")}
    assert with_tables <= set(SCHEMAS)
    assert set(SCHEMAS) - with_tables == {"feed", "trace"}


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_the_migrations_give_exactly_the_tables_in_code(
    migrated_url: str, schema: str
) -> None:
    found = await differences(migrated_url, schema, locations()[schema], metadata_of(schema))
    assert found == []


async def test_a_difference_would_be_found(migrated_url: str) -> None:
    """The check above can fail: tables without their migration, and the reverse."""
    nothing = service_metadata("clusters")
    found = await differences(migrated_url, "clusters", locations()["clusters"], nothing)
    assert "remove_table" in {change[0] for change in found}


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_migrating_again_changes_nothing(migrated_url: str, schema: str) -> None:
    await upgrade_all(migrated_url, {schema: locations()[schema]})
    found = await differences(migrated_url, schema, locations()[schema], metadata_of(schema))
    assert found == []


@pytest.mark.parametrize("schema", [name for name in SCHEMAS if name not in {"feed", "trace"}])
def test_every_service_has_the_tables_of_the_kit(schema: str) -> None:
    tables = import_module(f"dflare.services.{schema}.tables")
    assert isinstance(tables.KIT, KitTables)
    assert tables.KIT.schema == schema
    assert {table.schema for table in metadata_of(schema).tables.values()} == {schema}


async def rows(url: str, query: str) -> list[tuple[object, ...]]:
    engine = create_async_engine(async_url(url), poolclass=NullPool)
    async with engine.connect() as connection:
        found = [tuple(row) for row in (await connection.execute(text(query))).all()]
    await engine.dispose()
    return found


async def test_no_foreign_key_leaves_its_schema(migrated_url: str) -> None:
    crossing = await rows(
        migrated_url,
        "SELECT conname FROM pg_constraint JOIN pg_class a ON a.oid = conrelid"
        " JOIN pg_class b ON b.oid = confrelid"
        " WHERE contype = 'f' AND a.relnamespace <> b.relnamespace",
    )
    assert crossing == []


async def test_no_role_may_touch_the_tables_of_another(migrated_url: str) -> None:
    allowed = await rows(
        migrated_url,
        "SELECT r.rolname, n.nspname, c.relname FROM pg_roles r CROSS JOIN pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE r.rolname LIKE 'dflare\\_%' AND c.relkind IN ('r', 'S', 'v')"
        f" AND n.nspname IN ({', '.join(repr(name) for name in SCHEMAS)})"
        " AND r.rolname <> 'dflare_' || n.nspname"
        " AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(r.oid, c.oid, 'USAGE,SELECT')"
        " ELSE has_table_privilege(r.oid, c.oid, 'SELECT,INSERT,UPDATE,DELETE') END",
    )
    reader = role_of(READER)
    assert sorted(allowed) == [(reader, "feed", "head"), (reader, "feed", "log")]


async def test_who_reads_the_feed_cannot_change_it(migrated_url: str) -> None:
    (found,) = await rows(
        migrated_url,
        f"SELECT has_table_privilege('{role_of(READER)}', 'feed.log', 'INSERT,UPDATE,DELETE'),"
        f" has_table_privilege('{role_of(READER)}', 'feed.head', 'INSERT,UPDATE,DELETE')",
    )
    assert found == (False, False)


async def test_no_role_of_a_service_may_log_in_or_is_a_superuser(migrated_url: str) -> None:
    strong = await rows(
        migrated_url,
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'dflare\\_%'"
        " AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb)",
    )
    assert strong == []
