"""Local drives with content: sparse, so that terabytes cost what was written on them.

Bytes live in 512-byte sectors. An image keeps its identity and sampled real bytes; every other
sector of it reads as bytes derived from its digest, which are never all zero.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from dflare.sim.config import Disk

SECTOR = 512
KEPT_IMAGE_BYTES = 256 * 1024
"""How much of an image's beginning is kept as real bytes."""

_FIXED_SECTORS = 64
_FIRST_PARTITION = 2048
_LABEL = b"EFI PART filesystem"


@dataclass(frozen=True, slots=True)
class Image:
    """What a download gave: its digest, its size in bytes and its first bytes."""

    sha256: str
    size: int
    head: bytes

    def sectors(self) -> int:
        """How many sectors it takes."""
        return -(-self.size // SECTOR)

    def sector(self, number: int) -> bytes:
        """The content of one of its sectors."""
        start = number * SECTOR
        if start + SECTOR <= len(self.head) or len(self.head) == self.size:
            return self.head[start : start + SECTOR].ljust(SECTOR, b"\0")
        seed = hashlib.sha256(f"{self.sha256}/{number}".encode()).digest()
        return seed * (SECTOR // len(seed))


@dataclass(frozen=True, slots=True)
class ConfigDrive:
    """What cloud-init finds beside the image."""

    ssh_keys: tuple[str, ...] = ()
    user_data: str = ""
    meta_data: str = ""
    vendor_data: str = ""
    phone_home_url: str | None = None
    phone_home_token: str | None = None


@dataclass(slots=True)
class DiskContent:
    """A drive and what stands on it."""

    disk: Disk
    image: Image | None = None
    image_intact: bool = True
    config_drive: ConfigDrive | None = None
    phoned_home: bool = False
    _written: dict[int, bytes] = field(default_factory=dict[int, bytes])

    @property
    def sectors(self) -> int:
        """The drive's size in sectors."""
        return self.disk.size_gib * (1 << 30) // SECTOR

    @property
    def blank(self) -> bool:
        """Whether nothing stands on it."""
        return self.image is None and self.config_drive is None and not self._written

    @property
    def bootable(self) -> bool:
        """Whether firmware finds a whole system on it."""
        return self.image is not None and self.image_intact

    def write_image(self, image: Image, config_drive: ConfigDrive, *, corrupt: bool) -> str:
        """Write an image and its config drive; returns the digest of what is read back.

        Raises:
            ValueError: the image is larger than the drive.
        """
        if image.sectors() > self.sectors:
            raise ValueError(f"image of {image.size} bytes is larger than {self.disk.name}")
        for sector in [number for number in self._written if number < image.sectors()]:
            del self._written[sector]
        self.image, self.config_drive = image, config_drive
        self.image_intact, self.phoned_home = not corrupt, False
        if not corrupt:
            return image.sha256
        return hashlib.sha256(f"{image.sha256} with a flipped byte".encode()).hexdigest()

    def write_text(self, text: str, salt: str) -> None:
        """What a tenant's program does: a partitioned drive, a file system, and a file in it.

        The file lands behind the image at a place that depends on ``salt``.
        """
        if self.image is None:
            self._written[0] = _LABEL.ljust(SECTOR, b"\0")
            self._written[_FIRST_PARTITION] = _LABEL.ljust(SECTOR, b"\0")
        data = text.encode()
        first = max(_FIRST_PARTITION + 1, self.image.sectors() if self.image else 0)
        length = -(-len(data) // SECTOR)
        place = random.Random(salt)  # noqa: S311 - a place on a drive, not a secret
        start = place.randrange(first, max(self.sectors - length, first + 1))
        for offset in range(length):
            chunk = data[offset * SECTOR : (offset + 1) * SECTOR]
            self._written[start + offset] = chunk.ljust(SECTOR, b"\0")

    def read_sector(self, number: int) -> bytes:
        """The 512 bytes of sector ``number``."""
        if (written := self._written.get(number)) is not None:
            return written
        if self.image is not None and number < self.image.sectors():
            return self.image.sector(number)
        if self.config_drive is not None and number == self.sectors - 1:
            return self._config_bytes()[:SECTOR].ljust(SECTOR, b"\0")
        return bytes(SECTOR)

    def sample(self, samples: int, seed: str) -> tuple[int, int]:
        """Read the first and last 64 sectors, the first partition's start, and ``samples`` at
        random places; returns how many were read and how many were not all zero.
        """
        places = set(range(min(_FIXED_SECTORS, self.sectors)))
        places.update(range(max(self.sectors - _FIXED_SECTORS, 0), self.sectors))
        if self.sectors > _FIRST_PARTITION:
            places.add(_FIRST_PARTITION)
        draw = random.Random(f"{seed}/{self.disk.serial}")  # noqa: S311 - a sample
        places.update(draw.randrange(self.sectors) for _ in range(samples))
        zero = bytes(SECTOR)
        return len(places), sum(self.read_sector(place) != zero for place in places)

    def erase(self) -> None:
        """Leave nothing."""
        self.image, self.config_drive, self.phoned_home = None, None, False
        self.image_intact = True
        self._written.clear()

    def holds(self, text: str) -> bool:
        """Whether ``text`` still stands anywhere on the drive."""
        wanted = text.encode()
        return any(wanted in run for run in self._runs())

    def document(self) -> dict[str, object]:
        """A summary for the ground truth."""
        drive = self.config_drive
        return {
            "name": self.disk.name,
            "serial": self.disk.serial,
            "blank": self.blank,
            "bootable": self.bootable,
            "image_sha256": self.image.sha256 if self.image else None,
            "image_size": self.image.size if self.image else None,
            "written_sectors": len(self._written),
            "ssh_keys": list(drive.ssh_keys) if drive else [],
        }

    def _config_bytes(self) -> bytes:
        drive = self.config_drive or ConfigDrive()
        parts = [
            drive.user_data,
            drive.meta_data,
            drive.vendor_data,
            *drive.ssh_keys,
            drive.phone_home_url or "-",
        ]
        return "\n".join(["config drive", *parts]).encode()

    def _runs(self) -> Iterator[bytes]:
        if self.image is not None:
            yield self.image.head
        if self.config_drive is not None:
            yield self._config_bytes()
        run = bytearray()
        previous = -2
        for number in sorted(self._written):
            if number != previous + 1:
                yield bytes(run)
                run.clear()
            run += self._written[number]
            previous = number
        yield bytes(run)
