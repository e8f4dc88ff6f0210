"""Promises of pushing and pulling: uploads in one request or many, ranges, manifests, referrers."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from dflare.kit.settings import PlatformSettings
from dflare.services.registry.tables import Blob, Garbage, Upload, UploadPart
from registry_world import (
    EMPTY,
    INDEX,
    MEMBER,
    MIB,
    VIEWER,
    World,
    descriptor,
    digest,
    image,
    index,
    noise,
    pieces,
    registry_world,
    served,
    until,
)

NAME = "red/training/base"


@pytest.fixture
async def world(postgres_url: str, s3_settings: PlatformSettings) -> AsyncIterator[World]:
    async with registry_world(postgres_url, s3_settings) as world:
        yield world


async def pull(world: World, content: str, **more: Any) -> httpx.Response:
    return await world.ask("GET", f"/v2/{NAME}/blobs/{content}", VIEWER, **more)


# --- blobs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5000, 5 * MIB, 8 * MIB, 8 * MIB + 1, 21 * MIB + 17])
async def test_a_blob_of_any_size_comes_back_as_it_was_pushed_in_one_stream(
    world: World, size: int
) -> None:
    content = noise(size)
    path = await world.begin(NAME)
    sent = await world.ask("PATCH", path, content=pieces(content))
    assert (sent.status_code, sent.headers["range"]) == (202, f"0-{size - 1}")
    done = await world.ask("PUT", path, params={"digest": digest(content)})
    assert done.status_code == 201, done.text
    assert done.headers["docker-content-digest"] == digest(content)
    assert (await pull(world, digest(content))).content == content
    await world.reconciler.remove_garbage()
    assert len(await world.stored()) == 1, "what was written on the way is named as garbage"
    assert await world.count(Upload) == await world.count(UploadPart) == 0


async def test_a_blob_without_bytes_needs_no_object(world: World) -> None:
    assert await world.push(NAME, b"") == EMPTY
    found = await pull(world, EMPTY)
    assert (found.status_code, found.content) == (200, b"")
    assert await world.stored() == []


@pytest.mark.parametrize("chunk", [1000, 3 * MIB, 6 * MIB, 9 * MIB])
async def test_a_blob_may_come_in_chunks_of_any_size(world: World, chunk: int) -> None:
    content = noise(min(chunk * 4 + 11, 20 * MIB))
    path = await world.begin(NAME)
    for start in range(0, len(content), chunk):
        part = content[start : start + chunk]
        sent = await world.ask(
            "PATCH",
            path,
            content=part,
            headers={"Content-Range": f"{start}-{start + len(part) - 1}"},
        )
        assert sent.status_code == 202, sent.text
    done = await world.ask("PUT", path, params={"digest": digest(content)})
    assert done.status_code == 201, done.text
    assert (await pull(world, digest(content))).content == content


async def test_the_last_chunk_may_come_with_the_digest(world: World) -> None:
    content = noise(9 * MIB)
    path = await world.begin(NAME)
    await world.ask("PATCH", path, content=content[: 8 * MIB])
    last = content[8 * MIB :]
    done = await world.ask("PUT", path, params={"digest": digest(content)}, content=last)
    assert done.status_code == 201, done.text
    assert (await pull(world, digest(content))).content == content


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_an_upload_goes_on_where_it_was_when_its_gateway_was_killed(
    world: World, algorithm: str
) -> None:
    content = noise(19 * MIB)
    found = digest(content, algorithm)
    path = await world.begin(NAME)
    await world.ask("PATCH", path, content=content[: 10 * MIB])
    world.restart()
    status = await world.ask("GET", path)
    assert (status.status_code, status.headers["range"]) == (204, f"0-{10 * MIB - 1}")
    await world.ask("PATCH", path, content=content[10 * MIB :])
    world.restart()
    done = await world.ask("PUT", path, params={"digest": found})
    assert done.status_code == 201, done.text
    assert (await pull(world, found)).content == content


async def test_what_was_joined_before_it_could_be_recorded_is_recorded_by_a_repeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(9 * MIB)
    path = await world.begin(NAME)
    await world.ask("PATCH", path, content=content)

    async def cut(*_: Any) -> None:
        raise OSError("the process ends here")

    with monkeypatch.context() as patched:
        patched.setattr(world.uploads, "_keep", cut)
        assert (await world.ask("PUT", path, params={"digest": digest(content)})).is_error
    world.restart()
    done = await world.ask("PUT", path, params={"digest": digest(content)})
    assert done.status_code == 201, done.text
    assert (await pull(world, digest(content))).content == content


async def test_a_later_request_takes_an_upload_over_and_the_older_one_records_nothing(
    world: World,
) -> None:
    first, second = noise(9 * MIB, seed=1), noise(9 * MIB, seed=2)
    path = await world.begin(NAME)
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield first
        await go_on.wait()
        yield noise(9 * MIB, seed=3)

    async def has_a_part() -> bool:
        return await world.count(UploadPart) == 1

    older = asyncio.create_task(world.ask("PATCH", path, content=slow()))
    await until(has_a_part)
    newer = await world.ask("PATCH", path, content=second)
    assert newer.headers["range"] == f"0-{18 * MIB - 1}"
    go_on.set()
    assert (await older).status_code == 409
    done = await world.ask("PUT", path, params={"digest": digest(first + second)})
    assert done.status_code == 201, done.text
    assert (await pull(world, digest(first + second))).content == first + second


async def test_an_upload_can_be_given_up_and_its_parts_are_removed(world: World) -> None:
    path = await world.begin(NAME)
    await world.ask("PATCH", path, content=noise(9 * MIB))
    assert (await world.ask("DELETE", path)).status_code == 204
    assert (await world.ask("GET", path)).status_code == 404
    assert (await world.ask("PATCH", path, content=b"x")).status_code == 404
    await world.reconciler.remove_garbage()
    assert await world.stored() == []


async def test_uploads_that_nobody_goes_on_with_are_dropped(world: World) -> None:
    path = await world.begin(NAME)
    await world.ask("PATCH", path, content=noise(9 * MIB))
    await world.clock.sleep(world.settings.upload_keep_s - 1)
    assert await world.reconciler.expire_uploads() == 0
    await world.clock.sleep(2)
    assert await world.reconciler.expire_uploads() == 1
    assert (await world.ask("GET", path)).json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"
    await world.clock.sleep(2 * world.settings.upload_keep_s)
    await world.reconciler.remove_garbage()
    assert await world.stored() == []
    assert await world.count(Garbage) == 0


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("0-0", 0, 0), ("500-1499", 500, 1499), ("500-", 500, None), ("-500", -500, None)],
)
async def test_some_bytes_of_a_blob_can_be_had(
    world: World, asked: str, first: int, last: int | None
) -> None:
    content = noise(5000)
    await world.push(NAME, content)
    found = await pull(world, digest(content), headers={"Range": f"bytes={asked}"})
    wanted = content[first:] if last is None else content[first : last + 1]
    assert (found.status_code, found.content) == (206, wanted)
    begin = first % 5000
    assert found.headers["content-range"] == f"bytes {begin}-{begin + len(wanted) - 1}/5000"


@pytest.mark.parametrize("asked", ["5000-6000", "500-0", "99999-"])
async def test_bytes_that_a_blob_does_not_have_are_refused(world: World, asked: str) -> None:
    await world.push(NAME, noise(5000))
    found = await pull(world, digest(noise(5000)), headers={"Range": f"bytes={asked}"})
    assert found.status_code == 416


async def test_a_blob_is_mounted_from_a_repository_of_the_project_without_being_sent(
    world: World,
) -> None:
    content = await world.push(NAME, noise(3000))
    other = "red/training/other/deep"
    path = f"/v2/{other}/blobs/uploads/"
    for source in ({"from": NAME}, {}):
        mounted = await world.ask("POST", path, params={"mount": content, **source})
        assert mounted.status_code == 201
        assert mounted.headers["location"] == f"/v2/{other}/blobs/{content}"
    assert await world.has(other, content)
    assert await world.count(Blob) == 1


async def test_content_that_a_project_has_already_is_stored_once(world: World) -> None:
    content = noise(3000)
    for name in (NAME, "red/training/other"):
        await world.push(name, content)
    await world.reconciler.remove_garbage()
    assert await world.count(Blob) == len(await world.stored()) == 1


# --- what may not be -------------------------------------------------------------------------


async def test_a_wrong_digest_is_refused_and_leaves_nothing(world: World) -> None:
    content = noise(9 * MIB)
    for body in (content, b"short"):
        path = await world.begin(NAME)
        await world.ask("PATCH", path, content=body)
        done = await world.ask("PUT", path, params={"digest": digest(b"something else")})
        assert (done.status_code, done.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
        assert (await world.ask("GET", path)).status_code == 404
    posted = await world.ask(
        "POST",
        f"/v2/{NAME}/blobs/uploads/",
        params={"digest": digest(b"something else")},
        content=b"short",
    )
    assert posted.status_code == 400
    await world.reconciler.remove_garbage()
    assert await world.stored() == []
    assert await world.count(Blob) == await world.count(Upload) == 0


@pytest.mark.parametrize(
    "given",
    ["", "sha256:", "sha256:ABC", "md5:" + "a" * 32, "sha256:" + "g" * 64, "sha256:" + "A" * 64],
)
async def test_what_is_no_digest_is_refused(world: World, given: str) -> None:
    path = await world.begin(NAME)
    done = await world.ask("PUT", path, params={"digest": given})
    assert (done.status_code, done.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("given", ["5-9", "0-98", "bytes 0-9/*x", "9-0", "x", "0-9,20-29"])
async def test_a_chunk_that_does_not_fit_is_refused_and_changes_nothing(
    world: World, given: str
) -> None:
    path = await world.begin(NAME)
    sent = await world.ask("PATCH", path, content=b"0" * 10, headers={"Content-Range": given})
    assert sent.status_code == (416 if given in {"5-9", "9-0"} else 400)
    sent = await world.ask("PATCH", path, content=b"0" * 10, headers={"Content-Range": "0-9"})
    assert sent.status_code == 202


async def test_a_chunk_that_was_recorded_is_not_taken_twice(world: World) -> None:
    path = await world.begin(NAME)
    headers = {"Content-Range": "0-9"}
    assert (await world.ask("PATCH", path, content=b"0" * 10, headers=headers)).is_success
    again = await world.ask("PATCH", path, content=b"0" * 10, headers=headers)
    assert again.status_code == 416
    assert (await world.ask("GET", path)).headers["range"] == "0-9"


async def test_a_truncated_upload_keeps_whole_parts_and_is_no_blob(world: World) -> None:
    content = noise(12 * MIB)
    path = await world.begin(NAME)
    head = (
        f"PATCH {path} HTTP/1.1\r\nHost: registry.test\r\n"
        f"Authorization: Bearer {MEMBER.subject}\r\nContent-Length: {len(content)}\r\n\r\n"
    )

    def send(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(head.encode() + content[: 9 * MIB])

    async def has_ended() -> bool:
        return not world.uploads._receiving and await world.count(UploadPart) == 1

    async with served(world.app) as port:
        await asyncio.to_thread(send, port)
        await until(has_ended)
    world.restart()
    status = await world.ask("GET", path)
    start = int(status.headers["range"].partition("-")[2]) + 1
    assert 8 * MIB <= start < 9 * MIB
    rest = content[start:]
    sent = await world.ask(
        "PATCH", path, content=rest, headers={"Content-Range": f"{start}-{len(content) - 1}"}
    )
    assert sent.status_code == 202, sent.text
    done = await world.ask("PUT", path, params={"digest": digest(content)})
    assert done.status_code == 201, done.text
    cut = await world.begin(NAME)
    await world.ask("PATCH", cut, content=content[: 9 * MIB])
    short = await world.ask("PUT", cut, params={"digest": digest(content)})
    assert short.status_code == 400


async def test_an_upload_is_found_in_its_own_repository_alone(world: World) -> None:
    path = await world.begin(NAME)
    elsewhere = path.replace("base", "other")
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        answer = await world.ask(method, elsewhere, params={"digest": EMPTY})
        assert answer.status_code == 404, method


async def test_as_many_uploads_run_as_may_and_the_next_one_is_told_to_wait(world: World) -> None:
    path = await world.begin(NAME)
    limit = world.settings.uploads_a_project
    world.uploads._receiving["proj_red"] = limit
    answer = await world.ask("PATCH", path, content=b"x")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
    assert answer.headers["retry-after"]
    world.uploads._receiving["proj_red"] = limit - 1
    assert (await world.ask("PATCH", path, content=b"x")).status_code == 202


# --- manifests and tags ----------------------------------------------------------------------


async def test_a_manifest_comes_back_byte_by_byte_by_tag_and_by_digest(world: World) -> None:
    manifest = await world.push_image(NAME, "v1", b"layer")
    for reference in ("v1", digest(manifest)):
        for method in ("GET", "HEAD"):
            found = await world.ask(method, f"/v2/{NAME}/manifests/{reference}", VIEWER)
            assert found.headers["docker-content-digest"] == digest(manifest)
            assert found.headers["content-length"] == str(len(manifest))
            assert found.headers["x-content-type-options"] == "nosniff"
            assert found.content == (manifest if method == "GET" else b"")


async def test_a_manifest_whose_blobs_are_not_there_is_refused(world: World) -> None:
    await world.push(NAME, b"config")
    manifest = image(b"config", b"never pushed")
    answer = await world.put(NAME, "v1", manifest)
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["code"]) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert digest(b"never pushed") in error["message"]
    assert (await world.ask("GET", f"/v2/{NAME}/manifests/v1")).status_code == 404
    child = await world.put(NAME, "v1", index(manifest))
    assert child.status_code == 404


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"schemaVersion": 1}',
        b'{"schemaVersion": 2}',
        json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode(),
        json.dumps({"schemaVersion": 2, "config": descriptor(b""), "layers": 7}).encode(),
        image(b"", subject={"digest": "sha256:short", "size": 1}),
        image(b"", annotations={"a": 1}),
        image(b"", annotations={"a": "\x00"}),
        image(b"", manifests=[]),
        index(layers=[]),
        b"[" * 100_000,
        image(b"", mediaType="text/html"),
        image(b"", mediaType=INDEX),
    ],
)
async def test_what_is_no_manifest_is_refused(world: World, content: bytes) -> None:
    await world.push(NAME, b"")
    answer = await world.ask(
        "PUT",
        f"/v2/{NAME}/manifests/v1",
        content=content,
        headers={"Content-Type": "application/vnd.oci.image.manifest.v1+json"},
    )
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_INVALID")


async def test_a_manifest_is_kept_under_its_own_digest_alone(world: World) -> None:
    await world.push(NAME, b"")
    manifest = image(b"")
    wrong = await world.put(NAME, digest(b"another"), manifest)
    assert (wrong.status_code, wrong.json()["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    for algorithm in ("sha256", "sha512"):
        own = digest(manifest, algorithm)
        assert (await world.put(NAME, own, manifest)).status_code == 201
        assert (await world.ask("GET", f"/v2/{NAME}/manifests/{own}")).content == manifest


async def test_a_manifest_of_more_than_4_mib_is_refused(world: World) -> None:
    await world.push(NAME, b"")
    manifest = image(b"", annotations={"a": "x" * (4 * MIB)})
    assert (await world.put(NAME, "v1", manifest)).status_code == 413


async def test_a_manifest_that_lies_about_a_size_is_refused(world: World) -> None:
    await world.push(NAME, b"12345")
    document = json.loads(image(b"12345"))
    document["config"]["size"] = 4
    answer = await world.put(NAME, "v1", json.dumps(document).encode())
    assert answer.status_code == 400


async def test_tags_are_listed_in_lexical_order_page_by_page(world: World) -> None:
    manifest = await world.push_image(NAME, "b", b"layer")
    for tag in ("A", "c", "Z_1", "0.1"):
        await world.put(NAME, tag, manifest)
    told: list[str] = []
    path = f"/v2/{NAME}/tags/list?n=2"
    while path:
        page = await world.ask("GET", path, VIEWER)
        told += page.json()["tags"]
        path = page.headers.get("link", "<>").partition("<")[2].partition(">")[0]
    assert told == ["0.1", "A", "b", "c", "Z_1"]
    assert (await world.ask("GET", f"/v2/{NAME}/tags/list?n=0")).json()["tags"] == []
    assert (await world.ask("GET", f"/v2/{NAME}/tags/list?n=-1")).status_code == 400
    assert (await world.ask("GET", "/v2/red/training/none/tags/list")).status_code == 404


@pytest.mark.parametrize("tag", ["-x", ".x", "x" * 129, "a b", "ä"])
async def test_what_cannot_be_a_tag_is_refused(world: World, tag: str) -> None:
    await world.push(NAME, b"")
    answer = await world.put(NAME, tag, image(b""))
    assert answer.status_code == 400
    assert (await world.ask("GET", f"/v2/{NAME}/manifests/{tag}")).status_code == 404


async def test_what_is_about_a_manifest_is_listed_even_before_that_is_there(world: World) -> None:
    subject = image(b"", annotations={"a": "subject"})
    about = descriptor(subject, "application/vnd.oci.image.manifest.v1+json")
    await world.push(NAME, b"")
    for number, kind in enumerate(("test/sbom", "test/signature", "test/signature")):
        marked = image(b"", subject=about, artifactType=kind, annotations={"n": str(number)})
        answer = await world.put(NAME, digest(marked), marked)
        assert answer.headers["oci-subject"] == digest(subject)
    path = f"/v2/{NAME}/referrers/{digest(subject)}"
    found = await world.ask("GET", path, VIEWER)
    assert found.headers["content-type"] == INDEX
    listed = found.json()["manifests"]
    assert sorted(one["annotations"]["n"] for one in listed) == ["0", "1", "2"]
    signatures = await world.ask("GET", path, params={"artifactType": "test/signature"})
    assert signatures.headers["oci-filters-applied"] == "artifactType"
    assert {one["artifactType"] for one in signatures.json()["manifests"]} == {"test/signature"}
    nothing = await world.ask("GET", f"/v2/{NAME}/referrers/{digest(b'none')}")
    assert (nothing.status_code, nothing.json()["manifests"]) == (200, [])


async def test_deleting_a_tag_leaves_the_manifest_and_deleting_that_takes_its_tags(
    world: World,
) -> None:
    manifest = await world.push_image(NAME, "v1", b"layer")
    await world.put(NAME, "v2", manifest)
    own = f"/v2/{NAME}/manifests/{digest(manifest)}"
    assert (await world.ask("DELETE", f"/v2/{NAME}/manifests/v1")).status_code == 202
    assert (await world.ask("GET", own)).status_code == 200
    assert (await world.ask("DELETE", own)).status_code == 202
    assert (await world.ask("GET", f"/v2/{NAME}/manifests/v2")).status_code == 404
    assert (await world.ask("DELETE", own)).status_code == 404


async def test_a_blob_that_a_manifest_refers_to_is_not_deleted(world: World) -> None:
    manifest = await world.push_image(NAME, "v1", b"layer")
    path = f"/v2/{NAME}/blobs/{digest(b'layer')}"
    assert (await world.ask("DELETE", path)).status_code == 405
    await world.ask("DELETE", f"/v2/{NAME}/manifests/{digest(manifest)}")
    assert (await world.ask("DELETE", path)).status_code == 202
    assert (await world.ask("GET", path)).status_code == 404
    assert (await world.ask("DELETE", path)).status_code == 404


async def test_who_pushed_what_and_when_is_told_as_events(world: World) -> None:
    manifest = await world.push_image(NAME, "v1", b"layer")
    await world.put(NAME, "v1", manifest)
    told = await world.events("repository.changed")
    assert [(one["tag"], one["digest"]) for one in told] == [("", ""), ("v1", digest(manifest))]
    assert {one["state"] for one in told} == {"ready"}
