"""Promises of volumes: orders, steps, the reconciler of a storage, access, quota and usage."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text, update

from dflare.drivers.volumes.local import LocalVolumes
from dflare.drivers.volumes.port import VolumeObserved
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.errors import ConflictError
from dflare.kit.feed import FeedEntry
from dflare.kit.ids import new_id
from dflare.kit.plan import PlannedStep, StepCall, StepReport
from dflare.kit.steps import StepRunner
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.volumes import activities
from dflare.services.volumes.api import router
from dflare.services.volumes.contract import QUOTA, VolumeState
from dflare.services.volumes.domain import check_transition
from dflare.services.volumes.projections import projections
from dflare.services.volumes.reconciler import Tools, VolumeReconciler
from dflare.services.volumes.service import VolumeService
from dflare.services.volumes.settings import VolumesSettings
from dflare.services.volumes.signals import Signals
from dflare.services.volumes.tables import KIT, Access, KnownSite, QuotaLimit, UsageInterval, Volume
from stores import drop_database
from tenancy import (
    BLUE,
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
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.inner, name)
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


@dataclass
class World:
    """The service, its steps and a reconciler over one storage, without the interpreter."""

    database: Database
    clock: ManualClock
    storage: Flaky
    reconciler: VolumeReconciler
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
        self, operation: dict[str, Any], step: PlannedStep, index: int, *, undo: bool = False
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
        for activity_attempt in range(1, 20):
            report = await runner.run(self.steps[str(name)], call, activity_attempt)
            if not report.pending:
                return report
            await self.reconciler.look()
            self.clock.at += timedelta(seconds=20)
        return report

    async def volume(self, volume_id: str) -> Volume:
        async with self.database.transaction("volumes") as session:
            return await session.get_one(Volume, volume_id)

    async def settle(self) -> None:
        """Looks of the reconciler until nothing is behind, some time later each."""
        for _ in range(6):
            await self.reconciler.look()
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


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    url = await migrated_database(postgres_url, "volumes")
    database, clock, signals = Database(url, application="test"), ManualClock(NOW), Signals()
    settings = VolumesSettings(scan_every_s=60, step_wait_s=0)
    storage = Flaky(LocalVolumes(tmp_path / "storage"))
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
    return Path(world.storage.inner.source(volume_id))


# --- orders and lives ------------------------------------------------------------------------


def test_there_is_a_step_for_each_that_the_sagas_name() -> None:
    named = {
        name
        for plan in SAGAS.values()
        for step in plan.steps
        for name in (step.name, step.undo)
        if name and name.startswith("volumes.")
    }
    clock = ManualClock(NOW)
    parts: Any = None
    have = {s.name for s in (*activities.steps(clock), *activities.site_steps(parts))}
    assert named == have


def test_only_a_ready_or_failed_volume_may_be_deleted() -> None:
    for state in VolumeState:
        if state in {VolumeState.READY, VolumeState.FAILED, VolumeState.DELETING}:
            check_transition(state, VolumeState.DELETING)
        else:
            with pytest.raises(ConflictError):
                check_transition(state, VolumeState.DELETING)


async def test_an_ordered_volume_is_made_says_how_its_size_is_held_and_is_used_from_then(
    world: World,
) -> None:
    operation = await world.order("data", 10)
    assert operation["kind"] == "create_volume"
    assert await world.usage(operation["resource_id"]) == []

    await world.carry_out(operation)
    await world.settle()

    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert (shown["state"], shown["size_gib"], shown["quota"]) == ("ready", 10, "advisory")
    assert data_of(world, shown["id"]).is_dir()
    assert shown["used_bytes"] is not None
    ((size_gib, _, ended),) = await world.usage(shown["id"])
    assert (size_gib, ended) == (10, None)


async def test_a_repeat_with_the_same_key_is_the_same_order(world: World) -> None:
    key = {"Idempotency-Key": "k"}
    first, again = [await world.order("data", headers=key) for _ in range(2)]
    assert first == again
    assert len((await world.ask("GET", VOLUMES)).json()["items"]) == 1


async def test_a_name_is_free_again_only_when_the_storage_holds_nothing_of_its_volume(
    world: World,
) -> None:
    volume_id = await world.made("data")
    (data_of(world, volume_id) / "file").write_text("secret")
    taken = await world.ask("POST", VOLUMES, json={"name": "data", "size_gib": 1})
    assert taken.status_code == 409
    operation = (await world.ask("DELETE", f"{VOLUMES}/data")).json()
    begin, remove, awaiting, deleted = SAGAS["delete_volume"].steps
    world.generation += 1
    for index, step in enumerate((begin, remove)):
        await world.step(operation, step, index)
    assert (data_of(world, volume_id) / "file").exists()
    still = await world.ask("POST", VOLUMES, json={"name": "data", "size_gib": 1})
    assert still.status_code == 409

    await world.step(operation, awaiting, 2)
    assert not data_of(world, volume_id).exists()
    await world.step(operation, deleted, 3)

    assert (
        await world.ask("POST", VOLUMES, json={"name": "data", "size_gib": 1})
    ).status_code == 202


async def test_usage_ends_with_the_request_of_release_and_not_when_the_content_is_gone(
    world: World,
) -> None:
    volume_id = await world.made("data", 10)
    world.clock.at = NOW + timedelta(hours=3)
    requested_at = world.clock.now()
    operation = (await world.ask("DELETE", f"{VOLUMES}/data")).json()
    world.clock.at += timedelta(hours=1)
    await world.carry_out(operation)

    ((size_gib, _, ended),) = await world.usage(volume_id)

    assert (size_gib, ended) == (10, requested_at)
    told = await world.events("volume.usage_changed")
    assert [(one["version"], one["usage_to"] is None) for one in told] == [(1, True), (2, False)]


async def test_each_size_has_an_interval_of_its_own_without_a_gap(world: World) -> None:
    volume_id = await world.made("data", 10)
    world.clock.at = NOW + timedelta(hours=2)
    answer = await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 30})
    assert (await world.volume(volume_id)).size_gib == 10
    await world.carry_out(answer.json())

    first, second = await world.usage(volume_id)

    assert (first[0], second[0], second[2]) == (10, 30, None)
    assert first[2] == second[1] >= NOW + timedelta(hours=2)
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert (shown["size_gib"], shown["state"]) == (30, "ready")


async def test_a_resize_that_is_undone_leaves_size_quota_and_usage_as_they_were(
    world: World,
) -> None:
    volume_id = await world.made("data", 10)
    before = await world.usage(volume_id)
    operation = (await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 80})).json()
    plan = SAGAS["resize_volume"].with_params("volumes.set_size@1", size_gib="80")
    world.generation += 1
    await world.step(operation, plan.steps[0], 0)
    await world.settle()

    await world.step(operation, plan.steps[0], 0, undo=True)

    volume = await world.volume(volume_id)
    assert (volume.state, volume.size_gib, volume.wanted_gib) == ("ready", 10, 10)
    assert (await world.storage.observe([volume_id]))[volume_id].size_gib == 10
    assert await world.usage(volume_id) == before
    await world.order("other", 90)


async def test_an_undone_order_leaves_nothing_in_the_storage(world: World) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    await world.settle()
    assert data_of(world, operation["resource_id"]).exists()

    for index in (1, 0):
        report = await world.step(operation, plan.steps[index], index, undo=True)
        assert report.done

    assert (await world.volume(operation["resource_id"])).state == "failed"
    seen = await world.storage.observe([operation["resource_id"]])
    assert not seen[operation["resource_id"]].present


# --- refusals --------------------------------------------------------------------------------


async def test_a_project_has_no_more_gib_than_it_was_given(world: World) -> None:
    await world.order("a", 60)
    refused = await world.ask("POST", VOLUMES, json={"name": "b", "size_gib": 41})
    assert refused.status_code == 409
    numbers = {k: refused.json()[k] for k in ("limit_gib", "used_gib", "wanted_gib")}
    assert numbers == {"limit_gib": 100, "used_gib": 60, "wanted_gib": 41}
    assert f"quota set {QUOTA}" in refused.json()["next_step"]
    await world.order("b", 40)


async def test_orders_at_once_do_not_pass_the_quota_together(world: World) -> None:
    bodies = [{"name": f"v{n}", "size_gib": 30} for n in range(8)]
    answers = await asyncio.gather(*(world.ask("POST", VOLUMES, json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [409] * 5


async def test_a_project_without_a_quota_has_no_volumes_until_an_operator_gives_one(
    world: World,
) -> None:
    path = f"/projects/{BLUE.id}/volumes"
    body = {"name": "data", "size_gib": 1}
    assert (await world.ask("POST", path, STRANGER, json=body)).status_code == 409
    facts = {"project_id": BLUE.id, "organization_id": BLUE.organization_id}
    await world.told("quota.changed", "q", 1, node_type="h100-8", nodes=50, **facts)
    assert (await world.ask("POST", path, STRANGER, json=body)).status_code == 409
    await world.told("quota.changed", "q", 1, node_type=QUOTA, nodes=5, **facts)
    assert (await world.ask("POST", path, STRANGER, json=body)).status_code == 202


async def test_a_growth_beyond_the_quota_is_refused_and_nothing_is_changed(world: World) -> None:
    volume_id = await world.made("data", 10)
    refused = await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 101})
    assert refused.status_code == 409
    assert (await world.volume(volume_id)).state == "ready"


async def test_a_volume_is_not_made_smaller_than_what_it_holds(world: World) -> None:
    volume_id = await world.made("data", 10)
    async with world.database.transaction("volumes") as session:
        await session.execute(update(Volume).values(used_bytes=5 * 2**30))
    refused = await world.ask("PATCH", f"{VOLUMES}/data", json={"size_gib": 4})
    assert (refused.status_code, refused.json()["detail"].count("5.0 GiB")) == (409, 1)
    assert (await world.volume(volume_id)).wanted_gib == 10


@pytest.mark.parametrize(
    "body",
    [
        {"name": "Data", "size_gib": 1},
        {"name": "data", "size_gib": 0},
        {"name": "data", "size_gib": 1.5},
        {"name": "data", "size_gib": 1, "site": "nowhere"},
        {"name": "data", "size_gib": 1, "driver": "local"},
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(world: World, body: Any) -> None:
    assert (await world.ask("POST", VOLUMES, json=body)).status_code == 422
    assert (await world.ask("GET", VOLUMES)).json()["items"] == []


async def test_a_volume_in_the_hands_of_an_operation_is_left_to_it(world: World) -> None:
    operation = await world.order("data")
    for method, more in (("PATCH", {"json": {"size_gib": 20}}), ("DELETE", {})):
        refused = await world.ask(method, f"{VOLUMES}/data", **more)
        assert refused.status_code == 409
        assert operation["id"] in refused.json()["next_step"]


async def test_viewers_look_and_strangers_find_nothing(world: World) -> None:
    await world.made("data")
    one = f"{VOLUMES}/data"
    assert (await world.ask("GET", one, VIEWER)).status_code == 200
    assert (await world.ask("DELETE", one, VIEWER)).status_code == 403
    assert (await world.ask("GET", one, STRANGER)).status_code == 404
    assert (await world.ask("GET", "/volumes", STRANGER)).json()["items"] == []


# --- access ----------------------------------------------------------------------------------


async def test_a_cluster_of_the_project_gets_what_it_is_given_and_is_seen_to_have_it(
    world: World,
) -> None:
    volume_id = await world.made("data")
    await world.cluster("clu_a")
    given = await world.ask("PUT", f"{VOLUMES}/data/access/a", json={"mode": "ro"})
    (entry,) = given.json()["access"]
    assert (entry["cluster_id"], entry["mode"], entry["observed"]) == ("clu_a", "ro", "none")

    await world.settle()

    (entry,) = (await world.ask("GET", f"{VOLUMES}/data")).json()["access"]
    assert (entry["mode"], entry["observed"]) == ("ro", "ro")
    assert dict((await world.storage.observe([volume_id]))[volume_id].access) == {"clu_a": False}
    told = await world.events("volume.access_changed")
    assert [(one["desired"], one["observed"]) for one in told] == [("ro", "none"), ("ro", "ro")]


async def test_a_volume_is_deleted_only_after_the_storage_was_seen_to_have_taken_it_from_all(
    world: World,
) -> None:
    await world.made("data")
    await world.cluster("clu_a")
    await world.ask("PUT", f"{VOLUMES}/data/access/clu_a", json={"mode": "rw"})
    await world.settle()
    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 409
    await world.ask("DELETE", f"{VOLUMES}/data/access/clu_a")
    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 409
    await world.settle()
    assert (await world.ask("DELETE", f"{VOLUMES}/data")).status_code == 202


async def test_no_cluster_of_another_project_or_site_or_of_the_past_gets_a_volume(
    world: World,
) -> None:
    await world.made("data")
    await world.cluster("clu_other", project_id=BLUE.id)
    await world.cluster("clu_far", site_id="site_2")
    await world.cluster("clu_old", state="deleted")
    for cluster in ("clu_other", "other", "clu_far", "clu_old", "clu_unknown"):
        refused = await world.ask("PUT", f"{VOLUMES}/data/access/{cluster}", json={"mode": "rw"})
        assert refused.status_code == 422, cluster


async def test_a_deleted_cluster_loses_its_access(world: World) -> None:
    volume_id = await world.made("data")
    await world.cluster("clu_a")
    await world.cluster("clu_b")
    for cluster in ("clu_a", "clu_b"):
        await world.ask("PUT", f"{VOLUMES}/data/access/{cluster}", json={"mode": "rw"})
    await world.settle()

    await world.cluster("clu_a", version=2, state="deleted")
    await world.settle()

    assert dict((await world.storage.observe([volume_id]))[volume_id].access) == {"clu_b": True}
    async with world.database.transaction("volumes") as session:
        assert list(await session.scalars(select(Access.cluster_id))) == ["clu_b"]


# --- the storage -----------------------------------------------------------------------------


async def test_a_storage_that_fails_is_tried_again_and_its_places_are_not_told_to_tenants(
    world: World,
) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    world.storage.broken = 2
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    await world.reconciler.look()
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert shown["trouble"] == "the storage fails: Input/output error"

    await world.settle()

    assert (await world.ask("GET", f"{VOLUMES}/data")).json()["trouble"] == ""
    assert (await world.step(operation, plan.steps[2], 2)).done


async def test_a_frozen_site_is_not_written_to_until_it_is_thawed(world: World) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    await world.told("site.frozen", SITE, 2, site_id=SITE, frozen=True)
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    await world.settle()
    assert world.storage.writes == []
    await world.told("site.frozen", SITE, 3, site_id=SITE, frozen=False)
    await world.settle()
    assert world.storage.writes != []


async def test_a_write_that_hangs_keeps_others_away_until_it_can_no_longer_take_effect(
    world: World,
) -> None:
    operation = await world.order("data")
    plan = SAGAS["create_volume"]
    for index in range(2):
        await world.step(operation, plan.steps[index], index)
    world.storage.stuck = asyncio.Event()
    first = asyncio.create_task(world.reconciler.look())
    await world.storage.begun.wait()
    tools = world.reconciler.tools
    other = VolumeReconciler(Tools(**{**vars(tools), "holder": "holder-b"}))
    async with world.database.transaction("feed") as session:
        # Its lease is lost: the first holder was silent for too long.
        await session.execute(text("DELETE FROM feed.lease"))
    await other.look()
    assert world.storage.writes == ["ensure"]

    world.clock.at += timedelta(seconds=tools.settings.intent_s + 1)
    world.storage.stuck, release = None, world.storage.stuck
    await other.look()
    seen = await world.volume(operation["resource_id"])
    assert seen.observed_revision == seen.revision
    release.set()
    await first

    after = await world.volume(operation["resource_id"])
    assert (after.version, after.observed_revision) == (seen.version, seen.revision)


async def test_content_beyond_an_advisory_size_is_found_and_told(world: World) -> None:
    volume_id = await world.made("data", 1)
    with (data_of(world, volume_id) / "large").open("wb") as stream:
        stream.write(b"x" * (1 << 20))
    async with world.database.transaction("volumes") as session:
        await session.execute(update(Volume).values(size_gib=0))
    await world.settle()
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert shown["used_bytes"] >= 1 << 20
    assert shown["over_quota"] is True
    assert (await world.events("volume.changed"))[-1]["over_quota"] is True


async def test_access_that_somebody_changed_in_the_storage_is_put_right(world: World) -> None:
    volume_id = await world.made("data")
    await world.settle()
    await world.storage.inner.set_access(volume_id, {"clu_intruder": True})
    world.clock.at += timedelta(minutes=5)
    await world.settle()
    assert dict((await world.storage.observe([volume_id]))[volume_id].access) == {}


async def test_a_volume_that_the_storage_lost_is_told_and_not_made_again_empty(
    world: World,
) -> None:
    volume_id = await world.made("data")
    await world.settle()
    await world.storage.inner.remove(volume_id, 5)
    world.clock.at += timedelta(minutes=5)
    await world.settle()
    shown = (await world.ask("GET", f"{VOLUMES}/data")).json()
    assert shown["trouble"] == "the storage has lost this volume"
    assert not data_of(world, volume_id).exists()
    await world.carry_out((await world.ask("DELETE", f"{VOLUMES}/data")).json())
