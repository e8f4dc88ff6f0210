"""A small platform of auth alone, in the test's process: a real database, the service, the app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from fastapi import FastAPI

from dflare.apps.migrate import locations
from dflare.kit import problem
from dflare.kit.clock import Clock, SystemClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedSignal, advance, copy_events
from dflare.kit.migrations import upgrade_all
from dflare.kit.seal import Sealer
from dflare.services.auth import api, api_oidc
from dflare.services.auth.domain import SnapshotAuthorizer
from dflare.services.auth.reconciler import AuthReconciler
from dflare.services.auth.repository import projections
from dflare.services.auth.service import AuthService
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import KIT

ISSUER = "http://127.0.0.1:8080"
SEALER = Sealer(b"k" * 32)


@dataclass(frozen=True)
class AuthPlatform:
    """What a test of auth needs."""

    database: Database
    service: AuthService
    app: FastAPI
    client: httpx.AsyncClient
    clock: Clock

    @property
    def authorizer(self) -> SnapshotAuthorizer:
        """The authorizer of this process."""
        return self.service.authorizer

    def another_process(self) -> tuple[AuthService, AuthReconciler]:
        """A second gateway's service on the same database, which learns by events alone."""
        service = AuthService.assemble(
            self.database, SEALER, self.clock, self.service.settings, issuer=ISSUER
        )
        return service, self.reconciler(service)

    def reconciler(self, service: AuthService) -> AuthReconciler:
        """The reconciler of a gateway."""
        return AuthReconciler(
            self.database,
            FeedSignal(self.database.url),
            service.authorizer,
            service.keys,
            service.settings,
            self.clock,
        )

    async def relay(self) -> None:
        """What the relay and the worker do: number all events, fold them into read models."""
        while await copy_events(self.database, KIT):
            pass
        for projection in projections():
            while await advance(self.database, projection):
                pass


@asynccontextmanager
async def auth_platform(
    database_url: str, *, clock: Clock | None = None, settings: AuthSettings | None = None
) -> AsyncIterator[AuthPlatform]:
    """Migrate the database and run auth on it."""
    places = locations()
    await upgrade_all(database_url, {name: places[name] for name in ("feed", "auth")})
    clock = clock or SystemClock()
    database = Database(database_url, application="test-auth")
    service = AuthService.assemble(
        database, SEALER, clock, settings or AuthSettings(), issuer=ISSUER
    )
    await service.keys.ensure()
    await service.authorizer.refresh()
    app = FastAPI(openapi_url=None)
    problem.install(app)
    principal = api.bearer(service.authorizer)
    app.include_router(api.router(service, service.authorizer, principal), prefix="/v1")
    app.include_router(api_oidc.router(service, database, SEALER, clock, issuer=ISSUER))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=ISSUER) as client:
        yield AuthPlatform(database, service, app, client, clock)
    await database.dispose()
