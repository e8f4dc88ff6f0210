"""The service of volumes over real PostgreSQL and a real directory, without the interpreter."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, select

from dflare.drivers.volumes.local import LocalVolumes
from dflare.drivers.volumes.port import (
    SNAPSHOTS,
    VolumeObserved,
    VolumeRefusedError,
    VolumeUse,
)
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.ids import new_id
from dflare.kit.plan import PlannedStep, StepCall, StepReport
from dflare.kit.steps import StepRunner
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.volumes import activities
from dflare.services.volumes.api import router
from dflare.services.volumes.projections import projections
from dflare.services.volumes.reconciler import Tools, VolumeReconciler
from dflare.services.volumes.reconciler_scan import VolumeScanner
from dflare.services.volumes.service import VolumeService
from dflare.services.volumes.settings import VolumesSettings
from dflare.services.volumes.signals import Signals
from dflare.services.volumes.tables import KIT, KnownSite, QuotaLimit, UsageInterval, Volume
from stores import drop_database
from tenancy import (
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    STRANGER,
    VIEWER,
    Rack,
    Tenancy,
    application,
    client,
    migrated_database,
)

SITE = "site_1"
VOLUMES = f"/projects/{RED.id}/volumes"


@dataclass
class Flaky:
    """The storage, with faults at its edge: ``broken`` calls fail as a disk does, ``stuck`` ones
    do not return until released."""

    inner: LocalVolumes
    broken: int = 0
    stuck: asyncio.Event | None = None
    writes: list[str] = field(default_factory=list[str])
    counted: list[str] = field(default_factory=list[str])
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.inner, name)
        if name == "usage":
            return self._usage
        if name not in ("ensure", "set_quota", "set_access", "remove"):
            return verb

        async def write(*arguments: Any) -> VolumeObserved:
            self.writes.append(name)
            self.begun.set()
            if self.broken:
                self.broken -= 1
                raise OSError(5, "Input/output error", "/secret/place")
            if self.stuck is not None:
                await self.stuck.wait()
            return await verb(*arguments)

        return write

    async def _usage(self, volume_id: str, within_s: float) -> VolumeUse:
        self.counted.append(volume_id)
        return await self.inner.usage(volume_id, within_s)


@dataclass
class World:
    """The service, its steps and a reconciler over one storage, without the interpreter."""

    database: Database
    clock: ManualClock
    storage: Flaky
    reconciler: VolumeReconciler
    scanner: VolumeScanner
    steps: dict[str, Any]
    http: dict[str, httpx.AsyncClient]
    generation: int = 0

    async def ask(self, method: str, path: str, caller: Any = MEMBER, **more: Any) -> Any:
        return await self.http[caller.subject].request(method, path, **more)

    async def order(self, name: str, size_gib: int = 10, **more: Any) -> dict[str, Any]:
        """Order a volume, which must be accepted; the operation."""
        body = {"name": name, "size_gib": size_gib}
        answer = await self.ask("POST", VOLUMES, json=body, **more)
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def made(self, name: str, size_gib: int = 10) -> str:
        """A volume that is ready; its id."""
        operation = await self.order(name, size_gib)
        await self.carry_out(operation)
        return operation["resource_id"]

    async def carry_out(self, operation: dict[str, Any]) -> None:
        """Run the steps of an operation's plan to its end."""
        self.generation += 1
        plan = SAGAS[operation["kind"]]
        if plan.saga == "resize_volume":
            volume = await self.volume(operation["resource_id"])
            plan = plan.with_params("volumes.set_size@1", size_gib=str(volume.wanted_gib))
        for index, step in enumerate(plan.steps):
            report = await self.step(operation, step, index)
            assert len(report.done) == 1, (step.name, report)

    async def step(
        self,
        operation: dict[str, Any],
        step: PlannedStep,
        index: int,
        *,
        undo: bool = False,
        looks: int = 20,
    ) -> StepReport:
        """One step or its undo, and looks of the reconciler until it is no longer pending."""
        name = step.undo if undo else step.name
        call = StepCall(
            operation_id=operation["id"],
            ordering_service="volumes",
            attempt=1,
            generation=self.generation,
            step=str(name),
            index=index,
            undoing=undo,
            batch=f"{self.generation}.{index}.{undo}",
            organization_id=RED.organization_id,
            project_id=RED.id,
            site_id=SITE,
            resource_id=operation["resource_id"],
            targets=(operation["resource_id"],),
            params=step.params,
            deadline_at=self.clock.now() + timedelta(minutes=5),
        )
        runner = StepRunner(self.database, KIT, self.clock)
        for activity_attempt in range(1, looks):
            report = await runner.run(self.steps[str(name)], call, activity_attempt)
            if not report.pending:
                return report
            await self.reconciler.look()
            self.clock.at += timedelta(seconds=20)
        return report

    async def share(
        self, cluster_id: str, step: str = "volumes.grant@1", looks: int = 20
    ) -> StepReport:
        """One of the steps of a cluster's order about volumes, run anew."""
        self.generation += 1
        order = {"id": f"op_{cluster_id}", "resource_id": cluster_id}
        planned = PlannedStep(name=step, on="resource")
        return await self.step(order, planned, 0, looks=looks)

    async def orders(self, cluster_id: str, *mounts: dict[str, Any], **data: Any) -> None:
        """A cluster is ordered that mounts volumes; both of its events arrive."""
        facts = {
            "project_id": RED.id,
            "site_id": SITE,
            "name": cluster_id[4:],
            "organization_id": RED.organization_id,
            "image": "i",
            "ssh_keys": [],
        }
        declared = {"cluster_id": cluster_id, "mounts": list(mounts), **facts, **data}
        await self.told("cluster.declared", cluster_id, 1, **declared)
        await self.cluster(cluster_id, state="pending", **data)

    async def volume(self, volume_id: str) -> Volume:
        async with self.database.transaction("volumes") as session:
            return await session.get_one(Volume, volume_id)

    async def settle(self) -> None:
        """Looks of reconciler and scanner until nothing is behind, some time later each."""
        for _ in range(6):
            await self.reconciler.look()
            await self.scanner.look()
            self.clock.at += timedelta(seconds=20)

    async def events(self, kind: str) -> list[dict[str, Any]]:
        async with self.database.transaction("volumes") as session:
            query = select(KIT.event.c.data).where(KIT.event.c.type == kind)
            return list(await session.scalars(query.order_by(KIT.event.c.ordinal)))

    async def usage(self, volume_id: str) -> list[tuple[int, datetime, datetime | None]]:
        async with self.database.transaction("volumes") as session:
            query = select(UsageInterval).where(UsageInterval.volume_id == volume_id)
            rows = (await session.scalars(query.order_by(UsageInterval.id))).all()
            return [(row.size_gib, row.usage_from, row.usage_to) for row in rows]

    async def told(self, type_: str, resource_id: str, version: int, **data: Any) -> None:
        """Fold an event of another service into the read models."""
        entry = FeedEntry(
            position=1,
            source="test",
            event_id=new_id("evt"),
            type=type_,
            organization_id=None,
            project_id=None,
            site_id=None,
            resource_kind=type_.partition(".")[0],
            resource_id=resource_id,
            resource_version=version,
            operation_id=None,
            at=NOW,
            data=data,
        )
        for projection in projections(self.clock):
            if type_ in projection.types:
                async with self.database.transaction("volumes") as session:
                    await projection.apply(session, [entry])

    async def cluster(self, cluster_id: str, version: int = 1, **data: Any) -> None:
        facts = {"project_id": RED.id, "site_id": SITE, "name": cluster_id[4:], "state": "ready"}
        await self.told("cluster.changed", cluster_id, version, id=cluster_id, **{**facts, **data})


