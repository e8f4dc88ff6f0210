"""Orders that wait for capacity: in turn, told where they stand, and never lost."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from dflare.apps.migrate import locations
from dflare.kit import operation_control
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.kit.operations import NewOperation, create_operation
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.orchestrator import repository_waiting
from dflare.services.orchestrator.contract import AllocationState, Reservation, Wishes
from dflare.services.orchestrator.errors import CapacityError, QuotaError
from dflare.services.orchestrator.reconciler_waiting import WaitingOrders
from dflare.services.orchestrator.tables import WaitingOrder
from orchestrator_fleet import START, Fleet, ids


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    wanted = ("feed", "trace", "orchestrator", "clusters")
    await upgrade_all(database_url, {name: locations()[name] for name in wanted})
    database = Database(database_url, application="test")
    yield database
    await database.dispose()


@dataclass
class Ordering:
    """A fleet of eight nodes, its relay, and orders that are stored as clusters stores them."""

    fleet: Fleet
    relay: WaitingOrders = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A relay that knows nothing but the rows."""
        self.relay = WaitingOrders(self.fleet.database, {"clusters": CLUSTERS}, self.fleet.clock)

    async def order(self, count: int, *, store: bool = True, **values: Any) -> str:
        operation_id = values.pop("operation_id", None) or new_id("op")
        wishes = self.fleet.wishes(count, wait=True, **values)
        reservation = await self.fleet.service.reserve(operation_id, wishes)
        if store:
            await self.store(operation_id, wishes, reservation)
        return operation_id

    async def store(self, operation_id: str, wishes: Wishes, reservation: Reservation) -> None:
        async with self.fleet.database.transaction("clusters") as session:
            await create_operation(
                session,
                CLUSTERS,
                NewOperation(
                    id=operation_id,
                    kind="create_cluster",
                    organization_id=wishes.organization_id,
                    project_id=wishes.project_id,
                    site_id=wishes.site_id,
                    resource_kind="cluster",
                    resource_id=wishes.cluster_id,
                    plan=reservation.plan,
                    targets=ids(reservation),
                    created_by="user_red",
                    trace={},
                    waits=reservation.waits,
                    reason=reservation.explanation if reservation.waits else "",
                ),
                self.fleet.clock.now(),
            )

    async def row(self, operation_id: str) -> Any:
        table = CLUSTERS.operation
        async with self.fleet.database.transaction("clusters") as session:
            query = select(table).where(table.c.id == operation_id)
            return (await session.execute(query)).mappings().one()

    async def totals(self, operation_id: str) -> set[int]:
        step = CLUSTERS.operation_step
        async with self.fleet.database.transaction("clusters") as session:
            query = select(step.c.total).where(step.c.operation_id == operation_id)
            return set(await session.scalars(query))

    async def waiting(self) -> set[str]:
        async with self.fleet.database.transaction("orchestrator") as session:
            query = select(WaitingOrder.operation_id).where(
                WaitingOrder.site_id == self.fleet.site_id
            )
            return set(await session.scalars(query))

    async def hold(self, count: int, **values: Any) -> tuple[str, list[str]]:
        """An order that has its nodes; returns its cluster and them."""
        operation_id, wishes = new_id("op"), self.fleet.wishes(count, **values)
        nodes = ids(await self.fleet.service.reserve(operation_id, wishes))
        await self.fleet.run("orchestrator.confirm@1", operation_id, wishes.cluster_id, nodes)
        return wishes.cluster_id, nodes

    async def release(self, cluster_id: str, nodes: list[str]) -> None:
        operation_id = new_id("op")
        for step in ("release", "end"):
            await self.fleet.run(f"orchestrator.{step}@1", operation_id, cluster_id, nodes)

    async def end_of(self, cluster_id: str, minutes: int | None, **data: Any) -> None:
        """Clusters says when a cluster ends."""
        at = None if minutes is None else (START + timedelta(minutes=minutes)).isoformat()
        version = data.pop("version", 1)
        await self.fleet.fold(
            self.fleet.entry("cluster.changed", cluster_id, version, {"expires_at": at, **data})
        )


@pytest.fixture
async def ordering(database: Database) -> AsyncIterator[Ordering]:
    fleet = Fleet(database)
    await fleet.declare(8)
    ordering = Ordering(fleet)
    yield ordering
    for operation_id in await ordering.waiting():
        await fleet.service.release_hold(operation_id)


async def test_an_order_that_may_wait_is_accepted_and_told_its_position(
    ordering: Ordering,
) -> None:
    await ordering.hold(6)
    first = await ordering.order(4)
    second = await ordering.order(3)
    row = await ordering.row(first)
    assert (row["state"], row["attempt"], row["targets"]) == ("pending", 0, [])
    assert row["reason"].startswith("waits for capacity: position 1, when is unknown")
    assert (await ordering.row(second))["reason"].startswith("waits for capacity: position 2,")
    assert await ordering.fleet.used() == 6


