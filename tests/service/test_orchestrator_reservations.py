"""Reservations of whole blocks: all or nothing, for one project, from a time to a time."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from dflare.apps.migrate import locations
from dflare.kit.db import Database
from dflare.kit.errors import ForbiddenError, InvalidError, NameTakenError, NotFoundError
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.services.auth.contract import Principal, ProjectRef
from dflare.services.orchestrator.contract import Same
from dflare.services.orchestrator.errors import CapacityError, QuotaError
from dflare.services.orchestrator.service_reservations import (
    BlockOrder,
    ReservationService,
    ReservationView,
)
from orchestrator_fleet import START, Fleet, ids
from tenancy import BLUE, MEMBER, OPERATOR, RED, STRANGER, Tenancy


def at(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    wanted = ("feed", "trace", "orchestrator")
    await upgrade_all(database_url, {name: locations()[name] for name in wanted})
    database = Database(database_url, application="test")
    yield database
    await database.dispose()


@dataclass
class Desk:
    """A site of four racks of four nodes, and who reserves racks of it."""

    fleet: Fleet

    @property
    def service(self) -> ReservationService:
        return ReservationService(self.fleet.database, self.fleet.clock, Tenancy())

    async def reserve(
        self,
        racks: int,
        start: int | None = None,
        end: int = 120,
        *,
        project: ProjectRef = RED,
        caller: Principal = OPERATOR,
        name: str | None = None,
    ) -> ReservationView:
        order = BlockOrder(
            name=name or new_id("r"),
            site=self.fleet.site_id,
            node_type="g8",
            blocks=racks,
            level=Same.LEAF,
            starts_at=None if start is None else at(start),
            ends_at=at(end),
        )
        return await self.service.create(caller, project, order)

    async def order(self, count: int, project: ProjectRef, **values: Any) -> list[str]:
        wishes = self.fleet.wishes(count, project_id=project.id, **values)
        wishes = wishes.model_copy(update={"organization_id": project.organization_id})
        operation_id = new_id("op")
        nodes = ids(await self.fleet.service.reserve(operation_id, wishes))
        await self.fleet.run("orchestrator.confirm@1", operation_id, wishes.cluster_id, nodes)
        if wishes.ends_at is not None:
            await self.fleet.fold(
                self.fleet.entry(
                    "cluster.changed",
                    wishes.cluster_id,
                    1,
                    {"expires_at": wishes.ends_at.isoformat(), "protected": False},
                )
            )
        return nodes


@pytest.fixture
async def desk(database: Database) -> AsyncIterator[Desk]:
    fleet = Fleet(database)
    await fleet.declare(16)
    for project in (RED, BLUE):
        fleet.project_id = project.id
        await fleet.limit(1_000, 1)
    desk = Desk(fleet)
    yield desk
    for project in (RED, BLUE):
        views, _ = await desk.service.list(OPERATOR, project, None, 100)
        for view in views:
            await desk.service.delete(OPERATOR, project, view.row.id)


def _names(view: ReservationView) -> set[str]:
    return set(view.row.node_names)


async def test_whole_groups_are_reserved_with_all_their_nodes(desk: Desk) -> None:
    view = await desk.reserve(2)
    assert (view.state, view.held_by_others) == ("active", 0)
    assert view.row.block_names == ["b0/r0", "b0/r1"]
    assert _names(view) == {f"n{number:04}" for number in range(8)}


async def test_reserved_nodes_are_for_their_project_alone_while_it_lasts(desk: Desk) -> None:
    view = await desk.reserve(3)
    reserved = set(view.row.node_ids)
    others = await desk.order(4, BLUE)
    assert not set(others) & reserved
    with pytest.raises(CapacityError, match="12 reserved for other projects"):
        await desk.order(1, BLUE)
    assert set(await desk.order(12, RED)) == reserved
    desk.fleet.clock.at = at(121)
    assert (await desk.service.get(OPERATOR, RED, view.row.id)).state == "ended"


async def test_after_its_end_a_reservation_keeps_nobody_out(desk: Desk) -> None:
    await desk.reserve(4)
    desk.fleet.clock.at = at(121)
    assert len(await desk.order(16, BLUE)) == 16


async def test_before_its_start_only_orders_that_end_by_then_get_its_nodes(desk: Desk) -> None:
    view = await desk.reserve(4, start=60)
    assert view.state == "scheduled"
    with pytest.raises(CapacityError):
        await desk.order(1, BLUE)
    with pytest.raises(CapacityError):
        await desk.order(1, BLUE, ends_at=at(61))
    assert len(await desk.order(4, BLUE, ends_at=at(60))) == 4


async def test_a_node_that_is_held_without_an_end_keeps_its_group_from_being_reserved(
    desk: Desk,
) -> None:
    await desk.order(4, BLUE)
    with pytest.raises(CapacityError, match="3 of 4 can be had") as refused:
        await desk.reserve(4, start=600, end=700)
    assert refused.value.facts["in_the_way"] == {"held by an order without an end": 4}
    assert len(_names(await desk.reserve(3, start=600, end=700))) == 12


async def test_a_node_whose_order_ends_by_the_start_can_be_reserved(desk: Desk) -> None:
    await desk.order(16, BLUE, ends_at=at(60))
    with pytest.raises(CapacityError, match="held beyond the start"):
        await desk.reserve(1, start=59)
    view = await desk.reserve(4, start=60)
    assert view.held_by_others == 16


async def test_a_project_may_reserve_what_it_holds_itself(desk: Desk) -> None:
    await desk.order(16, RED)
    assert (await desk.reserve(4)).held_by_others == 0


async def test_two_reservations_never_share_a_node_at_a_time(desk: Desk) -> None:
    first = await desk.reserve(2, start=0, end=60)
    second = await desk.reserve(2, start=30, end=90, project=BLUE)
    assert not _names(first) & _names(second)
    with pytest.raises(CapacityError, match="16 reserved already"):
        await desk.reserve(1, start=59, end=61)
    later = await desk.reserve(2, start=60, end=90)
    assert _names(later) == _names(first)


async def test_a_reservation_that_nobody_can_satisfy_is_refused_with_the_reason(
    desk: Desk,
) -> None:
    await desk.fleet.fold(desk.fleet.state(0, "quarantine", 3))
    with pytest.raises(CapacityError, match="4 whole leaves of type g8 wanted, 3 of 4") as refused:
        await desk.reserve(4)
    assert refused.value.facts["in_the_way"] == {"out of service": 1}
    assert "fewer" in (refused.value.next_step or "")


async def test_times_that_are_not_in_order_are_refused(desk: Desk) -> None:
    with pytest.raises(InvalidError, match="end before it starts"):
        await desk.reserve(1, start=60, end=60)
    with pytest.raises(InvalidError, match="366 days"):
        await desk.reserve(1, start=0, end=367 * 24 * 60)


async def test_a_project_is_not_reserved_more_than_it_may_hold(desk: Desk) -> None:
    desk.fleet.project_id = RED.id
    await desk.fleet.limit(7, 2)
    await desk.reserve(1)
    with pytest.raises(QuotaError, match="8 nodes of type g8"):
        await desk.reserve(1)
    await desk.fleet.limit(1_000, 3)


async def test_a_reservation_does_not_pass_orders_that_wait(desk: Desk) -> None:
    await desk.order(16, BLUE)
    operation_id = new_id("op")
    wishes = desk.fleet.wishes(1, wait=True, project_id=BLUE.id)
    await desk.fleet.service.reserve(operation_id, wishes)
    with pytest.raises(CapacityError, match="orders wait"):
        await desk.reserve(1, start=600, end=700)
    await desk.fleet.service.release_hold(operation_id)


async def test_an_order_that_waits_gets_no_node_that_is_reserved_for_others(desk: Desk) -> None:
    view = await desk.reserve(3)
    nodes = await desk.order(4, BLUE)
    waiting = new_id("op")
    wishes = desk.fleet.wishes(1, wait=True, project_id=BLUE.id)
    assert (await desk.fleet.service.reserve(waiting, wishes)).waits
    assert await desk.fleet.service.place_next(desk.fleet.site_id, {waiting}) is None
    await desk.service.delete(OPERATOR, RED, view.row.id)
    assert await desk.fleet.service.place_next(desk.fleet.site_id, {waiting}) == waiting
    assert len(nodes) == 4


async def test_a_stand_in_is_no_node_that_is_reserved_for_others(desk: Desk) -> None:
    await desk.reserve(3)
    operation_id = new_id("op")
    wishes = desk.fleet.wishes(4, project_id=BLUE.id)
    nodes = ids(await desk.fleet.service.reserve(operation_id, wishes))
    await desk.fleet.run("orchestrator.confirm@1", operation_id, wishes.cluster_id, nodes)
    report = await desk.fleet.run(
        "orchestrator.replace@1", operation_id, wishes.cluster_id, nodes[:1]
    )
    assert "12 reserved for other projects" in report.failed[nodes[0]]


async def test_only_operators_reserve_and_only_members_of_the_project_see_it(desk: Desk) -> None:
    with pytest.raises(ForbiddenError):
        await desk.reserve(1, caller=MEMBER)
    view = await desk.reserve(1, name="camp")
    assert (await desk.service.get(MEMBER, RED, "camp")).row.id == view.row.id
    with pytest.raises(NotFoundError):
        await desk.service.get(STRANGER, RED, "camp")
    with pytest.raises(ForbiddenError):
        await desk.service.delete(MEMBER, RED, "camp")


async def test_a_name_is_free_again_when_its_reservation_is_ended(desk: Desk) -> None:
    view = await desk.reserve(1, name="camp")
    with pytest.raises(NameTakenError):
        await desk.reserve(1, name="camp")
    await desk.service.delete(OPERATOR, RED, "camp")
    assert (await desk.service.get(OPERATOR, RED, view.row.id)).state == "cancelled"
    assert (await desk.reserve(1, name="camp")).row.id != view.row.id
