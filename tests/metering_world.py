"""The metering service over a database of its own, fed by events that a test makes."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from sqlalchemy import select

from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry, Projection
from dflare.services.auth.contract import Principal
from dflare.services.metering import api
from dflare.services.metering.service import MeteringService
from stores import drop_database
from tenancy import (
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    STRANGER,
    VIEWER,
    Tenancy,
    application,
    client,
    migrated_database,
)

PROJECT = f"/projects/{RED.id}"


@dataclass
class Meter:
    """The metering API, its read models, and a clock at noon of 15 November 2026."""

    database: Database
    clock: ManualClock
    clients: dict[str, httpx.AsyncClient]

    async def fold(self, projection: Projection, *entries: FeedEntry) -> None:
        async with self.database.transaction("metering") as session:
            await projection.apply(session, entries)

    async def rows(self, table: Any) -> list[Any]:
        async with self.database.transaction("metering") as session:
            return list((await session.scalars(select(table))).all())

    async def get(self, path: str, caller: Principal = MEMBER, **params: Any) -> Any:
        response = await self.clients[caller.subject].get(PROJECT + path, params=params)
        assert response.status_code == 200, response.text
        return response.json()


@asynccontextmanager
async def metering_world(postgres_url: str) -> AsyncIterator[Meter]:
    url = await migrated_database(postgres_url, "metering")
    database = Database(url, application="test-metering")
    tenancy, clock = Tenancy(), ManualClock(NOW)
    service = MeteringService(database=database, clock=clock, authorizer=tenancy)
    app = application(tenancy, lambda principal: api.router(service, tenancy, principal))
    async with AsyncExitStack() as stack:
        clients = {
            caller.subject: await stack.enter_async_context(client(app, caller))
            for caller in (OPERATOR, MEMBER, VIEWER, STRANGER)
        }
        yield Meter(database, clock, clients)
    await database.dispose()
    drop_database(url)


def event(kind: str, data: dict[str, Any], version: int, at: datetime = NOW) -> FeedEntry:
    return FeedEntry(1, "source", "evt", kind, None, None, None, "x", "x", version, None, at, data)