class CopyingVolumes(LocalVolumes):
    """A storage that keeps snapshots by copying, which is right where nobody writes meanwhile."""

    async def snapshot_refusal(self, volume_id: str) -> str:
        return ""

    async def observe(self, volume_ids: Sequence[str]) -> Mapping[str, VolumeObserved]:
        seen = await super().observe(volume_ids)
        return {one: replace(seen[one], snapshots=self._kept(one)) for one in volume_ids}

    async def snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        data = Path(self.source(volume_id))
        if (data / SNAPSHOTS).is_file():
            raise VolumeRefusedError(f"something else lies at {SNAPSHOTS}")
        if snapshot_id not in self._kept(volume_id):
            ignore = shutil.ignore_patterns(SNAPSHOTS)
            shutil.copytree(data, data / SNAPSHOTS / snapshot_id, ignore=ignore)
        return (await self.observe([volume_id]))[volume_id]

    async def drop_snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        shutil.rmtree(Path(self.source(volume_id)) / SNAPSHOTS / snapshot_id, ignore_errors=True)
        return (await self.observe([volume_id]))[volume_id]

    async def ensure(self, volume_id: str) -> VolumeObserved:
        await super().ensure(volume_id)
        return (await self.observe([volume_id]))[volume_id]

    async def set_quota(self, volume_id: str, size_gib: int) -> VolumeObserved:
        await super().set_quota(volume_id, size_gib)
        return (await self.observe([volume_id]))[volume_id]

    async def set_access(self, volume_id: str, access: Mapping[str, bool]) -> VolumeObserved:
        await super().set_access(volume_id, access)
        return (await self.observe([volume_id]))[volume_id]

    def _kept(self, volume_id: str) -> frozenset[str]:
        folder = Path(self.source(volume_id)) / SNAPSHOTS
        return frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset()


@asynccontextmanager
async def volume_world(
    postgres_url: str, folder: Path, storage_of: Callable[[Path], LocalVolumes] = LocalVolumes
) -> AsyncIterator[World]:
    """A site with a storage, and a project that may have 100 GiB there."""
    url = await migrated_database(postgres_url, "volumes")
    database, clock, signals = Database(url, application="test"), ManualClock(NOW), Signals()
    settings = VolumesSettings(scan_every_s=60, step_wait_s=0)
    storage = Flaky(storage_of(folder / "storage"))
    tools = Tools(database, clock, settings, lambda _: storage, signals, "holder-a")
    parts = activities.Parts(database, clock, settings, signals)
    tenancy = Tenancy()
    service = VolumeService(database, clock, tenancy, Rack())
    app = application(tenancy, lambda principal: router(service, tenancy, principal))
    steps = [*activities.steps(clock), *activities.site_steps(parts)]
    world = World(
        database,
        clock,
        storage,
        VolumeReconciler(tools),
        VolumeScanner(tools),
        {step.name: step for step in steps},
        {who.subject: client(app, who) for who in (MEMBER, OPERATOR, VIEWER, STRANGER)},
    )
    async with database.transaction("volumes") as session:
        await session.execute(insert(KnownSite).values(site_id=SITE, name="demo", version=1))
        await session.execute(
            insert(QuotaLimit).values(project_id=RED.id, limit_gib=100, version=1)
        )
    yield world
    for one in world.http.values():
        await one.aclose()
    await database.dispose()
    drop_database(url)


def data_of(world: World, volume_id: str) -> Path:
    """The volume as a host of a cluster has it mounted."""
    return Path(world.storage.inner.source(volume_id))
