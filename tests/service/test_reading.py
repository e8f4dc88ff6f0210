"""Promises of ``Database.reading``: it looks as one service's role, and leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from dflare.kit.db import Database, OpenTransactionError, StoreUnavailableError
from stores import drop_database
from tenancy import migrated_database

WHO = text("SELECT current_user")


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    url = await migrated_database(postgres_url, "clusters", "metering")
    database = Database(url, application="test-reading", pool_size=1)
    yield database
    await database.dispose()
    drop_database(url)


async def test_a_look_has_the_role_of_its_schema_whatever_came_before(database: Database) -> None:
    seen: list[str | None] = []
    for schema in ("clusters", "metering", "metering"):
        async with database.reading(schema) as session:
            seen.append(await session.scalar(WHO))
        async with database.transaction("clusters") as session:
            seen.append(await session.scalar(WHO))
    assert seen == [
        "dflare_clusters",
        "dflare_clusters",
        "dflare_metering",
        "dflare_clusters",
        "dflare_metering",
        "dflare_clusters",
    ]


async def test_a_look_cannot_see_another_services_rows(database: Database) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        async with database.reading("clusters") as session:
            await session.execute(text("SELECT * FROM metering.event"))


async def test_the_relays_look_has_no_services_role(database: Database) -> None:
    async with database.across() as connection:
        login = await connection.scalar(WHO)
    async with database.reading("clusters") as session:
        assert await session.scalar(WHO) != login
    for _ in range(2):
        async with database.across() as connection:
            assert await connection.scalar(WHO) == login
            await connection.execute(text("SELECT * FROM metering.event"))


async def test_a_look_within_a_transaction_is_refused(database: Database) -> None:
    async with database.transaction("clusters"):
        with pytest.raises(OpenTransactionError):
            async with database.reading("clusters"):
                pass


async def test_connections_are_given_in_the_order_of_asking(database: Database) -> None:
    served: list[int] = []

    async def look(number: int) -> None:
        async with database.reading("clusters") as session:
            await session.execute(text("SELECT pg_sleep(0.01)"))
            served.append(number)

    await asyncio.gather(*(look(number) for number in range(20)))
    assert served == list(range(20))


async def test_a_server_that_closed_its_connections_costs_no_look(database: Database) -> None:
    async with database.reading("clusters") as session:
        mine = await session.scalar(text("SELECT pg_backend_pid()"))
    other = Database(database.url, application="test-killer")
    async with other.across() as connection:
        await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": mine})
    await other.dispose()
    async with asyncio.timeout(30):
        while True:
            try:
                async with database.reading("clusters") as session:
                    assert await session.scalar(WHO) == "dflare_clusters"
                    assert await session.scalar(text("SELECT pg_backend_pid()")) != mine
                return
            except StoreUnavailableError:
                # It was closed just before it was used.
                await asyncio.sleep(0.01)
