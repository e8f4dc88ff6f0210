"""Settings of the volumes service."""

from typing import ClassVar

from dflare.kit.settings import Settings


class VolumesSettings(Settings):
    """All times are wall time. ``local_dir`` is the base folder of the driver ``local``; empty
    means ``volumes`` in the data directory.

    ``act_s`` bounds one call of a driver; its work goes on at the next pass. What volumes hold is
    looked at every ``scan_every_s``, and for ``scan_s`` at most; a look that took long is followed
    by ``scan_rest`` times as long without another at the same volume. ``intent_s`` is how
    long after its intent a write may still take effect: until then nobody else touches the volume.
    """

    prefix: ClassVar[str] = "DFLARE_VOLUMES_"

    local_dir: str = ""
    act_s: float = 5.0
    intent_s: float = 10.0
    poll_s: float = 0.5
    lease_s: float = 10.0
    scan_every_s: float = 60.0
    scan_s: float = 30.0
    scan_rest: float = 20.0
    backoff_first_s: float = 0.25
    backoff_most_s: float = 15.0
    step_wait_s: float = 1.0
