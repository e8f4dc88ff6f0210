"""Valkey, SeaweedFS and VictoriaMetrics in `dflare up` and `down`."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from dflare.embedded import control, victoria
from dflare.embedded.doctor import Verdict, examine
from dflare.embedded.identity import marked_processes
from dflare.embedded.layout import Layout
from dflare.embedded.options import UpOptions
from dflare.embedded.packages import VICTORIA_METRICS, PackageCache
from dflare.embedded.plan import make_plan
from dflare.embedded.ports import LOOPBACK, free_port
from dflare.embedded.state import ComponentState, ComponentStatus, read_state
from dflare.kit.cache import Cache
from dflare.kit.objects import ObjectStore
from dflare.kit.settings import PlatformSettings
from stores import VICTORIA_PACKAGES

STORES = UpOptions(only=("valkey", "seaweedfs"))
SWITCH = VICTORIA_METRICS.switch_variable


@pytest.fixture
def layout() -> Iterator[Layout]:
    directory = Path(tempfile.mkdtemp(prefix="dflare-more-"))
    layout = Layout(directory / "data")
    yield layout
    control.down(layout)
    shutil.rmtree(directory, ignore_errors=True)


def objects_of(layout: Layout, started: control.Started) -> ObjectStore:
    return ObjectStore(
        PlatformSettings(
            postgres_url="",
            temporal_address="",
            secret_key_file="",
            s3_url=started.state.urls["s3"],
            s3_access_key="dflare",
            s3_secret_key_file=str(layout.s3_secret_key_file),
        )
    )


async def up(layout: Layout, options: UpOptions = STORES) -> control.Started:
    return await asyncio.to_thread(control.up, layout, options)


async def down(layout: Layout) -> list[str]:
    return await asyncio.to_thread(control.down, layout)


async def until(what: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110 - the world outside this process sets no event
            await asyncio.sleep(0.05)


def component(layout: Layout, name: str) -> ComponentStatus:
    state = read_state(layout.state_file)
    assert state is not None
    return next(item for item in state.components if item.name == name)


def environment(layout: Layout, options: UpOptions) -> dict[str, str]:
    """The settings of the platform's processes."""
    plan = make_plan(layout, options)
    return dict(next(item for item in plan.components if item.name == "gateway").env)


async def test_down_ends_the_stores_and_the_next_start_finds_what_they_held(
    layout: Layout,
) -> None:
    first = await up(layout)
    cache, store = Cache(first.state.urls["valkey"]), objects_of(layout, first)
    await cache.client.set("session", b"kept")
    content = os.urandom(9 * 1024**2)
    await store.put("images/one", content)
    upload = await store.begin("images/two")
    etag = await store.part("images/two", upload, 1, content)
    await cache.close()
    await store.close()

    assert await down(layout) == []
    assert marked_processes(layout.root) == []

    second = await up(layout)
    assert second.state.urls == first.state.urls
    cache, store = Cache(second.state.urls["valkey"]), objects_of(layout, second)
    assert await cache.client.get("session") == b"kept"
    assert b"".join([piece async for piece in store.get("images/one")]) == content
    await store.complete("images/two", upload, [(1, etag)])
    assert await store.head("images/two") == len(content)
    await cache.close()
    await store.close()


async def test_killed_stores_come_back_with_all_that_they_had_acknowledged(
    layout: Layout,
) -> None:
    started = await up(layout)
    store = objects_of(layout, started)
    acknowledged: list[str] = []

    async def write() -> None:
        for number in range(10_000):
            await store.put(f"{number:05}", f"content of {number}".encode() * 1000)
            acknowledged.append(f"{number:05}")

    writing = asyncio.create_task(write())
    await until(lambda: len(acknowledged) >= 100)
    before = {name: component(layout, name) for name in STORES.only}
    for status in before.values():
        assert status.process is not None
        status.process.send(signal.SIGKILL)
    with pytest.raises(Exception, match=r"does not answer|answers 5"):
        await writing

    def are_back() -> bool:
        now = [component(layout, name) for name in STORES.only]
        return all(item.is_ready and item.restarts >= 1 for item in now)

    await until(are_back)
    for name in acknowledged:
        content = b"".join([piece async for piece in store.get(name)])
        assert content == f"content of {int(name)}".encode() * 1000, name
    await store.put("after", b"x")
    await store.close()


async def test_the_doctor_asks_each_store_that_runs(layout: Layout) -> None:
    await up(layout)
    found = {item.subject: item for item in await asyncio.to_thread(examine, layout)}
    assert found["valkey"].verdict is Verdict.OK
    assert found["seaweedfs"].verdict is Verdict.OK


