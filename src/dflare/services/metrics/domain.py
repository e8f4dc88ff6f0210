"""Names of measurements, the same for every vendor, and how a sample is written. Pure.

Names are those of OpenTelemetry's semantic conventions for hardware (``hw.*``) and systems
(``system.*``), as Prometheus writes them: dots become underscores, the unit stands at the end. The
table of what vendors call them is in ``docs/adr/0019-metrics.md``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dflare.kit.meters import sample_line

OWNED = frozenset({"site", "node", "vendor", "organization", "project", "cluster"})
"""Labels that the platform sets, and nobody else."""

LONGEST_VALUE = 128
"""Characters of a label's value."""

GPU_UTILIZATION = "hw_gpu_utilization_ratio"
GPU_MEMORY_USAGE = "hw_gpu_memory_usage_bytes"
GPU_MEMORY_LIMIT = "hw_gpu_memory_limit_bytes"
GPU_ERROR = "hw_gpu_error_code"
GPU_COUNT = "hw_gpu_count"
POWER = "hw_power_watts"
TEMPERATURE = "hw_temperature_celsius"
FAN_SPEED = "hw_fan_speed_rpm"
FAN_RATIO = "hw_fan_speed_ratio"
ERRORS = "hw_errors_total"
NETWORK_UP = "hw_network_up"
NETWORK_IO = "hw_network_io_bytes_total"
CPU_TIME = "system_cpu_time_seconds_total"
MEMORY_USAGE = "system_memory_usage_bytes"
MEMORY_LIMIT = "system_memory_limit_bytes"
BMC_UP = "dflare_bmc_up"
AGENT_UP = "dflare_agent_up"

_PART = frozenset({"hw_type", "hw_id"})
NAMES: Mapping[str, frozenset[str]] = {
    GPU_UTILIZATION: _PART,
    GPU_MEMORY_USAGE: _PART,
    GPU_MEMORY_LIMIT: _PART,
    GPU_ERROR: _PART | {"error_type"},
    GPU_COUNT: frozenset({"state"}),
    POWER: _PART,
    TEMPERATURE: _PART | {"sensor_location"},
    FAN_SPEED: _PART,
    FAN_RATIO: _PART,
    ERRORS: _PART | {"error_type"},
    NETWORK_UP: _PART,
    NETWORK_IO: _PART | {"network_io_direction"},
    CPU_TIME: frozenset({"cpu_mode"}),
    MEMORY_USAGE: frozenset(),
    MEMORY_LIMIT: frozenset(),
    BMC_UP: frozenset(),
    AGENT_UP: frozenset(),
}
"""Every measurement of a node, and the labels that it has beside those that the platform sets."""


@dataclass(frozen=True)
class Sample:
    """One value of one measurement of a node. ``labels`` are among those of ``NAMES``."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


def line(name: str, labels: Mapping[str, str], value: float, at_ms: int) -> str:
    """A sample as the store takes it (Prometheus, "Text-based format"); empty labels are none."""
    return f"{sample_line(name, {k: v for k, v in labels.items() if v != ''}, value)} {at_ms}"


def is_known(sample: Sample) -> bool:
    """Whether it is a measurement of ``NAMES`` with its labels and a number as its value."""
    allowed = NAMES.get(sample.name)
    return (
        allowed is not None
        and allowed >= sample.labels.keys()
        and math.isfinite(sample.value)
        and all(_is_plain(value) for value in sample.labels.values())
    )


def _is_plain(value: str) -> bool:
    return len(value) <= LONGEST_VALUE and value.isprintable()
