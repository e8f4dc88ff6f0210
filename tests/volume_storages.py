"""Storages for the contract tests of drivers of volumes: each driver's own, empty."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dflare.drivers.volumes.local import LocalVolumes
from dflare.drivers.volumes.port import VolumeDriver, VolumeObserved

GONE = VolumeObserved(present=False)


@contextlib.contextmanager
def local(folder: Path) -> Iterator[VolumeDriver]:
    """Plain directories."""
    yield LocalVolumes(folder / "storage")


@contextlib.contextmanager
def local_on_btrfs(folder: Path) -> Iterator[VolumeDriver]:
    """Subvolumes whose sizes the kernel holds."""
    with btrfs(folder / "storage"):
        yield LocalVolumes(folder / "storage")


DRIVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[VolumeDriver]]] = {
    "local": local,
    "local on btrfs": local_on_btrfs,
}


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
