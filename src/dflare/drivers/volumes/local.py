"""Driver ``local``: directories below one folder of a machine, for a site that is that machine.

An ordinary user can limit a directory on no filesystem: project quotas, quota groups and loop
images are root's. So sizes are ``advisory`` here, and ``usage`` finds by a scan what is beyond.

A volume is ``volumes/<id>`` with ``data``, which hosts mount, and ``volume.json``, which holds its
size and access map out of the tenants' reach. Content belongs to tenants, who may leave symbolic
links, directories without rights and trees of any depth: nothing here follows a link, and removal
flattens what it finds, so that no path grows long.
"""

import asyncio
import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dflare.drivers.volumes.port import (
    QuotaMode,
    VolumeObserved,
    VolumeRefusedError,
    VolumeUse,
)
from dflare.kit.db import assert_no_transaction

_ID = re.compile(r"vol_[0-9a-z]{1,40}")
_LOOK_EVERY = 256
"""Entries between two looks at the clock."""

_BLOCK_BYTES = 512
"""Unit of ``st_blocks`` (POSIX ``sys/stat.h`` leaves it open; it is this on Linux)."""


class LocalVolumes:
    """Volumes below ``folder``, which belongs to this process's user alone."""

    def __init__(self, folder: Path) -> None:
        self._volumes = folder / "volumes"
        self._removing = folder / "removing"

    async def ensure(self, volume_id: str) -> VolumeObserved:
        """Two directories and a file; the file is written last and makes it exist."""
        return await self._off_loop(self._ensure, volume_id)

    async def set_quota(self, volume_id: str, size_gib: int) -> VolumeObserved:
        """Noted only: see above."""
        return await self._off_loop(self._note, volume_id, {"size_gib": size_gib})

    async def set_access(self, volume_id: str, access: Mapping[str, bool]) -> VolumeObserved:
        """Noted, for those who mount on this machine: they mount what the map allows."""
        return await self._off_loop(self._note, volume_id, {"access": dict(access)})

    async def remove(self, volume_id: str, within_s: float) -> VolumeObserved:
        """Renamed out of everybody's sight first, then emptied."""
        return await self._off_loop(self._remove, volume_id, within_s)

    async def observe(self, volume_ids: Sequence[str]) -> Mapping[str, VolumeObserved]:
        """Read from the directories themselves."""
        found = await self._off_loop(lambda: [self._observe(one) for one in volume_ids])
        return dict(zip(volume_ids, found, strict=True))

    async def usage(self, volume_id: str, within_s: float) -> VolumeUse:
        """Blocks of every file and directory, those with several names counted once."""
        return await self._off_loop(self._usage, volume_id, within_s)

    def source(self, volume_id: str) -> str:
        """The absolute path of the directory to bind."""
        return str(self._place(volume_id).resolve() / "data")

    async def _off_loop(self, work: Callable[..., Any], *arguments: Any) -> Any:
        assert_no_transaction("a volume's storage")
        return await asyncio.to_thread(work, *arguments)

    def _place(self, volume_id: str) -> Path:
        if not _ID.fullmatch(volume_id):
            raise VolumeRefusedError(f"{volume_id!r} is no id of a volume")
        return self._volumes / volume_id

    def _ensure(self, volume_id: str) -> VolumeObserved:
        place = self._place(volume_id)
        if (self._removing / volume_id).exists():
            raise VolumeRefusedError(f"volume {volume_id} is being removed")
        _own(self._volumes)
        place.mkdir(mode=0o700, exist_ok=True)
        (place / "data").mkdir(mode=0o700, exist_ok=True)
        if not (place / "volume.json").exists():
            _write(place / "volume.json", {"size_gib": None, "access": {}})
        return self._observe(volume_id)

    def _note(self, volume_id: str, change: Mapping[str, Any]) -> VolumeObserved:
        file = self._place(volume_id) / "volume.json"
        if not file.exists():
            raise VolumeRefusedError(f"there is no volume {volume_id} in the storage")
        noted = json.loads(file.read_text())
        if {**noted, **change} != noted:
            _write(file, {**noted, **change})
        return self._observe(volume_id)

    def _observe(self, volume_id: str) -> VolumeObserved:
        place = self._place(volume_id)
        try:
            noted = json.loads((place / "volume.json").read_text())
        except FileNotFoundError:
            left = os.path.lexists(place) or os.path.lexists(self._removing / volume_id)
            return VolumeObserved(present=left)
        size_gib = noted["size_gib"] if (place / "data").is_dir() else None
        mode = None if size_gib is None else QuotaMode.ADVISORY
        return VolumeObserved(True, size_gib, mode, dict(noted["access"]))

    def _remove(self, volume_id: str, within_s: float) -> VolumeObserved:
        place, going = self._place(volume_id), self._removing / volume_id
        if place.exists() and not going.exists():
            _own(self._removing)
            place.rename(going)
            _sync(self._volumes)
        if going.exists() and _empty(going, time.monotonic() + within_s):
            going.rmdir()
            _sync(self._removing)
        return self._observe(volume_id)

    def _usage(self, volume_id: str, within_s: float) -> VolumeUse:
        data = self._place(volume_id) / "data"
        if not data.is_dir():
            raise VolumeRefusedError(f"there is no volume {volume_id} in the storage")
        return _scan(data, time.monotonic() + within_s)


def _own(folder: Path) -> None:
    """Make ``folder`` for this user alone.

    Raises:
        VolumeRefusedError: somebody else could change what lies in it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise VolumeRefusedError(f"{folder} is not a directory that belongs to this user alone")


def _write(file: Path, noted: Mapping[str, Any]) -> None:
    """Replace ``file`` at once, so that no reader and no crash meets half of it."""
    fresh = file.with_suffix(".new")
    with fresh.open("w") as stream:
        json.dump(noted, stream)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
    _sync(file.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _empty(top: Path, until: float) -> bool:
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


def _scan(top: Path, until: float) -> VolumeUse:
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
