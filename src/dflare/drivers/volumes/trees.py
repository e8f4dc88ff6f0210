"""Trees of files that tenants left: emptied and counted without following a link of theirs."""

import contextlib
import os
import stat
import time
from pathlib import Path

from dflare.drivers.volumes.port import VolumeUse

_LOOK_EVERY = 256
"""Entries between two looks at the clock."""

_BLOCK_BYTES = 512
"""Unit of ``st_blocks`` (POSIX ``sys/stat.h`` leaves it open; it is this on Linux)."""


def empty(top: Path, until: float) -> bool:
    """Remove everything in ``top``, at most until then; whether nothing is left.

    A directory below is emptied by moving its own directories up to ``top``, where they are
    emptied in their turn: however deep the tree is, two directories are open at a time.
    """
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        moved = 0
        while names := os.listdir(root):
            for name in names:
                if stat.S_ISDIR(os.lstat(name, dir_fd=root).st_mode):
                    moved = _flatten(root, name, moved, until)
                    # Not empty is one that took too long, or that somebody still writes to.
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=root)
                else:
                    os.unlink(name, dir_fd=root)
                if time.monotonic() > until:
                    return not os.listdir(root)
        return True
    finally:
        os.close(root)


def _flatten(root: int, name: str, moved: int, until: float) -> int:
    """Unlink the files of directory ``name`` of ``root`` and move its directories to ``root``."""
    _open_up(root, name)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if entry.is_dir(follow_symlinks=False):
                    _open_up(folder, entry.name)
                    moved += 1
                    fresh = f"{time.monotonic_ns()}.{moved}"
                    os.rename(entry.name, fresh, src_dir_fd=folder, dst_dir_fd=root)
                else:
                    os.unlink(entry.name, dir_fd=folder)
                if count % _LOOK_EVERY == 0 and time.monotonic() > until:
                    break
    finally:
        os.close(folder)
    return moved


def _open_up(parent: int, name: str) -> None:
    """Give this user every right on a directory that a tenant may have closed. It is opened as a
    place first, so that nobody can put a link where it was looked at (``open(2)``, O_PATH)."""
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{place}", 0o700)
    finally:
        os.close(place)


def scan(top: Path, until: float) -> VolumeUse:
    """The bytes below ``top``; what cannot be looked into or comes too late is left out."""
    used, seen, complete = 0, set[tuple[int, int]](), True
    waiting, count = [str(top)], 0
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except OSError:
            complete = False
            continue
        with entries:
            for entry in entries:
                count += 1
                if count % _LOOK_EVERY == 0 and time.monotonic() > until:
                    return VolumeUse(used, complete=False)
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    complete = False
                    continue
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(entry.path)
                elif found.st_nlink > 1:
                    if (found.st_dev, found.st_ino) in seen:
                        continue
                    seen.add((found.st_dev, found.st_ino))
                used += found.st_blocks * _BLOCK_BYTES
    return VolumeUse(used, complete)
