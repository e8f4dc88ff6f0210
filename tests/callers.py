"""Every kind of caller with a valid (or no longer valid) token, and a walk over every route.

`make_callers` makes them through the auth service, in two organizations. `walk_routes` calls each
route of an app as each of them; a route that has no entry in the table is a fault, so nobody
forgets one.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import text

from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.services.auth.contract import Role, Scope
from dflare.services.auth.domain import new_secret
from dflare.services.auth.service import SYSTEM, AuthService, NewUser
from dflare.services.auth.tables import ApiToken, Organization, Project, User

OUTSIDE = ("anonymous", "forged", "expired", "revoked", "disabled")
"""Callers that get 401 everywhere but on public routes."""

INSIDE = (
    "stranger",
    "other_admin",
    "viewer",
    "member",
    "project_admin",
    "organization_admin",
    "auditor",
    "operator",
)
"""Callers that are known: `stranger` has no role at all, `other_admin` administers another
organization."""

CALLERS = OUTSIDE + INSIDE


@dataclass(frozen=True)
class Callers:
    """Tokens by kind of caller (None: no header), and what they stand in."""

    tokens: Mapping[str, str | None]
    users: Mapping[str, User]
    organization: Organization
    project: Project
    other_organization: Organization
    other_project: Project

    def headers(self, caller: str) -> dict[str, str]:
        """The Authorization header of a caller."""
        token = self.tokens[caller]
        return {"Authorization": f"Bearer {token}"} if token else {}


async def make_callers(service: AuthService, database: Database) -> Callers:
    """Two organizations with a project each, and a user with a token for each kind of caller.
    Names are unique, so that it can be called again on the same database."""
    mark = new_id("x")[-8:]
    home = await service.create_organization(SYSTEM, f"acme-{mark}")
    other = await service.create_organization(SYSTEM, f"rival-{mark}")
    project = await service.create_project(SYSTEM, home.id, f"train-{mark}")
    other_project = await service.create_project(SYSTEM, other.id, f"train-{mark}")
    places: dict[str, tuple[str | None, Role | None, str | None, str | None]] = {
        "expired": (home.id, Role.ORGANIZATION_ADMIN, home.id, None),
        "revoked": (home.id, Role.ORGANIZATION_ADMIN, home.id, None),
        "disabled": (home.id, Role.ORGANIZATION_ADMIN, home.id, None),
        "stranger": (home.id, None, None, None),
        "other_admin": (other.id, Role.ORGANIZATION_ADMIN, other.id, None),
        "viewer": (home.id, Role.VIEWER, home.id, project.id),
        "member": (home.id, Role.MEMBER, home.id, project.id),
        "project_admin": (home.id, Role.PROJECT_ADMIN, home.id, project.id),
        "organization_admin": (home.id, Role.ORGANIZATION_ADMIN, home.id, None),
        "auditor": (None, Role.AUDITOR, None, None),
        "operator": (None, Role.OPERATOR, None, None),
    }
    tokens: dict[str, str | None] = {"anonymous": None, "forged": new_secret("dfl_")}
    users: dict[str, User] = {}
    for kind, (organization_id, role, *where) in places.items():
        name = f"{kind.replace('_', '-')}-{mark}"
        user = await service.create_user(SYSTEM, NewUser(name, organization_id=organization_id))
        if role is not None:
            await service.bind_role(SYSTEM, user.id, role, *where)
        token, tokens[kind] = await service.create_token(SYSTEM, user, "test", 3600)
        users[kind] = user
        await _spoil(service, database, kind, user, token.id)
    return Callers(tokens, users, home, project, other, other_project)


async def _spoil(
    service: AuthService, database: Database, kind: str, user: User, token_id: str
) -> None:
    scope = Scope.system("a test spoils a token")
    if kind == "expired":
        async with database.transaction("auth") as session:
            query = "UPDATE auth.api_token SET expires_at = created_at WHERE id = :id"
            await session.execute(text(query), {"id": token_id})
        await service.authorizer.refresh({"token": [token_id]})
    elif kind == "revoked":
        await service.delete(scope, SYSTEM, ApiToken, token_id)
    elif kind == "disabled":
        await service.update(scope, SYSTEM, User, user.id, None, disabled=True)


PathOf = Callable[[], Awaitable[Mapping[str, str]]]

Listener = Callable[[str, httpx.Response], Iterable[str]]
"""What is wrong with an answer, whatever its status, told who got it."""


@dataclass(frozen=True)
class Expectation:
    """What each known caller is answered.

    `answers` names the status of callers; those that it leaves out get `otherwise`. `path` makes
    the path's parameters anew for each call, so that a route that removes something always has
    something to remove; `body` is sent as JSON, or made for each call by a function, which may be
    a coroutine function.
    """

    answers: Mapping[str, int]
    otherwise: int = 404
    path: Mapping[str, str] | PathOf = field(default_factory=dict[str, str])
    body: Any | Callable[[], Any] = None
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    public: bool = False


def every(*callers: str, status: int = 200) -> dict[str, int]:
    """The same status for several callers."""
    return dict.fromkeys(callers, status)


UNCALLED = ("WEBSOCKET", "MOUNT")
"""What the walk demands an entry for but cannot call: its promise is tested elsewhere."""


def routes_of(app: FastAPI) -> list[str]:
    """Every route of the app as `METHOD /path`, with those of all included routers."""
    found: set[str] = set()
    for route in iter_route_contexts(app.routes):
        kind = type(route.original_route).__name__.upper()
        methods: set[str] = route.methods or set()
        names = methods - {"HEAD"} or {next((k for k in UNCALLED if k in kind), "UNKNOWN")}
        found |= {f"{name} {route.path}" for name in names}
    return sorted(found)


async def walk_routes(
    app: FastAPI,
    client: httpx.AsyncClient,
    callers: Callers,
    expectations: Mapping[str, Expectation],
    listener: Listener | None = None,
) -> list[str]:
    """Call every route as every caller. Returns the faults: routes without an entry, entries
    without a route, answers that were not expected, and what ``listener`` finds in any answer."""
    present = set(routes_of(app))
    faults = [f"{route}: no entry" for route in sorted(present - expectations.keys())]
    faults += [f"{route}: no such route" for route in sorted(expectations.keys() - present)]
    for route, expected in expectations.items():
        if route not in present or route.startswith(UNCALLED):
            continue
        for caller in CALLERS:
            wanted = expected.answers.get(caller, expected.otherwise)
            if caller in OUTSIDE and not expected.public:
                wanted = 401
            given = await _call(client, route, expected, callers.headers(caller))
            if given.status_code != wanted:
                said = given.text[:200]
                faults.append(f"{route} as {caller}: {given.status_code}, not {wanted}: {said}")
            heard = listener(caller, given) if listener is not None else ()
            faults += [f"{route} as {caller}: {what}" for what in heard]
    return faults


async def _call(
    client: httpx.AsyncClient, route: str, expected: Expectation, headers: Mapping[str, str]
) -> httpx.Response:
    method, path = route.split(" ", 1)
    values = await expected.path() if callable(expected.path) else expected.path
    for name, value in values.items():
        path = path.replace(f"{{{name}:path}}", value).replace(f"{{{name}}}", value)
    body = expected.body() if callable(expected.body) else expected.body
    if isawaitable(body):
        body = await body
    return await client.request(
        method,
        path,
        json=body,
        params=dict(expected.query),
        headers={**expected.headers, **headers},
    )
