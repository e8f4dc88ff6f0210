"""Promises of transactions: each runs as its schema's role, alone, and tells a lost store."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import feed_tables
from dflare.kit.db import (
    Database,
    OpenTransactionError,
    StoreUnavailableError,
    assert_no_transaction,
)
from dflare.kit.seal import Sealer, SealError, drop_secret, get_secret, put_secret
from dflare.services.clusters.tables import KIT
from dflare.services.metering.tables import KIT as METERING
from tenancy import migrate

CURSOR = KIT.feed_cursor


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "clusters", "metering")
    database = Database(database_url, application="test-database")
    yield database
    await database.dispose()


async def note(session: AsyncSession, consumer: str) -> None:
    await session.execute(insert(CURSOR).values(consumer=consumer, position=0))


async def noted(database: Database, consumer: str) -> bool:
    async with database.transaction("clusters") as session:
        query = select(func.count()).where(CURSOR.c.consumer == consumer)
        return (await session.execute(query)).scalar_one() == 1


async def test_a_transaction_commits_at_its_end(database: Database) -> None:
    async with database.transaction("clusters") as session:
        await note(session, "kept")
    assert await noted(database, "kept")


async def test_an_error_takes_all_of_its_transaction_back(database: Database) -> None:
    async def fail_midway() -> None:
        async with database.transaction("clusters") as session:
            await note(session, "lost")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        await fail_midway()
    assert not await noted(database, "lost")


async def test_a_transaction_runs_as_the_role_of_its_schema(database: Database) -> None:
    for schema in ("clusters", "metering", "clusters"):
        async with database.transaction(schema) as session:
            assert (await session.scalar(text("SELECT current_user"))) == f"dflare_{schema}"


@pytest.mark.parametrize(
    ("schema", "statement"),
    [
        ("clusters", "SELECT * FROM metering.ledger_entry"),
        ("clusters", "UPDATE metering.quota SET nodes = 9"),
        ("clusters", "DELETE FROM feed.log"),
        ("clusters", "SELECT * FROM feed.log"),
        ("metering", "SELECT * FROM clusters.secret"),
        ("feed", "SELECT * FROM clusters.event"),
        ("feed_reader", "UPDATE feed.head SET position = 9"),
        ("feed_reader", "DELETE FROM feed.log"),
        ("clusters", "CREATE TABLE metering.mine (id int)"),
    ],
)
async def test_postgresql_refuses_the_tables_of_another_schema(
    database: Database, schema: str, statement: str
) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        async with database.transaction(schema) as session:
            await session.execute(text(statement))


async def test_every_reader_may_read_the_feed(database: Database) -> None:
    async with database.transaction("feed_reader") as session:
        assert (await session.execute(select(feed_tables.head.c.position))).scalar_one() == 0


async def test_transactions_do_not_nest_and_the_outer_one_is_taken_back(
    database: Database,
) -> None:
    async def nest() -> None:
        async with database.transaction("clusters") as session:
            await note(session, "outer")
            async with database.transaction("metering"):
                pass

    with pytest.raises(OpenTransactionError, match="clusters"):
        await nest()
    assert not await noted(database, "outer")


async def test_the_outside_world_is_refused_under_a_transaction_only(database: Database) -> None:
    assert_no_transaction("GET /redfish")
    async with database.transaction("clusters"):
        with pytest.raises(OpenTransactionError, match="GET /redfish"):
            assert_no_transaction("GET /redfish")
    assert_no_transaction("GET /redfish")
    with pytest.raises(RuntimeError):
        async with database.transaction("clusters"):
            raise RuntimeError
    assert_no_transaction("GET /redfish")


async def test_tasks_side_by_side_each_have_their_own_transaction(database: Database) -> None:
    inside = asyncio.Barrier(2)

    async def work(schema: str) -> None:
        async with database.transaction(schema):
            await inside.wait()
        assert_no_transaction(f"work of {schema}")

    async with asyncio.timeout(60):
        await asyncio.gather(work("clusters"), work("metering"))


async def test_a_connection_lost_within_a_query_is_a_store_that_is_down(
    database: Database, database_url: str
) -> None:
    killer = Database(database_url, application="killer")

    async def be_killed() -> None:
        async with database.transaction("clusters") as session:
            await note(session, "killed")
            own = await session.scalar(text("SELECT pg_backend_pid()"))
            kill = asyncio.create_task(_kill_when_asleep(killer, own))
            try:
                await session.execute(text("SELECT pg_sleep(200)"))
            finally:
                await kill

    with pytest.raises(StoreUnavailableError) as lost:
        await be_killed()
    await killer.dispose()
    assert isinstance(lost.value, OSError), "what treats a refused connection treats this"
    assert not await noted(database, "killed"), "and the next transaction has a connection"


async def _kill_when_asleep(killer: Database, pid: int) -> None:
    asleep = text(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid AND wait_event = 'PgSleep'"
    )
    async with killer.engine.connect() as connection, asyncio.timeout(60):
        while not await connection.scalar(asleep, {"pid": pid}):
            await connection.rollback()
            await asyncio.sleep(0.02)
        await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


async def test_a_deadlock_costs_one_of_the_two_a_retry(database: Database) -> None:
    for consumer in ("left", "right"):
        async with database.transaction("clusters") as session:
            await note(session, consumer)
    both_hold_one = asyncio.Barrier(2)

    async def lock(first: str, second: str) -> None:
        async with database.transaction("clusters") as session:
            for consumer in (first, second):
                query = select(CURSOR).where(CURSOR.c.consumer == consumer).with_for_update()
                await session.execute(query)
                if consumer == first:
                    await both_hold_one.wait()

    async with asyncio.timeout(60):
        results = await asyncio.gather(
            lock("left", "right"), lock("right", "left"), return_exceptions=True
        )
    assert {type(result) for result in results} == {type(None), StoreUnavailableError}


async def test_a_database_that_does_not_listen_is_told_as_such() -> None:
    nowhere = Database("postgresql://dflare@127.0.0.1:1/none", application="nowhere")
    with pytest.raises(OSError, match="1"):
        async with nowhere.transaction("clusters"):
            pass
    await nowhere.dispose()


async def test_secrets_are_bound_to_their_schema_and_name(database: Database) -> None:
    sealer = Sealer(bytes(32))
    async with database.transaction("clusters") as session:
        await put_secret(session, KIT, sealer, "one", b"first")
        await put_secret(session, KIT, sealer, "one", b"second")
        assert await get_secret(session, KIT, sealer, "one") == b"second"
        stored = await session.scalar(select(KIT.secret.c.sealed).where(KIT.secret.c.name == "one"))
        assert stored is not None
    async with database.transaction("metering") as session:
        await session.execute(
            insert(METERING.secret).values(name="one", sealed=stored, updated_at=func.now())
        )
        with pytest.raises(SealError):
            await get_secret(session, METERING, sealer, "one")


async def test_a_dropped_secret_is_gone(database: Database) -> None:
    sealer = Sealer(bytes(32))
    async with database.transaction("clusters") as session:
        await put_secret(session, KIT, sealer, "short", b"secret")
        await drop_secret(session, KIT, "short")
        with pytest.raises(SealError, match="no secret short"):
            await get_secret(session, KIT, sealer, "short")
