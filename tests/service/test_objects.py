"""Promises of the store of objects, over a real SeaweedFS."""

import asyncio
import os
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from dflare.embedded.ports import LOOPBACK, free_port
from dflare.embedded.seaweedfs import S3Login, answers
from dflare.kit import objects
from dflare.kit.errors import UnavailableError
from dflare.kit.objects import (
    NoSuchObjectError,
    NoSuchUploadError,
    ObjectRefusedError,
    ObjectStore,
    ObjectStoreUnreachableError,
    RangeError,
)
from dflare.kit.settings import PlatformSettings

MIB = 1024**2


@pytest.fixture
def prefix() -> str:
    return f"{secrets.token_hex(6)}/"


async def content(store: ObjectStore, key: str, part: tuple[int, int] | None = None) -> bytes:
    return b"".join([piece async for piece in store.get(key, part)])


async def keys(store: ObjectStore, prefix: str) -> list[str]:
    return [item.key async for item in store.list(prefix)]


async def test_what_was_put_is_read_back_whole_and_in_ranges(s3: ObjectStore, prefix: str) -> None:
    written = os.urandom(3 * MIB)
    await s3.put(f"{prefix}blob", written)
    assert await content(s3, f"{prefix}blob") == written
    assert await content(s3, f"{prefix}blob", (5, 9)) == written[5:10]
    assert await content(s3, f"{prefix}blob", (3 * MIB - 2, 4 * MIB)) == written[-2:]
    assert await s3.head(f"{prefix}blob") == len(written)


async def test_a_second_put_takes_the_place_of_the_first(s3: ObjectStore, prefix: str) -> None:
    await s3.put(f"{prefix}x", b"first and longer")
    await s3.put(f"{prefix}x", b"second")
    assert await content(s3, f"{prefix}x") == b"second"
    assert await s3.head(f"{prefix}x") == 6


@pytest.mark.parametrize("name", ["a b+c", "ü/ß", "sha256:0a", "q?x=1&y#z%2F", "a'(b)*!~.tar.gz"])
async def test_keys_of_any_letters_keep_their_name(s3: ObjectStore, prefix: str, name: str) -> None:
    await s3.put(prefix + name, b"x")
    assert await keys(s3, prefix) == [prefix + name]
    assert await content(s3, prefix + name) == b"x"


async def test_what_is_not_there_is_told_apart_from_a_store_that_is_away(
    s3: ObjectStore, prefix: str
) -> None:
    assert await s3.head(f"{prefix}nothing") is None
    with pytest.raises(NoSuchObjectError):
        await content(s3, f"{prefix}nothing")
    with pytest.raises(NoSuchObjectError):
        await s3.copy(f"{prefix}nothing", f"{prefix}copy")
    await s3.delete(f"{prefix}nothing")
    await s3.put(f"{prefix}short", b"12345")
    with pytest.raises(RangeError):
        await content(s3, f"{prefix}short", (5, 9))
    assert await keys(s3, f"{prefix}none/") == []


async def test_a_list_goes_on_beyond_its_first_page(s3: ObjectStore, prefix: str) -> None:
    names = [f"{prefix}{number:04}" for number in range(1030)]
    for start in range(0, len(names), 50):
        await asyncio.gather(*(s3.put(name, b"") for name in names[start : start + 50]))
    assert await keys(s3, prefix) == names
    found = [item async for item in s3.list(f"{prefix}000")]
    assert [item.size_bytes for item in found] == [0] * 10
    assert all(item.modified_at.tzinfo is not None for item in found)


async def test_what_was_deleted_is_gone_and_a_copy_stays(s3: ObjectStore, prefix: str) -> None:
    await s3.put(f"{prefix}one", b"content")
    await s3.copy(f"{prefix}one", f"{prefix}two")
    await s3.delete(f"{prefix}one")
    assert await keys(s3, prefix) == [f"{prefix}two"]
    assert await content(s3, f"{prefix}two") == b"content"


async def test_large_objects_are_copied_in_parts(
    s3: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "MAX_COPY_BYTES", 6 * MIB)
    monkeypatch.setattr(objects, "COPY_PART_BYTES", 5 * MIB)
    written = os.urandom(11 * MIB)
    await s3.put(f"{prefix}large", written)
    await s3.copy(f"{prefix}large", f"{prefix}copy")
    assert await content(s3, f"{prefix}copy") == written


async def test_an_upload_in_parts_goes_on_in_another_process_and_appears_whole(
    s3: ObjectStore, s3_settings: PlatformSettings, prefix: str
) -> None:
    key, parts = f"{prefix}parts", [os.urandom(5 * MIB), os.urandom(7)]
    upload = await s3.begin(key)
    first = await s3.part(key, upload, 1, os.urandom(5 * MIB))
    other = ObjectStore(s3_settings)
    second = await other.part(key, upload, 2, parts[1])
    again = await other.part(key, upload, 1, parts[0])
    assert again != first
    assert await s3.head(key) is None
    await other.complete(key, upload, [(1, again), (2, second)])
    await other.close()
    assert await content(s3, key) == b"".join(parts)


