"""Promises of rate limits, over a real Valkey and a clock that tests turn."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from dflare.apps.rate_limits import PRINCIPAL, LimitSettings, RateLimits
from dflare.apps.token_buckets import Bucket, Buckets
from dflare.embedded.ports import LOOPBACK, free_port
from dflare.kit.cache import Cache
from dflare.kit.errors import UnauthenticatedError
from dflare.services.auth.contract import Principal, Role, RoleBinding


class Time:
    """The buckets' clock and the gateway's, turned together."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Callers:
    """An authorizer that knows ``<name>@<organization>`` and ``operator`` by their tokens; names
    are this test's own."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(6)
        self.asked = 0

    async def authenticate(self, token: str) -> Principal:
        self.asked += 1
        if token == "forged":
            raise UnauthenticatedError("forged")
        name, _, organization = token.partition("@")
        binding = (
            RoleBinding(Role.MEMBER, f"org_{self.mark}_{organization}", "prj_1")
            if organization
            else RoleBinding(Role.OPERATOR)
        )
        return Principal(f"usr_{self.mark}_{token}", "user", name, (binding,))


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was sent, and whether the caller is known already."""
    body = await Request(scope, receive).body()
    answer = {"body": body.decode(), "known": PRINCIPAL in scope}
    await JSONResponse(answer)(scope, receive, send)


SETTINGS = LimitSettings(
    read_per_s=10,
    read_burst=20,
    write_per_s=1,
    write_burst=4,
    order_per_s=1,
    order_burst=2,
    user_share=0.5,
    login_per_s=0.1,
    login_burst=3,
    address_per_s=10,
    address_burst=8,
)


class World:
    """A limited application and its callers."""

    def __init__(self, cache: Cache, address: str = "") -> None:
        self.time, self.callers = Time(), Callers()
        self.buckets = Buckets(cache, steady=self.time, now=self.time)
        self.app = RateLimits(application, self.buckets, self.callers, SETTINGS)  # type: ignore[arg-type]
        self.address = address or self.callers.mark

    async def ask(
        self, token: str = "", path: str = "/v1/nodes", method: str = "GET", **more: Any
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(self.address, 1))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, headers=headers, **more)

    async def allowed(self, count: int, *arguments: Any, **more: Any) -> int:
        """How many of that many requests at the same moment may go on."""
        answers = [await self.ask(*arguments, **more) for _ in range(count)]
        assert {answer.status_code for answer in answers} <= {200, 429}
        return [answer.status_code for answer in answers].count(200)


@pytest.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    cache = Cache(valkey_url)
    yield cache
    await cache.close()


@pytest.fixture
def world(cache: Cache) -> World:
    return World(cache)


async def test_a_caller_may_use_its_share_and_its_organization_no_more_than_all(
    world: World,
) -> None:
    assert await world.allowed(15, "ann@acme") == 10
    assert await world.allowed(15, "ben@acme") == 10
    assert await world.allowed(5, "cal@acme") == 0, "the organization has used all"


async def test_one_organization_takes_nothing_from_another(world: World) -> None:
    for name in ("ann", "ben"):
        await world.allowed(20, f"{name}@acme")
    assert await world.allowed(10, "dan@other") == 10
    assert await world.allowed(10, "operator") == 10


async def test_classes_of_routes_are_counted_apart(world: World) -> None:
    order = "/v1/projects/acme/train/clusters"
    assert await world.allowed(3, "ann@acme", order, "POST") == 1
    assert await world.allowed(3, "ann@acme", "/v1/ssh-keys", "POST") == 2
    assert await world.allowed(3, "ann@acme", order, "DELETE") == 0, "a removal is a write"
    assert await world.allowed(3, "ann@acme", order) == 3


async def test_who_was_refused_is_told_when_to_come_back_and_may_then(world: World) -> None:
    await world.allowed(2, "ann@acme", "/v1/ssh-keys", "POST")
    refused = await world.ask("ann@acme", "/v1/ssh-keys", "POST")
    problem = refused.json()
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert problem["type"].endswith("/rate-limited")
    assert problem["retryable"] is True
    wait_s = int(refused.headers["retry-after"])
    assert problem["retry_after_s"] == wait_s == 2, "half a token a second is its share"
    assert f"Wait {wait_s} s" in problem["next_step"]
    world.time.now_s += wait_s
    assert (await world.ask("ann@acme", "/v1/ssh-keys", "POST")).status_code == 200


