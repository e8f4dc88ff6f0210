"""What exporters on nodes call things, and what we call them. Pure.

The tables are those of ``docs/adr/0019-metrics.md``. A name that is on no table is dropped, and so
is every label but those that tell parts apart: a node's owner says nothing of who it is, and fills
no store. Values of several series that become one are added up.
Sources: dcgm-exporter, ``etc/default-counters.csv``; ROCm Device Metrics Exporter, "List of
available metrics"; Intel Gaudi documentation, "Prometheus Metric Exporter"; node_exporter's
collectors cpu, meminfo, netclass, netdev and infiniband.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dflare.services.metrics import domain
from dflare.services.metrics.domain import Sample

MOST_LINES = 20_000
MOST_PARTS = 256
"""Different parts of a kind that one node may speak of."""

_MIB = float(1 << 20)
_LINE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"(?:\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?"
    r"[ \t]+(\S+)(?:[ \t]+-?\d+)?"
)
_LONGEST_LINE = 4_096
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class Rule:
    """What one series becomes: ``part`` is the label that names its part, ``scale`` what its value
    is multiplied with, ``fixed`` are labels that it always gets. ``kept`` are labels that are
    carried over, under another name. ``equals`` makes a value 1 where it is that one, and 0
    elsewhere; of ``nonzero`` ones nothing is kept while they are 0."""

    name: str
    kind: str = ""
    part: str = ""
    scale: float = 1.0
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
    kept: Mapping[str, str] = field(default_factory=dict[str, str])
    equals: float | None = None
    nonzero: bool = False


def _gpu(part: str, rules: Mapping[str, tuple[str, float]]) -> dict[str, list[Rule]]:
    return {source: [Rule(name, "gpu", part, scale)] for source, (name, scale) in rules.items()}


_NVIDIA = _gpu(
    "gpu",
    {
        "DCGM_FI_DEV_GPU_UTIL": (domain.GPU_UTILIZATION, 0.01),
        "DCGM_FI_DEV_FB_FREE": (domain.GPU_MEMORY_LIMIT, _MIB),
        "DCGM_FI_DEV_FB_RESERVED": (domain.GPU_MEMORY_LIMIT, _MIB),
        "DCGM_FI_DEV_POWER_USAGE": (domain.POWER, 1),
        "DCGM_FI_DEV_GPU_TEMP": (domain.TEMPERATURE, 1),
    },
) | {
    "DCGM_FI_DEV_FB_USED": [
        Rule(domain.GPU_MEMORY_USAGE, "gpu", "gpu", _MIB),
        Rule(domain.GPU_MEMORY_LIMIT, "gpu", "gpu", _MIB),
    ],
    "DCGM_FI_DEV_XID_ERRORS": [
        Rule(domain.GPU_ERROR, "gpu", "gpu", fixed={"error_type": "xid"}, nonzero=True)
    ],
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": [
        Rule(domain.ERRORS, "gpu", "gpu", fixed={"error_type": "ecc_uncorrected"})
    ],
}
_AMD_PLAIN = _gpu(
    "gpu_id",
    {
        "gpu_gfx_activity": (domain.GPU_UTILIZATION, 0.01),
        "gpu_used_vram": (domain.GPU_MEMORY_USAGE, _MIB),
        "gpu_total_vram": (domain.GPU_MEMORY_LIMIT, _MIB),
        "gpu_package_power": (domain.POWER, 1),
        "gpu_junction_temperature": (domain.TEMPERATURE, 1),
    },
) | {
    "gpu_ecc_uncorrect_total": [
        Rule(domain.ERRORS, "gpu", "gpu_id", fixed={"error_type": "ecc_uncorrected"})
    ]
}
# Newer releases put the maker's name in front.
_AMD = _AMD_PLAIN | {f"amd_{name}": rules for name, rules in _AMD_PLAIN.items()}
_INTEL = _gpu(
    "device",
    {
        "habanalabs_utilization": (domain.GPU_UTILIZATION, 0.01),
        "habanalabs_memory_used_bytes": (domain.GPU_MEMORY_USAGE, 1),
        "habanalabs_memory_total_bytes": (domain.GPU_MEMORY_LIMIT, 1),
        "habanalabs_power_mW": (domain.POWER, 0.001),
        "habanalabs_temperature_onchip": (domain.TEMPERATURE, 1),
    },
)


def _io(direction: str) -> list[Rule]:
    fixed = {"network_io_direction": direction}
    return [Rule(domain.NETWORK_IO, "network", "device", fixed=fixed)]


_SYSTEM = {
    "node_cpu_seconds_total": [Rule(domain.CPU_TIME, kept={"mode": "cpu_mode"})],
    "node_memory_MemTotal_bytes": [
        Rule(domain.MEMORY_LIMIT),
        Rule(domain.MEMORY_USAGE),
    ],
    "node_memory_MemAvailable_bytes": [Rule(domain.MEMORY_USAGE, scale=-1)],
    "node_network_up": [Rule(domain.NETWORK_UP, "network", "device")],
    "node_network_receive_bytes_total": _io("receive"),
    "node_network_transmit_bytes_total": _io("transmit"),
    "node_infiniband_state_id": [Rule(domain.NETWORK_UP, "network", "device", equals=4)],
    "node_infiniband_port_data_received_bytes_total": _io("receive"),
    "node_infiniband_port_data_transmitted_bytes_total": _io("transmit"),
}
RULES: Mapping[str, list[Rule]] = _NVIDIA | _AMD | _INTEL | _SYSTEM
_CPU_MODES = frozenset({"user", "system", "idle", "iowait", "irq", "softirq", "steal", "nice"})


def samples_of(text: str, ports: frozenset[str]) -> list[Sample]:
    """The measurements in what exporters say; of ports only those named ``ports``, since a tenant
    makes as many more as it likes. Lines that are no samples are left out."""
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for source, labels, value in _lines(text):
        for rule in RULES[source]:
            ours = _labels(rule, labels, ports)
            if ours is None or (rule.nonzero and value == 0):
                continue
            key = (rule.name, tuple(sorted(ours.items())))
            number = float(value == rule.equals) if rule.equals is not None else value * rule.scale
            sums[key] = sums.get(key, 0.0) + number
    found = [Sample(name, value, dict(labels)) for (name, labels), value in sums.items()]
    return [sample for sample in found if domain.is_known(sample)]


def gpus_seen(samples: list[Sample]) -> int:
    """How many accelerators answer: those that say how busy they are."""
    return sum(sample.name == domain.GPU_UTILIZATION for sample in samples)


def _lines(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines()[:MOST_LINES]:
        name = line.partition("{")[0].partition(" ")[0]
        if name not in RULES or len(line) > _LONGEST_LINE:
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        if math.isfinite(value):
            inside = {label: _plain(raw) for label, raw in _LABEL.findall(found[2] or "")}
            yield name, inside, value


def _labels(rule: Rule, labels: Mapping[str, str], ports: frozenset[str]) -> dict[str, str] | None:
    """The labels that a series gets; None where it is of no part that counts."""
    ours = dict(rule.fixed)
    if rule.kind:
        ours |= {"hw_type": rule.kind, "hw_id": labels.get(rule.part, "")}
        if not ours["hw_id"]:
            return None
        if rule.kind == "network" and ours["hw_id"] not in ports:
            return None
        if rule.kind == "gpu" and not _is_number_below(ours["hw_id"], MOST_PARTS):
            return None
    for theirs, name in rule.kept.items():
        mode = labels.get(theirs, "")
        if mode not in _CPU_MODES:
            return None
        ours[name] = mode
    return ours


def _is_number_below(text: str, limit: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and int(text) < limit


def _plain(raw: str) -> str:
    return re.sub(r'\\[\\"n]', lambda found: _ESCAPES[found[0]], raw)
