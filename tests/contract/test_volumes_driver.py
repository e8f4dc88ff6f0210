"""What a driver of volumes must do. A new driver gets an entry in ``DRIVERS`` of
`volume_storages.py`, and `mount` there learns how its volumes are mounted; every test here is then
its test too. ``PROMISES`` says which test holds which verb to its word."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dflare.drivers.volumes.local import LocalVolumes
from dflare.drivers.volumes.port import (
    QuotaMode,
    SnapshotDriver,
    VolumeDriver,
    VolumeRefusedError,
)
from dflare.kit.ids import new_id
from volume_storages import DRIVERS, GONE, everything_below, mount

PROMISES: dict[str, tuple[str, ...]] = {
    "ensure": (
        "test_a_volume_is_made_once_and_stays_as_it_is_when_it_is_ensured_again",
        "test_what_is_no_id_reaches_no_storage",
        "test_a_removal_without_time_is_seen_unfinished_and_goes_on_when_asked_again",
    ),
    "set_quota": (
        "test_a_size_changes_both_ways_and_content_stays",
        "test_a_job_that_writes_beyond_a_hard_size_gets_edquot_and_goes_on_after_a_resize",
        "test_a_hard_size_is_never_less_than_what_the_volume_holds",
        "test_there_is_nothing_to_size_to_share_or_to_count_of_a_volume_that_is_not_there",
    ),
    "set_access": (
        "test_an_access_map_is_the_whole_truth_so_that_who_is_not_in_it_has_none",
        "test_there_is_nothing_to_size_to_share_or_to_count_of_a_volume_that_is_not_there",
    ),
    "remove": (
        "test_nothing_of_a_removed_volume_can_be_read_anywhere_in_the_storage",
        "test_removal_outlives_what_a_tenant_leaves_and_touches_nothing_outside",
        "test_a_tree_deeper_than_any_path_is_removed",
        "test_a_removal_without_time_is_seen_unfinished_and_goes_on_when_asked_again",
        "test_removing_what_is_not_there_is_seen_as_gone",
    ),
    "observe": ("test_what_is_observed_is_what_verbs_return",),
    "usage": (
        "test_use_is_what_was_written_and_never_what_a_link_points_to",
        "test_there_is_nothing_to_size_to_share_or_to_count_of_a_volume_that_is_not_there",
    ),
    "source": ("test_a_volume_is_made_once_and_stays_as_it_is_when_it_is_ensured_again",),
    "snapshot_refusal": ("test_local_on_plain_directories_says_why_it_keeps_no_snapshots",),
    "snapshot": (
        "test_a_snapshot_keeps_what_was_there_and_is_taken_once",
        "test_what_only_a_snapshot_holds_counts_until_the_snapshot_is_dropped",
    ),
    "drop_snapshot": (
        "test_what_only_a_snapshot_holds_counts_until_the_snapshot_is_dropped",
        "test_snapshots_go_with_their_volume",
    ),
}


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VolumeDriver]:
    """A driver with an empty storage."""
    with DRIVERS[request.param](tmp_path) as made:
        yield made


def verbs(port: Any) -> set[str]:
    return {name for name in vars(port) if not name.startswith("_")}


def test_each_verb_of_the_port_has_a_test_that_holds_it_to_its_word() -> None:
    assert set(PROMISES) == verbs(VolumeDriver) | verbs(SnapshotDriver)
    here = Path(__file__).parent.glob("test_volumes_driver*.py")
    tests = {one for path in here for one in re.findall(r"def (test_\w+)", path.read_text())}
    assert {name for names in PROMISES.values() for name in names} <= tests


async def test_a_volume_is_made_once_and_stays_as_it_is_when_it_is_ensured_again(
    driver: VolumeDriver,
) -> None:
    volume_id = new_id("vol")
    first = await driver.ensure(volume_id)
    assert (first.present, dict(first.access)) == (True, {})
    (mount(driver, volume_id) / "file").write_text("kept")
    await driver.set_quota(volume_id, 3)
    await driver.set_access(volume_id, {"clu_a": True})

    again = await driver.ensure(volume_id)

    assert (again.size_gib, dict(again.access)) == (3, {"clu_a": True})
    assert (mount(driver, volume_id) / "file").read_text() == "kept"


async def test_what_is_observed_is_what_verbs_return(driver: VolumeDriver) -> None:
    volume_id, unknown = new_id("vol"), new_id("vol")
    await driver.ensure(volume_id)
    sized = await driver.set_quota(volume_id, 7)
    assert (sized.size_gib, sized.quota) in [(7, QuotaMode.HARD), (7, QuotaMode.ADVISORY)]
    granted = await driver.set_access(volume_id, {"clu_a": True, "clu_b": False})

    seen = await driver.observe([volume_id, unknown])

    assert seen == {volume_id: granted, unknown: GONE}
    assert dict(granted.access) == {"clu_a": True, "clu_b": False}


async def test_an_access_map_is_the_whole_truth_so_that_who_is_not_in_it_has_none(
    driver: VolumeDriver,
) -> None:
    volume_id = new_id("vol")
    await driver.ensure(volume_id)
    await driver.set_access(volume_id, {"clu_a": True, "clu_b": True})
    left = await driver.set_access(volume_id, {"clu_b": False})
    assert dict(left.access) == {"clu_b": False}
    assert dict((await driver.set_access(volume_id, {})).access) == {}


async def test_a_size_changes_both_ways_and_content_stays(driver: VolumeDriver) -> None:
    volume_id = new_id("vol")
    await driver.ensure(volume_id)
    (mount(driver, volume_id) / "file").write_text("kept")
    for size_gib in (10, 20, 5, 5):
        assert (await driver.set_quota(volume_id, size_gib)).size_gib == size_gib
    assert (mount(driver, volume_id) / "file").read_text() == "kept"


async def test_use_is_what_was_written_and_never_what_a_link_points_to(
    driver: VolumeDriver, tmp_path: Path
) -> None:
    volume_id = new_id("vol")
    await driver.ensure(volume_id)
    empty = await driver.usage(volume_id, 5)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "large").write_bytes(os.urandom(4 << 20))
    data = mount(driver, volume_id)
    (data / "a" / "b").mkdir(parents=True)
    (data / "a" / "b" / "file").write_bytes(os.urandom(1 << 20))
    (data / "again").hardlink_to(data / "a" / "b" / "file")
    (data / "link").symlink_to(tmp_path / "elsewhere")

    use = await driver.usage(volume_id, 5)

    assert use.complete
    assert 1 << 20 <= use.used_bytes - empty.used_bytes < 3 << 19


async def test_nothing_of_a_removed_volume_can_be_read_anywhere_in_the_storage(
    driver: VolumeDriver, tmp_path: Path
) -> None:
    volume_id, other = new_id("vol"), new_id("vol")
    for one in (volume_id, other):
        await driver.ensure(one)
        (mount(driver, one) / "deep" / "er").mkdir(parents=True)
        (mount(driver, one) / "deep" / "er" / "secret").write_text(f"secret of {one}")
    await driver.set_access(volume_id, {"clu_a": True})

    assert await driver.remove(volume_id, 30) == GONE

    assert await driver.observe([volume_id]) == {volume_id: GONE}
    assert not mount(driver, volume_id).exists()
    assert volume_id not in everything_below(tmp_path)
    assert (mount(driver, other) / "deep" / "er" / "secret").read_text() == f"secret of {other}"


async def test_removal_outlives_what_a_tenant_leaves_and_touches_nothing_outside(
    driver: VolumeDriver, tmp_path: Path
) -> None:
    volume_id = new_id("vol")
    await driver.ensure(volume_id)
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "file").write_text("kept")
    data = mount(driver, volume_id)
    (data / "to-folder").symlink_to(outside)
    (data / "to-file").symlink_to(outside / "file")
    (data / "shut").mkdir()
    (data / "shut" / "inner").mkdir()
    (data / "shut" / "inner" / "file").write_text("secret")
    os.mkfifo(data / "pipe")
    (data / "shut" / "inner").chmod(0)
    (data / "shut").chmod(0)
    data.chmod(0o500)

    assert await driver.remove(volume_id, 30) == GONE

    assert (outside / "file").read_text() == "kept"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o750


async def test_a_tree_deeper_than_any_path_is_removed(driver: VolumeDriver) -> None:
    volume_id = new_id("vol")
    await driver.ensure(volume_id)
    sized = await driver.set_quota(volume_id, 1)
    place = os.open(mount(driver, volume_id), os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1_500):
        os.mkdir("d" * 20, dir_fd=place)
        below = os.open("d" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    assert (await driver.usage(volume_id, 30)).complete is (sized.quota is QuotaMode.HARD)
    assert await driver.remove(volume_id, 60) == GONE


async def test_a_removal_without_time_is_seen_unfinished_and_goes_on_when_asked_again(
    driver: VolumeDriver,
) -> None:
    volume_id = new_id("vol")
    await driver.ensure(volume_id)
    for number in range(1_000):
        (mount(driver, volume_id) / f"file-{number}").touch()

    first = await driver.remove(volume_id, 0)

    assert first.present
    assert not mount(driver, volume_id).exists()
    assert (await driver.observe([volume_id]))[volume_id].present
    with pytest.raises(VolumeRefusedError):
        await driver.ensure(volume_id)
    calls = 0
    while (await driver.remove(volume_id, 0.01)).present:
        calls += 1
        assert calls < 1_000
    assert await driver.observe([volume_id]) == {volume_id: GONE}


async def test_removing_what_is_not_there_is_seen_as_gone(driver: VolumeDriver) -> None:
    assert await driver.remove(new_id("vol"), 5) == GONE


async def test_there_is_nothing_to_size_to_share_or_to_count_of_a_volume_that_is_not_there(
    driver: VolumeDriver,
) -> None:
    with pytest.raises(VolumeRefusedError):
        await driver.set_quota(new_id("vol"), 1)
    with pytest.raises(VolumeRefusedError):
        await driver.set_access(new_id("vol"), {"clu_a": True})
    with pytest.raises(VolumeRefusedError):
        await driver.usage(new_id("vol"), 1)


@pytest.mark.parametrize("name", ["../vol_a", "vol_../../x", "", "vol_", "vol_A/b", "/etc"])
async def test_what_is_no_id_reaches_no_storage(driver: VolumeDriver, name: str) -> None:
    with pytest.raises(VolumeRefusedError):
        await driver.ensure(name)
    with pytest.raises(VolumeRefusedError):
        await driver.remove(name, 1)


async def test_local_refuses_a_folder_that_others_can_change(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes").chmod(0o777)
    with pytest.raises(VolumeRefusedError, match="this user alone"):
        await LocalVolumes(tmp_path).ensure(new_id("vol"))


async def test_local_says_that_its_sizes_are_advisory(tmp_path: Path) -> None:
    driver, volume_id = LocalVolumes(tmp_path), new_id("vol")
    await driver.ensure(volume_id)
    assert (await driver.set_quota(volume_id, 1)).quota is QuotaMode.ADVISORY
