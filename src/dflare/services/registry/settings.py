"""Settings of the registry."""

from typing import ClassVar

from dflare.kit.settings import Settings


class RegistrySettings(Settings):
    """Seconds are wall time.

    ``grace_s``: a blob that no manifest refers to is kept for so long after it was pushed, found by
    a pusher, or last referred to. ``reader_grace_s``: an object is kept for so long after the last
    repository let go of it, for those who are still reading it. ``upload_keep_s``: an upload that
    nobody goes on with is dropped after it. ``token_s``: life of the tokens that clients get for a
    login. ``uploads_at_once`` bounds the requests of a process that send blobs, and
    ``uploads_a_project`` those of one project among them.
    """

    prefix: ClassVar[str] = "DFLARE_REGISTRY_"

    grace_s: float = 24 * 3600.0
    reader_grace_s: float = 3600.0
    upload_keep_s: float = 24 * 3600.0
    token_s: float = 300.0
    look_every_s: float = 10.0
    measure_every_s: float = 60.0
    merge_every_s: float = 600.0
    lease_s: float = 30.0
    uploads_at_once: int = 64
    uploads_a_project: int = 32
