"""Bodies that are too large are refused, whether or not their length is announced."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from dflare.apps.body_limit import BodyLimit
from dflare.kit import problem


class Wish(BaseModel):
    name: str


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    problem.install(app)
    app.add_middleware(BodyLimit, limit_bytes=1000, streamed="/stream")

    @app.post("/")
    async def order(wish: Wish) -> str:
        return wish.name

    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(
        transport=transport, base_url="http://x", headers={"content-type": "application/json"}
    )


async def pieces(count: int) -> AsyncIterator[bytes]:
    yield b'{"name": "'
    for _ in range(count):
        yield b"x" * 100
    yield b'"}'


async def test_a_body_of_the_limit_is_taken(client: httpx.AsyncClient) -> None:
    body = b'{"name":"' + b"x" * (1000 - 11) + b'"}'
    assert len(body) == 1000
    assert (await client.post("/", content=body)).status_code == 200
    assert (await client.post("/", content=pieces(9))).json() == "x" * 900


async def test_a_larger_body_is_refused_by_its_announced_length(
    client: httpx.AsyncClient,
) -> None:
    refused = await client.post("/", content=b"x" * 1001)
    assert refused.status_code == 413
    assert refused.json()["type"].endswith("/body-too-large")
    assert "1000 are allowed" in refused.json()["detail"]


async def test_a_body_that_announces_nothing_is_refused_where_it_passes_the_limit(
    client: httpx.AsyncClient,
) -> None:
    refused = await client.post("/", content=pieces(20))
    assert refused.status_code == 413
    assert refused.json()["type"].endswith("/body-too-large")
