"""The port of InfiniBand fabric managers, held by its drivers at the wire of the simulator."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from dflare.drivers.fabric.port import DeviceAccess, DeviceRefusedError, DeviceUnreachableError
from dflare.drivers.fabric.rest import DeviceRest, Reply
from dflare.drivers.infiniband.port import DEFAULT_PKEY, ISOLATED, TENANT, Member
from dflare.drivers.infiniband.ufm import UfmManager
from simulator import SimHandle, data_center, simulator


class NamelessJobs(DeviceRest):
    """What a UFM does whose answers to PKey writes name no job (only ``hosts`` calls must)."""

    async def call(self, *args: Any, **more: Any) -> Reply:
        return replace(await super().call(*args, **more), location=None)


@pytest.fixture(scope="module")
async def sim(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimHandle]:
    document = data_center(nodes=4, gpus=2, network="127.82", speed=60)
    async with simulator(tmp_path_factory.mktemp("ufm"), document) as sim:
        yield sim


@pytest.fixture
async def driver(sim: SimHandle) -> AsyncIterator[UfmManager]:
    rest = DeviceRest(ca_file=str(sim.ca_file), timeout_s=10)
    yield UfmManager(rest)
    await rest.close()


@pytest.fixture
async def manager(sim: SimHandle) -> DeviceAccess:
    (await sim.control.delete("/faults")).raise_for_status()
    assert sim.config.ufm is not None
    login = sim.config.ufm_credentials
    address = f"{sim.config.ufm.address}:{sim.config.ufm_port}"
    return DeviceAccess("ufm", address, login.username, login.password)


@pytest.fixture
def guids(sim: SimHandle) -> list[str]:
    return [port.guid for node in sim.config.nodes for port in node.infiniband]


async def test_a_manager_as_it_comes_is_seen_to_fail_open(
    driver: UfmManager, manager: DeviceAccess
) -> None:
    seen = await driver.observe(manager)
    assert seen.default_full
    assert seen.partitions == {DEFAULT_PKEY: {}}


async def test_members_are_added_as_asked_in_one_call(
    driver: UfmManager, manager: DeviceAccess, guids: list[str], sim: SimHandle
) -> None:
    before = len(await sim.log(kind="pkey_changed"))
    assert (await driver.ensure_members(manager, 0x12, guids[:4], TENANT, 5)).landed
    seen = await driver.observe(manager)
    assert seen.partitions[0x12] == dict.fromkeys(guids[:4], TENANT)
    assert len(await sim.log(kind="pkey_changed")) == before + 1


async def test_repeating_it_changes_nothing_and_another_membership_replaces_it(
    driver: UfmManager, manager: DeviceAccess, guids: list[str]
) -> None:
    await driver.ensure_members(manager, 0x12, guids[:4], TENANT, 5)
    limited = Member(full=False, index0=False)
    await driver.ensure_members(manager, 0x12, guids[:1], limited, 5)
    assert (await driver.observe(manager)).partitions[0x12] == {
        guids[0]: limited,
        **dict.fromkeys(guids[1:4], TENANT),
    }


async def test_members_are_removed_and_the_last_takes_the_partition_with_it(
    driver: UfmManager, manager: DeviceAccess, guids: list[str]
) -> None:
    assert (await driver.remove_members(manager, 0x12, guids[:2], 5)).landed
    assert set((await driver.observe(manager)).partitions[0x12]) == set(guids[2:4])
    assert (await driver.remove_members(manager, 0x12, guids[:4], 5)).landed
    assert 0x12 not in (await driver.observe(manager)).partitions
    assert (await driver.remove_members(manager, 0x12, guids[:4], 5)).landed


async def test_ports_can_be_isolated_in_the_default_partition(
    driver: UfmManager, manager: DeviceAccess, guids: list[str], sim: SimHandle
) -> None:
    assert (await driver.ensure_members(manager, DEFAULT_PKEY, guids, ISOLATED, 5)).landed
    seen = await driver.observe(manager)
    assert seen.partitions[DEFAULT_PKEY] == dict.fromkeys(guids, ISOLATED)
    truth = (await sim.control.get("/truth/reachability")).json()
    assert truth["infiniband"] == []


async def test_a_late_job_is_reported_until_it_ends(
    driver: UfmManager, manager: DeviceAccess, guids: list[str], sim: SimHandle
) -> None:
    await _run_at(sim, 1)
    await sim.fault("ufm_job_late", count=1, params={"seconds": 300})
    receipt = await driver.ensure_members(manager, 0x13, guids[:1], TENANT, 0.05)
    assert len(receipt.jobs) == 1
    assert not receipt.landed
    assert await driver.unfinished(manager, receipt.jobs) == set(receipt.jobs)
    assert await driver.running(manager) == set(receipt.jobs)
    assert 0x13 not in (await driver.observe(manager)).partitions
    await _run_at(sim, 600)
    while await driver.unfinished(manager, receipt.jobs):
        pass
    assert (await driver.observe(manager)).partitions[0x13] == {guids[0]: TENANT}
    assert await driver.running(manager) == set()


async def test_a_job_that_the_manager_forgot_is_not_unfinished(
    driver: UfmManager, manager: DeviceAccess
) -> None:
    assert await driver.unfinished(manager, ["999999"]) == set()
    assert await driver.unfinished(manager, []) == set()


async def test_a_job_that_fails_is_an_error_and_has_no_effect(
    driver: UfmManager, manager: DeviceAccess, guids: list[str], sim: SimHandle
) -> None:
    await sim.fault("ufm_job_fails", count=1, params={"reason": "the subnet manager is busy"})
    with pytest.raises(DeviceRefusedError, match="the subnet manager is busy"):
        await driver.ensure_members(manager, 0x14, guids[:1], TENANT, 5)
    assert 0x14 not in (await driver.observe(manager)).partitions


@pytest.mark.parametrize("pkey", [0x0, 0x8002, 0xFFFF, -1])
async def test_pkeys_that_mean_something_else_are_never_sent(
    driver: UfmManager, manager: DeviceAccess, guids: list[str], pkey: int
) -> None:
    with pytest.raises(ValueError, match="not between"):
        await driver.ensure_members(manager, pkey, guids[:1], TENANT, 5)
    with pytest.raises(ValueError, match="not between"):
        await driver.remove_members(manager, pkey, guids[:1], 5)


@pytest.mark.parametrize("wrong", ["", "0x0002c90300000000", "2c903", "0002C90300000000", "all"])
async def test_guids_with_a_typo_are_never_sent(
    driver: UfmManager, manager: DeviceAccess, guids: list[str], wrong: str
) -> None:
    with pytest.raises(ValueError, match="GUID"):
        await driver.ensure_members(manager, 0x15, [guids[0], wrong], TENANT, 5)
    with pytest.raises(ValueError, match="empty list"):
        await driver.remove_members(manager, 0x15, [], 5)
    assert 0x15 not in (await driver.observe(manager)).partitions


async def test_a_manager_without_an_answer_leaves_the_outcome_open(
    driver: UfmManager, manager: DeviceAccess, guids: list[str], sim: SimHandle
) -> None:
    await sim.fault("ufm_unreachable")
    with pytest.raises(DeviceUnreachableError) as caught:
        await driver.ensure_members(manager, 0x16, guids[:1], TENANT, 5)
    assert not caught.value.harmless
    with pytest.raises(DeviceUnreachableError):
        await driver.observe(manager)


async def test_where_no_job_is_named_the_read_back_decides_and_else_nothing_is_certain(
    manager: DeviceAccess, guids: list[str], sim: SimHandle
) -> None:
    rest = NamelessJobs(ca_file=str(sim.ca_file), timeout_s=10)
    driver = UfmManager(rest)
    assert (await driver.ensure_members(manager, 0x17, guids[:2], TENANT, 5)).landed
    assert (await driver.remove_members(manager, 0x17, guids[:1], 5)).landed
    await sim.fault("ufm_job_late", count=1, params={"seconds": 3600})
    receipt = await driver.remove_members(manager, 0x17, guids[1:2], 0.05)
    assert not receipt.certain
    assert not receipt.landed
    await rest.close()


async def test_wrong_credentials_are_refused(driver: UfmManager, manager: DeviceAccess) -> None:
    wrong = DeviceAccess("ufm", manager.address, manager.username, "wrong-password")
    with pytest.raises(DeviceRefusedError):
        await driver.observe(wrong)


async def _run_at(sim: SimHandle, speed: float) -> None:
    (await sim.control.post("/clock", json={"speed": speed})).raise_for_status()
