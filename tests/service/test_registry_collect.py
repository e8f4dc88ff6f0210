"""Promises of what is kept and what is not: collection beside pushes, usage, the platform's API."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from dflare.kit.feed import FeedEntry
from dflare.kit.objects import ObjectStoreUnreachableError
from dflare.kit.settings import PlatformSettings
from dflare.services.metering.contract import QuotaLimit
from dflare.services.registry.contract import QUOTA
from dflare.services.registry.projections import QuotaProjection
from dflare.services.registry.tables import KIT, Blob, Garbage, Manifest, Reference, RepositoryBlob
from registry_world import (
    BLUE,
    INDEX,
    RED,
    World,
    descriptor,
    digest,
    image,
    index,
    noise,
    registry_world,
)
from tenancy import MEMBER, NOW, OPERATOR, STRANGER, VIEWER

NAME = "red/training/base"
REPOSITORIES = f"/v1/projects/{RED.id}/repositories"


@pytest.fixture
async def world(postgres_url: str, s3_settings: PlatformSettings) -> AsyncIterator[World]:
    async with registry_world(postgres_url, s3_settings) as world:
        yield world


async def passes(world: World, seconds: float) -> None:
    """Time passes, with looks of the reconciler before and after."""
    await world.reconciler.look()
    await world.clock.sleep(seconds)
    await world.reconciler.look()


async def collected(world: World) -> None:
    """As long as everything takes that is collected at all."""
    for wait in (world.settings.grace_s, world.settings.reader_grace_s, 0.0):
        await passes(world, wait + 1)


# --- collection ------------------------------------------------------------------------------


async def test_a_blob_that_no_manifest_refers_to_goes_after_its_time_of_grace_with_its_object(
    world: World,
) -> None:
    content = await world.push(NAME, noise(5000))
    await passes(world, world.settings.grace_s - 10)
    assert await world.has(NAME, content)
    await passes(world, 11)
    assert not await world.has(NAME, content)
    assert len(await world.stored()) == 1, "somebody may still be reading it"
    await passes(world, world.settings.reader_grace_s + 1)
    assert await world.stored() == []
    assert await world.count(Blob) == await world.count(Garbage) == 0


async def test_what_a_manifest_refers_to_stays_however_long(world: World) -> None:
    manifest = await world.push_image(NAME, "v1", b"one", b"two")
    child = await world.put(NAME, "all", index(manifest))
    assert child.status_code == 201
    for _ in range(3):
        await collected(world)
    for content in (b"one", b"two"):
        found = await world.ask("GET", f"/v2/{NAME}/blobs/{digest(content)}")
        assert found.content == content


async def test_a_blob_goes_when_the_last_manifest_that_refers_to_it_has_gone(
    world: World,
) -> None:
    first = await world.push_image(NAME, "v1", b"shared", b"first")
    await world.push_image(NAME, "v2", b"shared", b"second")
    await collected(world)
    await world.ask("DELETE", f"/v2/{NAME}/manifests/{digest(first)}")
    await collected(world)
    kept = {content: await world.has(NAME, digest(content)) for content in (b"shared", b"first")}
    assert kept == {b"shared": True, b"first": False}


async def test_a_pusher_that_finds_a_blob_just_before_it_is_collected_can_rely_on_it(
    world: World,
) -> None:
    layer = await world.push(NAME, b"layer")
    await passes(world, world.settings.grace_s - 60)
    assert await world.has(NAME, layer, MEMBER)
    await passes(world, 120)
    await world.push(NAME, b"config")
    answer = await world.put(NAME, "v1", image(b"config", b"layer"))
    assert answer.status_code == 201


async def test_who_only_pulls_keeps_no_garbage(world: World) -> None:
    layer = await world.push(NAME, b"layer")
    await passes(world, world.settings.grace_s - 60)
    assert await world.has(NAME, layer, VIEWER)
    await passes(world, 120)
    assert not await world.has(NAME, layer)


async def test_pushes_and_collection_at_the_same_time_never_leave_a_manifest_without_its_blobs(
    world: World,
) -> None:
    async def push(number: int) -> bool:
        layer = noise(2000, seed=number % 3)
        for content in (b"config", layer):
            if not await world.has(NAME, digest(content), MEMBER):
                await world.push(NAME, content)
        answer = await world.put(NAME, f"t{number}", image(b"config", layer, mark=str(number)))
        assert answer.status_code in {201, 404}, answer.text
        return answer.status_code == 201

    async def collect() -> None:
        for _ in range(6):
            await world.clock.sleep(world.settings.grace_s)
            await world.reconciler.collect_links()
            await world.reconciler.collect_blobs()

    async def forget(number: int) -> None:
        await world.ask("DELETE", f"{REPOSITORIES}/base/tags/t{number}")

    pushed = 0
    for turn in range(4):
        works: list[Any] = [push(turn * 10 + number) for number in range(6)]
        works += [collect(), *(forget((turn - 1) * 10 + number) for number in range(3) if turn)]
        pushed += sum(bool(one) for one in await asyncio.gather(*works))
        await world.reconciler.remove_garbage()
        there = {(one.repository_id, one.digest) for one in await world.rows(RepositoryBlob)}
        wanted = {(one.repository_id, one.digest) for one in await world.rows(Reference)}
        assert wanted <= there
        for content in {one for _, one in wanted}:
            found = await world.ask("GET", f"/v2/{NAME}/blobs/{content}")
            assert digest(found.content) == content
    assert pushed


async def test_two_collectors_at_the_same_time_do_no_harm(world: World) -> None:
    await world.push_image(NAME, "v1", b"kept")
    for number in range(5):
        await world.push(NAME, noise(100, seed=number))
    await world.clock.sleep(world.settings.grace_s + 1)
    for _ in range(3):
        await asyncio.gather(*(world.reconciler.look() for _ in range(3)))
        await world.clock.sleep(world.settings.reader_grace_s + 1)
    assert await world.has(NAME, digest(b"kept"))
    assert await world.count(Blob) == len(await world.stored()) == 2


async def test_a_store_that_is_away_keeps_garbage_until_it_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.push(NAME, noise(5000))
    await collected_but_objects(world)

    async def away(_: str) -> None:
        raise ObjectStoreUnreachableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(world.objects, "delete", away)
        with pytest.raises(ObjectStoreUnreachableError):
            await world.reconciler.remove_garbage()
    assert len(await world.stored()) == 1
    await world.reconciler.remove_garbage()
    assert await world.stored() == []


async def collected_but_objects(world: World) -> None:
    await world.clock.sleep(world.settings.grace_s + 1)
    await world.reconciler.collect_links()
    await world.clock.sleep(world.settings.reader_grace_s + 1)
    await world.reconciler.collect_blobs()


# --- usage and quota -------------------------------------------------------------------------


async def test_what_a_project_holds_is_told_to_the_ledger_from_measure_to_measure(
    world: World,
) -> None:
    await world.push(NAME, b"x" * 1000)
    await world.push("red/training/other", b"x" * 1000)
    await world.reconciler.measure()
    begun = world.clock.now()
    assert await world.reconciler.measure() == 0
    world.clock.at += timedelta(hours=1)
    manifest = image(b"x" * 1000)
    await world.put(NAME, "v1", manifest)
    await world.reconciler.measure()
    changed = world.clock.now()
    world.clock.at += timedelta(hours=1)
    for name in ("base", "other"):
        assert (await world.ask("DELETE", f"{REPOSITORIES}/{name}")).status_code == 204
    await world.reconciler.measure()
    found = [(one.stored_bytes, one.usage_from, one.usage_to) for one in await world.intervals(RED)]
    assert found == [
        (1000, begun, changed),
        (1000 + len(manifest), changed, world.clock.now()),
    ]
    told = await world.events("registry.usage")
    assert [(one["stored_bytes"], one["version"]) for one in told] == [
        (1000, 1),
        (1000, 2),
        (1000 + len(manifest), 1),
        (1000 + len(manifest), 2),
    ]
    assert await world.intervals(BLUE) == []


async def test_the_newest_quota_counts_in_whatever_order_the_news_come(world: World) -> None:
    def told(version: int, nodes: int, kind: str = QUOTA) -> FeedEntry:
        facts = QuotaLimit(
            project_id=RED.id, organization_id=RED.organization_id, node_type=kind, nodes=nodes
        )
        data = facts.model_dump(mode="json")
        return FeedEntry(
            1, "m", "e", "quota.changed", None, None, None, "quota", "q", version, None, NOW, data
        )

    async with world.database.transaction("registry") as session:
        entries = [told(3, 30), told(2, 20), told(9, 90, "h100-8")]
        await QuotaProjection().apply(session, entries)
    shown = (await world.ask("GET", f"/v1/projects/{RED.id}/registry")).json()
    assert shown["limit_bytes"] == 30 * 2**30
    assert shown["prefix"] == "registry.test/red/training/"


# --- the platform's own API ------------------------------------------------------------------


async def test_repositories_and_tags_are_listed_with_what_they_hold(world: World) -> None:
    manifest = await world.push_image("red/training/deep/er", "v1", b"x" * 1000)
    await world.push_image(NAME, "v1", b"y")
    listed = (await world.ask("GET", REPOSITORIES, VIEWER)).json()["items"]
    assert [one["name"] for one in listed] == ["deep/er", "base"]
    query = {"name": "deep/er"}
    (one,) = (await world.ask("GET", REPOSITORIES, VIEWER, params=query)).json()["items"]
    assert one["reference"] == "registry.test/red/training/deep/er"
    assert (one["tags"], one["manifests"]) == (1, 1)
    (tag,) = (await world.ask("GET", f"{REPOSITORIES}/{one['id']}/tags", VIEWER)).json()["items"]
    assert (tag["name"], tag["digest"]) == ("v1", digest(manifest))
    assert one["size_bytes"] == tag["size_bytes"] > 1000
    everywhere = (await world.ask("GET", "/v1/repositories", OPERATOR)).json()["items"]
    assert len(everywhere) == 2
    assert (await world.ask("GET", "/v1/repositories", STRANGER)).json()["items"] == []


async def test_pages_of_repositories_and_tags_give_each_once(world: World) -> None:
    manifest = await world.push_image(NAME, "t0", b"y")
    for number in range(1, 5):
        await world.put(NAME, f"t{number}", manifest)
        await world.push(f"red/training/r{number}", b"")
    for path, names in (
        (REPOSITORIES, ["base", "r1", "r2", "r3", "r4"]),
        (f"{REPOSITORIES}/base/tags", ["t0", "t1", "t2", "t3", "t4"]),
    ):
        told: list[str] = []
        cursor: str | None = None
        while True:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await world.ask("GET", path, VIEWER, params=query)).json()
            told += [one["name"] for one in page["items"]]
            cursor = page["next_cursor"]
            if not cursor:
                break
        assert sorted(told) == names
        assert len(told) == len(names)


async def test_deleting_a_tag_frees_what_no_other_tag_names(world: World) -> None:
    one = await world.push_image(NAME, "one", b"first")
    two = await world.push_image(NAME, "two", b"second")
    both = index(one, two)
    await world.put(NAME, "both", both)
    signature = image(b"", subject=descriptor(both, INDEX), artifactType="test/signature")
    await world.push(NAME, b"")
    await world.put(NAME, digest(signature), signature)
    for tag in ("one", "both"):
        answer = await world.ask("DELETE", f"{REPOSITORIES}/base/tags/{tag}")
        assert answer.status_code == 204
    left = {row.digest for row in await world.rows(Manifest)}
    assert left == {digest(two)}
    await collected(world)
    assert await world.has(NAME, digest(b"second"))
    assert not await world.has(NAME, digest(b"first"))
    gone = await world.ask("DELETE", f"{REPOSITORIES}/base/tags/one")
    assert gone.status_code == 404


async def test_a_deleted_repository_leaves_nothing_and_its_name_can_be_used_again(
    world: World,
) -> None:
    await world.push_image(NAME, "v1", b"layer")
    shown = await world.ask("GET", f"{REPOSITORIES}/base")
    stale = await world.ask(
        "DELETE", f"{REPOSITORIES}/base", headers={"If-Match": '"something-else"'}
    )
    assert stale.status_code == 412
    headers = {"If-Match": shown.headers["etag"]}
    assert (await world.ask("DELETE", f"{REPOSITORIES}/base", headers=headers)).status_code == 204
    assert (await world.ask("GET", f"/v2/{NAME}/tags/list")).status_code == 404
    told = await world.events("repository.changed")
    assert told[-1]["state"] == "deleted"
    await collected(world)
    assert await world.stored() == []
    await world.push_image(NAME, "v1", b"layer")
    assert (await world.ask("GET", f"{REPOSITORIES}/base")).json()["id"] != shown.json()["id"]


async def test_viewers_delete_nothing_and_strangers_find_nothing(world: World) -> None:
    await world.push_image(NAME, "v1", b"layer")
    paths = (f"{REPOSITORIES}/base", f"{REPOSITORIES}/base/tags/v1")
    for path in paths:
        assert (await world.ask("DELETE", path, VIEWER)).status_code == 403
        assert (await world.ask("DELETE", path, STRANGER)).status_code == 404
    for path in (REPOSITORIES, paths[0], f"{paths[0]}/tags", f"/v1/projects/{RED.id}/registry"):
        assert (await world.ask("GET", path, STRANGER)).status_code == 404


async def test_pushes_and_deletions_are_in_the_audit_log(world: World) -> None:
    await world.push_image(NAME, "v1", b"layer")
    await world.ask("DELETE", f"{REPOSITORIES}/base/tags/v1")
    await world.ask("DELETE", f"{REPOSITORIES}/base")
    async with world.database.transaction("registry") as session:
        rows = (await session.execute(KIT.audit.select().order_by(KIT.audit.c.id))).all()
    assert [(row.action, row.principal) for row in rows] == [
        ("repository:push", MEMBER.subject),
        ("repository:delete", MEMBER.subject),
        ("repository:delete", MEMBER.subject),
    ]
