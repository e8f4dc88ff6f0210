"""Promises of what may stand in a request to the registry, without any store."""

import json
from typing import Any

import pytest

from dflare.services.registry.domain import (
    MAX_PARTS,
    MIB,
    MIN_PART_BYTES,
    assert_off_loop,
    check_chunk,
    is_digest,
    is_tag,
    parse_name,
    parse_range,
    part_bytes,
)
from dflare.services.registry.domain_manifests import Descriptor, parse_manifest
from dflare.services.registry.errors import (
    ChunkOrderError,
    ManifestInvalidError,
    NameInvalidError,
    RangeInvalidError,
    UploadInvalidError,
)

IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ONE, TWO = "sha256:" + "1" * 64, "sha512:" + "2" * 128


def manifest(**members: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **members}).encode()


def one(digest: str = ONE, size: int = 7, **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/x", "digest": digest, "size": size, **more}


def test_a_name_says_organization_project_and_a_path_of_any_depth() -> None:
    name = parse_name("red/training/a/b-c/d__e.f")
    assert (name.organization, name.project, name.path) == ("red", "training", "a/b-c/d__e.f")
    assert name.full == "red/training/a/b-c/d__e.f"


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "a/b", "a/b/", "a//b/c", "A/b/c", "a/b/../c", "a/b/c\n", "a/b/c\x00", "a/b/ä"),
        *("a/b/" + "c" * 252, "a/b/-c", "a/b/c_", "a/b/c___d", "a/b/c..d", "a/b/%2e"),
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(NameInvalidError):
        parse_name(text)


def test_digests_and_tags_are_what_the_specification_says() -> None:
    assert is_digest(ONE)
    assert is_digest(TWO)
    assert not any(map(is_digest, ["", "sha256:", ONE + "0", ONE + "\n", "sha1:" + "1" * 40]))
    assert is_tag("_" + "a" * 127)
    assert not any(map(is_tag, ["", "a" * 129, ".a", "a/b", "a\n", "a:b"]))


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=0-0", (0, 0)),
        ("bytes=3-", (3, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-99", (0, 9)),
        ("bytes=3-99", (3, 9)),
    ],
)
def test_a_range_is_cut_to_the_content(header: str | None, found: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == found


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=5-4", "bytes=-0", "bytes=99-100"])
def test_a_range_without_a_byte_is_refused(header: str) -> None:
    with pytest.raises(RangeInvalidError):
        parse_range(header, 10)


def test_a_chunk_goes_on_where_the_upload_ends_and_is_as_long_as_it_says() -> None:
    check_chunk(None, 5, 3)
    check_chunk("5-7", 5, 3)
    check_chunk("bytes 5-7/*", 5, None)
    with pytest.raises(ChunkOrderError):
        check_chunk("4-6", 5, 3)
    for header in ("5-8", "5-1", "x", "5-", "-7"):
        with pytest.raises(UploadInvalidError):
            check_chunk(header, 5, 3)


def test_parts_hold_large_blobs_and_are_never_too_small_for_the_store() -> None:
    assert min(part_bytes(number) for number in range(1, MAX_PARTS + 1)) > MIN_PART_BYTES
    assert part_bytes(1) == 8 * MIB
    assert sum(part_bytes(number) for number in range(1, MAX_PARTS + 1)) > 290 * 2**30


def test_a_manifest_tells_what_it_refers_to_each_once() -> None:
    far = one(TWO, 9, urls=["https://elsewhere.test/layer"])
    content = manifest(
        config=one(), layers=[one(), far], subject=one(TWO, 1), annotations={"a": "b"}
    )
    found = parse_manifest(content, IMAGE + "; charset=utf-8")
    assert found.media_type == IMAGE
    assert found.blobs == (Descriptor(ONE, 7),)
    assert found.elsewhere == (Descriptor(TWO, 9),)
    assert (found.artifact_type, found.subject) == ("application/x", TWO)
    listed = parse_manifest(manifest(mediaType=INDEX, manifests=[one()], artifactType="t"), "")
    assert (listed.manifests, listed.blobs) == ((Descriptor(ONE, 7),), ())
    assert listed.artifact_type == "t"


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"\xff", IMAGE),
        (b"{}", IMAGE),
        (manifest(config=one()), IMAGE),
        (manifest(config=one(), layers=[]), "text/html"),
        (manifest(config=one(), layers=[], mediaType=INDEX), IMAGE),
        (manifest(config=one(), layers=[], manifests=[]), IMAGE),
        (manifest(manifests=[], layers=[]), INDEX),
        (manifest(manifests=[], config=one()), INDEX),
        (manifest(config=one(size=-1), layers=[]), IMAGE),
        (manifest(config=one(size=True), layers=[]), IMAGE),
        (manifest(config=one(size=2**60), layers=[]), IMAGE),
        (manifest(config=one("sha256:../../x"), layers=[]), IMAGE),
        (manifest(config=one(), layers=[7]), IMAGE),
        (manifest(config=one(), layers=[], artifactType="x" * 300), IMAGE),
        (manifest(config=one(), layers=[], annotations=["a"]), IMAGE),
    ],
)
def test_what_is_no_manifest_is_told_from_one(content: bytes, content_type: str) -> None:
    with pytest.raises(ManifestInvalidError):
        parse_manifest(content, content_type)


async def test_hashing_on_the_event_loop_is_an_error_of_ours() -> None:
    with pytest.raises(AssertionError):
        assert_off_loop("this")
