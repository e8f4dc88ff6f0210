"""What volumes need of a storage of one site.

Verbs are re-entrant and return what was observed afterwards, never what was asked for. A volume's
id is unique for all time and is its name in the storage: a late write to one that was removed can
reach no other volume. ``within_s`` bounds the wall time of one call; what was not finished is
observed as such and goes on at the next call.

What each verb promises is held by ``tests/contract/test_volumes_driver.py``, which says how a new
driver joins it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable


class QuotaMode(StrEnum):
    """How a size is held. ``hard``: a writer beyond it gets EDQUOT. ``advisory``: nobody is
    stopped, and what is beyond is found by ``usage``."""

    HARD = "hard"
    ADVISORY = "advisory"


@dataclass(frozen=True, slots=True)
class VolumeObserved:
    """A volume as the storage has it. ``present`` while anything of its content or of its
    administration is left; ``size_gib`` and ``quota`` are ``None`` where it holds no size.
    ``access`` maps a cluster's id to whether it may write. ``snapshots`` are ids of those that can
    be read; empty where the storage has none."""

    present: bool
    size_gib: int | None = None
    quota: QuotaMode | None = None
    access: Mapping[str, bool] = field(default_factory=dict[str, bool])
    snapshots: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class VolumeUse:
    """What a volume holds. ``complete`` is false where some of it could not be counted in time or
    at all; the number is then a lower bound."""

    used_bytes: int
    complete: bool = True


class VolumeRefusedError(Exception):
    """The storage will not do this, and would not if it were asked again."""


class VolumeDriver(Protocol):
    """A storage. Other failures than ``VolumeRefusedError`` are ``OSError``: of the moment, and
    tried again. A storage that can do more, such as snapshots, says so by another protocol."""

    async def ensure(self, volume_id: str) -> VolumeObserved:
        """Make an empty volume that nobody has access to; one that exists stays as it is.

        Raises:
            VolumeRefusedError: the id is none, or the volume is being removed.
        """
        ...

    async def set_quota(self, volume_id: str, size_gib: int) -> VolumeObserved:
        """Let the volume hold ``size_gib`` GiB, as hard as the storage can.

        Raises:
            VolumeRefusedError: there is no such volume, or a hard quota would cut its content.
        """
        ...

    async def set_access(self, volume_id: str, access: Mapping[str, bool]) -> VolumeObserved:
        """Let exactly these clusters mount it, those with ``True`` for writing; all others lose
        it, those that have it mounted too.

        Raises:
            VolumeRefusedError: there is no such volume.
        """
        ...

    async def remove(self, volume_id: str, within_s: float) -> VolumeObserved:
        """Take it from everybody, then remove its content so that nobody can read it, then the
        volume. One that does not exist is observed as such."""
        ...

    async def observe(self, volume_ids: Sequence[str]) -> Mapping[str, VolumeObserved]:
        """What the storage has of each of these; an entry for every id, whether it exists or
        not."""
        ...

    async def usage(self, volume_id: str, within_s: float) -> VolumeUse:
        """How much the volume holds now, as its quota counts it.

        Raises:
            VolumeRefusedError: there is no such volume.
        """
        ...

    def source(self, volume_id: str) -> str:
        """What a host of a cluster mounts, in the storage's own form; asks nobody."""
        ...


SNAPSHOTS = ".snapshots"
"""The folder of a volume in which hosts read its snapshots, each under its id."""


@runtime_checkable
class SnapshotDriver(Protocol):
    """A storage whose volumes can be kept as they are at a moment. Its ``observe`` and every verb
    that returns ``VolumeObserved`` say which snapshots there are."""

    async def snapshot_refusal(self, volume_id: str) -> str:
        """Why this volume can have no snapshots, for people; empty where it can."""
        ...

    async def snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        """Keep the content as it is now, readable and unchangeable, in ``SNAPSHOTS`` of the volume;
        a snapshot that exists stays as it is. What only snapshots hold counts as the volume's.

        Raises:
            VolumeRefusedError: there is no such volume, it can have none, or the id is none.
        """
        ...

    async def drop_snapshot(self, volume_id: str, snapshot_id: str) -> VolumeObserved:
        """Remove a snapshot; one that does not exist is observed as such. ``remove`` of a volume
        removes its snapshots too.

        Raises:
            VolumeRefusedError: there is no such volume, or the id is none.
        """
        ...