async def test_an_outside_valkey_and_s3_are_used_and_none_is_started(
    layout: Layout, valkey_url: str, s3_settings: PlatformSettings
) -> None:
    options = UpOptions(
        only=STORES.only,
        valkey_url=valkey_url,
        s3_url=s3_settings.s3_url,
        s3_access_key=s3_settings.s3_access_key,
        s3_secret_key_file=s3_settings.s3_secret_key_file,
    )
    started = await up(layout, options)
    assert all(item.external and item.is_ready for item in started.state.components)
    assert not layout.valkey.exists()
    assert not layout.seaweedfs.exists()


async def test_outside_stores_that_are_down_are_named_with_the_next_step(layout: Layout) -> None:
    away = f"valkey://{LOOPBACK}:{free_port()}"
    with pytest.raises(control.StartError, match=r"valkey.*does not answer.*--valkey-url"):
        await up(layout, UpOptions(only=("valkey",), valkey_url=away))


def test_an_s3_store_without_its_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="--s3-secret-key-file"):
        UpOptions(s3_url="https://s3.example.net")


def test_every_process_is_told_where_the_stores_are(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    env = environment(layout, UpOptions(nodes=1))
    assert env["DFLARE_VALKEY_URL"].startswith("valkey://:")
    assert env["DFLARE_S3_URL"].startswith("http://127.0.0.1:")
    assert env["DFLARE_S3_SECRET_KEY_FILE"] == str(layout.s3_secret_key_file)
    assert env["DFLARE_METRICS_URL"] == ""
    assert SWITCH in env["DFLARE_METRICS_ABSENT_REASON"]
    named = environment(layout, UpOptions(nodes=1, metrics_url="http://series.example.net:8428"))
    assert named["DFLARE_METRICS_URL"] == "http://series.example.net:8428"


def test_secrets_are_on_no_command_line_and_in_files_closed_to_others(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    plan = make_plan(layout, UpOptions(nodes=1))
    for item in plan.components:
        if item.name in {"valkey", "seaweedfs"}:
            assert item.prepare is not None
            item.prepare()
    words = " ".join(word for item in plan.components for word in item.argv)
    files = [path for path in layout.secrets.rglob("*") if path.is_file()]
    for file in (
        layout.valkey_password_file,
        layout.s3_secret_key_file,
        layout.seaweedfs_keys / "tokens",
        layout.victoriametrics_password_file,
    ):
        assert file in files
        assert file.read_text().strip() not in words
    configuration = (layout.valkey / "valkey.conf", *layout.seaweedfs.rglob("*.toml"))
    for path in (*files, *configuration):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_a_machine_that_cannot_have_victoriametrics_starts_without_and_says_why(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("setpriv", "nice"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)
    only = ("valkey", "victoriametrics-package", "victoriametrics")
    started = await up(layout, UpOptions(only=only))
    assert started.state.is_ready
    await until(lambda: component(layout, "victoriametrics").state is ComponentState.ABSENT)
    assert "apt-get" in component(layout, "victoriametrics").detail
    assert "everything else works" in component(layout, "victoriametrics").detail
    found = {item.subject: item for item in await asyncio.to_thread(examine, layout)}
    assert found["victoriametrics"].verdict is Verdict.WARN
    assert await down(layout) == []


async def test_victoriametrics_starts_from_its_package_keeps_series_and_needs_the_password(
    layout: Layout, victoria_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, str(VICTORIA_PACKAGES.folder))
    options = UpOptions(only=("valkey", "victoriametrics"))
    first = await up(layout, options)
    url = first.state.urls["metrics"]
    await until(lambda: component(layout, "victoriametrics").is_ready)
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
        (await client.post("/api/v1/import/prometheus", content="kept 7\n")).raise_for_status()
        (await client.get("/internal/force_flush")).raise_for_status()
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        bare = url.replace(url[len("http://") : url.index("@") + 1], "")
        for path in ("/api/v1/query?query=kept", "/metrics", "/flags", "/api/v1/export"):
            answer = await client.get(bare + path)
            assert answer.status_code in {400, 401}, (path, answer.text)
    assert await down(layout) == []

    await up(layout, options)
    await until(lambda: component(layout, "victoriametrics").is_ready)
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
        exported = await client.get("/api/v1/export", params={"match[]": "kept"})
    assert exported.json()["values"] == [7]


def test_a_program_of_the_machine_is_used_and_nothing_fetched(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / victoria.PROGRAM
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv(SWITCH, raising=False)
    plan = make_plan(layout, UpOptions(nodes=1))
    names = {item.name for item in plan.components}
    assert "victoriametrics" in names
    assert "victoriametrics-package" not in names
    packages = PackageCache(tmp_path / "none", VICTORIA_METRICS)
    assert victoria.program(packages) == own
