"""Files of a cluster's folder, as the simulator writes and deletes them from outside."""

import os
import shutil
from pathlib import Path


def delete(folder: Path) -> None:
    """Deletes a tree in which jobs may have closed folders to their own user."""
    for place, below, _ in os.walk(folder):
        for name in below:
            path = Path(place, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)


def keep_secret(path: Path, value: bytes) -> None:
    """Writes a secret that is kept once it exists."""
    if not path.exists():
        write_closed(path, value)


def write_closed(path: Path, value: bytes) -> None:
    """Replaces a file that its owner alone may read, whole."""
    staged = path.with_name(f".{path.name}.new")
    staged.touch(mode=0o600)
    staged.write_bytes(value)
    staged.replace(path)
