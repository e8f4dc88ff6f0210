"""Settings of the bare-metal service, from ``DFLARE_BAREMETAL_…``."""

from typing import ClassVar

from dflare.kit.settings import Settings


class BaremetalSettings(Settings):
    """``agent_url`` is how servers reach the agent API, where not by the address it listens at.

    ``boot_patience_s`` is how long a boot may take before it is tried again, in seconds of the
    site's clock. ``read_back_samples`` are random sectors read of each disk after erasure.
    ``sweep_interval_s`` (wall time) is how often each unused node is looked at.
    """

    prefix: ClassVar[str] = "DFLARE_BAREMETAL_"

    agent_url: str = ""
    boot_patience_s: float = 900
    boot_patience_least_s: float = 20
    read_back_samples: int = 256
    sweep_interval_s: float = 60
    act_window_s: float = 40
