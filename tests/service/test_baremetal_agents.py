"""The agent API and the boot medium: tokens, tasks, and what a crash leaves behind."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

import httpx
import orjson
import pytest
from sqlalchemy import text

from baremetal_site import MIGRATIONS
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.kit.seal import Sealer
from dflare.services.baremetal import repository
from dflare.services.baremetal.agent_sessions import AgentSessions, Conversation, session_id
from dflare.services.baremetal.api_agent import AgentApi
from dflare.services.baremetal.errors import NodeFailedError
from dflare.services.baremetal.image_files import ImageFiles
from dflare.services.baremetal.medium import SETTINGS_BYTES, agent_iso
from dflare.services.baremetal.tables import Image

URL = "http://agents"


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    await upgrade_all(database_url, MIGRATIONS)
    found = Database(database_url, application="test")
    yield found
    await found.dispose()


@asynccontextmanager
async def _process(
    database: Database, folder: Path
) -> AsyncIterator[tuple[AgentSessions, httpx.AsyncClient]]:
    """A site worker's part for agents; several may run on one database."""
    sessions = AgentSessions(database, Sealer(b"k" * 32), SystemClock())
    app = AgentApi(sessions, ImageFiles(folder, URL), URL).app()
    running = asyncio.create_task(sessions.run())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=URL, timeout=30) as client:
        yield sessions, client
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def _open(sessions: AgentSessions, operation: str = "") -> Conversation:
    operation, node = operation or new_id("op"), new_id("node")
    key = session_id(operation, "provision", 1, node)
    return (await sessions.open([(key, node, operation)]))[node]


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_an_agents_token_opens_the_agents_calls_and_no_others(
    database: Database, tmp_path: Path
) -> None:
    async with _process(database, tmp_path) as (sessions, client):
        one = await _open(sessions)
        hello = {"serial": "S1", "boot_id": "b1", "macs": []}
        path = "/v1/agent/hello"
        good = await client.post(path, json=hello, headers=_bearer(one.agent_token))
        assert (good.status_code, good.json()) == (200, {"poll_s": 2})
        for headers in ({}, _bearer("guess"), _bearer(one.phone_token)):
            assert (await client.post(path, json=hello, headers=headers)).status_code == 401
        up = {"serial": "S1", "boot_id": "b2", "image_sha256": "0", "ssh_keys": []}
        wrong = await client.post("/v1/agent/up", json=up, headers=_bearer(one.agent_token))
        assert wrong.status_code == 401
        right = await client.post("/v1/agent/up", json=up, headers=_bearer(one.phone_token))
        assert right.status_code == 204
        assert one.up == up


async def test_a_long_poll_answers_when_a_task_comes_and_a_report_ends_it(
    database: Database, tmp_path: Path
) -> None:
    async with _process(database, tmp_path) as (sessions, client):
        one = await _open(sessions)
        headers = _bearer(one.agent_token)
        polling = asyncio.create_task(client.get("/v1/agent/task", headers=headers))
        await asyncio.sleep(0)
        await sessions.assign(one, "erase", {"disks": None})
        task = (await polling).json()
        assert (task["kind"], task["params"]) == ("erase", {"disks": None})
        path = f"/v1/agent/task/{task['id']}/report"
        half = {"state": "running", "percent": 50, "message": "", "observed": {}}
        assert (await client.post(path, json=half, headers=headers)).status_code == 204
        done = {"state": "succeeded", "percent": 100, "message": "", "observed": {"disks": []}}
        assert (await client.post(path, json=done, headers=headers)).status_code == 204
        assert (await client.post(path, json=done, headers=headers)).status_code == 204
        assert one.done["erase"]["observed"] == {"disks": []}
        unknown = "/v1/agent/task/task_x/report"
        assert (await client.post(unknown, json=done, headers=headers)).status_code == 409


async def test_a_new_process_knows_the_token_the_task_and_what_was_reported(
    database: Database, tmp_path: Path
) -> None:
    async with _process(database, tmp_path) as (sessions, client):
        one = await _open(sessions)
        await sessions.booted(one, 1)
        await sessions.hello(one, "b1", "S1")
        await sessions.assign(one, "write_image", {"config_drive": {"user_data": "secret"}})
        assert one.task is not None
    async with _process(database, tmp_path) as (fresh, client):
        again = (await fresh.open([(one.id, one.node_id, one.operation_id)]))[one.node_id]
        assert again.agent_token == one.agent_token
        assert (again.round, again.boot_id) == (1, "b1")
        answer = await client.get("/v1/agent/task", headers=_bearer(one.agent_token))
        assert answer.json()["id"] == one.task.id
        assert answer.json()["params"]["config_drive"]["user_data"] == "secret"
    async with database.transaction("baremetal") as session:
        stored = await session.execute(text("SELECT task_sealed FROM baremetal.agent_session"))
        assert all(b"secret" not in (row[0] or b"") for row in stored.all())


