"""The promises of `auth.contract.Authorizer`, kept by the snapshot authorizer on a real database,
and those of the shipped Cedar schema and policies."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from cedarpy import validate_policies

from auth_platform import AuthPlatform, auth_platform
from callers import Callers, make_callers
from dflare.kit.errors import ForbiddenError, NotFoundError, UnauthenticatedError
from dflare.services.auth import policy
from dflare.services.auth.contract import Principal, Resource, Role, RoleBinding
from dflare.services.auth.domain import scope_of
from dflare.services.auth.service import SYSTEM, NewUser

EVERY_ACTION = {
    "alert": "list read",
    "allocation": "list read",
    "audit": "list read",
    "cluster": "create delete list read update",
    "device": "list read",
    "event": "list read",
    "image": "list read",
    "invoice": "list read",
    "metric": "read",
    "network": "list read",
    "node": "cordon list quarantine read reboot reimage rescue",
    "node_type": "list read",
    "operation": "cancel list read resume retry",
    "organization": "create delete list read update",
    "pool": "list read",
    "project": "create delete list read update",
    "quota": "list read set",
    "repository": "delete list push read",
    "reservation": "create delete list read",
    "role_binding": "create delete list read",
    "service_account": "create delete issue_token list read update",
    "site": "apply freeze list read",
    "ssh_key": "create delete list read update",
    "token": "create delete list read",
    "usage": "list read",
    "usage_audit": "list read run",
    "user": "create delete list read set_password update",
    "user_data": "create delete list read update",
    "volume": "create delete list read update",
}

VIEWED = {
    f"{kind}:{verb}"
    for kind in [
        "alert",
        "allocation",
        "cluster",
        "event",
        "invoice",
        "network",
        "node",
        "operation",
        "project",
        "quota",
        "repository",
        "reservation",
        "ssh_key",
        "usage",
        "volume",
    ]
    for verb in ("list", "read")
} | {"metric:read"}
CATALOG = {"site:list", "image:list", "image:read", "node_type:list", "node_type:read"}
WORKED = {
    *(f"cluster:{verb}" for verb in ("create", "update", "delete")),
    *(f"ssh_key:{verb}" for verb in ("create", "update", "delete")),
    *(f"user_data:{verb}" for verb in ("list", "read", "create", "update", "delete")),
    *(f"volume:{verb}" for verb in ("create", "update", "delete")),
    *(f"repository:{verb}" for verb in ("push", "delete")),
    *(f"node:{verb}" for verb in ("reboot", "rescue", "reimage")),
    "operation:cancel",
    "operation:retry",
}
ADMINISTERED = {
    *(f"project:{verb}" for verb in ("create", "update", "delete")),
    *(f"user:{v}" for v in ("list", "read", "create", "update", "delete", "set_password")),
    *(f"role_binding:{verb}" for verb in ("list", "read", "create", "delete")),
    *(f"token:{verb}" for verb in ("list", "read", "delete")),
    *(
        f"service_account:{verb}"
        for verb in ("list", "read", "create", "update", "delete", "issue_token")
    ),
    "audit:list",
    "audit:read",
    "organization:update",
}
# Projects and members see their organization only where they have a role in it.
IN_PROJECT: dict[Role, set[str]] = {
    Role.VIEWER: VIEWED | {"organization:list", "organization:read"},
    Role.MEMBER: VIEWED | WORKED | {"organization:list", "organization:read"},
    Role.PROJECT_ADMIN: VIEWED | WORKED | ADMINISTERED | {"organization:list", "organization:read"},
}


def caller(role: Role, organization: str | None = None, project: str | None = None) -> Principal:
    return Principal("usr_1", "user", "x", (RoleBinding(role, organization, project),))


def allowed(principal: Principal, organization: str | None, project: str | None) -> set[str]:
    found: set[str] = set()
    for action in policy.ACTIONS:
        kind = action.partition(":")[0]
        resource = Resource(kind, f"{kind}_1", organization, project)
        found |= {action} if policy.decide(principal, action, [resource])[0] else set()
    return found


def test_policies_are_valid_against_the_schema() -> None:
    assert [str(e) for e in validate_policies(policy.POLICIES, policy.SCHEMA).errors] == []


def test_the_schema_names_exactly_the_known_actions() -> None:
    verbs: dict[str, set[str]] = {}
    for action in policy.ACTIONS:
        kind, _, verb = action.partition(":")
        verbs.setdefault(kind, set()).add(verb)
    assert verbs == {kind: set(listed.split()) for kind, listed in EVERY_ACTION.items()}


@pytest.mark.requirement("SEC04")
@pytest.mark.parametrize("role", [Role.VIEWER, Role.MEMBER, Role.PROJECT_ADMIN])
def test_a_role_in_a_project_allows_exactly_this_there_and_only_the_catalog_elsewhere(
    role: Role,
) -> None:
    principal = caller(role, "org_1", "prj_1")
    assert allowed(principal, "org_1", "prj_1") == IN_PROJECT[role] | CATALOG
    assert allowed(principal, "org_1", "prj_2") == CATALOG
    assert allowed(principal, "org_1", None) == CATALOG
    assert allowed(principal, "org_2", "prj_1x") == CATALOG
    assert allowed(principal, None, None) == CATALOG


def test_an_organization_admin_has_all_of_its_projects_but_no_physical_rights() -> None:
    principal = caller(Role.ORGANIZATION_ADMIN, "org_1")
    everything = IN_PROJECT[Role.PROJECT_ADMIN] | CATALOG
    assert allowed(principal, "org_1", "prj_1") == everything
    assert allowed(principal, "org_1", None) == everything
    assert allowed(principal, "org_2", "prj_2") == CATALOG
    assert allowed(principal, None, None) == CATALOG
    physical = {"node:cordon", "node:quarantine", "site:freeze", "quota:set", "operation:resume"}
    assert not physical & everything


def test_an_operator_may_do_everything_and_an_auditor_look_at_everything() -> None:
    looks = {a for a in policy.ACTIONS if a.endswith((":read", ":list"))}
    for place in ((None, None), ("org_1", None), ("org_1", "prj_1")):
        own_only = {"token:create"}
        assert allowed(caller(Role.OPERATOR), *place) | own_only == set(policy.ACTIONS)
        assert allowed(caller(Role.AUDITOR), *place) == looks


def test_a_caller_without_any_role_sees_the_catalog_itself_and_its_own_tokens() -> None:
    stranger = Principal("usr_1", "user", "x")
    assert allowed(stranger, "org_1", "prj_1") == CATALOG
    mine = Resource("token", "tok_1", attributes={"owner": "usr_1"})
    another = Resource("token", "tok_2", attributes={"owner": "usr_2"})
    assert policy.decide(stranger, "token:delete", [mine, another]) == [True, False]
    me, you = (Resource("user", u, attributes={"owner": u}) for u in ("usr_1", "usr_2"))
    assert policy.decide(stranger, "user:set_password", [me, you]) == [True, False]
    assert policy.decide(stranger, "user:update", [me]) == [False]


def test_an_owner_attribute_gives_no_right_over_other_kinds() -> None:
    stranger = Principal("usr_1", "user", "x")
    disguised = Resource("cluster", "clu_1", "org_1", "prj_1", {"owner": "usr_1"})
    assert policy.decide(stranger, "cluster:read", [disguised]) == [False]


@pytest.mark.parametrize("action", ["cluster:explode", "cluster", "", "read", "operator"])
def test_an_action_that_the_schema_does_not_name_is_refused_even_to_operators(action: str) -> None:
    assert policy.decide(caller(Role.OPERATOR), action, [Resource("cluster", "c")]) == [False]


@pytest.fixture(scope="module")
async def platform(database_url: str) -> AsyncIterator[AuthPlatform]:
    async with auth_platform(database_url) as running:
        yield running


@pytest.fixture(scope="module")
async def callers(platform: AuthPlatform) -> Callers:
    return await make_callers(platform.service, platform.database)


async def known(platform: AuthPlatform, callers: Callers, kind: str) -> Principal:
    token = callers.tokens[kind]
    assert token is not None
    return await platform.authorizer.authenticate(token)


async def test_a_scope_covers_what_the_bindings_say(
    platform: AuthPlatform, callers: Callers
) -> None:
    home, project = callers.organization.id, callers.project.id
    other, other_project = callers.other_organization.id, callers.other_project.id
    covers = {
        kind: [
            scope_of(await known(platform, callers, kind)).covers(*place)
            for place in ((home, project), (home, None), (other, other_project), (None, None))
        ]
        for kind in ("stranger", "member", "organization_admin", "other_admin", "auditor")
    }
    assert covers == {
        "stranger": [False, False, False, False],
        "member": [True, False, False, False],
        "organization_admin": [True, True, False, False],
        "other_admin": [False, False, True, False],
        "auditor": [True, True, True, True],
    }


@pytest.mark.parametrize("kind", ["forged", "expired", "revoked", "disabled"])
async def test_a_token_that_is_not_good_any_more_authenticates_nobody(
    platform: AuthPlatform, callers: Callers, kind: str
) -> None:
    with pytest.raises(UnauthenticatedError):
        await known(platform, callers, kind)


async def test_a_project_is_found_by_id_by_name_and_by_path_within_the_scope_alone(
    platform: AuthPlatform, callers: Callers
) -> None:
    find, project = platform.authorizer.project, callers.project
    mine = scope_of(await known(platform, callers, "member"))
    everything = scope_of(await known(platform, callers, "operator"))
    path = f"{callers.organization.name}/{project.name}"
    for reference in (project.id, project.name, path):
        assert find(mine, reference).id == project.id
    assert find(everything, path).organization_name == callers.organization.name
    # Both organizations have a project of this name: an operator must say which.
    with pytest.raises(NotFoundError, match="more than one") as ambiguous:
        find(everything, project.name)
    assert path in ambiguous.value.next_step
    for hidden in (callers.other_project.id, f"{callers.other_organization.name}/{project.name}"):
        with pytest.raises(NotFoundError):
            find(mine, hidden)


async def test_who_may_not_read_is_told_404_and_who_may_read_but_not_act_403(
    platform: AuthPlatform, callers: Callers
) -> None:
    cluster = Resource("cluster", "clu_1", callers.organization.id, callers.project.id)
    viewer = await known(platform, callers, "viewer")
    other = await known(platform, callers, "other_admin")
    await platform.authorizer.check(viewer, "cluster:read", cluster)
    with pytest.raises(ForbiddenError):
        await platform.authorizer.check(viewer, "cluster:delete", cluster)
    with pytest.raises(NotFoundError):
        await platform.authorizer.check(other, "cluster:delete", cluster)
    with pytest.raises(NotFoundError):
        await platform.authorizer.check(other, "cluster:read", cluster)
    # There is no particular thing to hide in an act on the platform itself.
    with pytest.raises(ForbiddenError):
        await platform.authorizer.check(viewer, "organization:create", Resource("organization", ""))


async def test_a_page_is_verified_item_by_item(platform: AuthPlatform, callers: Callers) -> None:
    member = await known(platform, callers, "member")
    places = [(callers.organization.id, callers.project.id), (callers.other_organization.id, None)]
    page = [Resource("cluster", f"clu_{n}", *places[n % 2]) for n in range(101)]
    decisions = await platform.authorizer.readable(member, "cluster:list", page)
    assert decisions == [n % 2 == 0 for n in range(101)]
    assert await platform.authorizer.readable(member, "cluster:list", []) == []


async def test_refused_attempts_are_in_the_audit_log(
    platform: AuthPlatform, callers: Callers
) -> None:
    viewer = await known(platform, callers, "viewer")
    node = Resource("node", "node_denied", callers.organization.id, callers.project.id)
    with pytest.raises(ForbiddenError):
        await platform.authorizer.check(viewer, "node:reboot", node)
    await platform.reconciler(platform.service).flush()
    await platform.relay()
    operator = callers.headers("operator")
    answer = await platform.client.get(
        "/v1/audit", params={"resource_id": "node_denied"}, headers=operator
    )
    [entry] = answer.json()["items"]
    assert (entry["principal"], entry["action"], entry["decision"], entry["service"]) == (
        viewer.subject,
        "node:reboot",
        "deny",
        "auth",
    )


async def test_another_process_learns_of_every_change_by_events(
    platform: AuthPlatform, callers: Callers
) -> None:
    service, reconciler = platform.another_process()
    await reconciler.start()
    user = await platform.service.create_user(
        SYSTEM, NewUser("late-comer", organization_id=callers.organization.id)
    )
    place = (callers.organization.id, callers.project.id)
    grant = await platform.service.bind_role(SYSTEM, user.id, Role.MEMBER, *place)
    token, secret = await platform.service.create_token(SYSTEM, user, "t", 60)
    with pytest.raises(UnauthenticatedError):
        await service.authorizer.authenticate(secret)

    async def catch_up() -> None:
        await platform.relay()
        while await reconciler.follow():
            pass

    await catch_up()
    principal = await service.authorizer.authenticate(secret)
    assert principal.bindings == (RoleBinding(Role.MEMBER, *place),)
    everything = scope_of(await known(platform, callers, "operator"))
    await platform.service.delete(everything, SYSTEM, type(grant), grant.id)
    await catch_up()
    assert (await service.authorizer.authenticate(secret)).bindings == ()
    await platform.service.delete(everything, SYSTEM, type(token), token.id)
    await catch_up()
    with pytest.raises(UnauthenticatedError):
        await service.authorizer.authenticate(secret)


async def test_the_running_reconciler_needs_no_push(
    platform: AuthPlatform, callers: Callers
) -> None:
    service, reconciler = platform.another_process()
    await reconciler.start()
    running = asyncio.create_task(reconciler.run())
    try:
        user = callers.users["member"]
        _, secret = await platform.service.create_token(SYSTEM, user, "t", 60)
        async with asyncio.timeout(30):
            while True:
                await platform.relay()
                try:
                    await service.authorizer.authenticate(secret)
                    break
                except UnauthenticatedError:
                    await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
