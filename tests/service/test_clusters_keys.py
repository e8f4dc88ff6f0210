"""Promises of SSH keys and user data."""

import asyncio
import base64
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from dflare.kit import outbox
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.seal import Sealer
from dflare.services.clusters import api
from dflare.services.clusters.contract import ClusterDeclared
from dflare.services.clusters.domain import ssh_fingerprint
from dflare.services.clusters.errors import InvalidKeyError
from dflare.services.clusters.service import ClusterService
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.tables import KIT, Cluster, KnownSite, UserData
from stores import drop_database
from tenancy import (
    MEMBER,
    NOW,
    RED,
    STRANGER,
    VIEWER,
    Rack,
    Tenancy,
    application,
    client,
    migrated_database,
)

PROJECT = f"/projects/{RED.id}"
SECRET = "a-very-secret-join-token"
USER_DATA = f"#cloud-config\nwrite_files: [{{content: {SECRET}}}]\n"


def ed25519(comment: str = "me@host", point: bytes = bytes(32)) -> str:
    blob = b"\x00\x00\x00\x0bssh-ed25519" + b"\x00\x00\x00\x20" + point
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


@dataclass
class Keys:
    database: Database
    sealer: Sealer
    member: httpx.AsyncClient
    viewer: httpx.AsyncClient
    stranger: httpx.AsyncClient

    async def order(self, **more: Any) -> httpx.Response:
        body = {"name": "c1", "pools": [{"node_type": "g8", "count": 1}], **more}
        return await self.member.post(f"{PROJECT}/clusters", json=body)

    async def dump(self) -> str:
        """Every row of every table of the platform, as PostgreSQL writes it out."""
        tables = text(
            "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables"
            " WHERE table_schema IN ('clusters', 'feed')"
        )
        async with self.database.across() as connection:
            rows: list[str] = []
            for (table,) in (await connection.execute(tables)).all():
                found = await connection.execute(text(f"SELECT t::text FROM {table} t"))
                rows += [row[0] for row in found.all()]
        return "\n".join(rows)


@pytest.fixture
async def keys(postgres_url: str) -> AsyncIterator[Keys]:
    url = await migrated_database(postgres_url, "clusters")
    database = Database(url, application="test-keys")
    async with database.transaction("clusters") as session:
        site = {"site_id": "s", "name": "s", "currency": "EUR", "node_types": {"g8": "1"}}
        await session.execute(insert(KnownSite).values(version=1, images=["base"], **site))
    tenancy, at, sealer = Tenancy(), ManualClock(NOW), Sealer(bytes(range(32)))
    service = ClusterService(
        database=database, clock=at, sealer=sealer, authorizer=tenancy, orchestrator=Rack()
    )
    key_service = KeyService(database=database, clock=at, sealer=sealer, authorizer=tenancy)
    app = application(
        tenancy, lambda principal: api.router(service, key_service, tenancy, principal)
    )
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(client(app, caller))
            for caller in (MEMBER, VIEWER, STRANGER)
        ]
        yield Keys(database, sealer, *clients)
    await database.dispose()
    drop_database(url)


