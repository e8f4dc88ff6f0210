"""Organizations, projects, users, bindings and tokens over the API: who may, what is unique, what
is left when something is removed."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from auth_platform import ISSUER, SEALER, AuthPlatform, auth_platform
from auth_routes import auth_expectations, fresh
from callers import Callers, Expectation, make_callers, walk_routes
from dflare.apps.migrate import locations
from dflare.kit.migrations import differences
from dflare.kit.outbox import Event, emit
from dflare.services.auth.contract import Role, Scope
from dflare.services.auth.service import SYSTEM, AuthService, NewUser
from dflare.services.auth.tables import KIT, ApiToken, Base, RoleGrant
from oidc_browser import Pkce, authorization, log_in


@pytest.fixture(scope="module")
async def platform(database_url: str) -> AsyncIterator[AuthPlatform]:
    async with auth_platform(database_url) as running:
        yield running


@pytest.fixture(scope="module")
async def callers(platform: AuthPlatform) -> Callers:
    return await make_callers(platform.service, platform.database)


@pytest.mark.requirement("SEC04")
async def test_every_route_answers_every_kind_of_caller_as_the_table_says(
    platform: AuthPlatform, callers: Callers
) -> None:
    table = auth_expectations(platform.service, callers)
    assert await walk_routes(platform.app, platform.client, callers, table) == []


async def test_the_walk_finds_a_route_that_nobody_listed(
    platform: AuthPlatform, callers: Callers
) -> None:
    table = {"GET /v1/whoami": auth_expectations(platform.service, callers)["GET /v1/whoami"]}
    faults = await walk_routes(platform.app, platform.client, callers, table)
    assert "POST /v1/organizations: no entry" in faults


async def test_the_walk_finds_an_answer_that_is_too_kind(
    platform: AuthPlatform, callers: Callers
) -> None:
    table = auth_expectations(platform.service, callers)
    route = "GET /v1/projects/{project:path}"
    table = {route: Expectation({}, 404, path=table[route].path)}
    faults = await walk_routes(platform.app, platform.client, callers, table)
    assert any(fault.startswith(f"{route} as viewer: 200, not 404") for fault in faults)


async def items(
    platform: AuthPlatform, callers: Callers, caller: str, path: str, **query: str
) -> list[dict[str, Any]]:
    address = httpx.URL(path).copy_merge_params({"limit": "500", **query})
    answer = await platform.client.get(address, headers=callers.headers(caller))
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def test_lists_show_only_what_lies_in_the_callers_scope(
    platform: AuthPlatform, callers: Callers
) -> None:
    async def ids(caller: str, path: str) -> set[str]:
        return {item["id"] for item in await items(platform, callers, caller, path)}

    home, other = callers.organization.id, callers.other_organization.id
    assert await ids("member", "/v1/organizations") == set()
    assert await ids("organization_admin", "/v1/organizations") == {home}
    assert {home, other} <= await ids("auditor", "/v1/organizations")
    assert await ids("member", "/v1/projects") == {callers.project.id}
    assert callers.project.id not in await ids("other_admin", "/v1/projects")
    for reference in (home, callers.organization.name):
        of_home = f"/v1/projects?organization={reference}"
        assert await ids("member", of_home) == {callers.project.id}
        assert await ids("other_admin", of_home) == set()
    assert await ids("member", "/v1/users") == {callers.users["member"].id}
    assert callers.users["member"].id in await ids("organization_admin", "/v1/users")
    assert callers.users["member"].id not in await ids("other_admin", "/v1/users")
    theirs = await items(platform, callers, "member", "/v1/tokens", limit="500")
    assert {token["subject_id"] for token in theirs} == {callers.users["member"].id}


async def test_a_query_outside_the_scope_finds_nothing_whatever_the_policies_say(
    platform: AuthPlatform, callers: Callers
) -> None:
    service, home = platform.service, callers.organization
    robot = await service.create_service_account(
        SYSTEM, home.id, callers.project.id, fresh("robot")
    )
    member = callers.users["member"]
    token, _ = await service.create_token(SYSTEM, member, "t", 600)
    [grant] = await service.find(
        Scope.system("a test"), RoleGrant, RoleGrant.subject_id == member.id
    )
    ours = [home, callers.project, member, robot, token, grant]
    ours_by_project = {callers.project.id, robot.id, grant.id}
    scopes = {
        "nothing": Scope(),
        "theirs": Scope(organization_ids=frozenset({callers.other_organization.id})),
        "home": Scope(organization_ids=frozenset({home.id})),
        "project": Scope(project_ids=frozenset({callers.project.id})),
    }
    visible = {
        name: {
            row.id for row in ours if await service.find(scope, type(row), type(row).id == row.id)
        }
        for name, scope in scopes.items()
    }
    assert visible == {
        "nothing": set(),
        "theirs": set(),
        "home": {row.id for row in ours},
        "project": ours_by_project,
    }
    own = await service.find(Scope(), ApiToken, own=member.id)
    assert {row.subject_id for row in own} == {member.id}


async def test_pages_follow_each_other_without_gap_or_repeat(
    platform: AuthPlatform, callers: Callers
) -> None:
    for _ in range(5):
        await platform.service.create_project(SYSTEM, callers.organization.id, fresh("page"))
    whole = await items(platform, callers, "organization_admin", "/v1/projects", limit="500")
    walked: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        answer = await platform.client.get(
            "/v1/projects", params=query, headers=callers.headers("organization_admin")
        )
        page = answer.json()
        walked += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert walked == [item["id"] for item in whole]


async def test_names_are_unique_where_they_should_be(
    platform: AuthPlatform, callers: Callers
) -> None:
    headers = callers.headers("operator")
    same = [
        ("/v1/organizations", {"name": callers.organization.name}),
        (
            "/v1/projects",
            {"name": callers.project.name, "organization": callers.organization.id},
        ),
        (
            "/v1/users",
            {"name": callers.users["member"].name, "organization": callers.organization.id},
        ),
        ("/v1/users", {"name": callers.users["operator"].name}),
    ]
    for path, body in same:
        answer = await platform.client.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (
            409,
            "name-taken",
        )
    project = {"name": fresh("twice"), "organization": callers.organization.id}
    elsewhere = {**project, "organization": callers.other_organization.id}
    for body in (project, elsewhere):
        answer = await platform.client.post("/v1/projects", json=body, headers=headers)
        assert answer.status_code == 201
    rivals = [{"name": "race", "organization": callers.organization.id}] * 5
    answers = await asyncio.gather(
        *(platform.client.post("/v1/projects", json=body, headers=headers) for body in rivals)
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]


@pytest.mark.parametrize("name", ["A", "Upper", "with space", "1st", "-x", "x-", "ü", "x" * 64])
async def test_a_bad_name_is_refused_with_what_to_do(
    platform: AuthPlatform, callers: Callers, name: str
) -> None:
    answer = await platform.client.post(
        "/v1/organizations", json={"name": name}, headers=callers.headers("operator")
    )
    assert answer.status_code == 422
    assert answer.json()["next_step"]


async def test_a_change_needs_the_version_that_its_author_saw(
    platform: AuthPlatform, callers: Callers
) -> None:
    made = await platform.service.create_project(SYSTEM, callers.organization.id, fresh("tag"))
    path, headers = f"/v1/projects/{made.id}", callers.headers("organization_admin")
    seen = (await platform.client.get(path, headers=headers)).headers["etag"]
    mine = await platform.client.patch(
        path, json={"display_name": "first"}, headers={**headers, "If-Match": seen}
    )
    assert (mine.status_code, mine.headers["etag"]) == (200, '"2"')
    late = await platform.client.patch(
        path, json={"display_name": "second"}, headers={**headers, "If-Match": seen}
    )
    gone = await platform.client.delete(path, headers={**headers, "If-Match": seen})
    assert (late.status_code, gone.status_code) == (412, 412)
    # Who may not change it is not told its version.
    viewer = {**callers.headers("viewer"), "If-Match": seen}
    hidden = await platform.client.patch(path, json={"display_name": "x"}, headers=viewer)
    assert hidden.status_code == 404


async def test_an_administrator_gives_roles_to_its_own_people_alone(
    platform: AuthPlatform, callers: Callers
) -> None:
    async def bind(caller: str, subject: str, role: str, **where: str) -> int:
        body = {"subject": subject, "role": role, **where}
        answer = await platform.client.post(
            "/v1/role-bindings", json=body, headers=callers.headers(caller)
        )
        return answer.status_code

    ours, theirs = callers.users["stranger"].name, callers.users["other_admin"].id
    home, project = callers.organization.id, callers.project.id
    assert await bind("project_admin", ours, "member", project=project) == 201
    assert await bind("project_admin", ours, "member", project=project) == 409
    assert await bind("project_admin", theirs, "member", project=project) == 404
    assert await bind("project_admin", ours, "organization_admin", organization=home) == 404
    assert await bind("project_admin", ours, "operator") == 403
    assert await bind("organization_admin", ours, "organization_admin", project=project) == 422
    assert await bind("organization_admin", ours, "operator", organization=home) == 422
    assert await bind("organization_admin", ours, "viewer", project=callers.other_project.id) == 404
    assert await bind("organization_admin", ours, "viewer", organization=home) == 201
    assert await bind("operator", theirs, "viewer", project=project) == 201


async def test_making_a_user_tells_nothing_of_other_organizations(
    platform: AuthPlatform, callers: Callers
) -> None:
    theirs = NewUser(fresh("kim"), organization_id=callers.other_organization.id)
    await platform.service.create_user(SYSTEM, theirs)
    body = {"name": theirs.name, "organization": callers.organization.id}
    headers = callers.headers("organization_admin")
    assert (await platform.client.post("/v1/users", json=body, headers=headers)).status_code == 201
    again = await platform.client.post("/v1/users", json=body, headers=headers)
    assert (again.status_code, again.json()["type"].rpartition("/")[2]) == (409, "name-taken")
    found = (await platform.client.get(f"/v1/users/{theirs.name}", headers=headers)).json()
    assert found["organization_id"] == callers.organization.id
    foreign = f"/v1/users/{theirs.name}@{callers.other_organization.name}"
    assert (await platform.client.get(foreign, headers=headers)).status_code == 404


async def test_a_name_that_several_users_have_is_asked_back(
    platform: AuthPlatform, callers: Callers
) -> None:
    name, places = fresh("lou"), (callers.organization, callers.other_organization)
    users = {
        f"{name}@{home.name}": await platform.service.create_user(
            SYSTEM, NewUser(name, organization_id=home.id)
        )
        for home in places
    }
    binding = {"role": "member", "project": callers.project.id}

    async def bind(caller: str, subject: str) -> httpx.Response:
        return await platform.client.post(
            "/v1/role-bindings",
            json={"subject": subject, **binding},
            headers=callers.headers(caller),
        )

    unclear = await bind("operator", name)
    assert (unclear.status_code, unclear.json()["type"].rpartition("/")[2]) == (
        409,
        "ambiguous-name",
    )
    assert all(login in unclear.json()["detail"] for login in users)
    for login, user in users.items():
        made = await bind("operator", login)
        assert (made.status_code, made.json()["subject_id"]) == (201, user.id)
    ours = f"{name}@{places[0].name}"
    viewer = {"role": "viewer"}
    binding |= viewer
    mine = await bind("organization_admin", name)
    assert (mine.status_code, mine.json()["subject_id"]) == (201, users[ours].id)
    assert (await bind("organization_admin", f"{name}@{places[1].name}")).status_code == 404


async def test_no_role_reaches_beyond_those_who_can_act_in_its_subjects_name(
    platform: AuthPlatform, callers: Callers
) -> None:
    service, home, project = platform.service, callers.organization, callers.project
    robot = await service.create_service_account(SYSTEM, home.id, project.id, fresh("robot"))
    admin = {"role": "organization_admin", "organization": home.id}
    for body in (
        {"subject": callers.users["member"].id, "role": "operator"},
        {"subject": callers.users["member"].id, "role": "auditor"},
        {"subject": robot.id, "role": "operator"},
        {"subject": robot.id, **admin},
    ):
        answer = await platform.client.post(
            "/v1/role-bindings", json=body, headers=callers.headers("operator")
        )
        assert answer.status_code == 422, body
    body = {"subject": robot.id, "role": "member", "project": project.id}
    answer = await platform.client.post(
        "/v1/role-bindings", json=body, headers=callers.headers("project_admin")
    )
    assert answer.status_code == 201


async def test_events_of_people_roles_and_tokens_reach_callers_of_the_platform_alone(
    platform: AuthPlatform,
) -> None:
    async with platform.database.transaction("auth") as session:
        query = """
            SELECT DISTINCT resource_kind FROM auth.event
            WHERE organization_id IS NOT NULL OR project_id IS NOT NULL
        """
        kinds = set((await session.execute(text(query))).scalars())
    assert kinds - {"cluster", "volume"} == {"organization", "project"}


async def test_what_still_holds_something_is_not_removed(
    platform: AuthPlatform, callers: Callers
) -> None:
    headers = callers.headers("operator")
    answer = await platform.client.delete(
        f"/v1/organizations/{callers.organization.id}", headers=headers
    )
    assert answer.status_code == 409
    assert answer.json()["holds"]["users"] >= 7
    made = await platform.service.create_project(SYSTEM, callers.organization.id, fresh("used"))
    for version, state in ((1, "creating"), (3, "ready"), (2, "creating")):
        await _has(platform, "cluster", made.id, version, state)
    await _has(platform, "volume", made.id, 1, "failed")
    refused = await platform.client.delete(f"/v1/projects/{made.id}", headers=headers)
    assert (refused.status_code, refused.json()["holds"]) == (
        409,
        {"clusters": 1, "volumes": 1},
    )
    await _has(platform, "cluster", made.id, 4, "deleted")
    refused = await platform.client.delete(f"/v1/projects/{made.id}", headers=headers)
    assert (refused.status_code, refused.json()["holds"]) == (409, {"volumes": 1})
    await _has(platform, "volume", made.id, 2, "deleted")
    removed = await platform.client.delete(f"/v1/projects/{made.id}", headers=headers)
    assert removed.status_code == 204


async def _has(
    platform: AuthPlatform, kind: str, project_id: str, version: int, state: str
) -> None:
    """What a service says about its one resource of the project."""
    event = Event(
        type=f"{kind}.changed",
        resource_kind=kind,
        resource_id=f"{kind}_of_{project_id}",
        resource_version=version,
        at=platform.clock.now(),
        data={"state": state},
        project_id=project_id,
    )
    async with platform.database.transaction("auth") as session:
        await emit(session, KIT, [event])
    await platform.relay()


async def test_a_removed_user_leaves_no_binding_and_no_token_that_works(
    platform: AuthPlatform, callers: Callers
) -> None:
    new = NewUser(fresh("leaver"), organization_id=callers.organization.id)
    user = await platform.service.create_user(SYSTEM, new)
    place = (callers.organization.id, callers.project.id)
    grant = await platform.service.bind_role(SYSTEM, user.id, Role.MEMBER, *place)
    _, secret = await platform.service.create_token(SYSTEM, user, "t", 600)
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await platform.client.get("/v1/whoami", headers=headers)).status_code == 200
    admin = callers.headers("organization_admin")
    answer = await platform.client.delete(f"/v1/users/{new.name}", headers=admin)
    assert answer.status_code == 204
    assert (await platform.client.get("/v1/whoami", headers=headers)).status_code == 401
    gone = await platform.client.get(f"/v1/role-bindings/{grant.id}", headers=admin)
    assert gone.status_code == 404


@pytest.mark.requirement("SEC08")
async def test_every_change_is_in_the_audit_log_of_who_may_read_it(
    platform: AuthPlatform, callers: Callers
) -> None:
    body = {"name": fresh("audited"), "organization": callers.organization.id}
    headers = callers.headers("organization_admin")
    made = (await platform.client.post("/v1/projects", json=body, headers=headers)).json()
    await platform.relay()
    await platform.relay()
    for caller, count in (("organization_admin", 1), ("auditor", 1), ("other_admin", 0)):
        found = await items(platform, callers, caller, "/v1/audit", resource_id=made["id"])
        assert len(found) == count, caller
        if found:
            [entry] = found
            assert (entry["action"], entry["principal"], entry["decision"]) == (
                "project:create",
                callers.users["organization_admin"].id,
                "allow",
            )


async def test_the_tables_are_those_of_the_migrations(platform: AuthPlatform) -> None:
    place = locations()["auth"]
    assert await differences(platform.database.url, "auth", place, Base.metadata) == []


async def test_the_first_start_makes_an_operator_whose_password_lies_in_a_file_of_its_own(
    platform: AuthPlatform, tmp_path: Path
) -> None:
    file = tmp_path / "secrets" / "operator-password"

    def another() -> AuthService:
        settings = platform.service.settings
        return AuthService.assemble(
            platform.database, SEALER, platform.clock, settings, issuer=ISSUER
        )

    starts = [another() for _ in range(3)]
    await asyncio.gather(*(service.ensure_bootstrap(file) for service in starts))
    await platform.service.ensure_bootstrap(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["operator-password"]
    password = file.read_text().strip()
    answer = await log_in(platform.client, authorization(Pkce()), "operator", password)
    assert answer.status_code == 302
    operator = await platform.service.subject(Scope.system("a test"), "operator")
    bindings = platform.authorizer.principal(operator.id).bindings
    assert [binding.role for binding in bindings] == [Role.OPERATOR]
    async with platform.database.transaction("auth") as session:
        count = "SELECT count(*) FROM auth.signing_key"
        assert (await session.execute(text(count))).scalar_one() == 1
