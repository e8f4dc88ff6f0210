"""Routes of access: service accounts, role bindings, API tokens, the audit log."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from dflare.kit.errors import InvalidError
from dflare.kit.pagination import Cursor, Limit, Page, decode_cursor, encode_cursor
from dflare.services.auth.api_desk import Body, Desk, Document, NameText, PrincipalOf, tagged
from dflare.services.auth.contract import Principal, Resource, Role
from dflare.services.auth.tables import ApiToken, AuditEntry, RoleGrant, ServiceAccount

_DEFAULT_LIFE_S = 30 * 86_400


class ServiceAccountDocument(Document):
    """A program's identity."""

    organization_id: str
    project_id: str | None
    name: str
    disabled: bool


class RoleBindingDocument(Document):
    """A subject's role within the platform, an organization or a project."""

    subject_id: str
    role: Role
    organization_id: str | None
    project_id: str | None


class TokenDocument(Document):
    """An API token without its secret."""

    subject_id: str
    name: str
    hint: str
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class IssuedToken(TokenDocument):
    """A new API token; ``secret`` is shown this once."""

    secret: str


class AuditDocument(BaseModel):
    """Who did, or tried, what."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    service: str
    at: datetime
    principal: str
    action: str
    decision: str
    organization_id: str | None
    project_id: str | None
    resource_kind: str
    resource_id: str
    operation_id: str | None
    detail: dict[str, Any]


class NewServiceAccountBody(Body):
    """A service account to make, of an organization or of a project (ids or names)."""

    name: str = NameText
    organization: str | None = None
    project: str | None = None


class ServiceAccountChangeBody(Body):
    """Switch a service account off or on."""

    disabled: bool


class NewRoleBindingBody(Body):
    """A role for a user (id or name) or service account (id): in a project, in an organization,
    or, with neither, on the platform."""

    subject: str
    role: Role
    organization: str | None = None
    project: str | None = None


class NewTokenBody(Body):
    """A token to make; it lives ``expires_in_s`` seconds."""

    name: str = Field(min_length=1, max_length=100)
    expires_in_s: int = Field(default=_DEFAULT_LIFE_S, ge=60)


def add_access(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    """Add these routes to those of ``api.router``."""
    _add_service_accounts(routes, desk, principal)
    _add_role_bindings(routes, desk, principal)
    _add_tokens(routes, desk, principal)
    _add_audit(routes, desk, principal)


async def _area(
    desk: Desk, caller: Principal, organization: str | None, project: str | None
) -> tuple[str | None, str | None]:
    """The ids of the organization and project that a body names, within the caller's scope."""
    scope = desk.authorizer.scope(caller)
    if project is not None:
        reference = f"{organization}/{project}" if organization else project
        found = desk.authorizer.project(scope, reference)
        return found.organization_id, found.id
    if organization is not None:
        return (await desk.service.organization(scope, organization)).id, None
    return None, None


def _issued(response: Response, row: ApiToken, secret: str) -> IssuedToken:
    document = tagged(response, TokenDocument, row)
    response.headers["Cache-Control"] = "no-store"
    return IssuedToken(**document.model_dump(), secret=secret)