async def test_an_upload_given_up_leaves_nothing_and_cannot_go_on(
    s3: ObjectStore, prefix: str
) -> None:
    key = f"{prefix}given-up"
    upload = await s3.begin(key)
    etag = await s3.part(key, upload, 1, b"x")
    await s3.abort(key, upload)
    await s3.abort(key, upload)
    with pytest.raises(NoSuchUploadError):
        await s3.part(key, upload, 2, b"y")
    with pytest.raises((NoSuchUploadError, ObjectRefusedError)):
        await s3.complete(key, upload, [(1, etag)])
    assert await keys(s3, prefix) == []


async def test_a_store_that_is_away_is_an_answer_of_503_that_says_what_to_do(
    s3_settings: PlatformSettings,
) -> None:
    away = s3_settings.model_copy(update={"s3_url": f"http://{LOOPBACK}:{free_port()}"})
    store = ObjectStore(away)
    with pytest.raises(ObjectStoreUnreachableError) as refused:
        await store.put("x", b"x")
    await store.close()
    assert isinstance(refused.value, UnavailableError)
    assert "dflare doctor" in refused.value.next_step


async def test_a_platform_without_a_store_says_so(s3_settings: PlatformSettings) -> None:
    store = ObjectStore(s3_settings.model_copy(update={"s3_url": ""}))
    with pytest.raises(ObjectStoreUnreachableError, match="no store of objects"):
        await store.head("x")


async def test_a_wrong_key_reads_and_writes_nothing(
    s3: ObjectStore, s3_settings: PlatformSettings, s3_login: S3Login, prefix: str, tmp_path: Path
) -> None:
    await s3.put(f"{prefix}secret", b"x")
    wrong = tmp_path / "wrong"
    wrong.write_text("guessed")
    settings = s3_settings.model_copy(update={"s3_secret_key_file": str(wrong)})
    store = ObjectStore(settings)
    with pytest.raises(ObjectStoreUnreachableError, match="403"):
        await content(store, f"{prefix}secret")
    with pytest.raises(ObjectStoreUnreachableError, match="403"):
        await store.put(f"{prefix}more", b"x")
    await store.close()
    assert await keys(s3, prefix) == [f"{prefix}secret"]
    assert await answers(s3_login)
    guessed = S3Login(s3_login.url, s3_login.access_key, wrong, s3_login.bucket)
    assert not await answers(guessed)


async def test_a_bucket_that_is_missing_is_made_by_the_first_write(
    s3_settings: PlatformSettings,
) -> None:
    name = f"made-{secrets.token_hex(4)}"
    store = ObjectStore(s3_settings.model_copy(update={"s3_bucket": name}))
    assert await keys(store, "") == []
    assert await store.head("x") is None
    await asyncio.gather(store.put("x", b"1"), store.put("y", b"2"))
    assert await keys(store, "") == ["x", "y"]
    await store.close()


def ports_of(url: str) -> set[int]:
    """Every port that the process behind ``url`` listens on, all of them on loopback."""
    port = urlsplit(url).port
    listening = [item for item in psutil.net_connections("tcp") if item.status == "LISTEN"]
    (pid,) = {item.pid for item in listening if item.laddr.port == port}
    own = [item.laddr for item in listening if item.pid == pid]
    assert {address.ip for address in own} == {LOOPBACK}
    return {address.port for address in own} - {port or 0}


async def test_no_port_of_the_store_gives_objects_without_the_key(
    s3: ObjectStore, s3_login: S3Login, prefix: str
) -> None:
    await s3.put(f"{prefix}secret", b"only with the key")
    path = f"/buckets/{s3_login.bucket}/{prefix}secret"
    others = ports_of(s3_login.url)
    assert len(others) == 7
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        for port in others:
            for asked in (path, "/dir/assign", "/dir/lookup?fileId=1,01", "/1,01"):
                try:
                    answer = await client.get(f"http://{LOOPBACK}:{port}{asked}")
                except httpx.HTTPError:
                    continue
                assert answer.status_code in {400, 401, 404}, (port, asked, answer.text)
        anonymous = await client.get(f"{s3_login.url}/{s3_login.bucket}/{prefix}secret")
        assert anonymous.status_code == 403


async def test_a_store_that_hangs_up_in_the_middle_is_said_to_be_away(
    s3_settings: PlatformSettings,
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        writer.close()

    listener = socket.create_server((LOOPBACK, 0))
    server = await asyncio.start_server(hang_up, sock=listener)
    url = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
    store = ObjectStore(s3_settings.model_copy(update={"s3_url": url}))
    with pytest.raises(ObjectStoreUnreachableError):
        await content(store, "x")
    await store.close()
    server.close()
    await server.wait_closed()
