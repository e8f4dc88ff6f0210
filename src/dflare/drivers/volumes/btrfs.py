"""btrfs through its ioctls: subvolumes whose size the kernel holds.

Limits are set by root alone, on a filesystem with simple quotas (Linux 6.7). The limit stands on
a group that the subvolume belongs to: what a tenant nests in it belongs to that group too.
Source: Linux ``include/uapi/linux/btrfs.h`` and ``btrfs_tree.h``, ``btrfs-quota(5)``.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path

_MAGIC = 0x9123683E
"""``BTRFS_SUPER_MAGIC`` of ``linux/magic.h``."""

_FIRST_INODE = 256
"""``BTRFS_FIRST_FREE_OBJECTID``: the inode of every subvolume's root directory."""

_ROOT_TREE, _QUOTA_TREE = 1, 8
_ROOT_ITEM, _ROOT_REF, _INFO_ITEM, _LIMIT_ITEM = 132, 156, 242, 244
_ALL = 2**64 - 1
_READ_ONLY, _QGROUP_INHERIT, _BY_ID = 1 << 1, 1 << 2, 1 << 4
_MAX_REFERENCED = 1
_PAGE = 4096
_SEARCH_KEY = struct.Struct("=QQQQQQQIIII4Q")
_SEARCH_HEADER = struct.Struct("=QQQII")
_PROOF_BYTES = 1 << 20