def _add_service_accounts(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    service, authorizer = desk.service, desk.authorizer

    @routes.get("/service-accounts")
    async def list_service_accounts(
        limit: Limit = 100, cursor: Cursor = None, caller: Principal = Depends(principal)
    ) -> Page[ServiceAccountDocument]:
        return await desk.page(caller, ServiceAccount, ServiceAccountDocument, cursor, limit)

    @routes.post("/service-accounts", status_code=201)
    async def create_service_account(
        body: NewServiceAccountBody, response: Response, caller: Principal = Depends(principal)
    ) -> ServiceAccountDocument:
        owner, project = await _area(desk, caller, body.organization, body.project)
        resource = Resource("service_account", "", owner, project)
        await authorizer.check(caller, "service_account:create", resource)
        if owner is None:
            raise InvalidError(
                "a service account belongs to an organization or project", next_step="Say which."
            )
        row = await service.create_service_account(caller, owner, project, body.name)
        return tagged(response, ServiceAccountDocument, row)

    @routes.get("/service-accounts/{account_id}")
    async def show_service_account(
        account_id: str, response: Response, caller: Principal = Depends(principal)
    ) -> ServiceAccountDocument:
        row = await desk.load(caller, ServiceAccount, account_id, "read")
        return tagged(response, ServiceAccountDocument, row)

    @routes.patch("/service-accounts/{account_id}")
    async def update_service_account(
        account_id: str,
        body: ServiceAccountChangeBody,
        response: Response,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> ServiceAccountDocument:
        await desk.load(caller, ServiceAccount, account_id, "update")
        row = await service.update(
            authorizer.scope(caller),
            caller,
            ServiceAccount,
            account_id,
            if_match,
            disabled=body.disabled,
        )
        return tagged(response, ServiceAccountDocument, row)

    @routes.delete("/service-accounts/{account_id}", status_code=204)
    async def delete_service_account(
        account_id: str,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> None:
        await desk.load(caller, ServiceAccount, account_id, "delete")
        scope = authorizer.scope(caller)
        await service.delete(scope, caller, ServiceAccount, account_id, if_match)

    @routes.post("/service-accounts/{account_id}/tokens", status_code=201)
    async def issue_token(
        account_id: str,
        body: NewTokenBody,
        response: Response,
        caller: Principal = Depends(principal),
    ) -> IssuedToken:
        account = await desk.load(caller, ServiceAccount, account_id, "issue_token")
        row, secret = await service.create_token(caller, account, body.name, body.expires_in_s)
        return _issued(response, row, secret)


def _add_role_bindings(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    service, authorizer = desk.service, desk.authorizer

    @routes.get("/role-bindings")
    async def list_role_bindings(
        subject: str | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
        caller: Principal = Depends(principal),
    ) -> Page[RoleBindingDocument]:
        conditions = [RoleGrant.subject_id == subject] if subject else []
        return await desk.page(caller, RoleGrant, RoleBindingDocument, cursor, limit, *conditions)

    @routes.post("/role-bindings", status_code=201)
    async def create_role_binding(
        body: NewRoleBindingBody, response: Response, caller: Principal = Depends(principal)
    ) -> RoleBindingDocument:
        owner, project = await _area(desk, caller, body.organization, body.project)
        resource = Resource("role_binding", "", owner, project)
        await authorizer.check(caller, "role_binding:create", resource)
        row = await service.bind_role(caller, body.subject, body.role, owner, project)
        return tagged(response, RoleBindingDocument, row)

    @routes.get("/role-bindings/{binding_id}")
    async def show_role_binding(
        binding_id: str, response: Response, caller: Principal = Depends(principal)
    ) -> RoleBindingDocument:
        row = await desk.load(caller, RoleGrant, binding_id, "read")
        return tagged(response, RoleBindingDocument, row)

    @routes.delete("/role-bindings/{binding_id}", status_code=204)
    async def delete_role_binding(
        binding_id: str,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> None:
        await desk.load(caller, RoleGrant, binding_id, "delete")
        await service.delete(authorizer.scope(caller), caller, RoleGrant, binding_id, if_match)


def _add_tokens(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    service, authorizer = desk.service, desk.authorizer

    @routes.get("/tokens")
    async def list_tokens(
        limit: Limit = 100, cursor: Cursor = None, caller: Principal = Depends(principal)
    ) -> Page[TokenDocument]:
        return await desk.page(caller, ApiToken, TokenDocument, cursor, limit)

    @routes.post("/tokens", status_code=201)
    async def create_token(
        body: NewTokenBody, response: Response, caller: Principal = Depends(principal)
    ) -> IssuedToken:
        own = Resource("token", "", attributes={"owner": caller.subject})
        await authorizer.check(caller, "token:create", own)
        scope = authorizer.scope(caller)
        subject = await service.subject(scope, caller.subject, own=caller.subject)
        row, secret = await service.create_token(caller, subject, body.name, body.expires_in_s)
        return _issued(response, row, secret)

    @routes.get("/tokens/{token_id}")
    async def show_token(
        token_id: str, response: Response, caller: Principal = Depends(principal)
    ) -> TokenDocument:
        return tagged(response, TokenDocument, await desk.load(caller, ApiToken, token_id, "read"))

    @routes.delete("/tokens/{token_id}", status_code=204)
    async def revoke_token(
        token_id: str,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> None:
        await desk.load(caller, ApiToken, token_id, "delete")
        scope = authorizer.scope(caller)
        await service.delete(scope, caller, ApiToken, token_id, if_match, own=caller.subject)


def _add_audit(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    @routes.get("/audit")
    async def list_audit(
        resource_id: str | None = None,
        decision: str | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
        caller: Principal = Depends(principal),
    ) -> Page[AuditDocument]:
        """The newest entries first, of all services."""
        conditions = [AuditEntry.resource_id == resource_id] if resource_id else []
        if decision is not None:
            conditions.append(AuditEntry.decision == decision)
        scope, before = desk.authorizer.scope(caller), decode_cursor(cursor)
        found = await desk.service.audit(scope, *conditions, before=before, limit=limit)
        resources = [
            Resource("audit", entry.id, entry.organization_id, entry.project_id) for entry in found
        ]
        allowed = await desk.authorizer.readable(caller, "audit:list", resources)
        items = [
            AuditDocument.model_validate(entry)
            for entry, may in zip(found, allowed, strict=True)
            if may
        ]
        more = len(found) == limit
        return Page(items=items, next_cursor=encode_cursor(found[-1].id) if more else None)
