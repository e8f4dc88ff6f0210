"""Secrets that are made once, at the first start, and kept in files only their owner can read."""

import base64
import os
import secrets
from pathlib import Path

MASTER_KEY_BYTES = 32


def ensure_master_key(path: Path) -> None:
    """Makes the master key file (32 random bytes in base64) unless it is there."""
    _write_once(path, base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode())


def ensure_password(path: Path) -> str:
    """The password kept in `path`, made at the first call; safe to stand in a URL unquoted."""
    _write_once(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


def write_closed(path: Path, content: str | bytes) -> None:
    """Writes a file that only its owner can read, whole or not at all, in place of an older one."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    staged.replace(path)


def _write_once(path: Path, content: str) -> None:
    """Creates the file whole or not at all, so that a crash leaves no half-written secret."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(staged, path)
    except FileExistsError:
        # Another start was quicker; its secret is the one that counts.
        pass
    finally:
        staged.unlink()
