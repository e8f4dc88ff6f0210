"""Reserving nodes, on real PostgreSQL: exclusive, counted, explained, given back."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from dflare.apps.migrate import locations
from dflare.kit.db import Database
from dflare.kit.errors import ProblemError
from dflare.kit.ids import new_id
from dflare.kit.migrations import differences, upgrade_all
from dflare.services.orchestrator.contract import (
    AllocationState,
    Reservation,
)
from dflare.services.orchestrator.errors import (
    CapacityError,
    QuotaError,
    UnknownNodeTypeError,
    UnknownSiteError,
)
from dflare.services.orchestrator.tables import (
    KIT,
    Base,
    Node,
)
from orchestrator_fleet import Fleet, ids

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    wanted = ("feed", "trace", "orchestrator")
    await upgrade_all(database_url, {name: locations()[name] for name in wanted})
    database = Database(database_url, application="test")
    yield database
    await database.dispose()


@pytest.fixture
async def fleet(database: Database) -> Fleet:
    fleet = Fleet(database)
    await fleet.declare(8)
    return fleet


async def test_the_migrations_make_the_tables_that_the_code_has(
    database: Database, database_url: str
) -> None:
    location = locations()["orchestrator"]
    assert await differences(database_url, "orchestrator", location, Base.metadata) == []


async def test_a_reservation_holds_nodes_of_one_rack_with_claims_epochs_and_quota(
    fleet: Fleet,
) -> None:
    reservation = await fleet.service.reserve("op_1", fleet.wishes(4))

    held = await fleet.allocations()
    assert {one.state for one in held} == {AllocationState.HELD}
    assert len({placed.node_name[:3] for placed in reservation.placed}) == 1
    assert [placed.epoch for placed in reservation.placed] == [1] * 4
    assert reservation.expires_at == START + timedelta(seconds=120)
    assert reservation.plan.saga == "create_cluster"
    assert "1 rack" in reservation.explanation
    assert await fleet.claims() == dict.fromkeys(ids(reservation), "op_1")
    assert await fleet.used() == 4


async def test_a_repeated_reservation_holds_nothing_more_and_answers_the_same(
    fleet: Fleet,
) -> None:
    wishes = fleet.wishes(3)
    first = await fleet.service.reserve("op_2", wishes)
    again = await fleet.service.reserve("op_2", wishes)

    assert sorted(ids(again)) == sorted(ids(first))
    assert {p.allocation_id for p in again.placed} == {p.allocation_id for p in first.placed}
    assert (await fleet.used(), len(await fleet.allocations())) == (3, 3)


async def test_the_same_order_sent_twice_at_once_is_one_order(fleet: Fleet) -> None:
    wishes = fleet.wishes(3)
    one, two = await asyncio.gather(
        fleet.service.reserve("op_twice", wishes), fleet.service.reserve("op_twice", wishes)
    )
    assert sorted(ids(one)) == sorted(ids(two))
    assert await fleet.used() == 3


async def test_a_preview_answers_the_same_and_holds_nothing(fleet: Fleet) -> None:
    wishes = fleet.wishes(4)
    preview = await fleet.service.preview(wishes)

    assert await fleet.allocations() == []
    assert await fleet.used() == 0
    assert ids(await fleet.service.reserve("op_3", wishes)) == ids(preview)


async def test_of_two_orders_for_the_last_nodes_exactly_one_wins_and_the_other_is_told_why(
    database: Database,
) -> None:
    for round_number in range(50):
        fleet = Fleet(database)
        await fleet.declare(4)
        answers = await asyncio.gather(
            fleet.service.reserve(f"op_a{round_number}", fleet.wishes(3)),
            fleet.service.reserve(f"op_b{round_number}", fleet.wishes(3)),
            return_exceptions=True,
        )
        won = [one for one in answers if isinstance(one, Reservation)]
        lost = [one for one in answers if isinstance(one, CapacityError)]
        assert (len(won), len(lost)) == (1, 1), answers
        assert "3 nodes of type g8 wanted, 1 are free, 2 are missing" in lost[0].detail
        assert lost[0].facts["not_free"] == {"held by other orders": 3}
        assert await fleet.used() == 3


async def test_a_refusal_counts_the_reasons_why_the_others_are_not_free(fleet: Fleet) -> None:
    await fleet.service.reserve("op_other", fleet.wishes(2))
    taken = {one.node_id for one in await fleet.allocations()}
    rest = [n for n in range(8) if fleet.node_id(n) not in taken]
    await fleet.fold(
        fleet.state(rest[0], "available", 3, cordoned=True),
        fleet.state(rest[1], "quarantine", 3),
        fleet.state(rest[2], "failed", 3),
        fleet.state(rest[3], "cleaning", 3),
    )
    with pytest.raises(CapacityError) as refusal:
        await fleet.service.reserve("op_4", fleet.wishes(3))

    assert refusal.value.facts["missing"] == 1
    assert refusal.value.facts["not_free"] == {
        "held by other orders": 2,
        "cordoned": 1,
        "in quarantine": 1,
        "failed": 1,
        "being cleaned or prepared": 1,
    }
    assert len(await fleet.allocations()) == 2


@pytest.mark.parametrize(
    ("change", "refusal", "said"),
    [
        ({"node_type": "h9"}, UnknownNodeTypeError, "Its node types are: g8."),
        ({"site_id": "site_none"}, UnknownSiteError, "List sites"),
    ],
)
async def test_what_does_not_exist_is_named_with_what_does(
    fleet: Fleet, change: dict[str, str], refusal: type[ProblemError], said: str
) -> None:
    with pytest.raises(refusal) as error:
        await fleet.service.reserve("op_5", fleet.wishes(1, **change))
    assert said in error.value.next_step


async def test_a_quota_is_never_exceeded_even_by_orders_at_once(fleet: Fleet) -> None:
    await fleet.limit(5, 2)
    answers = await asyncio.gather(
        *(fleet.service.reserve(f"op_q{n}", fleet.wishes(2)) for n in range(4)),
        return_exceptions=True,
    )
    refused = [one for one in answers if isinstance(one, QuotaError)]
    assert len(refused) == 2
    assert refused[0].facts == {"node_type": "g8", "limit": 5, "used": 4, "wanted": 2}
    assert await fleet.used() == 4


async def test_a_project_without_a_limit_may_hold_nothing(fleet: Fleet) -> None:
    with pytest.raises(QuotaError):
        await fleet.service.reserve("op_6", fleet.wishes(1, project_id=new_id("prj")))


async def test_a_hold_that_nobody_confirms_ends_and_gives_all_back(fleet: Fleet) -> None:
    await fleet.service.reserve("op_7", fleet.wishes(8))
    await fleet.sweeper.expire_holds()
    assert {one.state for one in await fleet.allocations()} == {AllocationState.HELD}
    fleet.clock.at += timedelta(seconds=121)

    assert await fleet.sweeper.expire_holds() >= 8
    assert {one.state for one in await fleet.allocations()} == {AllocationState.ENDED}
    assert (await fleet.used(), await fleet.claims()) == (0, {})
    assert len(ids(await fleet.service.reserve("op_8", fleet.wishes(8)))) == 8


async def test_a_confirm_that_comes_too_late_takes_the_same_nodes_if_nobody_has_them(
    fleet: Fleet,
) -> None:
    wishes = fleet.wishes(4)
    nodes = ids(await fleet.service.reserve("op_9", wishes))
    fleet.clock.at += timedelta(seconds=121)
    await fleet.sweeper.expire_holds()

    report = await fleet.run("orchestrator.confirm@1", "op_9", wishes.cluster_id, nodes)

    assert sorted(report.done) == sorted(nodes)
    live = await fleet.allocations(state=AllocationState.CONFIRMED)
    assert ([one.epoch for one in live], await fleet.used()) == ([2] * 4, 4)


async def test_a_confirm_that_comes_too_late_loses_what_others_took(fleet: Fleet) -> None:
    wishes = fleet.wishes(4)
    nodes = ids(await fleet.service.reserve("op_10", wishes))
    fleet.clock.at += timedelta(seconds=121)
    await fleet.sweeper.expire_holds()
    other = ids(await fleet.service.reserve("op_11", fleet.wishes(6)))

    report = await fleet.run("orchestrator.confirm@1", "op_10", wishes.cluster_id, nodes)

    lost = set(nodes) & set(other)
    assert report.failed == dict.fromkeys(lost, "capacity_lost")
    assert set(report.done) == set(nodes) - lost


async def _handed_over(fleet: Fleet, operation_id: str, count: int) -> tuple[str, list[str]]:
    wishes = fleet.wishes(count)
    nodes = ids(await fleet.service.reserve(operation_id, wishes))
    for step in ("orchestrator.confirm@1", "orchestrator.hand_over@1"):
        report = await fleet.run(step, operation_id, wishes.cluster_id, nodes)
        assert sorted(report.done) == sorted(nodes)
    return wishes.cluster_id, nodes


async def test_usage_runs_from_hand_over_to_the_request_of_release(fleet: Fleet) -> None:
    cluster, nodes = await _handed_over(fleet, "op_12", 3)
    assert await fleet.claims() == {}
    requested_at = START + timedelta(hours=1)
    fleet.clock.at = requested_at + timedelta(minutes=7)

    await fleet.run(
        "orchestrator.release@1", "op_13", cluster, nodes, requested_at=requested_at.isoformat()
    )

    rows = await fleet.allocations(cluster_id=cluster)
    assert {(one.usage_from, one.usage_to) for one in rows} == {(START, requested_at)}
    assert {(one.state, one.epoch) for one in rows} == {(AllocationState.RELEASING, 2)}
    assert await fleet.claims() == dict.fromkeys(nodes, "op_13")

    await fleet.run("orchestrator.end@1", "op_13", cluster, nodes)
    assert {one.state for one in await fleet.allocations()} == {AllocationState.ENDED}
    assert (await fleet.used(), await fleet.claims()) == (0, {})
    assert await fleet.service.nodes_of(cluster) == ()


async def test_a_release_takes_the_claim_from_whoever_has_it(fleet: Fleet) -> None:
    cluster, nodes = await _handed_over(fleet, "op_14", 2)
    await fleet.run("orchestrator.claim@1", "op_reboot", cluster, nodes[:1])
    waiting = await fleet.run("orchestrator.claim@1", "op_rescue", cluster, nodes[:1])
    assert waiting.pending == (nodes[0],)

    await fleet.run("orchestrator.release@1", "op_15", cluster, nodes)

    assert await fleet.claims() == dict.fromkeys(nodes, "op_15")


async def test_the_hold_of_a_refused_order_is_given_back_at_once(fleet: Fleet) -> None:
    await fleet.service.reserve("op_refused", fleet.wishes(8))
    with pytest.raises(CapacityError):
        await fleet.service.reserve("op_waits", fleet.wishes(1))

    await fleet.service.release_hold("op_refused")
    await fleet.service.release_hold("op_refused")

    assert (await fleet.used(), await fleet.claims()) == (0, {})
    assert {one.reason for one in await fleet.allocations()} == {"the order was refused"}
    assert len(ids(await fleet.service.reserve("op_waits", fleet.wishes(8)))) == 8


async def test_nodes_that_a_stored_order_confirmed_are_not_given_back_by_a_late_refusal(
    fleet: Fleet,
) -> None:
    wishes = fleet.wishes(2)
    nodes = ids(await fleet.service.reserve("op_stored", wishes))
    await fleet.run("orchestrator.confirm@1", "op_stored", wishes.cluster_id, nodes)

    await fleet.service.release_hold("op_stored")

    held = await fleet.allocations()
    assert [one.state for one in held] == [AllocationState.CONFIRMED] * 2
    assert await fleet.claims() == dict.fromkeys(nodes, "op_stored")


async def test_an_order_undone_after_a_part_of_its_hand_over_is_not_billed(
    fleet: Fleet,
) -> None:
    cluster, nodes = await _handed_over(fleet, "op_16", 2)
    fleet.clock.at += timedelta(hours=1)
    await fleet.run("orchestrator.end@1", "op_16", cluster, nodes)
    assert {(one.usage_from, one.usage_to) for one in await fleet.allocations()} == {(START, START)}


async def test_a_stand_in_is_near_and_new_and_the_node_given_up_is_never_billed(
    fleet: Fleet,
) -> None:
    wishes = fleet.wishes(3)
    nodes = ids(await fleet.service.reserve("op_17", wishes))
    await fleet.run("orchestrator.confirm@1", "op_17", wishes.cluster_id, nodes)

    first = await fleet.run("orchestrator.replace@1", "op_17", wishes.cluster_id, nodes[:1])
    stand_in = first.results[nodes[0]]

    given_up = (await fleet.allocations(node_id=nodes[0]))[0]
    new = (await fleet.allocations(node_id=stand_in))[0]
    assert stand_in not in nodes
    assert (given_up.state, given_up.usage_from) == (AllocationState.RELEASING, None)
    assert (new.state, new.replaces, new.pool) == (AllocationState.CONFIRMED, nodes[0], "main")
    # The fourth node of the same rack is nearer than any of the other rack.
    async with fleet.database.transaction("orchestrator") as session:
        racks = await session.scalar(
            select(func.count(Node.rack.distinct())).where(Node.node_id.in_([stand_in, *nodes]))
        )
    assert racks == 1


async def test_a_repeated_replacement_finds_the_same_stand_in(fleet: Fleet) -> None:
    wishes = fleet.wishes(3)
    nodes = ids(await fleet.service.reserve("op_18", wishes))
    await fleet.run("orchestrator.confirm@1", "op_18", wishes.cluster_id, nodes)
    once = await fleet.run("orchestrator.replace@1", "op_18", wishes.cluster_id, nodes[:1])
    async with fleet.database.transaction("orchestrator") as session:
        await session.execute(KIT.step_outcome.delete())
    again = await fleet.run("orchestrator.replace@1", "op_18", wishes.cluster_id, nodes[:1])
    assert again.results == once.results


async def test_a_replacement_without_free_nodes_says_so(fleet: Fleet) -> None:
    wishes = fleet.wishes(8)
    nodes = ids(await fleet.service.reserve("op_19", wishes))
    await fleet.run("orchestrator.confirm@1", "op_19", wishes.cluster_id, nodes)
    report = await fleet.run("orchestrator.replace@1", "op_19", wishes.cluster_id, nodes[:1])
    assert report.failed == {nodes[0]: "no free node of type g8 is left (8 held by other orders)"}


async def test_an_older_event_changes_nothing(fleet: Fleet) -> None:
    await fleet.fold(fleet.state(0, "quarantine", 5))
    await fleet.fold(fleet.state(0, "available", 4))
    async with fleet.database.transaction("orchestrator") as session:
        node = await session.get(Node, fleet.node_id(0))
    assert node is not None
    assert (node.state, node.version) == ("quarantine", 5)
