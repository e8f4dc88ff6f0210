"""The port of Ethernet switches, held by its drivers at the wire of the simulator."""

from collections.abc import AsyncIterator

import pytest

from dflare.drivers.ethernet.nvue import NvueSwitches
from dflare.drivers.ethernet.port import PortSeen, Segment, SwitchChange, SwitchSeen, VrfSeen
from dflare.drivers.fabric.port import (
    DeviceAccess,
    DeviceRefusedError,
    DeviceUnreachableError,
    Receipt,
)
from dflare.drivers.fabric.rest import DeviceRest
from dflare.kit.db import Database, OpenTransactionError
from dflare.kit.migrations import upgrade_all
from simulator import SimHandle, data_center, simulator

SEGMENT = Segment(100, 10_100, "t10200", 10_200, "65000:10200", "10.64.0.1/24")
OTHER = Segment(101, 10_101, "t10201", 10_201, "65000:10201", "10.64.1.1/24")
CLOSED = PortSeen(link_up=False, vlans=frozenset())


@pytest.fixture(scope="module")
async def sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    document = data_center(nodes=4, gpus=0, network="127.81", speed=60)
    async with simulator(tmp_path_factory.mktemp("nvue"), document) as sim:
        yield sim


@pytest.fixture
async def driver(sim: SimHandle) -> AsyncIterator[NvueSwitches]:
    rest = DeviceRest(ca_file=str(sim.ca_file), timeout_s=10)
    yield NvueSwitches(rest)
    await rest.close()


@pytest.fixture
async def leaf(sim: SimHandle) -> DeviceAccess:
    """A switch as it comes: unconfigured front ports, no faults."""
    (await sim.control.delete("/faults")).raise_for_status()
    switch, login = sim.config.switches[0], sim.config.nvue_credentials
    address = f"{switch.address}:{sim.config.nvue_port}"
    return DeviceAccess(switch.name, address, login.username, login.password)


async def test_a_switch_as_it_comes_is_seen_to_fail_open(
    driver: NvueSwitches, leaf: DeviceAccess
) -> None:
    seen = await driver.observe(leaf)
    assert len(seen.ports) == 64
    assert set(seen.ports.values()) == {PortSeen(link_up=True, vlans=frozenset({1}))}
    assert (seen.default_vlan, seen.overlay) == (1, True)


async def test_one_revision_makes_everything_of_a_change(
    driver: NvueSwitches, leaf: DeviceAccess, sim: SimHandle
) -> None:
    change = SwitchChange(
        ports={"swp1": 100, "swp2": 100, "swp3": 101, "swp4": None},
        segments=(SEGMENT, OTHER),
        close_default=True,
    )
    before = len(await sim.log(kind="overlay_changed"))
    assert (await driver.ensure(leaf, change, 5)).landed
    seen = await driver.observe(leaf)
    assert seen.ports["swp1"] == PortSeen(link_up=True, vlans=frozenset({100}))
    assert seen.ports["swp4"] == CLOSED
    assert seen.ports["swp5"] == PortSeen(link_up=True, vlans=frozenset())
    assert seen.default_vlan is None
    _assert_holds(seen, SEGMENT)
    _assert_holds(seen, OTHER)
    assert len(await sim.log(kind="overlay_changed")) == before + 1


async def test_repeating_a_change_changes_nothing(driver: NvueSwitches, leaf: DeviceAccess) -> None:
    before = await driver.observe(leaf)
    change = SwitchChange(ports={"swp1": 100, "swp4": None}, segments=(SEGMENT,))
    assert (await driver.ensure(leaf, change, 5)).landed
    assert await driver.observe(leaf) == before


async def test_a_port_that_moves_keeps_nothing_of_where_it_was(
    driver: NvueSwitches, leaf: DeviceAccess
) -> None:
    await driver.ensure(leaf, SwitchChange(ports={"swp2": 101}), 5)
    assert (await driver.observe(leaf)).ports["swp2"].vlans == {101}
    await driver.ensure(leaf, SwitchChange(ports={"swp2": None}), 5)
    assert (await driver.observe(leaf)).ports["swp2"] == CLOSED


async def test_a_segment_named_among_the_removed_is_replaced(
    driver: NvueSwitches, leaf: DeviceAccess
) -> None:
    moved = Segment(100, 10_300, "t10200", 10_400, "65000:10400", "10.64.9.1/24")
    change = SwitchChange(segments=(moved,), removed_vlans=(100,), removed_vrfs=("t10200",))
    assert (await driver.ensure(leaf, change, 5)).landed
    _assert_holds(await driver.observe(leaf), moved)


