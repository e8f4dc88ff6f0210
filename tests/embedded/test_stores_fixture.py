"""The fixtures that every other test of the platform builds on."""

import asyncpg
import pytest
from temporalio.client import Client

from dflare.embedded.postgres import answers
from requirement_marker import requirement_ids
from stores import drop_database, fresh_database


async def test_fresh_databases_do_not_see_each_other(postgres_url: str) -> None:
    first, second = fresh_database(postgres_url), fresh_database(postgres_url)
    connection = await asyncpg.connect(first)
    await connection.execute("CREATE TABLE only_here (id int)")
    await connection.close()

    connection = await asyncpg.connect(second)
    assert await connection.fetchval("SELECT to_regclass('only_here')") is None
    await connection.close()

    drop_database(first)
    assert not await answers(first)


async def test_the_server_gives_ordered_uuids_and_300_connections(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    older = await connection.fetchval("SELECT uuidv7()")
    newer = await connection.fetchval("SELECT uuidv7()")
    assert older < newer
    assert await connection.fetchval("SHOW max_connections") == "300"
    await connection.close()


async def test_a_wrong_password_is_refused(postgres_url: str) -> None:
    user, _, rest = postgres_url.removeprefix("postgresql://").partition(":")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://{user}:wrong@{rest.split('@')[1]}")


async def test_temporal_serves_the_default_namespace(temporal_address: str) -> None:
    client = await Client.connect(temporal_address, namespace="default")
    assert await client.service_client.check_health()


def test_requirement_ids_include_ranges_and_parts() -> None:
    text = "| id | x |\n|---|---|\n| STG03-STG05, SEC11 (part) | SDN99 in prose |\n"
    assert requirement_ids(text) == {"STG03", "STG04", "STG05", "SEC11"}
