"""Image files that the site worker serves: those it makes, and those that lie on its own disk."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dflare.services.baremetal.errors import NodeFailedError
from dflare.services.baremetal.tables import Image

BUILTIN_BYTES = 1 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ImageSource:
    """Where a node reads an image from, and what its digest must be."""

    url: str
    sha256: str


class ImageFiles:
    """``directory`` holds each image under its digest; ``public_url`` is the agent API as nodes
    reach it. Nothing is remembered that a new process would lack."""

    def __init__(self, directory: Path, public_url: str) -> None:
        self._directory = directory
        self._public_url = public_url
        self._builtin: dict[str, str] = {}
        self._making = asyncio.Lock()

    async def source(self, image: Image) -> ImageSource:
        """Where to read ``image``.

        Raises:
            NodeFailedError: a file of this machine is not there or is another one.
        """
        if image.builtin is not None:
            return self._served(await self.builtin(image.builtin))
        url, wanted = image.url or "", image.sha256 or ""
        if not url.startswith("file://"):
            return ImageSource(url, wanted)
        async with self._making:
            if self.path_of(wanted) is None:
                path = Path(unquote(urlsplit(url).path))
                try:
                    found = await asyncio.to_thread(_link, path, self._directory)
                except OSError as error:
                    reason = f"image {image.name}: {path}: {error.strerror}"
                    raise NodeFailedError(reason) from error
                if found != wanted:
                    raise NodeFailedError(f"image {image.name}: {path} has digest {found}")
        return self._served(wanted)

    async def builtin(self, name: str) -> str:
        """The digest of the image of that name, which is made at its first use. It is a simulated
        image: the same bytes for the same name everywhere, and nothing that a real server boots."""
        async with self._making:
            if name not in self._builtin:
                self._builtin[name] = await asyncio.to_thread(_make, name, self._directory)
        return self._builtin[name]

    def path_of(self, sha256: str) -> Path | None:
        """The file with that digest, if it is served here."""
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            return None
        path = self._directory / f"{sha256}.img"
        return path if path.exists() else None

    def _served(self, sha256: str) -> ImageSource:
        return ImageSource(f"{self._public_url}/images/{sha256}", sha256)


def _make(name: str, directory: Path) -> str:
    data = bytearray(f"DFLARE SIMULATED IMAGE {name}\n".encode().ljust(512, b"\0"))
    block = hashlib.sha256(name.encode()).digest()
    while len(data) < BUILTIN_BYTES:
        block = hashlib.sha256(block).digest()
        data += block
    whole = bytes(data[:BUILTIN_BYTES])
    digest = hashlib.sha256(whole).hexdigest()
    path = directory / f"{digest}.img"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".new")
        staged.write_bytes(whole)
        staged.replace(path)
    return digest


def _link(path: Path, directory: Path) -> str:
    """Make ``path`` known under its digest."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{digest.hexdigest()}.img"
    if not target.exists():
        target.symlink_to(path.resolve())
    return digest.hexdigest()