async def test_every_answer_says_where_the_caller_stands(world: World) -> None:
    first = await world.ask("ann@acme")
    assert first.headers["ratelimit-policy"] == '"read";q=10;w=2'
    assert first.headers["ratelimit"] == '"read";r=9;t=1'
    await world.allowed(9, "ann@acme")
    refused = await world.ask("ann@acme")
    assert refused.headers["ratelimit"] == '"read";r=0;t=2'


async def test_a_bucket_refills_to_its_burst_and_no_further(world: World) -> None:
    await world.allowed(10, "ann@acme")
    world.time.now_s += 1
    assert await world.allowed(10, "ann@acme") == 5
    world.time.now_s += 3600
    assert await world.allowed(20, "ann@acme") == 10


async def test_logins_are_counted_by_address_and_account_and_reach_the_page_whole(
    world: World, cache: Cache
) -> None:
    def form(name: str) -> dict[str, Any]:
        return {"data": {"username": name, "password": "x" * 2000, "csrf": "1"}}

    answer = await world.ask("", "/oauth/authorize?client_id=c", "POST", **form("ann"))
    assert answer.json()["body"].startswith("username=ann&password=xxx")
    assert answer.json()["body"].endswith("csrf=1")
    assert await world.allowed(3, "", "/device", "POST", **form("Ann")) == 2
    assert await world.allowed(1, "", "/oauth/authorize", "POST", **form("ben")) == 1
    elsewhere = World(cache, address=f"{world.address}-2")
    assert await elsewhere.allowed(1, "", "/device", "POST", **form("ann")) == 1
    refused = await world.ask("", "/device", "POST", **form("ann"))
    assert int(refused.headers["retry-after"]) == 10
    assert await world.allowed(9, "", "/device", "POST", **form("cal")) == 3


async def test_guessing_many_accounts_from_one_address_ends_too(world: World) -> None:
    tried = [
        await world.allowed(1, "", "/device", "POST", data={"username": f"user{number}"})
        for number in range(12)
    ]
    assert sum(tried) == SETTINGS.address_burst


async def test_an_endless_login_form_is_not_read_to_its_end_before_it_is_counted(
    world: World,
) -> None:
    body = b"username=ann&password=" + b"x" * 100_000
    assert (await world.ask("", "/device", "POST", content=body)).json()["body"] == body.decode()


async def test_what_comes_without_a_caller_is_counted_by_its_address(
    world: World, cache: Cache
) -> None:
    assert await world.allowed(5, "") == 5
    assert await world.allowed(5, "forged") == 3, "forged tokens count for the address too"
    assert await World(cache, address=f"{world.address}-2").allowed(5, "") == 5
    assert await world.allowed(20, "", "/healthz") == 20


async def test_a_caller_is_authenticated_once(world: World) -> None:
    answer = await world.ask("ann@acme")
    assert answer.json()["known"] is True
    assert world.callers.asked == 1


async def test_gateways_share_the_buckets(world: World, valkey_url: str) -> None:
    other = Cache(valkey_url)
    second = World(other, world.address)
    second.callers.mark = world.callers.mark
    assert await world.allowed(6, "ann@acme") + await second.allowed(6, "ann@acme") == 10
    await other.close()


async def test_tokens_taken_by_the_lot_exceed_no_limit_however_many_ask_at_once(
    cache: Cache, valkey_url: str
) -> None:
    time, key = Time(), secrets.token_hex(6)
    bucket = Bucket(key, 1, 1000)
    others = [Cache(valkey_url) for _ in range(3)]
    gateways = [Buckets(one, steady=time, now=time) for one in (cache, *others)]
    answers = await asyncio.gather(*(gateways[number % 4].take([bucket]) for number in range(1400)))
    given = [answer for answer in answers if answer is not None and answer.allowed]
    assert 1000 - 4 * 10 * 32 <= len(given) <= 1000
    for one in others:
        await one.close()


async def test_while_valkey_is_away_all_go_on_and_the_log_says_it_once_a_minute() -> None:
    cache = Cache(f"valkey://{LOOPBACK}:{free_port()}/0")
    world = World(cache)
    with capture_logs() as logs:
        assert await world.allowed(30, "ann@acme") == 30
        world.time.now_s += 5
        assert await world.allowed(5, "ann@acme") == 5
        assert [entry["event"] for entry in logs] == ["rate_limits_off"]
        world.time.now_s += 60
        assert await world.allowed(5, "ann@acme") == 5
    assert [entry["event"] for entry in logs] == ["rate_limits_off"] * 2
    assert "ratelimit" not in (await world.ask("ann@acme")).headers
    await cache.close()


def test_the_limits_leave_room_for_who_works_hard() -> None:
    usual = LimitSettings()
    assert usual.read_per_s * usual.user_share >= 400
    assert usual.order_burst * usual.user_share >= 500
