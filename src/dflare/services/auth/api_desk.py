"""What auth's routes have in common: the caller, loading and deciding, pages, entity tags."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement

from dflare.kit.errors import UnauthenticatedError
from dflare.kit.etag import etag_of
from dflare.kit.pagination import Page, decode_cursor, encode_cursor
from dflare.services.auth import repository as rows
from dflare.services.auth.contract import Authorizer, Principal, Resource
from dflare.services.auth.service import AuthService
from dflare.services.auth.tables import ApiToken, Identified, User

PrincipalOf = Callable[..., Awaitable[Principal]]
Row_T = TypeVar("Row_T", bound=Identified)
Model_T = TypeVar("Model_T", bound="Document")

NameText = Field(min_length=2, max_length=63, examples=["research"])


class Body(BaseModel):
    """Base of request bodies: members that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid")


class Document(BaseModel):
    """What every identity shows."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    version: int
    created_at: datetime


def bearer(authorizer: Authorizer) -> Callable[[Request], Awaitable[Principal]]:
    """The dependency that turns ``Authorization: Bearer …`` into the caller, for all routers."""

    async def principal(request: Request) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError(
                "no bearer token came with the request", next_step="Log in with `dflare login`."
            )
        return await authorizer.authenticate(token.strip())

    return principal


def resource_of(row: Identified) -> Resource:
    """A row as the object of a decision."""
    organization_id, project_id = rows.owners(row)
    owner = row.subject_id if isinstance(row, ApiToken) else row.id
    owned = isinstance(row, ApiToken | User)
    attributes: dict[str, Any] = {"owner": owner} if owned else {}
    kind = rows.KIND_OF[type(row)]
    return Resource(kind, row.id, organization_id, project_id, attributes)


@dataclass(frozen=True)
class Desk:
    """What the routes have in common."""

    service: AuthService
    authorizer: Authorizer

    async def load(self, caller: Principal, model: type[Row_T], row_id: str, verb: str) -> Row_T:
        """A row that the caller may do ``verb`` to."""
        scope = self.authorizer.scope(caller)
        row = await self.service.get(scope, model, row_id, own=caller.subject)
        await self.check(caller, verb, row)
        return row

    async def check(self, caller: Principal, verb: str, row: Identified) -> None:
        """Decide about a row that was loaded within the caller's scope."""
        resource = resource_of(row)
        await self.authorizer.check(caller, f"{resource.kind}:{verb}", resource)

    async def page(
        self,
        caller: Principal,
        model: type[Row_T],
        document: type[Model_T],
        cursor: str | None,
        limit: int,
        *conditions: ColumnElement[bool],
    ) -> Page[Model_T]:
        """A page of what the caller may list."""
        found: Sequence[Row_T] = await self.service.find(
            self.authorizer.scope(caller),
            model,
            *conditions,
            own=caller.subject,
            after=decode_cursor(cursor),
            limit=limit,
        )
        resources = [resource_of(row) for row in found]
        action = f"{rows.KIND_OF[model]}:list"
        allowed = await self.authorizer.readable(caller, action, resources)
        items = [
            document.model_validate(row) for row, may in zip(found, allowed, strict=True) if may
        ]
        more = len(found) == limit
        return Page(items=items, next_cursor=encode_cursor(found[-1].id) if more else None)


def tagged(response: Response, document: type[Model_T], row: Identified) -> Model_T:
    """A row as a document, with its entity tag on the response."""
    response.headers["ETag"] = etag_of(row.version)
    return document.model_validate(row)
