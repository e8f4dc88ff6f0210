"""Routes of identities: who am I, organizations, projects, users; the rest is in ``api_access``.

Every route loads within the caller's scope (404), decides (403), and compares the entity tag, in
this order.
"""

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from dflare.kit.pagination import Cursor, Limit, Page
from dflare.services.auth import repository as rows
from dflare.services.auth.api_access import add_access
from dflare.services.auth.api_desk import (
    Body,
    Desk,
    Document,
    NameText,
    PrincipalOf,
    bearer,
    tagged,
)
from dflare.services.auth.contract import Authorizer, Principal, Resource, Role
from dflare.services.auth.service import AuthService, NewUser
from dflare.services.auth.tables import Organization, Project, User

__all__ = ["bearer", "router"]

DisplayName = Field(default="", max_length=200)


class OrganizationDocument(Document):
    """An organization."""

    name: str
    display_name: str


class ProjectDocument(Document):
    """A project of an organization."""

    organization_id: str
    name: str
    display_name: str


class UserDocument(Document):
    """A person; ``organization_id`` is null for people of the platform."""

    organization_id: str | None
    name: str
    email: str
    display_name: str
    disabled: bool


class BindingFacts(BaseModel):
    """A role and where it holds."""

    role: Role
    organization_id: str | None
    project_id: str | None


class WhoAmI(BaseModel):
    """The caller as the platform sees it, with the projects that it can name."""

    subject: str
    kind: str
    name: str
    bindings: list[BindingFacts]


class NewOrganizationBody(Body):
    """An organization to make."""

    name: str = NameText
    display_name: str = DisplayName


class NewProjectBody(Body):
    """A project to make; ``organization`` is an id or a name."""

    organization: str
    name: str = NameText
    display_name: str = DisplayName


class NewUserBody(Body):
    """A user to make; ``organization`` (id or name) is left out for people of the platform."""

    name: str = NameText
    organization: str | None = None
    email: str = Field(default="", max_length=320)
    display_name: str = DisplayName
    password: str | None = Field(default=None, min_length=12, max_length=256)


class RenameBody(Body):
    """What of an organization or project can change; members left out stay."""

    name: str | None = Field(default=None, min_length=2, max_length=63)
    display_name: str | None = Field(default=None, max_length=200)


class UserChangeBody(Body):
    """What of a user can change; members left out stay."""

    email: str | None = Field(default=None, max_length=320)
    display_name: str | None = Field(default=None, max_length=200)
    disabled: bool | None = None


class PasswordBody(Body):
    """A new password. It ends the user's logins."""

    password: str = Field(min_length=12, max_length=256)


def router(service: AuthService, authorizer: Authorizer, principal: PrincipalOf) -> APIRouter:
    """The routes of identities, for the gateway to mount at ``/v1``."""
    # ``api_access`` builds on this module's parts.

    desk = Desk(service, authorizer)
    routes = APIRouter(tags=["identity"])
    _add_whoami(routes, principal)
    _add_organizations(routes, desk, principal)
    _add_projects(routes, desk, principal)
    _add_users(routes, desk, principal)
    add_access(routes, desk, principal)
    return routes


def _add_whoami(routes: APIRouter, principal: PrincipalOf) -> None:
    @routes.get("/whoami")
    async def whoami(caller: Principal = Depends(principal)) -> WhoAmI:
        bindings = [BindingFacts(**vars(binding)) for binding in caller.bindings]
        return WhoAmI(subject=caller.subject, kind=caller.kind, name=caller.name, bindings=bindings)