async def test_an_order_that_may_wait_but_need_not_is_placed_at_once(ordering: Ordering) -> None:
    operation_id = await ordering.order(8)
    row = await ordering.row(operation_id)
    assert (row["attempt"], len(row["targets"])) == (1, 8)
    assert await ordering.waiting() == set()


async def test_a_waiting_order_starts_as_soon_as_its_nodes_are_free(ordering: Ordering) -> None:
    cluster, nodes = await ordering.hold(6)
    operation_id = await ordering.order(4)
    assert await ordering.relay.place() == 0
    await ordering.release(cluster, nodes)
    assert await ordering.relay.place() == 1
    row = await ordering.row(operation_id)
    assert (row["attempt"], row["reason"], row["state"]) == (1, "", "pending")
    held = await ordering.fleet.allocations(reserved_by=operation_id)
    assert row["targets"] == [one.node_id for one in sorted(held, key=lambda one: one.slot)]
    assert {one.state for one in held} == {AllocationState.HELD}
    assert await ordering.totals(operation_id) == {1, 4}
    assert "4 of 8 free nodes" in row["plan"]["steps"][0]["params"]["placement"]
    assert await ordering.waiting() == set()
    assert await ordering.fleet.used() == 4


async def test_an_order_without_queue_does_not_pass_those_that_wait(ordering: Ordering) -> None:
    await ordering.hold(6)
    await ordering.order(4)
    with pytest.raises(CapacityError, match="1 order waits for them") as refused:
        await ordering.fleet.service.reserve(new_id("op"), ordering.fleet.wishes(2))
    assert "--queue" in (refused.value.next_step or "")


async def test_the_tenant_with_the_fewest_nodes_has_the_next_turn(ordering: Ordering) -> None:
    fleet = ordering.fleet
    cluster, nodes = await ordering.hold(4)
    kept, _ = await ordering.hold(4)
    assert kept
    greedy = await ordering.order(3)
    other_project = new_id("prj")
    mine, fleet.project_id = fleet.project_id, other_project
    await fleet.limit(100, 1)
    fleet.project_id = mine
    wishes = fleet.wishes(3, wait=True, project_id=other_project)
    wishes = wishes.model_copy(update={"organization_id": "org_b"})
    modest = new_id("op")
    await ordering.store(modest, wishes, await fleet.service.reserve(modest, wishes))
    await ordering.relay.place()
    assert "position 1," in (await ordering.row(modest))["reason"]
    assert "position 2," in (await ordering.row(greedy))["reason"]
    await ordering.release(cluster, nodes)
    assert await ordering.relay.place() == 1
    assert await ordering.waiting() == {greedy}


async def test_the_estimate_is_the_end_of_the_orders_that_hold_the_nodes(
    ordering: Ordering,
) -> None:
    cluster, _ = await ordering.hold(8)
    operation_id = await ordering.order(2)
    assert "when is unknown" in (await ordering.row(operation_id))["reason"]
    await ordering.end_of(cluster, 25)
    await ordering.relay.place()
    assert (await ordering.row(operation_id))["reason"] == (
        "waits for capacity: position 1, about 25 min"
    )
    # One that is protected is not released at its time.
    await ordering.end_of(cluster, 25, protected=True, version=2)
    await ordering.relay.place()
    assert "when is unknown" in (await ordering.row(operation_id))["reason"]


async def test_a_brief_order_is_placed_before_the_large_one_that_it_does_not_delay(
    ordering: Ordering,
) -> None:
    cluster, _ = await ordering.hold(6)
    await ordering.end_of(cluster, 60)
    await ordering.order(8)
    brief = await ordering.order(2, ends_at=START + timedelta(minutes=59))
    assert len((await ordering.row(brief))["targets"]) == 2
    long = await ordering.order(1, ends_at=START + timedelta(minutes=61))
    assert (await ordering.row(long))["targets"] == []


async def test_an_order_over_its_quota_is_refused_and_does_not_wait(ordering: Ordering) -> None:
    await ordering.fleet.limit(5, 2)
    with pytest.raises(QuotaError):
        await ordering.order(6)
    assert await ordering.waiting() == set()


async def test_a_quota_that_is_used_up_meanwhile_holds_up_only_its_own_project(
    ordering: Ordering,
) -> None:
    cluster, nodes = await ordering.hold(4)
    await ordering.hold(4)
    await ordering.fleet.limit(13, 2)
    first, second = await ordering.order(5), await ordering.order(2)
    await ordering.fleet.limit(6, 3)
    await ordering.release(cluster, nodes)
    assert await ordering.relay.place() == 1
    assert await ordering.waiting() == {first}
    assert len((await ordering.row(second))["targets"]) == 2
    assert "the project's quota is used up" in (await ordering.row(first))["reason"]


