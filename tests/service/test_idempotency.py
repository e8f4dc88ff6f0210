"""Promises of idempotency keys (DESIGN section 4.2)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import select

from dflare.kit import idempotency
from dflare.kit.db import Database
from dflare.kit.errors import IdempotencyMismatchError
from dflare.kit.idempotency import Begun, RequestKey, RequestSupersededError, request_key
from dflare.services.clusters.tables import KIT
from tenancy import NOW, migrate


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "clusters")
    database = Database(database_url, application="test-idempotency")
    yield database
    await database.dispose()


@pytest.fixture
def request_of(request: pytest.FixtureRequest) -> RequestKey:
    return request_key("user_a", "POST /clusters", request.node.name, b"{}")


async def begin(database: Database, request: RequestKey) -> Begun:
    return await idempotency.begin(database, KIT, request, NOW)


async def finish(database: Database, begun: Begun, answer: str) -> Begun:
    """The second transaction of an order."""
    async with database.transaction("clusters") as session:
        claimed = await idempotency.claim(session, KIT, begun, NOW)
        if claimed.answer is None:
            await idempotency.complete(session, KIT, begun, 202, {"answer": answer})
        return claimed


async def test_a_repeat_after_a_death_before_the_answer_has_the_same_operation(
    database: Database, request_of: RequestKey
) -> None:
    first = await begin(database, request_of)
    assert first.operation_id.startswith("op_")
    assert first.answer is None
    assert await begin(database, request_of) == first


async def test_a_repeat_of_a_finished_order_gets_its_answer(
    database: Database, request_of: RequestKey
) -> None:
    first = await begin(database, request_of)
    await finish(database, first, "one")
    assert await begin(database, request_of) == replace(first, answer={"answer": "one"}, status=202)


@pytest.mark.parametrize("body", [b"", b"{ }"])
async def test_another_body_under_the_same_key_is_refused(
    database: Database, request_of: RequestKey, body: bytes
) -> None:
    await begin(database, request_of)
    other = request_key(request_of.caller, request_of.route, request_of.key, body)
    with pytest.raises(IdempotencyMismatchError) as refused:
        await begin(database, other)
    assert refused.value.next_step
    with pytest.raises(IdempotencyMismatchError):
        await idempotency.earlier(database, KIT, other)


async def test_the_same_key_of_another_caller_or_route_is_another_request(
    database: Database, request_of: RequestKey
) -> None:
    begun = [
        await begin(database, request)
        for request in (
            request_of,
            replace(request_of, caller="user_b"),
            replace(request_of, route="DELETE /clusters"),
        )
    ]
    assert len({one.operation_id for one in begun}) == 3


async def test_requests_without_a_key_are_all_different(database: Database) -> None:
    made = [await begin(database, request_key("user_a", "POST", None, b"{}")) for _ in range(2)]
    assert made[0].operation_id != made[1].operation_id


async def test_a_refused_order_frees_its_key(database: Database, request_of: RequestKey) -> None:
    first = await begin(database, request_of)
    await idempotency.forget(database, KIT, first)
    assert await idempotency.earlier(database, KIT, request_of) is None
    again = await begin(database, replace(request_of, body_sha256="another"))
    assert again.operation_id != first.operation_id


async def test_a_finished_order_is_never_forgotten(
    database: Database, request_of: RequestKey
) -> None:
    first = await begin(database, request_of)
    await finish(database, first, "one")
    await idempotency.forget(database, KIT, first)
    earlier = await idempotency.earlier(database, KIT, request_of)
    assert earlier is not None
    assert earlier.answer == {"answer": "one"}


async def test_many_tries_at_once_are_one_order_with_one_answer(
    database: Database, request_of: RequestKey
) -> None:
    async def order(number: int) -> tuple[str, bool]:
        begun = await begin(database, request_of)
        claimed = await finish(database, begun, f"try {number}")
        return begun.operation_id, claimed.answer is None

    made = await asyncio.gather(*(order(number) for number in range(8)))
    assert len({operation_id for operation_id, _ in made}) == 1
    assert [wrote for _, wrote in made].count(True) == 1, "exactly one may write the resource"


async def test_a_try_that_was_forgotten_beside_it_still_keeps_its_key(
    database: Database, request_of: RequestKey
) -> None:
    first = await begin(database, request_of)
    await idempotency.forget(database, KIT, first)
    await finish(database, first, "one")
    repeated = await begin(database, request_of)
    assert (repeated.operation_id, repeated.answer) == (first.operation_id, {"answer": "one"})


async def test_a_try_whose_key_another_operation_has_now_writes_nothing(
    database: Database, request_of: RequestKey
) -> None:
    first = await begin(database, request_of)
    await idempotency.forget(database, KIT, first)
    second = await begin(database, request_of)
    with pytest.raises(RequestSupersededError) as superseded:
        await finish(database, first, "one")
    assert superseded.value.retryable
    await idempotency.forget(database, KIT, first)
    assert await begin(database, request_of) == second, "the present one is not forgotten by it"


async def test_bodies_are_kept_as_hashes_alone(database: Database) -> None:
    await begin(database, request_key("user_a", "POST", "secret-body", b"hunter2"))
    async with database.transaction("clusters") as session:
        rows = (await session.execute(select(KIT.idempotency))).all()
    assert "secret-body" in str(rows)
    assert "hunter2" not in str(rows)
