"""What a driver of volumes must do that holds sizes hard, or declares snapshots. A new driver that
does either gets its storage from `hard` too."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dflare.drivers.volumes.btrfs import Subvolumes
from dflare.drivers.volumes.local import LocalVolumes
from dflare.drivers.volumes.port import (
    SNAPSHOTS,
    QuotaMode,
    SnapshotDriver,
    VolumeDriver,
    VolumeRefusedError,
)
from dflare.kit.ids import new_id
from volume_storages import GONE, btrfs, everything_below, local_on_btrfs, mount


@pytest.fixture
def hard(tmp_path: Path) -> Iterator[VolumeDriver]:
    """A driver whose sizes the kernel holds."""
    with local_on_btrfs(tmp_path) as driver:
        yield driver


# --- sizes that the kernel holds -------------------------------------------------------------

_WRITE = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    with open(sys.argv[1], "wb", buffering=0) as stream:
        for _ in range(32):
            stream.write(os.urandom(1 << 20))
            os.fsync(stream.fileno())
except OSError as error:
    print(error.errno)
else:
    print("written")
"""


def write_as_a_job(file: Path) -> str:
    """What comes of writing 32 MiB under a user that is not root; the path is walked before."""
    place = os.open(file.parent, os.O_RDONLY)
    try:
        name = f"/proc/self/fd/{place}/{file.name}"
        command = [sys.executable, "-c", _WRITE, name]
        ran = subprocess.run(command, pass_fds=[place], check=True, capture_output=True, text=True)
        return ran.stdout.strip()
    finally:
        os.close(place)


def fill(file: Path, size_bytes: int) -> None:
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size_bytes)


async def test_a_job_that_writes_beyond_a_hard_size_gets_edquot_and_goes_on_after_a_resize(
    hard: VolumeDriver,
) -> None:
    volume_id = new_id("vol")
    await hard.ensure(volume_id)
    sized = await hard.set_quota(volume_id, 1)
    assert (sized.size_gib, sized.quota) == (1, QuotaMode.HARD)
    data = mount(hard, volume_id)
    data.chmod(0o777)
    fill(data / "most", (1 << 30) - (8 << 20))

    assert write_as_a_job(data / "job") == str(errno.EDQUOT)

    assert (await hard.usage(volume_id, 5)).used_bytes <= 1 << 30
    await hard.set_quota(volume_id, 2)
    assert write_as_a_job(data / "job") == "written"


async def test_a_volume_s_size_is_no_other_s_and_free_again_when_content_is_removed(
    hard: VolumeDriver,
) -> None:
    full, other = new_id("vol"), new_id("vol")
    for one in (full, other):
        await hard.ensure(one)
        await hard.set_quota(one, 1)
        mount(hard, one).chmod(0o777)
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        fill(mount(hard, full) / "much", 2 << 30)
    fill(mount(hard, full) / "most", (1 << 30) - (8 << 20))
    assert write_as_a_job(mount(hard, other) / "job") == "written"

    (mount(hard, full) / "most").unlink()
    (mount(hard, full) / "much").unlink()
    await hard.usage(full, 5)

    assert write_as_a_job(mount(hard, full) / "job") == "written"


async def test_a_hard_size_is_never_less_than_what_the_volume_holds(hard: VolumeDriver) -> None:
    volume_id = new_id("vol")
    await hard.ensure(volume_id)
    await hard.set_quota(volume_id, 2)
    fill(mount(hard, volume_id) / "file", 3 << 29)
    with pytest.raises(VolumeRefusedError, match=r"1\.5 GiB"):
        await hard.set_quota(volume_id, 1)
    assert (await hard.observe([volume_id]))[volume_id].size_gib == 2


async def test_what_a_tenant_nests_in_a_volume_counts_and_goes_with_it(
    hard: VolumeDriver, tmp_path: Path
) -> None:
    volume_id = new_id("vol")
    await hard.ensure(volume_id)
    await hard.set_quota(volume_id, 1)
    data = mount(hard, volume_id)
    (data / "folder").mkdir()
    Subvolumes(data).create(data / "folder" / "nested")
    (data / "folder" / "nested" / "secret").write_text("secret")
    inner = data / "folder" / "nested" / "inner"
    Subvolumes(data).create(inner)
    (inner / "secret").write_text("secret")

    assert await hard.remove(volume_id, 30) == GONE

    assert "secret" not in everything_below(tmp_path / "storage")


