"""The simulator's clock, log, faults and disks, each alone."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dflare.sim.clock import SimClock
from dflare.sim.config import Disk
from dflare.sim.disk import ConfigDrive, DiskContent, Image
from dflare.sim.faults import FaultPlan
from dflare.sim.truth import TruthLog


class Wall:
    """A wall clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_change_of_speed_keeps_simulated_time_continuous() -> None:
    wall = Wall()
    clock = SimClock(60, wall)
    wall.now += 2
    assert clock.now_s() == pytest.approx(120)
    clock.set_speed(600)
    assert clock.now_s() == pytest.approx(120)
    wall.now += 1
    assert clock.now_s() == pytest.approx(720)


@pytest.mark.parametrize("speed", [0.5, 0, -1, 601])
def test_a_speed_outside_1_to_600_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="between 1 and 600"):
        SimClock(speed)


async def test_a_sleeper_is_woken_earlier_when_time_runs_faster() -> None:
    clock = SimClock(1)
    sleeper = asyncio.create_task(clock.sleep(1200))
    await asyncio.sleep(0)
    clock.set_speed(600)
    async with asyncio.timeout(30):
        await sleeper
    assert clock.now_s() >= 1200


async def test_a_sleep_of_nothing_lets_other_tasks_run() -> None:
    ran: list[int] = []

    async def other() -> None:
        ran.append(1)

    task = asyncio.create_task(other())
    await SimClock(1).sleep(0)
    assert ran == [1]
    await task


def test_the_log_in_the_file_equals_the_log_in_memory(tmp_path: Path) -> None:
    log = TruthLog(tmp_path / "truth.jsonl", SimClock(60))
    log.append("boot", "n0", keys=("b", "a"), vlans=frozenset({"2", "1"}), nested=[{"x": 1}])
    log.append("power_on", "n1")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert lines == [entry.document() for entry in log.entries()]
    assert lines[0]["keys"] == ["b", "a"]
    assert lines[0]["vlans"] == ["1", "2"]
    assert [line["seq"] for line in lines] == [1, 2]


def test_the_log_is_read_on_from_a_number_and_by_kind_and_subject() -> None:
    log = TruthLog(None, SimClock(60))
    for number in range(6):
        log.append("even" if number % 2 == 0 else "odd", f"n{number % 3}")
    assert [entry.seq for entry in log.entries(after=4)] == [5, 6]
    assert [entry.seq for entry in log.entries(kind="even")] == [1, 3, 5]
    assert [entry.seq for entry in log.entries(kind="even", subject="n0")] == [1]
    assert log.entries(after=6) == []


def test_a_fault_strikes_as_often_as_it_was_told_to_and_only_its_targets() -> None:
    plan = FaultPlan(1)
    plan.add("power_stuck", "rack1-*", count=2)
    assert plan.hit("power_stuck", "rack2-n0") is None
    assert plan.hit("boot_fails", "rack1-n0") is None
    hits = [plan.hit("power_stuck", "rack1-n0") is not None for _ in range(4)]
    assert hits == [True, True, False, False]


@given(seed=st.integers(), targets=st.permutations(["a", "b", "c"]))
def test_what_a_seed_strikes_does_not_depend_on_the_order_of_targets(
    seed: int, targets: list[str]
) -> None:
    def strikes(order: list[str]) -> dict[str, list[bool]]:
        plan = FaultPlan(seed)
        plan.add("bmc_slow", probability=0.5)
        return {t: [plan.hit("bmc_slow", t) is not None for _ in range(8)] for t in order}

    assert strikes(targets) == strikes(["a", "b", "c"])


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"kind": "gremlins"}, "unknown fault"),
        ({"kind": "bmc_slow", "count": 0}, "not positive"),
        ({"kind": "bmc_slow", "probability": 0.0}, "probability"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(wish: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FaultPlan(1).add(**wish)


def test_a_cleared_fault_strikes_no_more() -> None:
    plan = FaultPlan(1)
    first, second = plan.add("bmc_slow"), plan.add("bmc_error_500")
    assert plan.clear(first.id) == 1
    assert plan.hit("bmc_slow", "n0") is None
    assert plan.hit("bmc_error_500", "n0") is second
    assert plan.clear() == 1
    assert plan.faults() == []


def disk(size_gib: int = 10) -> DiskContent:
    return DiskContent(Disk(name="nvme0n1", size_gib=size_gib, serial="S1"))


@given(text=st.text(min_size=1, max_size=3000), salt=st.text(max_size=8), has_image=st.booleans())
def test_what_was_written_is_found_until_the_disk_is_erased(
    text: str, salt: str, has_image: bool
) -> None:
    content = disk()
    if has_image:
        content.write_image(Image("ab" * 32, 9_000, b"x" * 9_000), ConfigDrive(), corrupt=False)
    content.write_text(text, salt)
    assert content.holds(text)
    assert not content.blank
    content.erase()
    assert content.blank
    assert not content.holds(text)
    assert content.sample(50, "1")[1] == 0


def test_a_secret_on_a_disk_without_an_image_shows_in_any_sample() -> None:
    content = disk(4000)
    assert content.sample(0, "1")[1] == 0
    content.write_text("secret", "salt")
    assert content.sample(0, "1")[1] > 0


def test_sectors_of_a_large_image_are_never_all_zero() -> None:
    content = disk()
    image = Image("cd" * 32, 8 << 30, b"y" * 4096)
    content.write_image(image, ConfigDrive(), corrupt=False)
    assert all(any(content.read_sector(number)) for number in (0, 7, 8, 1 << 20, (16 << 20) - 1))
    assert not any(content.read_sector(16 << 20))


def test_an_image_larger_than_the_disk_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than"):
        disk(1).write_image(Image("ef" * 32, 2 << 30, b""), ConfigDrive(), corrupt=False)
