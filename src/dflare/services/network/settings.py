"""Settings of the network service."""

from typing import ClassVar

from dflare.kit.settings import Settings


class NetworkSettings(Settings):
    """``job_timeout_s`` is in seconds of the site's clock and bounds how long after a write a
    device's own job may still take effect; all others are wall time.

    ``leave_within_s``: a write that has not left so long after its intent is not sent.
    ``wait_s``: how long a pass waits for a device's job before it goes on with other work.
    """

    prefix: ClassVar[str] = "DFLARE_NETWORK_"

    request_timeout_s: float = 10.0
    leave_within_s: float = 10.0
    wait_s: float = 2.0
    job_timeout_s: float = 300.0
    read_back_every_s: float = 30.0
    poll_s: float = 0.5
    sweep_every_s: float = 2.0
    lease_s: float = 6.0
    backoff_first_s: float = 0.25
    backoff_most_s: float = 15.0
    step_wait_s: float = 45.0
