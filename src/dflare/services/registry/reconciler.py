"""Collects what nobody needs, joins what is there twice, and measures what is held.

A blob goes in three steps, each in one transaction of its own, with a time of grace between them:
its repository lets go of it when no manifest of that has referred to it for long, then the blob
goes when no repository has it, then the object. A push that comes meanwhile finds the blob and
holds it, or finds none and sends it: it waits for the same rows.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ProblemError
from dflare.kit.ids import new_id
from dflare.kit.lease import Lease
from dflare.kit.objects import ObjectStore
from dflare.kit.telemetry import log
from dflare.services.registry import repository as rows
from dflare.services.registry import repository_uploads as uploads
from dflare.services.registry.domain import usage_event
from dflare.services.registry.settings import RegistrySettings
from dflare.services.registry.tables import (
    KIT,
    Blob,
    Garbage,
    Manifest,
    ProjectStorage,
    RepositoryBlob,
    Upload,
    UsageInterval,
)

SCHEMA = "registry"
BATCH = 200
"""Rows that one transaction takes."""


@dataclass
class RegistryReconciler:
    """``run`` until cancelled; the other methods are its works, each safe to repeat and to run in
    two processes at once. Removing from the store may fail: it is tried again."""

    database: Database
    clock: Clock
    objects: ObjectStore
    settings: RegistrySettings
    holder: str
    _due: dict[str, datetime] = field(default_factory=dict[str, datetime])

    async def run(self) -> None:
        """Work when the lease can be had, and wait for stores that are away."""
        lease = Lease(self.database, "registry", self.holder, self.settings.lease_s)
        try:
            while True:
                try:
                    if await lease.take():
                        await self.look()
                except (SQLAlchemyError, OSError, ProblemError) as error:
                    log.warning("registry_wait", error=repr(error)[:300])
                await asyncio.sleep(self.settings.look_every_s)
        finally:
            await asyncio.shield(_let_go(lease))

    async def look(self) -> None:
        """One pass over all works that are due."""
        await self.expire_uploads()
        await self.collect_links()
        await self.collect_blobs()
        if self._is_due("measure", self.settings.measure_every_s):
            await self.measure()
        if self._is_due("merge", self.settings.merge_every_s):
            await self.merge()
        # Last: what the others left is removed at once, and a store that is away stops no other.
        await self.remove_garbage()

    async def expire_uploads(self) -> int:
        """Drop uploads that nobody goes on with; how many."""
        now = self.clock.now()
        before = now - timedelta(seconds=self.settings.upload_keep_s)
        query = select(Upload).where(Upload.touched_at < before).order_by(Upload.id).limit(BATCH)
        async with self.database.transaction(SCHEMA) as session:
            stale = (await session.scalars(query.with_for_update(skip_locked=True))).all()
            for one in stale:
                await uploads.drop_upload(session, one, now)
        return len(stale)

    async def collect_links(self) -> int:
        """Let repositories go of blobs to which none of their manifests has referred since the time
        of grace; how many."""
        now = self.clock.now()
        late = RepositoryBlob.unreferenced_since < now - timedelta(seconds=self.settings.grace_s)
        async with self.database.reading(SCHEMA) as session:
            query = select(RepositoryBlob.repository_id).where(late).distinct().limit(BATCH)
            repository_ids = (await session.scalars(query)).all()
        count = 0
        for one in repository_ids:
            async with self.database.transaction(SCHEMA) as session:
                # Who pushes a manifest holds the same lock, and so comes before or after this.
                if await rows.lock_repository(session, one) is not None:
                    count += len(await rows.unlink(session, one, now, late))
        return count

    async def collect_blobs(self) -> int:
        """Forget blobs that no repository has had for the readers' time of grace; how many."""
        now = self.clock.now()
        before = now - timedelta(seconds=self.settings.reader_grace_s)
        has_one = select(RepositoryBlob.blob_id).where(RepositoryBlob.blob_id == Blob.id).exists()
        query = select(Blob).where(Blob.unreferenced_since < before, ~has_one)
        async with self.database.transaction(SCHEMA) as session:
            locking = query.order_by(Blob.id).limit(BATCH).with_for_update(skip_locked=True)
            gone = (await session.scalars(locking)).all()
            for blob in gone:
                await session.delete(blob)
                if blob.object_key:
                    await rows.discard(session, blob.object_key, now)
        return len(gone)

    async def merge(self) -> int:
        """Where several projects have the same content in objects of their own, let all have the
        oldest; how many are no longer needed. It happens some time after the pushes, so that none
        of them can tell whether others have the content."""
        async with self.database.reading(SCHEMA) as session:
            query = select(Blob.digest).where(Blob.unreferenced_since.is_(None))
            several = query.group_by(Blob.digest).having(func.count() > 1).limit(BATCH)
            digests = (await session.scalars(several)).all()
        merged = 0
        for digest in digests:
            async with self.database.transaction(SCHEMA) as session:
                merged += await self._merge(session, digest)
        return merged

    async def _merge(self, session: AsyncSession, digest: str) -> int:
        query = select(Blob).where(Blob.digest == digest, Blob.unreferenced_since.is_(None))
        blobs = (await session.scalars(query.order_by(Blob.id).with_for_update())).all()
        if len(blobs) < 2:
            return 0
        kept, others = blobs[0], blobs[1:]
        await session.execute(
            update(RepositoryBlob)
            .where(RepositoryBlob.blob_id.in_([one.id for one in others]))
            .values(blob_id=kept.id)
            .execution_options(synchronize_session=False)
        )
        for one in others:
            one.unreferenced_since = self.clock.now()
        return len(others)

    async def remove_garbage(self) -> int:
        """Remove objects from the store that nothing needs; how many."""
        query = select(Garbage).where(Garbage.due_at <= self.clock.now())
        async with self.database.reading(SCHEMA) as session:
            due = (await session.scalars(query.order_by(Garbage.due_at).limit(BATCH))).all()
        for one in due:
            if one.store_upload_id:
                await self.objects.abort(one.object_key, one.store_upload_id)
            await self.objects.delete(one.object_key)
            async with self.database.transaction(SCHEMA) as session:
                await session.execute(delete(Garbage).where(Garbage.object_key == one.object_key))
        return len(due)

    async def measure(self) -> int:
        """Begin a new interval of usage for each project that holds another number of bytes than
        when it was measured last; how many."""
        async with self.database.reading(SCHEMA) as session:
            held = {row[0]: int(row[1]) for row in await session.execute(_held())}
            running = select(UsageInterval.project_id, UsageInterval.stored_bytes)
            open_ones = await session.execute(running.where(UsageInterval.usage_to.is_(None)))
            known = {row[0]: row[1] for row in open_ones}
        changed = sorted(
            one for one in held.keys() | known.keys() if held.get(one, 0) != known.get(one, 0)
        )
        for project_id in changed:
            async with self.database.transaction(SCHEMA) as session:
                await self._measure(session, project_id)
        return len(changed)

    async def _measure(self, session: AsyncSession, project_id: str) -> None:
        query = select(ProjectStorage).where(ProjectStorage.project_id == project_id)
        project = (await session.scalars(query.with_for_update())).one()
        now = self.clock.now()
        running = select(UsageInterval).where(
            UsageInterval.project_id == project_id, UsageInterval.usage_to.is_(None)
        )
        interval = (await session.scalars(running)).first()
        stored_bytes = await rows.stored_bytes(session, project_id)
        events: list[outbox.Event] = []
        if interval is not None:
            interval.usage_to = max(now, interval.usage_from)
            interval.version += 1
            await session.flush()
            events.append(usage_event(interval, now))
        if stored_bytes:
            begun = UsageInterval(
                id=new_id("rui"),
                organization_id=project.organization_id,
                project_id=project_id,
                stored_bytes=stored_bytes,
                usage_from=now,
                usage_to=None,
                version=1,
            )
            session.add(begun)
            await session.flush()
            events.append(usage_event(begun, now))
        await outbox.emit(session, KIT, events)

    def _is_due(self, work: str, every_s: float) -> bool:
        now = self.clock.now()
        if self._due.get(work, now) > now:
            return False
        self._due[work] = now + timedelta(seconds=every_s)
        return True


def _held() -> Select[str, int]:
    """Bytes by project; a blob that several repositories of it have counts once."""
    blobs = select(
        RepositoryBlob.project_id, RepositoryBlob.digest, RepositoryBlob.size_bytes
    ).distinct()
    manifests = select(
        Manifest.project_id, Manifest.repository_id + Manifest.digest, Manifest.size_bytes
    )
    both = blobs.union_all(manifests).subquery()
    return select(both.c.project_id, func.sum(both.c.size_bytes)).group_by(both.c.project_id)


async def _let_go(lease: Lease) -> None:
    try:
        await lease.give_back()
    except (SQLAlchemyError, OSError, ProblemError) as error:
        log.warning("lease_not_given_back", lease=lease.name, error=repr(error)[:200])
