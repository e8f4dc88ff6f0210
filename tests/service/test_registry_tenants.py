"""Promises between tenants: logins, who may do what, and that nobody learns what others have."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest

from dflare.kit.settings import PlatformSettings
from dflare.services.auth.contract import Principal
from dflare.services.registry.service_login import MAX_SCOPES, wanted_access
from dflare.services.registry.tables import Blob, Repository, RepositoryBlob
from registry_world import (
    BLUE,
    BOTH,
    EMPTY,
    MIB,
    RED,
    URL,
    World,
    digest,
    image,
    noise,
    registry_world,
)
from tenancy import MEMBER, OPERATOR, STRANGER, VIEWER

NAME = "red/training/base"
THEIRS = "blue/training/base"
SECRET = noise(4000)


@pytest.fixture
async def world(postgres_url: str, s3_settings: PlatformSettings) -> AsyncIterator[World]:
    async with registry_world(postgres_url, s3_settings) as world:
        yield world


def basic(caller: Principal, name: str = "anyone") -> dict[str, str]:
    text = base64.b64encode(f"{name}:{caller.subject}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


async def token(world: World, caller: Principal, *scopes: str) -> dict[str, str]:
    """The header of a client that logged in for some scopes."""
    answer = await world.ask(
        "GET", "/v2/token", None, params={"scope": scopes, "service": "x"}, headers=basic(caller)
    )
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["errors"][0]["code"]


# --- logins ----------------------------------------------------------------------------------


async def test_who_comes_without_a_token_is_told_where_to_get_one_and_for_what(
    world: World,
) -> None:
    answer = await world.ask("PUT", f"/v2/{NAME}/manifests/v1", None)
    assert error(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"] == (
        f'Bearer realm="{URL}/v2/token",service="dflare-registry",'
        f'scope="repository:{NAME}:pull,push"'
    )
    assert (await world.ask("GET", "/v2/", None)).status_code == 401
    for caller in (MEMBER, VIEWER, STRANGER, OPERATOR):
        assert (await world.ask("GET", "/v2/", caller)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"only-a-name").decode(),
        "Basic " + base64.b64encode(b"user:wrong").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Bearer",
        "Bearer wrong",
        "Bearer dflreg_",
        "Bearer dflreg_AAAA",
        "Bearer dflreg_ä",
        "Digest x",
    ],
)
async def test_what_is_no_login_is_refused_everywhere(world: World, header: str) -> None:
    headers = {"Authorization": header.encode()}
    for path in ("/v2/", "/v2/token", f"/v2/{NAME}/tags/list"):
        answer = await world.ask("GET", path, None, headers=headers)
        assert error(answer) == (401, "UNAUTHORIZED"), path
        assert answer.headers["www-authenticate"]


async def test_a_clients_token_is_for_what_it_was_asked_for_alone(world: World) -> None:
    await world.push_image(NAME, "v1", b"layer")
    own = await token(world, MEMBER, f"repository:{NAME}:pull")
    path = f"/v2/{NAME}/manifests/v1"
    assert (await world.ask("GET", path, None, headers=own)).status_code == 200
    for method in ("DELETE", "PUT"):
        answer = await world.ask(method, path, None, headers=own, content=image(b""))
        assert answer.status_code == 401
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    other = await world.ask("GET", "/v2/red/training/other/tags/list", None, headers=own)
    assert other.status_code == 401


async def test_a_token_is_not_for_more_than_its_owner_may(world: World) -> None:
    await world.push_image(NAME, "v1", b"layer")
    own = await token(world, VIEWER, f"repository:{NAME}:*", f"repository:{THEIRS}:pull,push")
    path = f"/v2/{NAME}/manifests/v1"
    assert (await world.ask("GET", path, None, headers=own)).status_code == 200
    assert error(await world.ask("DELETE", path, None, headers=own)) == (403, "DENIED")
    begun = await world.ask("POST", f"/v2/{THEIRS}/blobs/uploads/", None, headers=own)
    assert error(begun) == (404, "NAME_UNKNOWN")


async def test_a_token_ends_with_its_time_and_with_the_login_it_came_from(world: World) -> None:
    own = await token(world, MEMBER, f"repository:{NAME}:pull,push")
    path = f"/v2/{NAME}/blobs/uploads/"
    assert (await world.ask("POST", path, None, headers=own)).status_code == 202
    revoked = world.tenancy.callers.pop(MEMBER.subject)
    assert (await world.ask("POST", path, None, headers=own)).status_code == 401
    world.tenancy.callers[MEMBER.subject] = revoked
    world.clock.at += timedelta(seconds=world.settings.token_s)
    assert (await world.ask("POST", path, None, headers=own)).status_code == 401


async def test_a_token_tells_its_bearer_nothing_of_the_login_it_came_from(world: World) -> None:
    own = await token(world, MEMBER, f"repository:{NAME}:pull")
    text = own["Authorization"].partition("dflreg_")[2]
    assert MEMBER.subject.encode() not in base64.urlsafe_b64decode(text + "===")


def test_scopes_are_read_as_the_specification_writes_them() -> None:
    assert wanted_access(
        ["repository:a/b/c:pull,push repository:a/b/d:*", "x", "registry:a:*"]
    ) == {
        "a/b/c": {"pull", "push"},
        "a/b/d": {"pull", "push", "delete"},
    }
    assert wanted_access(["repository(plugin):a/b/c:pull,fly"]) == {"a/b/c": {"pull"}}
    many = [f"repository:a/b/c{number}:pull" for number in range(100)]
    assert len(wanted_access([" ".join(many)])) == MAX_SCOPES


# --- who may do what -------------------------------------------------------------------------


async def test_viewers_pull_members_push_and_strangers_find_nothing(world: World) -> None:
    await world.push_image(NAME, "v1", b"layer")
    paths = {
        "GET": [
            f"/v2/{NAME}/manifests/v1",
            f"/v2/{NAME}/blobs/{digest(b'layer')}",
            f"/v2/{NAME}/tags/list",
            f"/v2/{NAME}/referrers/{EMPTY}",
        ],
        "POST": [f"/v2/{NAME}/blobs/uploads/"],
        "PUT": [f"/v2/{NAME}/manifests/v2"],
        "DELETE": [f"/v2/{NAME}/manifests/v1", f"/v2/{NAME}/blobs/{digest(b'layer')}"],
    }
    for method, found in paths.items():
        for path in found:
            viewer = await world.ask(method, path, VIEWER)
            assert viewer.status_code == (200 if method == "GET" else 403), path
            assert error(await world.ask(method, path, STRANGER)) == (404, "NAME_UNKNOWN")


async def test_what_a_stranger_is_told_is_the_same_whether_it_is_there_or_not(
    world: World,
) -> None:
    await world.push_image(NAME, "v1", SECRET)
    there = [
        f"/v2/{NAME}/manifests/v1",
        f"/v2/{NAME}/blobs/{digest(SECRET)}",
        f"/v2/{NAME}/tags/list",
    ]
    for path in there:
        real = await world.ask("GET", path, STRANGER)
        for name in ("red/training/none", "red/none/base", "none/training/base"):
            made_up = await world.ask("GET", path.replace(NAME, name), STRANGER)
            assert made_up.status_code == real.status_code == 404
            assert made_up.text.replace(name, "") == real.text.replace(NAME, "")


@pytest.mark.requirement("SEC04")
async def test_a_blob_of_another_tenant_cannot_be_mounted_and_the_answer_is_as_for_none(
    world: World,
) -> None:
    secret = await world.push(NAME, SECRET)
    path = f"/v2/{THEIRS}/blobs/uploads/"
    answers: list[httpx.Response] = []
    for source, content in (
        (NAME, secret),
        (NAME, digest(b"nothing that exists")),
        ("red/training/none", secret),
        ("none/none/none", secret),
        ("../red/training/base", secret),
    ):
        query = {"mount": content, "from": source}
        answers.append(await world.ask("POST", path, STRANGER, params=query))
    answers.append(await world.ask("POST", path, STRANGER, params={"mount": secret}))
    assert {one.status_code for one in answers} == {202}
    assert {tuple(sorted(one.headers.keys())) for one in answers} == {
        tuple(sorted(answers[0].headers.keys()))
    }
    for method in ("GET", "HEAD"):
        found = await world.ask(method, f"/v2/{THEIRS}/blobs/{secret}", STRANGER)
        assert found.status_code == 404
    manifest = image(SECRET)
    refused = await world.put(THEIRS, "v1", manifest, STRANGER)
    assert error(refused) == (404, "MANIFEST_BLOB_UNKNOWN")


async def test_who_may_read_both_repositories_mounts_between_tenants(world: World) -> None:
    content = await world.push(NAME, SECRET)
    query = {"mount": content, "from": NAME}
    mounted = await world.ask("POST", f"/v2/{THEIRS}/blobs/uploads/", BOTH, params=query)
    assert mounted.status_code == 201
    assert await world.has(THEIRS, content, STRANGER)
    assert await world.count(Blob) == 1
    own = await token(world, BOTH, f"repository:{THEIRS}:pull,push")
    narrow = await world.ask(
        "POST", f"/v2/{THEIRS}/blobs/uploads/", None, params=query, headers=own
    )
    assert narrow.status_code == 401, "the token is not for the source"
    assert f"repository:{NAME}:pull" in narrow.headers["www-authenticate"]


async def test_pushing_what_another_tenant_has_is_answered_as_pushing_what_nobody_has(
    world: World,
) -> None:
    await world.push(NAME, SECRET)
    for content in (SECRET, noise(4000, seed=9)):
        found = await world.ask("HEAD", f"/v2/{THEIRS}/blobs/{digest(content)}", STRANGER)
        assert found.status_code == 404
        path = await world.begin(THEIRS, STRANGER)
        done = await world.ask(
            "PUT", path, STRANGER, params={"digest": digest(content)}, content=content
        )
        assert done.status_code == 201
    blobs = [one for one in await world.rows(Blob) if one.digest == digest(SECRET)]
    assert len(blobs) == 2, "no push may find the object of another tenant"


async def test_the_same_content_of_two_tenants_becomes_one_object_later_and_lives_on_for_each(
    world: World,
) -> None:
    await world.push_image(NAME, "v1", SECRET)
    await world.push_image(THEIRS, "v1", SECRET, caller=STRANGER)
    await world.reconciler.merge()
    await world.clock.sleep(world.settings.reader_grace_s + 1)
    await world.reconciler.collect_blobs()
    await world.reconciler.remove_garbage()
    assert len([one for one in await world.rows(Blob) if one.digest == digest(SECRET)]) == 1
    path = f"/v1/projects/{RED.id}/repositories/base"
    assert (await world.ask("DELETE", path)).status_code == 204
    for _ in range(2):
        await world.clock.sleep(world.settings.grace_s + 1)
        await world.reconciler.look()
    kept = await world.ask("GET", f"/v2/{THEIRS}/blobs/{digest(SECRET)}", STRANGER)
    assert kept.content == SECRET
    assert not await world.has(NAME, digest(SECRET))


@pytest.mark.parametrize(
    "name",
    [
        # Written so that no client resolves them before they are sent.
        "red/training/%2e%2e/%2e%2e/blue/training/base",
        "red/training/%2e%2e",
        "red/training/%2e",
        "red/training/a//b",
        "red//training/base",
        "/red/training/base",
        "red/training/base/",
        "red/training",
        "red",
        "RED/training/base",
        "red/training/Base",
        "red/training/ba se",
        "red/training/base%00",
        "red/training/base%0d%0aX-Evil:1",
        "red/training/%2e%2e%2f%2e%2e%2fblue",
        "red/training/..%2f..%2fetc%2fpasswd",
        "red/training/base\\..",
        "red/training/" + "a" * 300,
        "red/training/ä",
        "red/training/-a",
        "red/training/a.",
        "red/training/a__",
    ],
)
async def test_what_is_no_name_reaches_nothing(world: World, name: str) -> None:
    for method, tail in (("GET", "tags/list"), ("POST", "blobs/uploads/"), ("GET", "blobs/x")):
        answer = await world.ask(method, f"/v2/{name}/{tail}", OPERATOR)
        assert answer.status_code in {400, 404}, (answer.status_code, answer.text)
        assert "x-evil" not in answer.headers
    assert await world.count(Repository) == 0


async def test_an_object_is_never_named_by_what_a_client_sends(world: World) -> None:
    await world.push("red/training/very-telling-name", noise(9 * MIB))
    (key,) = await world.stored()
    assert "telling" not in key
    assert "red" not in key.split("/")[1:]


# --- quota -----------------------------------------------------------------------------------


async def test_what_is_beyond_the_quota_is_refused_with_the_way_out_and_leaves_nothing(
    world: World,
) -> None:
    await world.allow(RED, 0)
    path = await world.begin(NAME)
    refused = await world.ask("PATCH", path, content=b"x" * 1000)
    assert error(refused) == (403, "DENIED")
    told = refused.json()["errors"][0]
    assert "dflare quota set registry-gib" in told["message"]
    assert (told["detail"]["limit_bytes"], told["detail"]["wanted_bytes"]) == (0, 1000)
    posted = await world.ask(
        "POST",
        f"/v2/{NAME}/blobs/uploads/",
        params={"digest": digest(b"x")},
        content=b"x",
    )
    assert error(posted) == (403, "DENIED")
    await world.push(NAME, b"")
    assert error(await world.put(NAME, "v1", image(b""))) == (403, "DENIED")
    assert await world.stored() == []


async def test_a_stream_that_does_not_say_its_length_is_cut_off_at_the_quota(
    world: World,
) -> None:
    await world.allow(RED, 0)
    path = await world.begin(NAME)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * MIB

    refused = await world.ask("PATCH", path, content=endless())
    assert error(refused) == (403, "DENIED")
    assert sent < 64
    assert (await world.ask("GET", path)).status_code == 404


async def test_pushes_at_the_same_time_do_not_pass_the_quota_together(world: World) -> None:
    room = 2**30 - 6 * MIB
    async with world.database.transaction("registry") as session:
        blob = Blob(
            id="blob_big",
            digest=digest(b"big"),
            size_bytes=room,
            object_key="",
            created_at=world.clock.now(),
        )
        session.add(blob)
    await world.push(NAME, b"")
    (repository,) = await world.rows(Repository)
    async with world.database.transaction("registry") as session:
        session.add(
            RepositoryBlob(
                repository_id=repository.id,
                digest=blob.digest,
                project_id=RED.id,
                blob_id=blob.id,
                size_bytes=room,
            )
        )
    contents = [noise(4 * MIB, seed=number) for number in range(3)]

    async def push(content: bytes) -> int:
        path = f"/v2/{NAME}/blobs/uploads/"
        answer = await world.ask("POST", path, params={"digest": digest(content)}, content=content)
        return answer.status_code

    answers = sorted(await asyncio.gather(*(push(content) for content in contents)))
    assert answers.count(201) <= 1
    assert set(answers) <= {201, 403}
    shown = (await world.ask("GET", f"/v1/projects/{RED.id}/registry")).json()
    assert shown["stored_bytes"] <= shown["limit_bytes"]


async def test_a_mount_counts_for_the_project_that_gets_the_blob(world: World) -> None:
    content = await world.push(NAME, SECRET)
    await world.allow(BLUE, 0)
    query = {"mount": content, "from": NAME}
    refused = await world.ask("POST", f"/v2/{THEIRS}/blobs/uploads/", BOTH, params=query)
    assert error(refused) == (403, "DENIED")
    assert not await world.has(THEIRS, content, STRANGER)