async def test_a_waiting_order_that_is_cancelled_is_started_to_end_and_takes_no_nodes(
    ordering: Ordering,
) -> None:
    cluster, nodes = await ordering.hold(8)
    operation_id = await ordering.order(4)
    clock = ordering.fleet.clock
    await operation_control.cancel(ordering.fleet.database, CLUSTERS, operation_id, clock)
    row = await ordering.row(operation_id)
    assert (row["cancel_requested"], row["attempt"], row["targets"]) == (True, 1, [])
    await ordering.release(cluster, nodes)
    assert await ordering.relay.place() == 0
    assert await ordering.waiting() == set()
    assert await ordering.fleet.used() == 0


async def test_one_that_is_cancelled_as_it_is_placed_gives_its_nodes_back(
    ordering: Ordering,
) -> None:
    cluster, nodes = await ordering.hold(8)
    operation_id = await ordering.order(4)
    await ordering.release(cluster, nodes)
    assert (
        await ordering.fleet.service.place_next(ordering.fleet.site_id, {operation_id})
        == operation_id
    )
    clock = ordering.fleet.clock
    await operation_control.cancel(ordering.fleet.database, CLUSTERS, operation_id, clock)
    assert await ordering.fleet.used() == 4
    assert await ordering.relay.place() == 0
    assert await ordering.fleet.used() == 0
    assert await ordering.waiting() == set()


async def test_a_relay_killed_after_it_held_the_nodes_is_followed_by_one_that_goes_on(
    ordering: Ordering,
) -> None:
    cluster, nodes = await ordering.hold(8)
    operation_id = await ordering.order(4)
    await ordering.release(cluster, nodes)
    await ordering.fleet.service.place_next(ordering.fleet.site_id, {operation_id})
    ordering.restart()
    assert await ordering.relay.place() == 1
    assert len((await ordering.row(operation_id))["targets"]) == 4
    assert await ordering.fleet.used() == 4


async def test_a_relay_killed_before_it_forgot_that_an_order_waited_starts_it_once(
    ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, nodes = await ordering.hold(8)
    operation_id = await ordering.order(4)
    await ordering.release(cluster, nodes)

    async def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(repository_waiting, "forget", killed)
        with pytest.raises(RuntimeError, match="killed"):
            await ordering.relay.place()
    before = await ordering.row(operation_id)
    assert before["attempt"] == 1
    ordering.restart()
    await ordering.relay.place()
    after = await ordering.row(operation_id)
    assert (after["version"], after["targets"]) == (before["version"], before["targets"])
    assert await ordering.waiting() == set()
    assert await ordering.fleet.used() == 4


async def test_a_hold_that_ended_before_its_operation_knew_is_followed_by_another_turn(
    ordering: Ordering,
) -> None:
    cluster, nodes = await ordering.hold(8)
    operation_id = await ordering.order(4)
    await ordering.release(cluster, nodes)
    await ordering.fleet.service.place_next(ordering.fleet.site_id, {operation_id})
    ordering.fleet.clock.at += timedelta(seconds=121)
    await ordering.fleet.sweeper.expire_holds()
    await ordering.relay.place()
    await ordering.relay.place()
    assert len((await ordering.row(operation_id))["targets"]) == 4
    assert await ordering.fleet.used() == 4


async def test_an_order_that_was_never_stored_gives_its_place_up(ordering: Ordering) -> None:
    cluster, nodes = await ordering.hold(8)
    operation_id = await ordering.order(4, store=False)
    await ordering.release(cluster, nodes)
    assert await ordering.relay.place() == 0
    assert await ordering.waiting() == {operation_id}
    ordering.fleet.clock.at += timedelta(seconds=121)
    await ordering.relay.place()
    assert await ordering.waiting() == set()
    assert await ordering.fleet.used() == 0


async def test_a_repeated_order_waits_once(ordering: Ordering) -> None:
    await ordering.hold(8)
    operation_id, wishes = new_id("op"), ordering.fleet.wishes(2, wait=True)
    first = await ordering.fleet.service.reserve(operation_id, wishes)
    again = await ordering.fleet.service.reserve(operation_id, wishes)
    assert (first.waits, again.waits, first.explanation) == (True, True, again.explanation)
    assert await ordering.waiting() == {operation_id}


async def test_a_preview_says_that_an_order_would_wait_and_keeps_nothing(
    ordering: Ordering,
) -> None:
    await ordering.hold(8)
    preview = await ordering.fleet.service.preview(ordering.fleet.wishes(2, wait=True))
    assert preview.waits
    assert "position 1" in preview.explanation
    assert await ordering.waiting() == set()
