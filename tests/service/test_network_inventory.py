"""Read models of network: what declarations and allocations make of its rows."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.migrations import differences, upgrade_all
from dflare.services.network import device_rows
from dflare.services.network.projections import AllocationProjection, InventoryProjection
from dflare.services.network.tables import Base
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState
from dflare.sim.config import SimConfig
from network_site import MIGRATIONS, POOLS, SITE, ShiftedClock, declarations, entry
from simulator import data_center

NODES = SimConfig.model_validate(data_center(nodes=3, gpus=2))


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    await upgrade_all(database_url, MIGRATIONS)
    database = Database(database_url, application="test")
    yield database
    await database.dispose()


async def test_the_migrations_make_the_tables_of_the_code(
    database: Database, database_url: str
) -> None:
    location = MIGRATIONS["network"]
    assert await differences(database_url, "network", location, Base.metadata) == []


async def test_every_declared_port_is_desired_closed_at_once(database: Database) -> None:
    await _declare(database, declarations(NODES, POOLS))
    rows = await _rows(
        database,
        "SELECT p.kind, p.device_id, d.network_id FROM network.port p"
        " JOIN network.port_desired d ON d.port_id = p.id",
    )
    assert len(rows) == 3 * (1 + 2)
    assert {row["network_id"] for row in rows} == {None}
    assert {(row["kind"], row["device_id"]) for row in rows} == {
        ("ethernet", f"{SITE}/leaf0"),
        ("infiniband", f"{SITE}/ufm"),
    }


async def test_a_declaration_that_comes_twice_changes_nothing(database: Database) -> None:
    before = await _rows(database, "SELECT * FROM network.port_desired ORDER BY port_id")
    await _declare(database, declarations(NODES, POOLS))
    assert await _rows(database, "SELECT * FROM network.port_desired ORDER BY port_id") == before


async def test_a_cable_that_moved_is_closed_on_both_sides(database: Database) -> None:
    await _rows(
        database,
        "UPDATE network.port_desired SET network_id = 'net_a' WHERE node_id = 'n0'"
        " RETURNING port_id",
    )
    moved = declarations(NODES, POOLS)[1]
    cable = moved.data["ethernet"][0] | {"port": "swp60"}
    await _declare(database, [_again(moved, 2, ethernet=[cable])])
    rows = await _rows(
        database,
        "SELECT p.address, d.node_id, d.network_id FROM network.port p"
        " JOIN network.port_desired d ON d.port_id = p.id"
        " WHERE p.address IN ('swp1', 'swp60') ORDER BY p.address",
    )
    assert rows == [
        {"address": "swp1", "node_id": "", "network_id": None},
        {"address": "swp60", "node_id": "n0", "network_id": None},
    ]
    kept = await _rows(
        database,
        "SELECT DISTINCT network_id FROM network.port_desired d JOIN network.port p"
        " ON p.id = d.port_id WHERE d.node_id = 'n0' AND p.kind = 'infiniband'",
    )
    assert kept == [{"network_id": "net_a"}]


async def test_a_device_that_is_declared_no_more_is_not_reconciled(database: Database) -> None:
    site = declarations(NODES, POOLS)[0]
    assert await _claimed(database) == {f"{SITE}/leaf0", f"{SITE}/ufm"}
    await _declare(database, [_again(site, 2, switches=[])])
    assert await _claimed(database) == {f"{SITE}/ufm"}
    await _declare(database, [_again(site, 1)])
    assert await _claimed(database) == {f"{SITE}/ufm"}, "an older declaration says nothing"
    await _declare(database, [_again(site, 3)])
    assert await _claimed(database) == {f"{SITE}/leaf0", f"{SITE}/ufm"}


@pytest.mark.parametrize(
    ("epoch", "version", "state"),
    [
        (1, 9, AllocationState.CONFIRMED),
        (2, 1, AllocationState.HELD),
    ],
)
async def test_an_older_allocation_event_changes_nothing(
    database: Database, epoch: int, version: int, state: AllocationState
) -> None:
    newest = _allocation(epoch=2, version=2, state=AllocationState.RELEASING)
    older = _allocation(epoch=epoch, version=version, state=state)
    for batch in ([newest], [older], [older, newest, older]):
        async with database.transaction("network") as session:
            await AllocationProjection(ShiftedClock()).apply(session, batch)
        rows = await _rows(database, "SELECT state, epoch FROM network.node_allocation")
        assert rows == [{"state": "releasing", "epoch": 2}]


def _allocation(epoch: int, version: int, state: AllocationState) -> FeedEntry:
    facts = AllocationFacts(
        allocation_id="alc_1",
        version=version,
        state=state,
        node_id="n0",
        node_name="n0",
        node_type="test",
        gpus=8,
        site_id=SITE,
        organization_id="org_test",
        project_id="prj_test",
        cluster_id="clu_a",
        pool="default",
        operation_id="op_test",
        epoch=epoch,
    )
    return entry("allocation.changed", "alc_1", version, facts)


def _again(first: FeedEntry, version: int, **changed: Any) -> FeedEntry:
    return FeedEntry(**(vars(first) | {"resource_version": version, "data": first.data | changed}))


async def _declare(database: Database, entries: list[FeedEntry]) -> None:
    async with database.transaction("network") as session:
        await InventoryProjection(ShiftedClock()).apply(session, entries)


async def _claimed(database: Database) -> set[str]:
    async with database.transaction("network") as session:
        return set(await device_rows.claim(session, "worker", [SITE], 60))


async def _rows(database: Database, query: str) -> list[dict[str, Any]]:
    async with database.transaction("network") as session:
        return [dict(row) for row in (await session.execute(text(query))).mappings()]