async def test_removed_segments_leave_nothing(driver: NvueSwitches, leaf: DeviceAccess) -> None:
    change = SwitchChange(
        ports={"swp1": None, "swp3": None},
        removed_vlans=(100, 101),
        removed_vrfs=("t10200", "t10201"),
    )
    assert (await driver.ensure(leaf, change, 5)).landed
    seen = await driver.observe(leaf)
    assert not seen.vlans
    assert not seen.gateways
    assert not seen.vrfs


async def test_a_slow_apply_is_a_job_until_it_ends(
    driver: NvueSwitches, leaf: DeviceAccess, sim: SimHandle
) -> None:
    await _run_at(sim, 1)
    await sim.fault("nvue_slow", "leaf0", count=1, params={"seconds": 300})
    receipt = await driver.ensure(leaf, SwitchChange(ports={"swp1": 100}), 0.1)
    assert len(receipt.jobs) == 1
    assert await driver.unfinished(leaf, receipt.jobs) == set(receipt.jobs)
    assert await driver.running(leaf) == set(receipt.jobs)
    assert (await driver.observe(leaf)).ports["swp1"] == CLOSED
    await _run_at(sim, 600)
    while await driver.unfinished(leaf, receipt.jobs):
        pass
    assert (await driver.observe(leaf)).ports["swp1"].link_up


async def test_a_revision_that_the_switch_forgot_is_not_unfinished(
    driver: NvueSwitches, leaf: DeviceAccess
) -> None:
    assert await driver.unfinished(leaf, ["99999"]) == set()


async def test_a_refused_revision_is_an_error_and_has_no_effect(
    driver: NvueSwitches, leaf: DeviceAccess, sim: SimHandle
) -> None:
    before = await driver.observe(leaf)
    await sim.fault("nvue_apply_fails", "leaf0", count=1, params={"reason": "no memory"})
    with pytest.raises(DeviceRefusedError, match="no memory"):
        await driver.ensure(leaf, SwitchChange(ports={"swp1": 100}), 5)
    twice = SwitchChange(
        segments=(SEGMENT, Segment(102, 10_100, "t1", 1, "65000:1", "10.1.0.1/24"))
    )
    with pytest.raises(DeviceRefusedError, match="VNI 10100"):
        await driver.ensure(leaf, twice, 5)
    assert await driver.observe(leaf) == before


async def test_a_switch_without_an_answer_is_unreachable_and_nothing_was_applied(
    driver: NvueSwitches, leaf: DeviceAccess, sim: SimHandle
) -> None:
    await sim.fault("nvue_unreachable", "leaf0")
    with pytest.raises(DeviceUnreachableError) as caught:
        await driver.ensure(leaf, SwitchChange(ports={"swp1": 100}), 5)
    assert caught.value.harmless
    with pytest.raises(DeviceUnreachableError):
        await driver.observe(leaf)


async def test_wrong_credentials_are_refused_and_never_shown(
    driver: NvueSwitches, leaf: DeviceAccess
) -> None:
    wrong = DeviceAccess(leaf.name, leaf.address, leaf.username, "wrong-password")
    with pytest.raises(DeviceRefusedError) as caught:
        await driver.observe(wrong)
    assert "wrong-password" not in str(caught.value)
    assert "wrong-password" not in repr(wrong)


async def test_a_switch_with_a_foreign_certificate_is_not_trusted(leaf: DeviceAccess) -> None:
    rest = DeviceRest()
    with pytest.raises(DeviceUnreachableError, match="certificate"):
        await NvueSwitches(rest).observe(leaf)
    await rest.close()


async def test_no_call_leaves_while_a_transaction_is_open(
    driver: NvueSwitches, leaf: DeviceAccess, database_url: str
) -> None:
    await upgrade_all(database_url, {})
    database = Database(database_url, application="test")
    with pytest.raises(OpenTransactionError):
        async with database.transaction("feed_reader"):
            await driver.observe(leaf)
    await database.dispose()


def test_a_receipt_with_jobs_or_without_certainty_has_not_landed() -> None:
    assert Receipt().landed
    assert not Receipt(jobs=("1",)).landed
    assert not Receipt(certain=False).landed


def _assert_holds(seen: SwitchSeen, segment: Segment) -> None:
    target = frozenset({segment.route_target})
    assert seen.vlans[segment.vlan] == {segment.vni}
    assert seen.gateways[segment.vlan] == (segment.vrf, frozenset({segment.gateway}))
    assert seen.vrfs[segment.vrf] == VrfSeen(frozenset({segment.l3_vni}), target, target)


async def _run_at(sim: SimHandle, speed: float) -> None:
    (await sim.control.post("/clock", json={"speed": speed})).raise_for_status()
