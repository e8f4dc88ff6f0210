"""What the exporters on a tenant's system say, in the text format of Prometheus.

Each maker of accelerators has one of its own: NVIDIA's dcgm-exporter (fields of
``default-counters.csv``), AMD's Device Metrics Exporter (ROCm), Intel's Gaudi exporter
(``habanalabs_*``). Processors, memory and ports are node_exporter's. The tenant's system sends them
to the address that its config drive names, with the token beside it.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import orjson

from dflare.sim.agent import PlatformCalls, TokenRefusedError
from dflare.sim.disk import ConfigDrive
from dflare.sim.measurements import GpuState

if TYPE_CHECKING:
    from dflare.sim.host import Host

_MIB = 1 << 20
_LEAST_PAUSE_S = 1.0
_FELL_OFF = 79
"""NVIDIA's XID of an accelerator that has fallen off the bus."""


def exposition(host: "Host") -> str:
    """All that the exporters of a host say now."""
    lines = [*_system(host), *_ports(host)]
    gpus = host.node.gpus
    if gpus:
        says = _MAKERS[gpus[0].vendor]
        for state in host.measurements.gpus():
            lines += says(host, state)
        if gpus[0].vendor == "nvidia":
            lines += _xids(host)
    return "\n".join((*lines, ""))


async def send_measurements(
    host: "Host", drive: ConfigDrive, has_path: Callable[[], bool], seed: str
) -> None:
    """Send them again and again until the token is refused; nothing where nobody asked for it."""
    told = _told(drive)
    url, token = str(told.get("metrics_url") or ""), str(told.get("metrics_token") or "")
    if not url or not token:
        return
    every_s = max(_LEAST_PAUSE_S, float(cast("float", told.get("metrics_every_s") or 15)))
    spread = random.Random(seed)  # noqa: S311 - spreads calls, guards nothing
    calls = PlatformCalls(token, has_path, seed)
    try:
        await asyncio.sleep(spread.uniform(0, every_s))
        while True:
            await calls.once("POST", url, exposition(host).encode(), "text/plain; version=0.0.4")
            await asyncio.sleep(every_s)
    except TokenRefusedError:
        return
    finally:
        calls.close()


def _told(drive: ConfigDrive) -> dict[str, Any]:
    try:
        document = cast("dict[str, Any]", orjson.loads(drive.meta_data or "{}"))
        return cast("dict[str, Any]", document.get("dflare") or {})
    except (orjson.JSONDecodeError, AttributeError):
        return {}


def _nvidia(host: "Host", gpu: GpuState) -> Iterator[str]:
    model = host.node.gpus[gpu.index].model
    serial = f"GPU-{host.node.serial}-{gpu.index}"
    labels = (
        f'gpu="{gpu.index}",UUID="{serial}",device="nvidia{gpu.index}",modelName="{model}",'
        f'Hostname="{host.name}"'
    )
    free = (gpu.memory_total - gpu.memory_used) // _MIB
    yield f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} {round(gpu.utilization * 100)}"
    yield f"DCGM_FI_DEV_FB_USED{{{labels}}} {gpu.memory_used // _MIB}"
    yield f"DCGM_FI_DEV_FB_FREE{{{labels}}} {free}"
    yield f"DCGM_FI_DEV_POWER_USAGE{{{labels}}} {gpu.power_w:.3f}"
    yield f"DCGM_FI_DEV_GPU_TEMP{{{labels}}} {round(gpu.celsius)}"
    yield f"DCGM_FI_DEV_XID_ERRORS{{{labels}}} 0"
    yield f"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{{labels}}} 0"


def _xids(host: "Host") -> Iterator[str]:
    """The last error of accelerators that are gone: the driver remembers it."""
    for index in sorted(host.measurements.dead_gpus()):
        labels = f'gpu="{index}",UUID="GPU-{host.node.serial}-{index}",device="nvidia{index}"'
        yield f"DCGM_FI_DEV_XID_ERRORS{{{labels}}} {_FELL_OFF}"


def _amd(host: "Host", gpu: GpuState) -> Iterator[str]:
    labels = (
        f'gpu_id="{gpu.index}",serial_number="{host.node.serial}-{gpu.index}",'
        f'card_model="{host.node.gpus[gpu.index].model}",hostname="{host.name}"'
    )
    yield f"gpu_gfx_activity{{{labels}}} {round(gpu.utilization * 100)}"
    yield f"gpu_used_vram{{{labels}}} {gpu.memory_used // _MIB}"
    yield f"gpu_total_vram{{{labels}}} {gpu.memory_total // _MIB}"
    yield f"gpu_package_power{{{labels}}} {gpu.power_w:.0f}"
    yield f"gpu_junction_temperature{{{labels}}} {gpu.celsius:.0f}"
    yield f"gpu_ecc_uncorrect_total{{{labels}}} 0"


def _intel(host: "Host", gpu: GpuState) -> Iterator[str]:
    labels = f'device="{gpu.index}",uuid="{host.node.serial}-{gpu.index}"'
    yield f"habanalabs_utilization{{{labels}}} {round(gpu.utilization * 100)}"
    yield f"habanalabs_memory_used_bytes{{{labels}}} {gpu.memory_used}"
    yield f"habanalabs_memory_total_bytes{{{labels}}} {gpu.memory_total}"
    yield f"habanalabs_power_mW{{{labels}}} {gpu.power_w * 1000:.0f}"
    yield f"habanalabs_temperature_onchip{{{labels}}} {gpu.celsius:.0f}"


_MAKERS: dict[str, Callable[["Host", GpuState], Iterator[str]]] = {
    "nvidia": _nvidia,
    "amd": _amd,
    "intel": _intel,
}


def _system(host: "Host") -> Iterator[str]:
    counters = host.measurements.counters()
    yield "# TYPE node_cpu_seconds_total counter"
    for mode, seconds in counters.cpu_s.items():
        for cpu in range(2):
            labels = f'cpu="{cpu}",mode="{mode}"'
            yield f"node_cpu_seconds_total{{{labels}}} {seconds / 2:.2f}"
    total = host.node.memory_gib << 30
    busy = sum(gpu.utilization for gpu in host.measurements.gpus())
    used = int(total * (0.03 + 0.4 * busy / max(1, len(host.node.gpus))))
    yield f"node_memory_MemTotal_bytes {total}"
    yield f"node_memory_MemAvailable_bytes {total - used}"


def _ports(host: "Host") -> Iterator[str]:
    counters, network = host.measurements.counters(), host.lab.network
    yield 'node_network_up{device="lo"} 1'
    for port in host.node.ethernet:
        device = f'device="{port.name}"'
        yield f"node_network_up{{{device}}} {int(network.ethernet_up(host.name, port.name))}"
        received, sent = counters.received.get(port.name, 0), counters.sent.get(port.name, 0)
        yield f"node_network_receive_bytes_total{{{device}}} {received:.0f}"
        yield f"node_network_transmit_bytes_total{{{device}}} {sent:.0f}"
    for port in host.node.infiniband:
        device = f'device="{port.name}",port="1"'
        up = network.infiniband_up(host.name, port.name)
        yield f"node_infiniband_state_id{{{device}}} {4 if up else 1}"
        received, sent = counters.received.get(port.name, 0), counters.sent.get(port.name, 0)
        yield f"node_infiniband_port_data_received_bytes_total{{{device}}} {received:.0f}"
        yield f"node_infiniband_port_data_transmitted_bytes_total{{{device}}} {sent:.0f}"
