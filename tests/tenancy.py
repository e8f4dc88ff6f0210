"""A small tenancy for tests of one service: callers with roles, and nodes to order.

Decisions are the shipped Cedar policies'; plans are the real sagas. What is left out is the
storage behind both: callers and nodes are held in memory.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

import httpx
from fastapi import APIRouter, FastAPI, Request

from dflare.apps.migrate import locations
from dflare.embedded.postgres import run_sql
from dflare.kit import problem
from dflare.kit.errors import ForbiddenError, NotFoundError, UnauthenticatedError
from dflare.kit.migrations import upgrade_all
from dflare.kit.plan import Plan
from dflare.services.auth.contract import (
    Principal,
    ProjectRef,
    Resource,
    Role,
    RoleBinding,
    Scope,
)
from dflare.services.auth.policy import decide
from dflare.services.orchestrator.contract import Placed, Reservation, Wishes
from dflare.services.orchestrator.errors import CapacityError
from dflare.services.orchestrator.sagas import SAGAS
from stores import fresh_database

NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)

RED = ProjectRef("proj_red", "training", "org_red", "red")
BLUE = ProjectRef("proj_blue", "training", "org_blue", "blue")


def _principal(subject: str, *bindings: RoleBinding) -> Principal:
    return Principal(subject=subject, kind="user", name=subject, bindings=bindings)


OPERATOR = _principal("user_operator", RoleBinding(Role.OPERATOR))
MEMBER = _principal("user_red", RoleBinding(Role.MEMBER, project_id=RED.id))
VIEWER = _principal("user_viewer", RoleBinding(Role.VIEWER, project_id=RED.id))
STRANGER = _principal("user_blue", RoleBinding(Role.MEMBER, project_id=BLUE.id))


@dataclass
class Tenancy:
    """An ``Authorizer``. The token of a caller is its subject."""

    callers: dict[str, Principal] = field(
        default_factory=lambda: {
            caller.subject: caller for caller in (OPERATOR, MEMBER, VIEWER, STRANGER)
        }
    )
    projects: tuple[ProjectRef, ...] = (RED, BLUE)

    async def authenticate(self, token: str) -> Principal:
        if token not in self.callers:
            raise UnauthenticatedError("the token has expired", next_step="Run `dflare login`.")
        return self.callers[token]

    def scope(self, principal: Principal) -> Scope:
        bindings = principal.bindings
        if any(b.role in {Role.OPERATOR, Role.AUDITOR} for b in bindings):
            return Scope(everything=True)
        return Scope(
            organization_ids=frozenset(b.organization_id for b in bindings if b.organization_id),
            project_ids=frozenset(b.project_id for b in bindings if b.project_id),
        )

    def project(self, scope: Scope, reference: str) -> ProjectRef:
        for one in self.projects:
            names = {one.id, f"{one.organization_name}/{one.name}"}
            if reference in names and scope.covers(one.organization_id, one.id):
                return one
        raise NotFoundError(f"there is no project {reference}")

    async def check(self, principal: Principal, action: str, resource: Resource) -> None:
        if decide(principal, action, [resource]) == [True]:
            return
        if self.scope(principal).covers(resource.organization_id, resource.project_id):
            raise ForbiddenError(f"{principal.name} may not {action}")
        raise NotFoundError(f"there is no {resource.kind} {resource.id}")

    async def readable(
        self, principal: Principal, action: str, resources: Sequence[Resource]
    ) -> list[bool]:
        return decide(principal, action, resources)


@dataclass
class Rack:
    """An ``Orchestrator`` over a few nodes of one type, counted in memory."""

    free: list[str] = field(default_factory=lambda: [f"node_{n:02}" for n in range(8)])
    held: dict[str, Reservation] = field(default_factory=dict[str, Reservation])
    clusters: dict[str, str] = field(default_factory=dict[str, str])

    async def reserve(self, operation_id: str, wishes: Wishes) -> Reservation:
        if operation_id not in self.held:
            self.held[operation_id] = await self.preview(wishes)
            self.clusters[wishes.cluster_id] = operation_id
            del self.free[: len(self.held[operation_id].placed)]
        return self.held[operation_id]

    async def release_hold(self, operation_id: str) -> None:
        refused = self.held.pop(operation_id, None)
        self.free += [placed.node_id for placed in refused.placed] if refused else []

    async def preview(self, wishes: Wishes) -> Reservation:
        wanted = sum(pool.count for pool in wishes.pools)
        if wanted > len(self.free):
            raise CapacityError(
                f"{wanted} nodes are wanted, {len(self.free)} are free",
                next_step="Order fewer.",
                missing=wanted - len(self.free),
            )
        names = iter(self.free)
        placed = tuple(
            Placed(f"alloc_{(name := next(names))}", name, name, pool.pool, 1)
            for pool in wishes.pools
            for _ in range(pool.count)
        )
        return Reservation(
            placed, self.plan("create_cluster"), "one rack", NOW + timedelta(seconds=wishes.ttl_s)
        )

    def plan(self, saga: str) -> Plan:
        return SAGAS[saga]

    async def nodes_of(self, cluster_id: str) -> Sequence[Placed]:
        return self.held[self.clusters[cluster_id]].placed


def application(
    tenancy: Tenancy, routes: Callable[[Callable[..., Awaitable[Principal]]], APIRouter]
) -> FastAPI:
    """Routes under ``/v1`` with the platform's problem documents."""
    app = FastAPI()
    problem.install(app)

    async def principal(request: Request) -> Principal:
        _, _, token = request.headers.get("authorization", "").partition(" ")
        return await tenancy.authenticate(token)

    app.include_router(routes(principal), prefix="/v1")
    return app


def client(app: FastAPI, caller: Principal) -> httpx.AsyncClient:
    """A client of ``app`` that calls as ``caller``; close it."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://test/v1",
        headers={"Authorization": f"Bearer {caller.subject}"},
    )


async def migrate(url: str, *schemas: str) -> None:
    """Make ``schemas`` and the feed's."""
    every = locations()
    await upgrade_all(url, {name: every[name] for name in ("feed", *schemas)})


_migrated: dict[tuple[str, ...], str] = {}


async def migrated_database(postgres_url: str, *schemas: str) -> str:
    """The URL of a new database with ``schemas`` and the feed's; only the first one is migrated,
    the others are copies."""
    template = _migrated.get((postgres_url, *schemas))
    if template is None:
        template = _migrated[postgres_url, *schemas] = fresh_database(postgres_url, "template")
        await migrate(template, *schemas)
    name = f"test_{secrets.token_hex(6)}"
    parts = urlsplit(template)
    run_sql(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{parts.path[1:]}"')
    return urlunsplit(parts._replace(path=f"/{name}"))
