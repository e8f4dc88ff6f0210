"""Driver ``local``: directories below one folder of a machine, for a site that is that machine.

An ordinary user can limit a directory on no filesystem: project quotas, quota groups and loop
images are root's. There sizes are ``advisory``, and ``usage`` finds by a scan what is beyond. For
root on a btrfs filesystem with simple quotas a volume is a subvolume that the kernel limits; its
size is ``hard`` where this process has seen a writer stopped at such a limit.

A volume is ``volumes/<id>`` with ``data``, which hosts mount, and ``volume.json``, which holds its
size and access map out of the tenants' reach. Content belongs to tenants, who may leave symbolic
links, directories without rights and trees of any depth: nothing here follows a link, and removal
flattens what it finds, so that no path grows long.
"""

import asyncio
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dflare.drivers.volumes import snapshots
from dflare.drivers.volumes.btrfs import Subvolumes, root_of
from dflare.drivers.volumes.port import (
    QuotaMode,
    VolumeObserved,
    VolumeRefusedError,
    VolumeUse,
)
from dflare.drivers.volumes.trees import empty, scan
from dflare.kit.db import assert_no_transaction

_ID = re.compile(r"vol_[0-9a-z]{1,40}")
_BYTES_PER_GIB = 2**30
_PAUSE_S = 0.05


