"""Settings of the metrics service."""

from typing import ClassVar

from dflare.kit.settings import Settings


class MetricsSettings(Settings):
    """All times are wall time. A query takes ``query_s`` at most, and ``queries_at_once`` of a
    project are answered at a time.

    Sensors of BMCs are read every ``scrape_every_s``, of ``scrape_at_once`` BMCs at a time and for
    ``scrape_bmc_s`` at most each. Samples are written at most ``write_every_s`` late. A condition
    becomes an alert after ``alert_after_s``; conditions are looked at every ``alert_every_s``. A
    node's agent that is silent for ``agent_silent_s`` says nothing of its GPUs and links any more.
    """

    prefix: ClassVar[str] = "DFLARE_METRICS_"
    foreign_prefixes: ClassVar[tuple[str, ...]] = (
        # The platform's own: where the store of series is, or why there is none.
        "DFLARE_METRICS_URL",
        "DFLARE_METRICS_ABSENT_REASON",
    )

    query_s: float = 20.0
    queries_at_once: int = 4
    scrape_every_s: float = 30.0
    scrape_at_once: int = 64
    scrape_bmc_s: float = 15.0
    push_every_s: float = 30.0
    write_every_s: float = 1.0
    alert_every_s: float = 5.0
    alert_after_s: float = 15.0
    agent_silent_s: float = 120.0
    late_operation_s: float = 1_800.0
    lease_s: float = 10.0