def test_a_known_key_has_its_known_fingerprint() -> None:
    """GitHub's host key and the fingerprint that GitHub publishes for it."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
    assert ssh_fingerprint(key) == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


def test_keys_of_every_type_that_openssh_makes_are_taken(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    for kind, bits in (("rsa", 2048), ("ecdsa", 256), ("ecdsa", 521), ("ed25519", 256)):
        path = tmp_path / f"{kind}{bits}"
        command = ["ssh-keygen", "-q", "-t", kind, "-b", str(bits), "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)
        key = path.with_suffix(".pub").read_text()
        said = subprocess.run(
            ["ssh-keygen", "-lf", f"{path}.pub"], capture_output=True, text=True, check=True
        ).stdout
        assert ssh_fingerprint(key) == said.split()[1]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 not-base64!",
        "ssh-ed25519 AAAA",
        "ssh-dss " + ed25519().split()[1],
        "ssh-rsa " + ed25519().split()[1],
        ed25519() + "\n" + ed25519(),
        'command="rm -rf /" ' + ed25519(),
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        ed25519(point=b""),
        "ssh-rsa " + base64.b64encode(b"\x00\x00\x00\x07ssh-rsa").decode(),
        ed25519(point=bytes(31)),
        ed25519(point=bytes(33)),
    ],
)
def test_what_is_no_public_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidKeyError) as refused:
        ssh_fingerprint(key)
    assert "id_ed25519.pub" in refused.value.next_step


async def test_a_key_is_added_once_by_name_shown_and_removed(keys: Keys) -> None:
    body = {"name": "mine", "public_key": ed25519() + "\n"}
    made = await keys.member.post(f"{PROJECT}/ssh-keys", json=body)
    assert (made.status_code, made.json()["public_key"]) == (201, ed25519())
    assert made.json()["fingerprint"] == ssh_fingerprint(ed25519())
    twice = await keys.member.post(f"{PROJECT}/ssh-keys", json=body)
    assert (twice.status_code, twice.json()["type"].rpartition("/")[2]) == (409, "name-taken")
    bad = await keys.member.post(f"{PROJECT}/ssh-keys", json={**body, "public_key": "x"})
    assert bad.status_code == 422
    nul = await keys.member.post(
        f"{PROJECT}/ssh-keys", json={"name": "nul", "public_key": ed25519("a\x00b")}
    )
    assert nul.status_code == 422
    listed = (await keys.member.get(f"{PROJECT}/ssh-keys")).json()
    assert ([one["name"] for one in listed["items"]], listed["next_cursor"]) == (["mine"], None)
    assert (await keys.member.delete(f"{PROJECT}/ssh-keys/mine")).status_code == 204
    assert (await keys.member.get(f"{PROJECT}/ssh-keys/mine")).status_code == 404
    assert (await keys.member.delete(f"{PROJECT}/ssh-keys/mine")).status_code == 404


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("ssh-keys", {"name": "mine", "public_key": ed25519()}),
        ("user-data", {"name": "mine", "text": USER_DATA}),
    ],
)
async def test_who_may_not_see_gets_404_and_who_may_only_see_gets_403(
    keys: Keys, kind: str, body: dict[str, str]
) -> None:
    path = f"{PROJECT}/{kind}"
    assert (await keys.stranger.post(path, json=body)).status_code == 404
    assert (await keys.viewer.post(path, json=body)).status_code == 403
    assert (await keys.member.post(path, json=body)).status_code == 201
    assert (await keys.stranger.get(f"{path}/mine")).status_code == 404
    assert (await keys.stranger.delete(f"{path}/mine")).status_code == 404
    assert (await keys.viewer.get(path)).status_code == 200
    assert (await keys.viewer.delete(f"{path}/mine")).status_code == 403
    assert (await keys.member.get(f"{path}/mine")).status_code == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("ssh-keys", {"name": "mine", "public_key": ed25519()}),
        ("user-data", {"name": "mine", "text": USER_DATA}),
    ],
)
async def test_a_removal_of_what_was_read_spares_a_later_one_of_its_name(
    keys: Keys, kind: str, body: dict[str, str]
) -> None:
    path = f"{PROJECT}/{kind}"
    assert (await keys.member.post(path, json=body)).status_code == 201
    old = {"If-Match": (await keys.member.get(f"{path}/mine")).headers["etag"]}
    await keys.member.delete(f"{path}/mine")
    assert (await keys.member.post(path, json=body)).status_code == 201
    refused = await keys.member.delete(f"{path}/mine", headers=old)
    assert (refused.status_code, bool(refused.json()["next_step"])) == (412, True)
    new = {"If-Match": (await keys.member.get(f"{path}/mine")).headers["etag"]}
    assert (await keys.viewer.delete(f"{path}/mine", headers=old)).status_code in {403, 404}
    assert (await keys.member.delete(f"{path}/mine", headers=new)).status_code == 204


async def test_user_data_stands_nowhere_in_clear_and_reaches_the_nodes_sealed(keys: Keys) -> None:
    made = await keys.member.post(f"{PROJECT}/user-data", json={"name": "join", "text": USER_DATA})
    assert (made.status_code, made.json()["text"]) == (201, None)
    shown = (await keys.member.get(f"{PROJECT}/user-data/join")).json()
    assert shown["text"] == USER_DATA
    assert SECRET not in (await keys.member.get(f"{PROJECT}/user-data")).text
    ordered = await keys.order(user_data="join")
    assert ordered.status_code == 202
    dump = await keys.dump()
    assert made.json()["id"] in dump, "the dump must hold the rows"
    for form in (
        SECRET,
        SECRET.encode().hex(),
        base64.b64encode(USER_DATA.encode()).decode()[:40],
        USER_DATA.encode().hex()[:40],
    ):
        assert form not in dump
    async with keys.database.transaction("clusters") as session:
        query = select(KIT.event.c.data).where(KIT.event.c.type == "cluster.declared")
        declared = ClusterDeclared.model_validate((await session.execute(query)).scalar_one())
    assert declared.user_data_sealed is not None
    sealed = base64.b64decode(declared.user_data_sealed)
    name = f"user_data/{declared.cluster_id}"
    assert keys.sealer.open(name, sealed).decode() == USER_DATA


async def test_removed_user_data_leaves_no_secret_behind(keys: Keys) -> None:
    await keys.member.post(f"{PROJECT}/user-data", json={"name": "join", "text": USER_DATA})
    assert (await keys.member.delete(f"{PROJECT}/user-data/join")).status_code == 204
    async with keys.database.transaction("clusters") as session:
        count = (await session.execute(select(func.count()).select_from(KIT.secret))).scalar_one()
    assert count == 0


async def test_what_a_living_cluster_refers_to_stays(keys: Keys) -> None:
    await keys.member.post(f"{PROJECT}/user-data", json={"name": "join", "text": USER_DATA})
    await keys.member.post(f"{PROJECT}/ssh-keys", json={"name": "mine", "public_key": ed25519()})
    assert (await keys.order(user_data="join", ssh_keys=["mine"])).status_code == 202
    for path in ("user-data/join", "ssh-keys/mine"):
        refused = await keys.member.delete(f"{PROJECT}/{path}")
        assert (refused.status_code, "c1" in refused.json()["detail"]) == (409, True)
    async with keys.database.transaction("clusters") as session:
        await session.execute(update(Cluster).values(state="deleted"))
    for path in ("user-data/join", "ssh-keys/mine"):
        assert (await keys.member.delete(f"{PROJECT}/{path}")).status_code == 204


async def test_a_removal_waits_for_an_order_that_is_being_stored(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keys.member.post(f"{PROJECT}/user-data", json={"name": "join", "text": USER_DATA})
    storing, emit = asyncio.Event(), outbox.emit

    async def emit_once_someone_waits(*arguments: Any) -> None:
        monkeypatch.undo()
        storing.set()
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        async with keys.database.across() as connection, asyncio.timeout(60):
            while not await connection.scalar(waiting):
                await connection.rollback()
                await asyncio.sleep(0.02)
        await emit(*arguments)

    monkeypatch.setattr(outbox, "emit", emit_once_someone_waits)
    order = asyncio.create_task(keys.order(user_data="join"))
    await storing.wait()
    removed = await keys.member.delete(f"{PROJECT}/user-data/join")
    assert ((await order).status_code, removed.status_code) == (202, 409)
    assert (await keys.member.get(f"{PROJECT}/user-data/join")).json()["text"] == USER_DATA


async def test_an_order_and_a_removal_at_once_never_leave_a_cluster_without_its_user_data(
    keys: Keys,
) -> None:
    for turn in range(8):
        await keys.member.post(f"{PROJECT}/user-data", json={"name": "join", "text": USER_DATA})
        ordered, removed = await asyncio.gather(
            keys.order(user_data="join"), keys.member.delete(f"{PROJECT}/user-data/join")
        )
        assert (ordered.status_code, removed.status_code) in {(202, 409), (422, 204)}, turn
        async with keys.database.transaction("clusters") as session:
            left = (await session.execute(select(func.count()).select_from(UserData))).scalar_one()
            assert left == (1 if ordered.status_code == 202 else 0)
            await session.execute(update(Cluster).values(state="deleted"))
        await keys.member.delete(f"{PROJECT}/user-data/join")
