"""Promises of problem documents."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dflare.kit import problem
from dflare.kit.db import StoreUnavailableError
from dflare.kit.errors import ConflictError, UnauthenticatedError


class Order(BaseModel):
    name: str
    count: int = Field(ge=1)


class DriverError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"state {sqlstate}")
        self.sqlstate = sqlstate


FAILURES: dict[str, Exception] = {
    "conflict": ConflictError("it is busy", next_step="Wait.", missing=3),
    "login": UnauthenticatedError("no token", next_step="Log in."),
    "pool": PoolTimeoutError(),
    "refused": ConnectionRefusedError("nobody listens"),
    "gone": StoreUnavailableError("the database is shutting down"),
    "shutdown": DBAPIError("SELECT", {}, DriverError("57P01")),
    "full": DBAPIError("INSERT", {}, DriverError("53100")),
    "character": DBAPIError("SELECT", {}, DriverError("22021")),
    "double": IntegrityError("INSERT", {}, DriverError("23505")),
    "bug": RuntimeError("secret: hunter2"),
}


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    problem.install(app)

    @app.get("/fail/{kind}")
    async def fail(kind: str) -> None:
        raise FAILURES[kind]

    @app.post("/orders")
    async def order(body: Order) -> Order:
        return body

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def members(response: httpx.Response) -> dict[str, object]:
    assert response.headers["content-type"] == problem.MEDIA_TYPE
    document = response.json()
    assert document["status"] == response.status_code
    assert document["type"].startswith("https://")
    for name in ("title", "detail", "next_step"):
        assert document[name], f"{name} is empty"
    return document


async def test_an_expected_error_says_what_and_what_next_with_its_facts(
    api: httpx.AsyncClient,
) -> None:
    response = await api.get("/fail/conflict")
    document = members(response)
    assert response.status_code == 409
    assert (document["detail"], document["next_step"]) == ("it is busy", "Wait.")
    assert (document["missing"], document["retryable"]) == (3, False)


async def test_a_missing_login_names_the_scheme(api: httpx.AsyncClient) -> None:
    response = await api.get("/fail/login")
    members(response)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("kind", ["pool", "refused", "gone", "shutdown", "full"])
async def test_a_store_that_is_down_is_503_and_may_be_tried_again(
    api: httpx.AsyncClient, kind: str
) -> None:
    response = await api.get(f"/fail/{kind}")
    assert members(response)["retryable"] is True
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


async def test_a_value_that_no_column_holds_is_the_callers_fault(api: httpx.AsyncClient) -> None:
    response = await api.get("/fail/character")
    members(response)
    assert response.status_code == 422


@pytest.mark.parametrize("kind", ["bug", "double"])
async def test_an_unforeseen_error_is_a_problem_that_tells_no_secrets(
    api: httpx.AsyncClient, kind: str
) -> None:
    response = await api.get(f"/fail/{kind}")
    document = members(response)
    assert (response.status_code, document["retryable"]) == (500, False)
    assert "hunter2" not in response.text
    assert "23505" not in response.text


async def test_every_field_at_fault_is_named(api: httpx.AsyncClient) -> None:
    response = await api.post("/orders", json={"count": 0})
    document = members(response)
    assert response.status_code == 422
    assert {fault["where"] for fault in document["errors"]} == {"body.name", "body.count"}  # type: ignore[union-attr]


async def test_a_path_and_a_method_that_are_not_there_are_problems_too(
    api: httpx.AsyncClient,
) -> None:
    assert members(await api.get("/nothing"))["status"] == 404
    response = await api.delete("/orders")
    assert members(response)["status"] == 405
    assert response.headers["allow"] == "POST"
