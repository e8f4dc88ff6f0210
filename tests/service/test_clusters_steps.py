"""Promises of the steps and read models of clusters."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import insert, select, update

from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.errors import ConflictError
from dflare.kit.feed import FeedEntry
from dflare.kit.plan import StepCall, StepReport
from dflare.kit.steps import StepRunner
from dflare.services.baremetal.contract import NodeTypeFacts, PoolFacts, SiteDeclared
from dflare.services.clusters import activities_idle, activities_life, activities_scheduler
from dflare.services.clusters.activities import MembersProjection, SitesProjection, steps
from dflare.services.clusters.contract import ClusterState
from dflare.services.clusters.domain import check_transition
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.tables import KIT, Cluster, KnownSite, Member
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState
from dflare.services.orchestrator.sagas import SAGAS
from stores import drop_database
from tenancy import NOW, migrated_database

CLUSTER = "clu_1"
STEPS = {
    step.name: step
    for step in (
        *steps(ManualClock(NOW)),
        *activities_life.steps(ManualClock(NOW), SAGAS.__getitem__),
        *activities_scheduler.site_steps(cast("SchedulerHosts", None), ManualClock(NOW)),
        *activities_idle.site_steps(cast("SchedulerHosts", None), ManualClock(NOW)),
    )
}


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    url = await migrated_database(postgres_url, "clusters")
    database = Database(url, application="test-steps")
    async with database.transaction("clusters") as session:
        await session.execute(
            insert(Cluster).values(
                id=CLUSTER,
                organization_id="org",
                project_id="proj",
                site_id="site",
                name="c1",
                kind="bare",
                image="base",
                state="pending",
                since=NOW,
                deadline=NOW + timedelta(hours=1),
                ssh_keys=[],
                operation_id="op_1",
                created_by="user",
                created_at=NOW,
            )
        )
    yield database
    await database.dispose()
    drop_database(url)


async def run(database: Database, step: str, attempt: int = 1, **more: Any) -> StepReport:
    call = StepCall(
        operation_id="op_1",
        ordering_service="clusters",
        attempt=attempt,
        step=step,
        index=0,
        batch="0",
        resource_id=CLUSTER,
        targets=(CLUSTER,),
        deadline_at=NOW + timedelta(minutes=1),
        **more,
    )
    return await StepRunner(database, KIT, ManualClock(NOW)).run(STEPS[step], call, 1)


async def cluster(database: Database) -> Cluster:
    async with database.transaction("clusters") as session:
        return (await session.scalars(select(Cluster))).one()


async def events(database: Database) -> list[tuple[int, str]]:
    async with database.transaction("clusters") as session:
        query = select(KIT.event.c.resource_version, KIT.event.c.data).order_by(KIT.event.c.ordinal)
        return [(version, data["state"]) for version, data in (await session.execute(query)).all()]


def test_there_is_a_step_for_each_that_the_sagas_name() -> None:
    named = {
        name
        for plan in SAGAS.values()
        for step in plan.steps
        for name in (step.name, step.undo, step.quarantine)
        if name and name.startswith("clusters.")
    }
    assert named == set(STEPS)


async def test_a_life_is_told_by_one_event_for_each_change(database: Database) -> None:
    life = ["begin@1", "ready@1", "begin_delete@1", "deleted@1"]
    for index, step in enumerate(life):
        report = await run(database, f"clusters.{step}", params={}, generation=index + 1)
        assert report.done == (CLUSTER,)
    assert await events(database) == [
        (2, "creating"),
        (3, "ready"),
        (4, "deleting"),
        (5, "deleted"),
    ]
    assert (await cluster(database)).deadline is None


async def test_a_repeated_step_changes_nothing_more(database: Database) -> None:
    for attempt in (1, 1, 2, 3):
        report = await run(database, "clusters.begin@1", attempt=attempt)
        assert report.done == (CLUSTER,)
    assert await events(database) == [(2, "creating")]


async def test_an_undone_order_leaves_a_failed_cluster_with_its_reason(database: Database) -> None:
    await run(database, "clusters.begin@1")
    await run(database, "clusters.fail@1", undoing=True)
    failed = await cluster(database)
    assert (failed.state, failed.deadline) == ("failed", None)
    assert "op_1" in failed.reason


async def test_a_retried_order_has_a_deadline_again(database: Database) -> None:
    await run(database, "clusters.begin@1")
    await run(database, "clusters.fail@1", undoing=True)
    await run(database, "clusters.begin@1", generation=2)
    again = await cluster(database)
    assert (again.state, again.reason) == ("creating", "")
    assert again.deadline is not None
    assert again.deadline > NOW


async def test_a_step_that_comes_too_late_fails_and_is_not_tried_forever(
    database: Database,
) -> None:
    async with database.transaction("clusters") as session:
        await session.execute(update(Cluster).values(state="deleted"))
    report = await run(database, "clusters.begin@1")
    assert report.done == ()
    assert "deleted" in report.failed[CLUSTER]
    assert (await cluster(database)).state == "deleted"
    assert await events(database) == []


@pytest.mark.parametrize("state", ["deleting", "deleted"])
async def test_the_undo_of_an_order_leaves_a_released_cluster_as_it_is(
    database: Database, state: str
) -> None:
    async with database.transaction("clusters") as session:
        await session.execute(update(Cluster).values(state=state))
    report = await run(database, "clusters.fail@1", undoing=True)
    assert report.done == (CLUSTER,)
    assert (await cluster(database)).state == state
    assert await events(database) == []


@pytest.mark.parametrize("old", list(ClusterState))
def test_only_the_declared_transitions_are_allowed(old: ClusterState) -> None:
    after = {
        "pending": {"creating", "failed"},
        "creating": {"ready", "failed"},
        "ready": {"resizing", "deleting"},
        "resizing": {"ready", "deleting"},
        "failed": {"creating", "deleting"},
        "deleting": {"deleted"},
        "deleted": set[str](),
    }[old]
    for new in ClusterState:
        if new == old or new in after:
            check_transition(old, new)
        else:
            with pytest.raises(ConflictError):
                check_transition(old, new)


def entry(data: dict[str, Any], version: int, kind: str = "allocation.changed") -> FeedEntry:
    return FeedEntry(
        1, "orchestrator", "evt", kind, None, None, None, "x", "x", version, None, NOW, data
    )


def allocation(version: int, state: AllocationState, number: int = 1) -> FeedEntry:
    facts = AllocationFacts(
        allocation_id=f"alloc_{number}",
        version=version,
        state=state,
        node_id=f"node_{number}",
        node_name=f"n{number}",
        node_type="g8",
        gpus=8,
        site_id="site",
        organization_id="org",
        project_id="proj",
        cluster_id=CLUSTER,
        pool="default",
        operation_id="op_1",
        epoch=1,
    )
    return entry(facts.model_dump(mode="json"), version)


async def members(database: Database, *entries: FeedEntry) -> dict[str, str]:
    async with database.transaction("clusters") as session:
        await MembersProjection().apply(session, entries)
        found = (await session.scalars(select(Member))).all()
        return {one.node_id: one.state for one in found}


async def test_members_follow_allocations_and_old_versions_change_nothing(
    database: Database,
) -> None:
    held, confirmed = AllocationState.HELD, AllocationState.CONFIRMED
    assert await members(database, allocation(1, held), allocation(1, held, 2)) == {
        "node_1": "held",
        "node_2": "held",
    }
    newer = await members(database, allocation(2, confirmed), allocation(1, held))
    assert newer == {"node_1": "confirmed", "node_2": "held"}
    assert await members(database, allocation(1, held)) == newer
    assert await members(database) == newer


def site(version: int, price: str, *images: str) -> FeedEntry:
    declared = SiteDeclared(
        site_id="site",
        name="hall",
        currency="EUR",
        switches=(),
        ufm=None,
        pools=PoolFacts(vlan=(), vni=(), pkey=(), prefixes=(), subnet_length=26, cooldown_s=1),
        node_types=(
            NodeTypeFacts(
                name="g8",
                vendor="dell",
                gpu_model=None,
                gpus=8,
                infiniband_rails=8,
                price_per_node_hour=price,
            ),
        ),
        images=images,
    )
    return entry(declared.model_dump(mode="json"), version, "site.declared")


async def test_the_newest_declaration_of_a_site_counts(database: Database) -> None:
    newest = site(3, "3", "new", "base")
    for declared in ([site(1, "1", "base")], [newest], [site(2, "2")], [newest]):
        async with database.transaction("clusters") as session:
            await SitesProjection().apply(session, declared)
    async with database.transaction("clusters") as session:
        known = (await session.scalars(select(KnownSite))).one()
    assert (known.node_types, known.version) == ({"g8": "3"}, 3)
    assert known.images == ["new", "base"], "in the order of the site document"