def _add_organizations(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    service, authorizer = desk.service, desk.authorizer

    @routes.get("/organizations")
    async def list_organizations(
        limit: Limit = 100, cursor: Cursor = None, caller: Principal = Depends(principal)
    ) -> Page[OrganizationDocument]:
        return await desk.page(caller, Organization, OrganizationDocument, cursor, limit)

    @routes.post("/organizations", status_code=201)
    async def create_organization(
        body: NewOrganizationBody, response: Response, caller: Principal = Depends(principal)
    ) -> OrganizationDocument:
        await authorizer.check(caller, "organization:create", Resource("organization", ""))
        row = await service.create_organization(caller, body.name, body.display_name)
        return tagged(response, OrganizationDocument, row)

    @routes.get("/organizations/{organization}")
    async def show_organization(
        organization: str, response: Response, caller: Principal = Depends(principal)
    ) -> OrganizationDocument:
        row = await service.organization(authorizer.scope(caller), organization)
        await desk.check(caller, "read", row)
        return tagged(response, OrganizationDocument, row)

    @routes.patch("/organizations/{organization}")
    async def update_organization(
        organization: str,
        body: RenameBody,
        response: Response,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> OrganizationDocument:
        scope = authorizer.scope(caller)
        row = await service.organization(scope, organization)
        await desk.check(caller, "update", row)
        changes = body.model_dump(exclude_none=True)
        row = await service.update(scope, caller, Organization, row.id, if_match, **changes)
        return tagged(response, OrganizationDocument, row)

    @routes.delete("/organizations/{organization}", status_code=204)
    async def delete_organization(
        organization: str,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> None:
        scope = authorizer.scope(caller)
        row = await service.organization(scope, organization)
        await desk.check(caller, "delete", row)
        await service.delete(scope, caller, Organization, row.id, if_match)


def _add_projects(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    service, authorizer = desk.service, desk.authorizer

    @routes.get("/projects")
    async def list_projects(
        organization: str | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
        caller: Principal = Depends(principal),
    ) -> Page[ProjectDocument]:
        named = (Organization.id == organization) | (Organization.name == organization)
        owners = select(Organization.id).where(named)
        conditions = [Project.organization_id.in_(owners)] if organization else []
        return await desk.page(caller, Project, ProjectDocument, cursor, limit, *conditions)

    @routes.post("/projects", status_code=201)
    async def create_project(
        body: NewProjectBody, response: Response, caller: Principal = Depends(principal)
    ) -> ProjectDocument:
        owner = await service.organization(authorizer.scope(caller), body.organization)
        await authorizer.check(caller, "project:create", Resource("project", "", owner.id))
        row = await service.create_project(caller, owner.id, body.name, body.display_name)
        return tagged(response, ProjectDocument, row)

    @routes.get("/projects/{project:path}")
    async def show_project(
        project: str, response: Response, caller: Principal = Depends(principal)
    ) -> ProjectDocument:
        found = authorizer.project(authorizer.scope(caller), project)
        row = await desk.load(caller, Project, found.id, "read")
        return tagged(response, ProjectDocument, row)

    @routes.patch("/projects/{project:path}")
    async def update_project(
        project: str,
        body: RenameBody,
        response: Response,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> ProjectDocument:
        scope = authorizer.scope(caller)
        found = authorizer.project(scope, project)
        row = await desk.load(caller, Project, found.id, "update")
        changes = body.model_dump(exclude_none=True)
        row = await service.update(scope, caller, Project, row.id, if_match, **changes)
        return tagged(response, ProjectDocument, row)

    @routes.delete("/projects/{project:path}", status_code=204)
    async def delete_project(
        project: str,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> None:
        scope = authorizer.scope(caller)
        found = authorizer.project(scope, project)
        row = await desk.load(caller, Project, found.id, "delete")
        await service.delete(scope, caller, Project, row.id, if_match)


def _add_users(routes: APIRouter, desk: Desk, principal: PrincipalOf) -> None:
    service, authorizer = desk.service, desk.authorizer

    async def load(caller: Principal, reference: str, verb: str) -> User:
        scope = authorizer.scope(caller)
        row = await service.subject(scope, reference, own=caller.subject)
        if not isinstance(row, User):
            raise rows.not_found(User, reference)
        await desk.check(caller, verb, row)
        return row

    @routes.get("/users")
    async def list_users(
        limit: Limit = 100, cursor: Cursor = None, caller: Principal = Depends(principal)
    ) -> Page[UserDocument]:
        return await desk.page(caller, User, UserDocument, cursor, limit)

    @routes.post("/users", status_code=201)
    async def create_user(
        body: NewUserBody, response: Response, caller: Principal = Depends(principal)
    ) -> UserDocument:
        owner = None
        if body.organization is not None:
            scope = authorizer.scope(caller)
            owner = (await service.organization(scope, body.organization)).id
        await authorizer.check(caller, "user:create", Resource("user", "", owner))
        facts = body.model_dump(exclude={"organization"})
        row = await service.create_user(caller, NewUser(organization_id=owner, **facts))
        return tagged(response, UserDocument, row)

    @routes.get("/users/{user}")
    async def show_user(
        user: str, response: Response, caller: Principal = Depends(principal)
    ) -> UserDocument:
        return tagged(response, UserDocument, await load(caller, user, "read"))

    @routes.patch("/users/{user}")
    async def update_user(
        user: str,
        body: UserChangeBody,
        response: Response,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> UserDocument:
        row = await load(caller, user, "update")
        changes = body.model_dump(exclude_none=True)
        scope = authorizer.scope(caller)
        row = await service.update(scope, caller, User, row.id, if_match, **changes)
        return tagged(response, UserDocument, row)

    @routes.put("/users/{user}/password", status_code=204)
    async def set_password(
        user: str, body: PasswordBody, caller: Principal = Depends(principal)
    ) -> None:
        row = await load(caller, user, "set_password")
        await service.set_password(row.id, caller, body.password)

    @routes.delete("/users/{user}", status_code=204)
    async def delete_user(
        user: str,
        if_match: str | None = Header(default=None),
        caller: Principal = Depends(principal),
    ) -> None:
        row = await load(caller, user, "delete")
        await service.delete(authorizer.scope(caller), caller, User, row.id, if_match)
