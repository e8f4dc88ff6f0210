"""The sagas of volumes on a real directory: every step failed, repeated and cut at three points."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from real_platform import Saboteurs
from sagakit import Disturbance, Final, HastyClock, Sabotaged, check_final, disturbances, selected
from share_world import SHARE, SITE, UNSHARE, ShareWorld
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.client import Client

from dflare.apps.migrate import locations
from dflare.drivers.volumes.local import LocalVolumes
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.kit.operation_activities import OperationActivities
from dflare.kit.operations import NewOperation, create_operation
from dflare.kit.plan import FINAL_STATES, OperationState, Plan, StepCall
from dflare.kit.settings import PlatformSettings
from dflare.kit.steps import Outcome, Step, StepRunner
from dflare.kit.temporal import build_worker, connect_for_workers
from dflare.services.orchestrator.reconciler import WorkflowStarter
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.workflow import OperationWorkflow
from dflare.services.volumes import activities
from dflare.services.volumes.contract import VolumeState
from dflare.services.volumes.reconciler import Tools, VolumeReconciler
from dflare.services.volumes.settings import VolumesSettings
from dflare.services.volumes.signals import Signals
from dflare.services.volumes.tables import KIT, KnownSite, QuotaLimit, UsageInterval, Volume

PLANS = {**SAGAS, SHARE.saga: SHARE, UNSHARE.saga: UNSHARE}
SELECTED = ("create_volume", "resize_volume", "delete_volume", "share", "unshare")
STAND_IN = {"share": 1, "unshare": 0}
"""Steps that only stand for others in plans of this file: nothing is done to them."""

Case = tuple[str, Disturbance | None]
CASES: list[Case] = [
    (saga, disturbance)
    for saga in SELECTED
    for disturbance in disturbances(PLANS[saga])
    if disturbance.index != STAND_IN.get(saga)
]
ALONE: list[Case] = [(saga, None) for saga in SELECTED]
AT_ONCE = 8
BEFORE = {
    "create_volume": VolumeState.PENDING,
    "resize_volume": VolumeState.RESIZING,
    "delete_volume": VolumeState.DELETING,
}
"""In which state the request leaves the volume, before the first step."""


@dataclass
class VolumeWorld:
    """One volume for each order; where it is to be resized or deleted, one that holds a secret."""

    database: Database
    storage: LocalVolumes
    settings: VolumesSettings
    plan: Plan
    project_id: str = field(default_factory=lambda: new_id("prj"))
    signals: Signals = field(default_factory=Signals)
    volumes: dict[str, str] = field(default_factory=dict[str, str])

    def steps(self) -> Sequence[Step[Any]]:
        clock = SystemClock()
        parts = activities.Parts(self.database, clock, self.settings, self.signals)
        return [*activities.steps(clock), *activities.site_steps(parts)]

    async def order(self) -> str:
        operation_id, volume_id = new_id("op"), new_id("vol")
        self.volumes[operation_id] = volume_id
        exists = self.plan.saga != "create_volume"
        if exists:
            await self.storage.ensure(volume_id)
            await self.storage.set_quota(volume_id, 10)
            (Path(self.storage.source(volume_id)) / "file").write_text("secret")
        now = datetime.now(UTC)
        plan = self.plan
        if plan.saga == "resize_volume":
            plan = plan.with_params("volumes.set_size@1", size_gib="20")
        async with self.database.transaction("volumes") as session:
            session.add(QuotaLimit(project_id=self.project_id, limit_gib=20, version=1))
            session.add(self._row(volume_id, operation_id, now, exists=exists))
            if plan.saga == "resize_volume":
                session.add(self._interval(volume_id, now))
            await session.flush()
            new = NewOperation(
                id=operation_id,
                kind=plan.saga,
                organization_id="org_kit",
                project_id=self.project_id,
                site_id=SITE,
                resource_kind="volume",
                resource_id=volume_id,
                plan=plan,
                targets=[],
                created_by="usr_kit",
                trace={},
            )
            await create_operation(session, KIT, new, now)
        return operation_id

    def _row(self, volume_id: str, operation_id: str, now: datetime, *, exists: bool) -> Volume:
        return Volume(
            id=volume_id,
            organization_id="org_kit",
            project_id=self.project_id,
            site_id=SITE,
            name=volume_id.replace("_", "-"),
            size_gib=10,
            wanted_gib=20 if self.plan.saga == "resize_volume" else 10,
            desired_gib=10,
            state=BEFORE[self.plan.saga],
            since=now,
            operation_id=operation_id,
            created_by="usr_kit",
            created_at=now,
            present=exists,
            revision=1 if exists else 0,
            observed_revision=1 if exists else 0,
            observed_present=exists,
            observed_gib=10 if exists else None,
            scanned_at=now,
        )

    def _interval(self, volume_id: str, now: datetime) -> UsageInterval:
        return UsageInterval(
            id=f"{volume_id}.1",
            volume_id=volume_id,
            organization_id="org_kit",
            project_id=self.project_id,
            site_id=SITE,
            size_gib=10,
            usage_from=now,
            version=1,
        )

    async def snapshot(self, operation_id: str) -> Any:
        """What the row says, what the storage has, what is billed; no ids and no times."""
        volume_id = self.volumes[operation_id]
        seen = (await self.storage.observe([volume_id]))[volume_id]
        secret = Path(self.storage.source(volume_id)) / "file"
        async with self.database.transaction("volumes") as session:
            volume = await session.get_one(Volume, volume_id)
            query = select(UsageInterval).where(UsageInterval.volume_id == volume_id)
            usage = (await session.scalars(query.order_by(UsageInterval.id))).all()
            return {
                "state": volume.state,
                "sizes": (volume.size_gib, volume.wanted_gib, volume.desired_gib),
                "present": (volume.present, volume.observed_present, seen.present),
                "granted": seen.size_gib,
                "secret": secret.exists(),
                "usage": [(one.size_gib, one.usage_to is None) for one in usage],
                "settled": volume.observed_revision == volume.revision,
            }

    async def untouched(self) -> Any:
        """A create that was undone, a resize that was undone, a delete that never began."""
        there = self.plan.saga != "create_volume"
        states = {
            "create_volume": VolumeState.FAILED,
            "resize_volume": VolumeState.READY,
            "delete_volume": VolumeState.DELETING,
        }
        return {
            "state": states[self.plan.saga],
            "sizes": (10, 10, 10),
            "present": (there, there, there),
            "granted": 10 if there else None,
            "secret": there,
            "usage": [(10, True)] if self.plan.saga == "resize_volume" else [],
            "settled": True,
        }


@dataclass
class OwnStep:
    """A step, sabotaged for the project that calls it."""

    inner: Step[Any]
    saboteurs: Saboteurs

    @property
    def name(self) -> str:
        return self.inner.name

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Any:
        return await self.inner.load(session, call, targets)

    async def act(self, call: StepCall, loaded: Any, targets: list[str]) -> dict[str, Outcome]:
        step = self.inner
        for saboteur in self.saboteurs.of(call):
            step = Sabotaged(step, saboteur)
        return await step.act(call, loaded, targets)

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Any, outcomes: dict[str, Outcome]
    ) -> None:
        await self.inner.record(session, call, loaded, outcomes)


@dataclass
class Cases:
    """Runs all cases side by side, each in a project of its own."""

    database: Database
    client: Client
    storage: LocalVolumes
    settings: VolumesSettings
    signals: Signals
    saboteurs: Saboteurs
    clock: HastyClock = field(default_factory=HastyClock)
    ends: dict[Case, asyncio.Future[Final]] = field(default_factory=dict)

    def world(self, saga: str) -> VolumeWorld | ShareWorld:
        """A project for one order."""
        if saga in ("share", "unshare"):
            return ShareWorld(self.database, self.storage, self.settings, PLANS[saga], self.signals)
        return VolumeWorld(
            self.database, self.storage, self.settings, SAGAS[saga], signals=self.signals
        )

    async def run(self, cases: Sequence[Case]) -> None:
        """First those that deadlines have no part in, then, before a clock that is late, those
        whose steps are never done."""
        loop = asyncio.get_running_loop()
        self.ends = {case: loop.create_future() for case in cases}
        at_once = asyncio.Semaphore(AT_ONCE)
        hasty = [case for case in cases if case[1] is not None and case[1].kind == "never_done"]
        await asyncio.gather(*(self._end(c, at_once) for c in cases if c not in hasty))
        self.clock.behind = timedelta(seconds=25)
        await asyncio.gather(*(self._end(case, at_once) for case in hasty))

    async def _end(self, case: Case, at_once: asyncio.Semaphore) -> None:
        async with at_once:
            try:
                self.ends[case].set_result(await self._run(case))
            except Exception as error:
                self.ends[case].set_exception(error)

    async def _run(self, case: Case) -> Final:
        saga, disturbance = case
        world = self.world(saga)
        active = [] if disturbance is None else [disturbance]
        saboteurs = self.saboteurs.begin(world.project_id, active)
        operation_id = await world.order()
        async with asyncio.timeout(120):
            while True:
                async with self.database.transaction("volumes") as session:
                    query = select(KIT.operation).where(KIT.operation.c.id == operation_id)
                    row = (await session.execute(query)).mappings().one()
                if row["state"] in (*FINAL_STATES, OperationState.NEEDS_OPERATOR):
                    break
                await asyncio.sleep(0.1)
        return Final(
            operation_id,
            OperationState(row["state"]),
            row["reason"],
            await world.snapshot(operation_id),
            sum(saboteur.hits for saboteur in saboteurs),
        )

    async def serve(self) -> None:
        """Start workflows, as the relay does."""
        starter = WorkflowStarter(self.database, self.client, {"volumes": KIT}, heartbeat_s=5)
        while True:
            await starter.start()
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
async def cases(
    request: pytest.FixtureRequest,
    database_url: str,
    temporal_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Cases]:
    """The cases of all selected tests and the undisturbed ones, under way."""
    # Every cut is a warning with a trace.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
    every = locations()
    await upgrade_all(database_url, {name: every[name] for name in ("feed", "trace", "volumes")})
    database = Database(database_url, application="test")
    platform = PlatformSettings(
        postgres_url=database_url,
        temporal_address=temporal_address,
        secret_key_file="",
        sticky_queue_s=0.5,
    )
    settings = VolumesSettings(poll_s=0.1, step_wait_s=0.2, scan_every_s=3600)
    async with database.transaction("volumes") as session:
        await session.execute(insert(KnownSite).values(site_id=SITE, name="kit", version=1))
    client, storage = (
        await connect_for_workers(platform),
        LocalVolumes(tmp_path_factory.mktemp("s")),
    )
    cases = Cases(database, client, storage, settings, Signals(), Saboteurs(database))
    tools = Tools(database, SystemClock(), settings, lambda _: storage, cases.signals, "kit")
    chosen = selected(request, "case")
    async with AsyncExitStack() as stack:
        for queue, activities_ in by_queue(cases).items():
            workflows = [OperationWorkflow] if queue == "orchestrator" else []
            worker = build_worker(
                client, queue, platform, activities=activities_, workflows=workflows
            )
            await stack.enter_async_context(worker)
        work = [VolumeReconciler(tools).run(), cases.serve(), cases.run([*ALONE, *chosen])]
        tasks = [asyncio.create_task(one) for one in work]
        await asyncio.sleep(0)
        yield cases
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await database.dispose()


def by_queue(cases: Cases) -> Mapping[str, Sequence[Any]]:
    """The activities of every queue that the plans need."""
    runner = StepRunner(cases.database, KIT, SystemClock(), cut=cases.saboteurs.cut)
    steps = cases.world("create_volume").steps()
    own = [runner.activity(OwnStep(step, cases.saboteurs)) for step in steps]
    # At this speed of the site's clock only the floor of 30 s is left of every deadline.
    kit = OperationActivities(cases.database, KIT, cases.clock, speed=1e6).all()
    return {"orchestrator": [], "volumes": [*own, *kit], f"volumes.{SITE}": own}


async def test_each_saga_ends_where_its_tenant_wants_it(cases: Cases) -> None:
    made, resized, deleted, shared, unshared = [await cases.ends[case] for case in ALONE]

    assert (made.state, made.snapshot["state"]) == (OperationState.SUCCEEDED, "ready")
    assert made.snapshot["usage"] == [(10, True)]
    assert (resized.state, resized.snapshot["granted"]) == (OperationState.SUCCEEDED, 20)
    assert resized.snapshot["usage"] == [(10, False), (20, True)]
    assert (deleted.state, deleted.snapshot["state"]) == (OperationState.SUCCEEDED, "deleted")
    assert deleted.snapshot["present"] == (False, False, False)
    assert deleted.snapshot["secret"] is False
    assert shared.state is unshared.state is OperationState.SUCCEEDED
    assert [one.get("mine") for one in shared.snapshot["granted"]] == [True, False]
    assert unshared.snapshot == await cases.world("unshare").untouched()


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(str(part) for part in case))
async def test_a_disturbed_order_of_a_volume_ends_as_an_undisturbed_one_or_undone(
    cases: Cases, case: tuple[str, Disturbance]
) -> None:
    saga, disturbance = case
    undisturbed, final = await cases.ends[saga, None], await cases.ends[case]
    assert undisturbed.state is OperationState.SUCCEEDED

    untouched = await cases.world(saga).untouched()
    check_final(PLANS[saga], undisturbed, untouched, disturbance, final)
