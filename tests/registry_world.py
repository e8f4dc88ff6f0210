"""The registry over real PostgreSQL and a real S3 store, for tests of the service."""

import asyncio
import hashlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from dflare.kit import problem
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.objects import ObjectStore
from dflare.kit.seal import Sealer
from dflare.kit.settings import PlatformSettings
from dflare.services.auth.contract import Principal, ProjectRef, Role, RoleBinding
from dflare.services.registry import api, api_oci
from dflare.services.registry.reconciler import RegistryReconciler
from dflare.services.registry.service import RegistryService
from dflare.services.registry.service_login import LoginService
from dflare.services.registry.service_manifests import ManifestService
from dflare.services.registry.service_uploads import UploadService
from dflare.services.registry.settings import RegistrySettings
from dflare.services.registry.tables import KIT, Base, ProjectStorage, UsageInterval
from stores import drop_database
from tenancy import (
    BLUE,
    MEMBER,
    NOW,
    RED,
    VIEWER,
    Tenancy,
    application,
    migrated_database,
)

URL = "http://registry.test"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "sha256:" + hashlib.sha256().hexdigest()
MIB = 2**20

BOTH = Principal(
    subject="user_both",
    kind="user",
    name="user_both",
    bindings=(
        RoleBinding(Role.MEMBER, project_id=RED.id),
        RoleBinding(Role.MEMBER, project_id=BLUE.id),
    ),
)
"""A member of both tenants' projects."""


