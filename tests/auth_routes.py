"""What each kind of caller is answered by the routes of auth, for walks over every route."""

from typing import Any

from callers import Callers, Expectation, every
from dflare.kit.ids import new_id
from dflare.services.auth.contract import Role
from dflare.services.auth.service import SYSTEM, AuthService, NewUser


def fresh(prefix: str) -> str:
    """A name that nothing has yet."""
    return f"{prefix}-{new_id('x')[-10:]}"


READERS = ("organization_admin", "auditor", "operator")
ADMINS = ("organization_admin", "operator")
TENANTS = ("viewer", "member", "project_admin", "organization_admin")


def auth_expectations(service: AuthService, callers: Callers) -> dict[str, Expectation]:
    """Who gets what of every route of auth's API, on things of the first organization."""
    home, project = callers.organization, callers.project

    async def organization() -> dict[str, str]:
        made = await service.create_organization(SYSTEM, fresh("org"))
        return {"organization": made.id}

    async def new_project() -> dict[str, str]:
        return {"project": (await service.create_project(SYSTEM, home.id, fresh("p"))).id}

    async def user() -> dict[str, str]:
        new = NewUser(fresh("u"), organization_id=home.id)
        return {"user": (await service.create_user(SYSTEM, new)).id}

    async def account() -> dict[str, str]:
        made = await service.create_service_account(SYSTEM, home.id, project.id, fresh("sa"))
        return {"account_id": made.id}

    async def binding() -> dict[str, str]:
        subject = (await user())["user"]
        made = await service.bind_role(SYSTEM, subject, Role.VIEWER, home.id, project.id)
        return {"binding_id": made.id}

    async def platform_role() -> dict[str, str]:
        made = await service.create_user(SYSTEM, NewUser(fresh("u")))
        return {"subject": made.id, "role": "auditor"}

    async def token() -> dict[str, str]:
        owner = callers.users["member"]
        return {"token_id": (await service.create_token(SYSTEM, owner, "t", 600))[0].id}

    ours = {"organization": home.id}
    ours_project = {"project": project.id}
    everyone = every("stranger", "other_admin", *TENANTS, "auditor", "operator")
    in_project = every("project_admin", *ADMINS)
    see_project = every(*TENANTS, "auditor", "operator")

    def named(**more: str) -> Any:
        return lambda: {"name": fresh("n"), **more}

    def denied(*who: str) -> dict[str, int]:
        return every(*who, status=403)

    return {
        "GET /v1/whoami": Expectation(everyone),
        "GET /v1/organizations": Expectation(everyone),
        "POST /v1/organizations": Expectation({"operator": 201}, 403, body=named()),
        "GET /v1/organizations/{organization}": Expectation(every(*READERS), path=ours),
        "PATCH /v1/organizations/{organization}": Expectation(
            every(*ADMINS) | denied("auditor"), path=ours, body={"display_name": "A"}
        ),
        "DELETE /v1/organizations/{organization}": Expectation(
            {"operator": 204} | denied("auditor"), path=organization
        ),
        "GET /v1/projects": Expectation(everyone),
        "POST /v1/projects": Expectation(
            every(*ADMINS, status=201) | denied("auditor"), body=named(organization=home.id)
        ),
        "GET /v1/projects/{project:path}": Expectation(see_project, path=ours_project),
        "PATCH /v1/projects/{project:path}": Expectation(
            in_project | denied("viewer", "member", "auditor"),
            path=ours_project,
            body={"display_name": "T"},
        ),
        "DELETE /v1/projects/{project:path}": Expectation(
            every(*ADMINS, status=204) | denied("auditor"), path=new_project
        ),
        "GET /v1/users": Expectation(everyone),
        "POST /v1/users": Expectation(
            every(*ADMINS, status=201) | denied("auditor"), body=named(organization=home.id)
        ),
        "GET /v1/users/{user}": Expectation(every(*READERS), path=user),
        "PATCH /v1/users/{user}": Expectation(
            every(*ADMINS) | denied("auditor"), path=user, body={"display_name": "U"}
        ),
        "PUT /v1/users/{user}/password": Expectation(
            every(*ADMINS, status=204) | denied("auditor"),
            path=user,
            body={"password": "correct horse battery"},
        ),
        "DELETE /v1/users/{user}": Expectation(
            every(*ADMINS, status=204) | denied("auditor"), path=user
        ),
        "GET /v1/service-accounts": Expectation(everyone),
        "POST /v1/service-accounts": Expectation(
            every("project_admin", *ADMINS, status=201) | denied("auditor"),
            body=named(project=project.id),
        ),
        "GET /v1/service-accounts/{account_id}": Expectation(
            every("project_admin", *READERS), path=account
        ),
        "PATCH /v1/service-accounts/{account_id}": Expectation(
            in_project | denied("auditor"), path=account, body={"disabled": True}
        ),
        "DELETE /v1/service-accounts/{account_id}": Expectation(
            every("project_admin", *ADMINS, status=204) | denied("auditor"), path=account
        ),
        "POST /v1/service-accounts/{account_id}/tokens": Expectation(
            every("project_admin", *ADMINS, status=201) | denied("auditor"),
            path=account,
            body={"name": "t"},
        ),
        "GET /v1/role-bindings": Expectation(everyone),
        "POST /v1/role-bindings": Expectation(
            {"operator": 201},
            403,
            body=platform_role,
        ),
        "GET /v1/role-bindings/{binding_id}": Expectation(
            every("project_admin", *READERS), path=binding
        ),
        "DELETE /v1/role-bindings/{binding_id}": Expectation(
            every("project_admin", *ADMINS, status=204) | denied("auditor"), path=binding
        ),
        "GET /v1/tokens": Expectation(everyone),
        "POST /v1/tokens": Expectation({}, 201, body={"name": "t"}),
        "GET /v1/tokens/{token_id}": Expectation(every("member", *READERS), path=token),
        "DELETE /v1/tokens/{token_id}": Expectation(
            every("member", *ADMINS, status=204) | denied("auditor"), path=token
        ),
        "GET /v1/audit": Expectation(everyone),
    } | _issuer_routes()


def _issuer_routes() -> dict[str, Expectation]:
    """The issuer's own routes are public; what they refuse, they refuse themselves."""
    found = Expectation({}, 200, public=True)
    refused = Expectation({}, 400, public=True)
    forbidden = Expectation({}, 403, public=True)
    return {
        "GET /.well-known/openid-configuration": found,
        "GET /.well-known/oauth-authorization-server": found,
        "GET /oauth/jwks": found,
        "GET /oauth/authorize": refused,
        "POST /oauth/authorize": refused,
        "POST /oauth/token": refused,
        "POST /oauth/device": Expectation({}, 401, public=True),
        "POST /oauth/revoke": Expectation({}, 401, public=True),
        "GET /oauth/userinfo": Expectation({}, 401, public=True),
        "POST /oauth/userinfo": Expectation({}, 401, public=True),
        "GET /device": found,
        "POST /device": forbidden,
    }