def _code(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x94 << 8 | number


_SYNC = _code(0, 8, 0)
_TREE_SEARCH = _code(3, 17, _PAGE)
_INO_LOOKUP = _code(3, 18, _PAGE)
_SNAP_CREATE_V2 = _code(1, 23, _PAGE)
_SUBVOL_CREATE_V2 = _code(1, 24, _PAGE)
_QGROUP_CREATE = _code(1, 42, 16)
_QGROUP_LIMIT = _code(2, 43, 48)
_SNAP_DESTROY_V2 = _code(1, 63, _PAGE)


class Subvolumes:
    """Subvolumes below one folder of a btrfs filesystem. Failures are ``OSError``; calls block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def proves_limits(self) -> bool:
        """Whether a writer was seen to be stopped at a limit here, by writing beyond one, in a
        subvolume of its own making: without simple quotas it would not count. They are not
        switched on here, since the filesystem may be more than this folder's."""
        try:
            if os.geteuid() != 0 or not _is_btrfs(self._folder):
                return False
            probe = self._folder / f"probe-{secrets.token_hex(8)}"
            group = self.create(probe)
            try:
                self.limit(group, _PROOF_BYTES)
                os.mkdir(probe / "folder")
                self._make(probe / "folder" / "nested")
                return _is_stopped(probe / "folder" / "nested" / "file")
            finally:
                self.lift(group)
                for root_id in self.family(root_of(probe)):
                    self.destroy(root_id)
                self.forget(group)
        except OSError:
            return False

    def create(self, place: Path) -> int:
        """An empty subvolume at ``place``; the id of the new group that it belongs to."""
        group = (1 << 48) | secrets.randbits(47)
        self._call(_QGROUP_CREATE, struct.pack("=QQ", 1, group))
        self._make(place, group)
        return group

    def _make(self, place: Path, group: int | None = None) -> None:
        groups = [] if group is None else [group]
        packed = struct.pack(f"={9 + len(groups)}Q", 0, len(groups), *[0] * 7, *groups)
        inherit = ctypes.create_string_buffer(packed, len(packed))
        flags, where = (_QGROUP_INHERIT, ctypes.addressof(inherit)) if groups else (0, 0)
        size = len(packed) if groups else 0
        name = os.fsencode(place.name)
        order = struct.pack("=qQQQQQQ4040s", 0, 0, flags, size, where, 0, 0, name)
        self._call(_SUBVOL_CREATE_V2, order, at=place.parent)

    def snapshot(self, source: Path, folder: int, name: str) -> None:
        """Keep the subvolume at ``source`` as it is now, read-only, as ``name`` in the directory
        that ``folder`` is open at. Subvolumes nested in it are empty directories there. It belongs
        to the groups of the subvolume that it lies in."""
        descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            named = (descriptor, 0, _READ_ONLY, 0, 0, 0, 0, os.fsencode(name))
            # A mutable buffer: one that is not may have 1,024 bytes at most.
            fcntl.ioctl(folder, _SNAP_CREATE_V2, bytearray(struct.pack("=q6Q4040s", *named)))
        finally:
            os.close(descriptor)

    def limit(self, group: int, size_bytes: int) -> None:
        """Let everything in ``group`` hold so many bytes together, beginning now."""
        order = struct.pack("=Q5Q", group, _MAX_REFERENCED, size_bytes, 0, 0, 0)
        self._call(_QGROUP_LIMIT, order)

    def lift(self, group: int) -> None:
        """Let a group hold anything: at its limit not even a subvolume of it can be destroyed."""
        self.limit(group, _ALL)

    def limit_of(self, group: int) -> int | None:
        """The limit of a group in bytes, read back; ``None`` where it has none."""
        for _, kind, key, item in self._search(_QUOTA_TREE, 0, _LIMIT_ITEM, group):
            if (kind, key) == (_LIMIT_ITEM, group):
                flags, size_bytes = struct.unpack_from("=QQ", item)
                return size_bytes if flags & _MAX_REFERENCED else None
        return None

    def used_by(self, group: int) -> int:
        """What a group holds in bytes, after what was written until now has been counted."""
        self._call(_SYNC)
        for _, kind, key, item in self._search(_QUOTA_TREE, 0, _INFO_ITEM, group):
            if (kind, key) == (_INFO_ITEM, group):
                return int(struct.unpack_from("=QQ", item)[1])
        raise FileNotFoundError(errno.ENOENT, "its quota group is gone")

    def family(self, root_id: int) -> list[int]:
        """Ids of a subvolume and of all that are nested in it, the innermost first."""
        refs = self._search(_ROOT_TREE, root_id, _ROOT_REF)
        children = [key for _, kind, key, _ in refs if kind == _ROOT_REF]
        return [*(one for child in children for one in self.family(child)), root_id]

    def destroy(self, root_id: int) -> None:
        """Take a subvolume that no other is nested in out of its path. Its blocks are freed behind
        this call: see ``exists``."""
        order = struct.pack("=qQQ4QQ4032s", 0, 0, _BY_ID, 0, 0, 0, 0, root_id, b"")
        self._call(_SNAP_DESTROY_V2, order, missing_ok=True)

    def forget(self, group: int) -> None:
        """Remove a group; one that still has members, or is gone, is left as it is."""
        try:
            self._call(_QGROUP_CREATE, struct.pack("=QQ", 0, group), missing_ok=True)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise

    def exists(self, root_id: int) -> bool:
        """Whether anything of a subvolume is left on the disk, in a path or not."""
        found = self._search(_ROOT_TREE, root_id, _ROOT_ITEM)
        return any(kind == _ROOT_ITEM for _, kind, _, _ in found)

    def settle(self) -> None:
        """Write everything, and let the kernel go on freeing what was destroyed."""
        self._call(_SYNC)

    def _search(
        self, tree: int, object_id: int, kind: int, offset: int | None = None
    ) -> Iterator[tuple[int, int, int, bytes]]:
        """Object, kind, offset and data of the items of one object and kind, or of one offset."""
        least, most = (0, _ALL) if offset is None else (offset, offset)
        while True:
            wanted = (tree, object_id, object_id, least, most, 0, _ALL, kind, kind, _PAGE)
            key = _SEARCH_KEY.pack(*wanted, 0, 0, 0, 0, 0)
            found = self._call(_TREE_SEARCH, key.ljust(_PAGE, b"\0"))
            (count,) = struct.unpack_from("=I", found, 64)
            at, last = _SEARCH_KEY.size, least
            for _ in range(count):
                _, owner, last, its_kind, length = _SEARCH_HEADER.unpack_from(found, at)
                at += _SEARCH_HEADER.size
                yield owner, its_kind, last, found[at : at + length]
                at += length
            if count == 0 or last >= most:
                return
            least = last + 1

    def _call(
        self, code: int, order: bytes = b"", *, at: Path | None = None, missing_ok: bool = False
    ) -> bytes:
        descriptor = os.open(at or self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            answer = bytearray(order)
            fcntl.ioctl(descriptor, code, answer) if order else fcntl.ioctl(descriptor, code)
            return bytes(answer)
        except FileNotFoundError:
            if missing_ok:
                return b""
            raise
        finally:
            os.close(descriptor)


def root_of(place: Path | str, folder: int | None = None) -> int:
    """The id of the subvolume at ``place``, from the directory that ``folder`` is open at.

    Raises:
        FileNotFoundError: there is nothing.
        NotADirectoryError: there is something else.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(place, flags, dir_fd=folder)
    try:
        if os.fstat(descriptor).st_ino != _FIRST_INODE:
            raise NotADirectoryError(errno.ENOTDIR, "no subvolume")
        order = bytearray(struct.pack("=QQ4080s", 0, _FIRST_INODE, b""))
        fcntl.ioctl(descriptor, _INO_LOOKUP, order)
        return int(struct.unpack_from("=Q", order)[0])
    finally:
        os.close(descriptor)


def _is_btrfs(folder: Path) -> bool:
    """Whether ``folder`` lies on btrfs (``statfs(2)``; Python's own ``statvfs`` names no type)."""
    answer = (ctypes.c_long * 32)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(folder), ctypes.byref(answer)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer[0] == _MAGIC


def _is_stopped(file: Path) -> bool:
    """Whether writing four times the proof's limit to ``file`` fails for the quota."""
    try:
        with file.open("wb", buffering=0) as stream:
            for _ in range(4):
                stream.write(os.urandom(_PROOF_BYTES))
                os.fsync(stream.fileno())
    except OSError as error:
        return error.errno == errno.EDQUOT
    return False
