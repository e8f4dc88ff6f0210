"""What network needs of an InfiniBand fabric manager: partitions and who is in them.

PKeys are 15 bits without the membership bit; GUIDs are 16 lower-case hexadecimal digits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dflare.drivers.fabric.port import DeviceAccess, Receipt

DEFAULT_PKEY = 0x7FFF
"""The partition that every port is in unless somebody says otherwise."""


@dataclass(frozen=True, slots=True)
class Member:
    """How a port is in a partition. ``index0``: the key stands first in the port's table, where
    collective libraries look for it."""

    full: bool
    index0: bool


TENANT = Member(full=True, index0=True)
ISOLATED = Member(full=False, index0=False)


@dataclass(frozen=True, slots=True)
class FabricSeen:
    """All partitions in force. ``default_full``: ports that are not listed in the default partition
    are full members of it, so that every such port reaches every other."""

    partitions: Mapping[int, Mapping[str, Member]]
    default_full: bool


class FabricManager(Protocol):
    """A driver of one manager. All methods raise ``DeviceUnreachableError`` where the outcome is
    unknown and ``DeviceRefusedError`` where the manager said no."""

    async def observe(self, access: DeviceAccess) -> FabricSeen:
        """Every partition with its members as the manager has them in force."""
        ...

    async def ensure_members(
        self, access: DeviceAccess, pkey: int, guids: Sequence[str], member: Member, wait_s: float
    ) -> Receipt:
        """Make ``guids`` members of ``pkey``, which is made where it does not exist. Waits up to
        ``wait_s`` of wall time for the manager's job.

        Raises:
            ValueError: a PKey or GUID that must never be sent (0x0, a membership bit, a typo).
            DeviceRefusedError: also when the manager's job ended in a failure.
        """
        ...

    async def remove_members(
        self, access: DeviceAccess, pkey: int, guids: Sequence[str], wait_s: float
    ) -> Receipt:
        """Take ``guids`` out of ``pkey``; where there is no such partition there is nothing to do.

        Raises:
            ValueError: as ``ensure_members``.
        """
        ...

    async def unfinished(self, access: DeviceAccess, jobs: Iterable[str]) -> frozenset[str]:
        """Those of ``jobs`` (from receipts) that still run."""
        ...

    async def running(self, access: DeviceAccess) -> frozenset[str]:
        """Every job that runs now, whoever started it."""
        ...