def digest(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def descriptor(content: bytes, media_type: str = LAYER, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}


def image(config: bytes, *layers: bytes, **more: Any) -> bytes:
    """A manifest of an image."""
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": descriptor(config, CONFIG),
        "layers": [descriptor(layer) for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


def index(*manifests: bytes, **more: Any) -> bytes:
    """An index of images."""
    listed = [descriptor(one, IMAGE) for one in manifests]
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed, **more}
    return json.dumps(document).encode()


@dataclass
class World:
    """The registry's API and what stands behind it; ``restart`` makes another process of it."""

    database: Database
    clock: ManualClock
    objects: ObjectStore
    settings: RegistrySettings
    tenancy: Tenancy
    app: FastAPI
    uploads: UploadService
    client: httpx.AsyncClient
    reconciler: RegistryReconciler
    _seen: set[str] = field(default_factory=set[str])

    async def ask(
        self, method: str, path: str, caller: Principal | None = MEMBER, **more: Any
    ) -> httpx.Response:
        headers = dict(more.pop("headers", {}))
        if caller is not None:
            headers.setdefault("Authorization", f"Bearer {caller.subject}")
        return await self.client.request(method, path, headers=headers, **more)

    async def begin(self, name: str, caller: Principal = MEMBER) -> str:
        """Begin an upload; its path."""
        answer = await self.ask("POST", f"/v2/{name}/blobs/uploads/", caller)
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    async def push(self, name: str, content: bytes, caller: Principal = MEMBER) -> str:
        """Push a blob in one request; its digest."""
        found = digest(content)
        answer = await self.ask(
            "POST",
            f"/v2/{name}/blobs/uploads/",
            caller,
            params={"digest": found},
            content=content,
        )
        assert answer.status_code == 201, answer.text
        return found

    async def put(
        self, name: str, reference: str, manifest: bytes, caller: Principal = MEMBER
    ) -> httpx.Response:
        """Push a manifest."""
        media_type = json.loads(manifest).get("mediaType", IMAGE)
        return await self.ask(
            "PUT",
            f"/v2/{name}/manifests/{reference}",
            caller,
            content=manifest,
            headers={"Content-Type": media_type},
        )

    async def push_image(
        self, name: str, tag: str, *layers: bytes, caller: Principal = MEMBER, **more: Any
    ) -> bytes:
        """Push an image with its layers; its manifest."""
        config = json.dumps({"os": "linux", "mark": tag}).encode()
        for content in (config, *layers):
            await self.push(name, content, caller)
        manifest = image(config, *layers, **more)
        answer = await self.put(name, tag, manifest, caller)
        assert answer.status_code == 201, answer.text
        return manifest

    async def has(self, name: str, content: str, caller: Principal = VIEWER) -> bool:
        """Whether a repository has a blob of that digest."""
        answer = await self.ask("HEAD", f"/v2/{name}/blobs/{content}", caller)
        assert answer.status_code in {200, 404}
        return answer.status_code == 200

    async def allow(self, project: ProjectRef, gib: int) -> None:
        """Set a project's quota."""
        values = {"organization_id": project.organization_id, "limit_gib": gib}
        async with self.database.transaction("registry") as session:
            await session.execute(
                insert(ProjectStorage)
                .values(project_id=project.id, **values)
                .on_conflict_do_update(index_elements=["project_id"], set_=values)
            )

    async def rows(self, table: type[Base]) -> list[Any]:
        async with self.database.transaction("registry") as session:
            return list((await session.scalars(select(table))).all())

    async def stored(self) -> list[str]:
        """The keys of the objects that the registry wrote since this world began."""
        return [one.key async for one in self.objects.list("registry/") if one.key in self._seen]

    async def events(self, kind: str) -> list[dict[str, Any]]:
        async with self.database.transaction("registry") as session:
            query = select(KIT.event.c.data).where(KIT.event.c.type == kind)
            return list(await session.scalars(query.order_by(KIT.event.c.ordinal)))

    async def intervals(self, project: ProjectRef) -> list[UsageInterval]:
        rows = await self.rows(UsageInterval)
        return sorted(
            (one for one in rows if one.project_id == project.id), key=lambda one: one.usage_from
        )

    def restart(self) -> None:
        """The gateway was killed and another one serves: what it kept in memory is gone."""
        self.uploads._running.clear()

    async def count(self, table: type[Base]) -> int:
        async with self.database.transaction("registry") as session:
            return int(await session.scalar(select(func.count()).select_from(table)) or 0)

    def note_writes(self) -> None:
        """Remember the keys that are written from now on."""
        for name in ("put", "complete"):
            inner = getattr(self.objects, name)

            async def noted(key: str, *rest: Any, _inner: Any = inner) -> Any:
                self._seen.add(key)
                return await _inner(key, *rest)

            setattr(self.objects, name, noted)


@asynccontextmanager
async def registry_world(
    postgres_url: str, s3_settings: PlatformSettings, settings: RegistrySettings | None = None
) -> AsyncIterator[World]:
    """A registry of its own in the store; both projects may hold 1 GiB."""
    url = await migrated_database(postgres_url, "registry")
    database = Database(url, application="test-registry")
    objects = ObjectStore(s3_settings)
    tenancy, clock = Tenancy(), ManualClock(NOW)
    tenancy.callers[BOTH.subject] = BOTH
    settings = settings or RegistrySettings()
    registry = RegistryService(database, clock, tenancy, objects, settings)
    uploads = UploadService(registry)
    logins = LoginService(registry, Sealer(secrets.token_bytes(32)))
    parts = api_oci.RegistryParts(
        registry, uploads, ManifestService(registry), logins, f"{URL}/v2/token"
    )
    app = application(
        tenancy, lambda principal: api.router(registry, tenancy, principal, public_url=URL)
    )
    app.include_router(api_oci.router(parts))
    problem.install(app)
    reconciler = RegistryReconciler(database, clock, objects, settings, "a test")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        world = World(database, clock, objects, settings, tenancy, app, uploads, client, reconciler)
        world.note_writes()
        for project in (RED, BLUE):
            await world.allow(project, 1)
        yield world
    await objects.close()
    await database.dispose()
    drop_database(url)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    """The application at a port of its own on loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition with a generous deadline."""
    for _ in range(6000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def pieces(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    """A body that comes in pieces and does not say how long it is."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere."""
    blocks: Iterable[bytes] = (
        hashlib.blake2b(f"{seed}/{number}".encode()).digest() for number in range(size // 64 + 1)
    )
    return b"".join(blocks)[:size]