async def test_local_on_btrfs_says_advisory_where_nobody_switched_quotas_on(tmp_path: Path) -> None:
    with btrfs(tmp_path / "storage", quotas=False):
        driver, volume_id = LocalVolumes(tmp_path / "storage"), new_id("vol")
        await driver.ensure(volume_id)
        assert (await driver.set_quota(volume_id, 1)).quota is QuotaMode.ADVISORY
        assert await driver.remove(volume_id, 5) == GONE


async def test_one_who_died_while_making_a_volume_leaves_nothing_in_the_way(
    hard: VolumeDriver,
) -> None:
    volume_id = new_id("vol")
    await hard.ensure(volume_id)
    (mount(hard, volume_id).parent / "volume.json").unlink()
    assert (await hard.ensure(volume_id)).present
    assert (await hard.set_quota(volume_id, 1)).quota is QuotaMode.HARD


# --- snapshots, where the driver declares them -----------------------------------------------


def snapshots_of(driver: VolumeDriver) -> SnapshotDriver:
    assert isinstance(driver, SnapshotDriver)
    return driver


async def test_a_snapshot_keeps_what_was_there_and_is_taken_once(hard: VolumeDriver) -> None:
    keeper, volume_id, snapshot_id = snapshots_of(hard), new_id("vol"), new_id("snp")
    await hard.ensure(volume_id)
    await hard.set_quota(volume_id, 1)
    data = mount(hard, volume_id)
    (data / "file").write_text("before")
    assert await keeper.snapshot_refusal(volume_id) == ""

    seen = await keeper.snapshot(volume_id, snapshot_id)

    assert seen.snapshots == {snapshot_id}
    (data / "file").write_text("after")
    assert (await keeper.snapshot(volume_id, snapshot_id)) == seen
    kept = data / SNAPSHOTS / snapshot_id / "file"
    assert kept.read_text() == "before"
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        kept.write_text("changed")


async def test_what_only_a_snapshot_holds_counts_until_the_snapshot_is_dropped(
    hard: VolumeDriver,
) -> None:
    keeper, volume_id, snapshot_id = snapshots_of(hard), new_id("vol"), new_id("snp")
    await hard.ensure(volume_id)
    await hard.set_quota(volume_id, 1)
    data = mount(hard, volume_id)
    fill(data / "most", 3 << 28)
    await keeper.snapshot(volume_id, snapshot_id)
    (data / "most").unlink()
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        fill(data / "more", 1 << 29)

    assert (await keeper.drop_snapshot(volume_id, snapshot_id)).snapshots == frozenset()

    assert (await keeper.drop_snapshot(volume_id, snapshot_id)).snapshots == frozenset()
    for _ in range(600):
        if (await hard.usage(volume_id, 5)).used_bytes < 1 << 28:
            break
        await asyncio.sleep(0.05)
    fill(data / "more", 1 << 29)


async def test_snapshots_go_with_their_volume(hard: VolumeDriver, tmp_path: Path) -> None:
    keeper, volume_id = snapshots_of(hard), new_id("vol")
    await hard.ensure(volume_id)
    (mount(hard, volume_id) / "file").write_text("secret of it")
    for _ in range(2):
        await keeper.snapshot(volume_id, new_id("snp"))
    assert await hard.remove(volume_id, 30) == GONE
    assert "secret of it" not in everything_below(tmp_path / "storage")


async def test_a_link_in_the_place_of_snapshots_reaches_no_other_volume(
    hard: VolumeDriver,
) -> None:
    keeper, mine, other, kept = snapshots_of(hard), new_id("vol"), new_id("vol"), new_id("snp")
    for one in (mine, other):
        await hard.ensure(one)
    await keeper.snapshot(other, kept)
    (mount(hard, mine) / SNAPSHOTS).symlink_to(mount(hard, other) / SNAPSHOTS)

    assert (await hard.observe([mine]))[mine].snapshots == frozenset()
    assert (await keeper.drop_snapshot(mine, kept)).snapshots == frozenset()
    with pytest.raises(VolumeRefusedError):
        await keeper.snapshot(mine, new_id("snp"))
    assert (await hard.observe([other]))[other].snapshots == {kept}


async def test_local_on_plain_directories_says_why_it_keeps_no_snapshots(tmp_path: Path) -> None:
    driver, volume_id = LocalVolumes(tmp_path), new_id("vol")
    await driver.ensure(volume_id)
    assert "no snapshots" in await driver.snapshot_refusal(volume_id)
    with pytest.raises(VolumeRefusedError, match="no snapshots"):
        await driver.snapshot(volume_id, new_id("snp"))
