"""How much room the data directory has, and what to say when it is little."""

import shutil
from pathlib import Path

MIB = 1024**2
LEAST_DISK_BYTES = 200 * MIB
LOW_DISK_BYTES = 1024 * MIB
FULL_DISK_BYTES = 16 * MIB
"""PostgreSQL writes its log ahead in pieces of this size: with less, the next change may fail."""


def free_bytes(root: Path) -> int:
    """What is free where the directory is, or would be made."""
    return shutil.disk_usage(existing_parent(root)).free


def existing_parent(path: Path) -> Path:
    """The directory itself, or the nearest one above it that exists."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def start_refusal(root: Path) -> str:
    """Why nothing is started for want of room; empty where there is enough."""
    free = free_bytes(root)
    if free >= LEAST_DISK_BYTES:
        return ""
    return (
        f"Only {free // MIB} MiB are free below {root}; PostgreSQL and Temporal need "
        f"{LEAST_DISK_BYTES // MIB} MiB to start. Free space, or choose another place by "
        "--data-dir."
    )


def running_warning(root: Path) -> str:
    """What to tell about the room of a running platform; empty where there is enough."""
    free = free_bytes(root)
    if free < FULL_DISK_BYTES:
        return (
            f"The disk below {root} is full ({free // MIB} MiB are free): orders are refused and "
            "those under way wait. Free some space; all goes on by itself then."
        )
    if free < LOW_DISK_BYTES:
        return (
            f"Only {free // MIB} MiB are free below {root}; orders are refused once the disk is "
            "full. Free some space."
        )
    return ""