async def test_what_one_process_hears_reaches_the_step_of_another(
    database: Database, tmp_path: Path
) -> None:
    async with (
        _process(database, tmp_path) as (steps, _),
        _process(database, tmp_path) as (api, _),
    ):
        one = await _open(steps)
        heard = await api.of_token(one.agent_token, "agent")
        assert heard is not None
        await api.hello(heard, "b1", "S1")
        async with asyncio.timeout(30):
            while one.boot_id != "b1":
                await one.changed(1)
        await steps.assign(one, "inventory", {})
        async with asyncio.timeout(30):
            while heard.task is None:
                await heard.changed(1)


async def test_a_closed_session_refuses_its_tokens_and_its_medium(
    database: Database, tmp_path: Path
) -> None:
    async with _process(database, tmp_path) as (sessions, client):
        one = await _open(sessions)
        medium = f"/boot/{one.agent_token}/agent.iso"
        assert (await client.get(medium)).status_code == 200
        async with database.transaction("baremetal") as session:
            await repository.close_sessions(session, [one.node_id], None)
        async with asyncio.timeout(30):
            while not one.closed:
                await one.changed(1)
        assert (await client.get(medium)).status_code == 404
        answer = await client.get("/v1/agent/task", headers=_bearer(one.agent_token))
        assert answer.status_code == 401


async def test_malformed_reports_are_refused(database: Database, tmp_path: Path) -> None:
    async with _process(database, tmp_path) as (sessions, client):
        one = await _open(sessions)
        headers = _bearer(one.agent_token)
        for body in (b"", b"[]", b'{"serial": 1}'):
            answer = await client.post("/v1/agent/hello", content=body, headers=headers)
            assert answer.status_code == 422


async def test_the_medium_is_read_by_ranges_and_differs_only_in_its_settings(
    database: Database, tmp_path: Path
) -> None:
    async with _process(database, tmp_path) as (sessions, client):
        one = await _open(sessions)
        path = f"/boot/{one.agent_token}/agent.iso"
        whole = (await client.get(path)).content
        part = await client.get(path, headers={"Range": "bytes=32768-34815"})
        assert (part.status_code, part.content) == (206, whole[32768:34816])
        assert part.headers["content-range"] == f"bytes 32768-34815/{len(whole)}"
        beyond = await client.get(path, headers={"Range": f"bytes={len(whole)}-"})
        assert beyond.status_code == 416
    other = agent_iso("node_other", URL, "t" * 43, 2)
    assert len(other) == len(whole)
    differing = [i for i in range(len(whole)) if whole[i] != other[i]]
    assert differing[-1] - differing[0] < SETTINGS_BYTES


def test_the_medium_is_iso_9660_with_the_settings_of_the_node() -> None:
    """Read by ECMA-119's own rules: 8.4 (primary volume descriptor), 9.1 (directory records)."""
    data = agent_iso("node_a", URL, "token", 2)
    assert data[32768:32774] == b"\x01CD001"

    def find(extent: int, size: int, name: bytes) -> tuple[int, int]:
        at, end = extent * 2048, extent * 2048 + size
        while at < end and data[at]:
            if data[at + 33 : at + 33 + data[at + 32]] == name:
                return struct.unpack_from("<I", data, at + 2)[0], struct.unpack_from(
                    "<I", data, at + 10
                )[0]
            at += data[at]
        raise AssertionError(name)

    root = data[32768 + 156 : 32768 + 190]
    folder = find(*struct.unpack_from("<I4xI", root, 2), b"DFLARE")
    extent, size = find(*folder, b"AGENT.JSON;1")
    settings = orjson.loads(data[extent * 2048 : extent * 2048 + size].rstrip())
    assert size == SETTINGS_BYTES
    assert settings == {
        "version": 1,
        "node_id": "node_a",
        "agent_url": URL,
        "token": "token",
        "poll_s": 2,
    }


async def test_images_are_served_under_their_digest_and_found_again_by_a_new_process(
    database: Database, tmp_path: Path
) -> None:
    files = ImageFiles(tmp_path, URL)
    builtin = Image(site_id="s", name="base", ordinal=0, builtin="base")
    source = await files.source(builtin)
    async with _process(database, tmp_path) as (_, client):
        answer = await client.get(source.url)
        assert answer.status_code == 200
        assert len(answer.content) == 1 << 20
        tag = {"If-None-Match": answer.headers["etag"]}
        assert (await client.get(source.url, headers=tag)).status_code == 304
        assert (await client.get(f"/images/{'0' * 64}")).status_code == 404
        assert (await client.get("/images/..%2Fown")).status_code == 404


async def test_an_image_file_of_another_content_than_declared_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.img"
    path.write_bytes(b"an operating system")
    files = ImageFiles(tmp_path / "served", URL)
    digest = sha256(b"an operating system").hexdigest()
    own = Image(site_id="s", name="own", ordinal=0, url=path.as_uri(), sha256=digest)
    source = await files.source(own)
    assert source.url == f"{URL}/images/{digest}"
    assert files.path_of(digest) is not None
    other = Image(site_id="s", name="own", ordinal=0, url=path.as_uri(), sha256="0" * 64)
    with pytest.raises(NodeFailedError, match="has digest"):
        await files.source(other)