class LocalVolumes:
    """Volumes below ``folder``, which belongs to this process's user alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._volumes = folder / "volumes"
        self._removing = folder / "removing"
        self._lock = threading.Lock()
        self._proved: bool | None = None

    async def ensure(self, volume_id: str) -> VolumeObserved:
        """A directory with content and file; the file is written last and makes it exist."""
        return await self._off_loop(self._ensure, volume_id)

    async def set_quota(self, volume_id: str, size_gib: int) -> VolumeObserved:
        """Set where the kernel holds it, noted elsewhere: see above."""
        return await self._off_loop(self._limit, volume_id, size_gib)

    async def set_access(self, volume_id: str, access: Mapping[str, bool]) -> VolumeObserved:
        """Noted, for those who mount on this machine: they mount what the map allows."""
        return await self._off_loop(self._note, volume_id, {"access": dict(access)})

    async def remove(self, volume_id: str, within_s: float) -> VolumeObserved:
        """Renamed out of everybody's sight first, then emptied."""
        until = time.monotonic() + within_s
        while True:
            observed: VolumeObserved = await self._off_loop(self._remove, volume_id, until)
            # A subvolume is gone only when the filesystem has cleaned it, a moment later.
            if not observed.present or time.monotonic() + _PAUSE_S >= until:
                return observed
            await asyncio.sleep(_PAUSE_S)

    async def observe(self, volume_ids: Sequence[str]) -> Mapping[str, VolumeObserved]:
        """Read from the directories themselves."""
        found = await self._off_loop(lambda: [self._observe(one) for one in volume_ids])
        return dict(zip(volume_ids, found, strict=True))

    async def usage(self, volume_id: str, within_s: float) -> VolumeUse:
        """What the kernel counts where it holds the size. Elsewhere blocks of every file and
        directory, those with several names counted once."""
        return await self._off_loop(self._usage, volume_id, within_s)

    async def snapshot_refusal(self, volume_id: str) -> str:
        """Plain directories could only be copied, file by file while jobs write."""
        held = await self._off_loop(lambda: self._group(self._noted(volume_id)))
        return "" if held else "its files lie on a filesystem that keeps no snapshots"

    async def snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        """A read-only subvolume inside the volume's own."""
        return await self._off_loop(self._snapshot, volume_id, snapshot_id)

    async def drop_snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        """Destroyed like any subvolume."""
        return await self._off_loop(self._drop_snapshot, volume_id, snapshot_id)

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
        if not (place / "volume.json").exists():
            group = self._make(place / "data")
            _write(place / "volume.json", {"size_gib": None, "access": {}, "group": group})
        return self._observe(volume_id)

    def _make(self, data: Path) -> int | None:
        """Where content is to be; the group that holds its size, where one does."""
        disk = self._disk()
        if disk is None:
            data.mkdir(mode=0o700, exist_ok=True)
            return None
        if data.exists():
            # Made by one who did not come to write down its group; nobody has had it.
            disk.destroy(root_of(data))
        group = disk.create(data)
        data.chmod(0o700)
        return group

    def _disk(self) -> Subvolumes | None:
        """The filesystem, if it was seen to hold sizes; looked at once in a process's life."""
        disk = Subvolumes(self._volumes)
        with self._lock:
            if self._proved is None:
                _own(self._volumes)
                self._proved = disk.proves_limits()
        return disk if self._proved else None

    def _group(self, noted: Mapping[str, Any]) -> tuple[Subvolumes, int] | None:
        """What holds a volume's size; ``None`` where nothing does, or not any more."""
        group: int | None = noted.get("group")
        disk = None if group is None else self._disk()
        return None if group is None or disk is None else (disk, group)

    def _limit(self, volume_id: str, size_gib: int) -> VolumeObserved:
        held = self._group(self._noted(volume_id))
        if held is not None:
            disk, group = held
            used_bytes = disk.used_by(group)
            if used_bytes > size_gib * _BYTES_PER_GIB:
                used_gib = used_bytes / _BYTES_PER_GIB
                raise VolumeRefusedError(f"it holds {used_gib:.1f} GiB, more than {size_gib} GiB")
            disk.limit(group, size_gib * _BYTES_PER_GIB)
        return self._note(volume_id, {"size_gib": size_gib})

    def _noted(self, volume_id: str) -> dict[str, Any]:
        try:
            return json.loads((self._place(volume_id) / "volume.json").read_text())
        except FileNotFoundError as error:
            raise VolumeRefusedError(f"there is no volume {volume_id} in the storage") from error

    def _note(self, volume_id: str, change: Mapping[str, Any]) -> VolumeObserved:
        noted = self._noted(volume_id)
        if {**noted, **change} != noted:
            _write(self._place(volume_id) / "volume.json", {**noted, **change})
        return self._observe(volume_id)

    def _observe(self, volume_id: str) -> VolumeObserved:
        place = self._place(volume_id)
        try:
            noted = self._noted(volume_id)
        except VolumeRefusedError:
            left = os.path.lexists(place) or os.path.lexists(self._removing / volume_id)
            return VolumeObserved(present=left)
        there = (place / "data").is_dir()
        size_gib = noted["size_gib"] if there else None
        mode = QuotaMode.ADVISORY
        held = self._group(noted) if there else None
        if held is not None:
            disk, group = held
            limit, mode = disk.limit_of(group), QuotaMode.HARD
            size_gib = None if limit is None else limit // _BYTES_PER_GIB
        quota, access = None if size_gib is None else mode, dict(noted["access"])
        kept = snapshots.of(place / "data") if held is not None else frozenset[str]()
        return VolumeObserved(True, size_gib, quota, access, kept)

    def _snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        held = self._group(self._noted(volume_id))
        if held is None:
            raise VolumeRefusedError("its files lie on a filesystem that keeps no snapshots")
        snapshots.take(held[0], self._place(volume_id) / "data", snapshot_id)
        return self._observe(volume_id)

    def _drop_snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        held = self._group(self._noted(volume_id))
        if held is not None:
            snapshots.drop(held[0], self._place(volume_id) / "data", snapshot_id)
        return self._observe(volume_id)

    def _remove(self, volume_id: str, until: float) -> VolumeObserved:
        place, going = self._place(volume_id), self._removing / volume_id
        if place.exists() and not going.exists():
            _own(self._removing)
            place.rename(going)
            _sync(self._volumes)
        if going.exists() and self._destroy(going) and empty(going, until):
            going.rmdir()
            _sync(self._removing)
        return self._observe(volume_id)

    def _destroy(self, going: Path) -> bool:
        """Destroy the subvolume of a volume that is being removed, if it is one; whether nothing of
        it is left on the disk."""
        try:
            noted = json.loads((going / "volume.json").read_text())
        except FileNotFoundError:
            return True
        held = self._group(noted)
        if held is None:
            return True
        disk, group = held
        data, roots = going / "data", list(noted.get("roots", ()))
        if data.exists():
            # Written down before it is gone from every path, so that nobody forgets to look.
            roots = disk.family(root_of(data))
            _write(going / "volume.json", {**noted, "roots": roots})
            disk.lift(group)
            for root_id in roots:
                disk.destroy(root_id)
        disk.settle()
        if any(disk.exists(root_id) for root_id in roots):
            return False
        disk.forget(group)
        return True

    def _usage(self, volume_id: str, within_s: float) -> VolumeUse:
        data = self._place(volume_id) / "data"
        if not data.is_dir():
            raise VolumeRefusedError(f"there is no volume {volume_id} in the storage")
        held = self._group(self._noted(volume_id))
        if held is not None:
            disk, group = held
            return VolumeUse(disk.used_by(group))
        return scan(data, time.monotonic() + within_s)


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
