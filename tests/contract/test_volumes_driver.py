"""What a driver of volumes must do. A new driver is added to ``DRIVERS``, and its
volumes are mounted by `mount`."""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dflare.drivers.volumes.btrfs import Subvolumes
from dflare.drivers.volumes.local import LocalVolumes
from dflare.drivers.volumes.port import (
    SNAPSHOTS,
    QuotaMode,
    SnapshotDriver,
    VolumeDriver,
    VolumeObserved,
    VolumeRefusedError,
)
from dflare.kit.ids import new_id

GONE = VolumeObserved(present=False)


def local(folder: Path) -> VolumeDriver:
    return LocalVolumes(folder / "storage")


DRIVERS: dict[str, Callable[[Path], VolumeDriver]] = {"local": local, "local on btrfs": local}


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VolumeDriver]:
    """A driver with an empty storage."""
    with contextlib.ExitStack() as stack:
        if request.param == "local on btrfs":
            stack.enter_context(btrfs(tmp_path / "storage"))
        yield DRIVERS[request.param](tmp_path)


@pytest.fixture
def hard(tmp_path: Path) -> Iterator[VolumeDriver]:
    """A driver whose sizes the kernel holds."""
    with btrfs(tmp_path / "storage"):
        yield local(tmp_path)


@contextlib.contextmanager
def btrfs(folder: Path, *, quotas: bool = True) -> Iterator[None]:
    """An empty btrfs filesystem of 3 GiB at `folder`; where there can be none, the test is skipped
    and says why."""
    make = shutil.which("mkfs.btrfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or make is None:
        pytest.skip("needs root and mkfs.btrfs (Debian: apt-get install btrfs-progs)")
    image = folder.parent.with_suffix(".img")
    with image.open("wb") as stream:
        stream.truncate(3 << 30)
    folder.mkdir(mode=0o700)
    subprocess.run([make, "-q", image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True)
    if mounted.returncode != 0:
        image.unlink()
        pytest.skip(f"no btrfs can be mounted here: {mounted.stderr.decode()[:200]}")
    try:
        folder.chmod(0o700)
        if quotas:
            switch_on_simple_quotas(folder)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
        image.unlink()


def switch_on_simple_quotas(folder: Path) -> None:
    """As `btrfs quota enable --simple`, which btrfs-progs older than 6.7 have not."""
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(place, 0xC0109428, struct.pack("=QQ", 4, 0))
    except OSError as error:
        pytest.skip(f"this kernel has no simple quotas: {error}")
    finally:
        os.close(place)


def mount(driver: VolumeDriver, volume_id: str) -> Path:
    """The volume as a host of a cluster has it mounted."""
    return Path(driver.source(volume_id))


def everything_below(folder: Path) -> str:
    """All names and contents, as somebody could read them who searches the storage."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        found += [*folders, *files]
        found += [Path(place, f).read_text() for f in files if not Path(place, f).is_symlink()]
    return "\n".join(found)


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
        driver, volume_id = local(tmp_path), new_id("vol")
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
