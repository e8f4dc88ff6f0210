"""What the scheduler host is sent (`docs/how-to/scheduler-host.md`)."""

import base64
import binascii
import posixpath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SLOTS_AT_MOST = 8192
TIMEOUT_AT_MOST_S = 600.0
STDIN_AT_MOST = 8 << 20
MUNGE_KEY_BYTES = (32, 1024)
"""The shortest and longest key that munged takes (munged(8))."""

_RESERVED = frozenset(
    word
    for words in (
        ("bin", "boot", "cluster", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc"),
        ("root", "run", "sbin", "slurm", "sys", "tmp", "usr"),
    )
    for word in words
)
_ACCOUNT = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it is no base64: {error}") from error


class SlotWish(_Body):
    """A node that may join. ``switch`` is the leaf that it hangs on, null while no server stands in
    for it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    partition: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    cpus: int = Field(ge=1, le=65_535)
    memory_mib: int = Field(ge=1)
    gpus: int = Field(ge=0, le=16)
    gpu_type: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    switch: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")


class MountWish(_Body):
    """A folder of the host that every node of the cluster sees at ``target``."""

    source: str = Field(pattern=r"^/")
    target: str = Field(pattern=r"^/")
    read_only: bool = False

    @field_validator("target")
    @classmethod
    def _is_free(cls, target: str) -> str:
        first = target.split("/")[1]
        if posixpath.normpath(target) != target or first in _RESERVED or not first:
            raise ValueError("choose a place below /mnt, /data or another folder of your own")
        if target == "/home" or target == "/home/tenant":
            raise ValueError("the home of the cluster's user is taken; choose a folder in it")
        return target


class ClusterWish(_Body):
    """What ``PUT /v1/clusters/{id}`` asks for."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    munge_key: str = Field(repr=False)
    slots: tuple[SlotWish, ...] = Field(min_length=1, max_length=SLOTS_AT_MOST)
    mounts: tuple[MountWish, ...] = ()
    account: Annotated[str, Field(pattern=_ACCOUNT)] = "default"

    @model_validator(mode="after")
    def _is_whole(self) -> "ClusterWish":
        for what, names in (
            ("slot", [slot.name for slot in self.slots]),
            ("mount", [mount.target for mount in self.mounts]),
        ):
            if len(set(names)) != len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"the {what} {twice} stands twice")
        shortest, longest = MUNGE_KEY_BYTES
        if not shortest <= len(self.key()) <= longest:
            raise ValueError(f"munge_key has {shortest} to {longest} bytes")
        return self

    def key(self) -> bytes:
        """The munge key itself."""
        return _decoded(self.munge_key)


class RunWish(_Body):
    """What ``POST /v1/clusters/{id}/run`` asks for."""

    argv: tuple[str, ...] = Field(min_length=1)
    environment: dict[str, str] = {}
    stdin: str = ""
    directory: str | None = None
    timeout_s: float = Field(default=30.0, gt=0, le=TIMEOUT_AT_MOST_S)

    @field_validator("stdin")
    @classmethod
    def _is_base64(cls, text: str) -> str:
        if len(_decoded(text)) > STDIN_AT_MOST:
            raise ValueError("it is longer than 8 MiB")
        return text

    def input(self) -> bytes:
        """The bytes that the program reads."""
        return _decoded(self.stdin)
