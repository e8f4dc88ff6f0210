"""Snapshots of a subvolume, in a folder inside it. That folder is the tenant's, who may have put a
link or a file in its place: it is opened without following any, and what is not ours is refused."""

import contextlib
import os
import re
from collections.abc import Generator
from pathlib import Path

from dflare.drivers.volumes.btrfs import Subvolumes, root_of
from dflare.drivers.volumes.port import SNAPSHOTS, VolumeRefusedError

_ID = re.compile(r"snp_[0-9a-z]{1,40}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def of(data: Path) -> frozenset[str]:
    """Ids of the snapshots of the volume at ``data``."""
    try:
        with _folder(data) as folder:
            names = [name for name in os.listdir(folder) if _ID.fullmatch(name)]
            return frozenset(name for name in names if _root(folder, name) is not None)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def take(disk: Subvolumes, data: Path, snapshot_id: str) -> None:
    """Keep the volume at ``data`` as it is now; a snapshot that exists stays as it is."""
    _check(snapshot_id)
    with contextlib.suppress(FileExistsError):
        (data / SNAPSHOTS).mkdir(mode=0o755)
    try:
        with _folder(data) as folder:
            if _root(folder, snapshot_id) is None:
                disk.snapshot(data, folder, snapshot_id)
    except (NotADirectoryError, FileExistsError) as error:
        raise VolumeRefusedError(f"something else lies at {SNAPSHOTS}/{snapshot_id}") from error


def drop(disk: Subvolumes, data: Path, snapshot_id: str) -> None:
    """Remove a snapshot of the volume at ``data``, if it is there."""
    _check(snapshot_id)
    try:
        with _folder(data) as folder:
            root_id = _root(folder, snapshot_id)
    except (FileNotFoundError, NotADirectoryError):
        return
    for one in [] if root_id is None else disk.family(root_id):
        disk.destroy(one)


def _check(snapshot_id: str) -> None:
    if not _ID.fullmatch(snapshot_id):
        raise VolumeRefusedError(f"{snapshot_id!r} is no id of a snapshot")


@contextlib.contextmanager
def _folder(data: Path) -> Generator[int]:
    volume = os.open(data, _DIRECTORY)
    try:
        folder = os.open(SNAPSHOTS, _DIRECTORY, dir_fd=volume)
    finally:
        os.close(volume)
    try:
        yield folder
    finally:
        os.close(folder)


def _root(folder: int, name: str) -> int | None:
    try:
        return root_of(name, folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
