"""A site of like servers, for a first look, tests and measurements."""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from dflare.site.document import (
    Cpu,
    Disk,
    GpuSet,
    GpuVendor,
    NodeType,
    ServerVendor,
    SiteDocument,
)
from dflare.site.layout import RAILS, LayoutOptions, PlannedNode, SimPorts, lay_out
from dflare.site.render import render_data, write_private, write_site
from dflare.site.simulator_file import HardwareTime, simulator_config

__all__ = ["DefaultSite", "SimPorts", "synthetic_site", "write_default_site"]

_SERVER_MODELS: Final = {
    ServerVendor.DELL: "PowerEdge XE9680",
    ServerVendor.HPE: "Cray XD670",
    ServerVendor.SUPERMICRO: "SYS-821GE-TNHR",
    ServerVendor.LENOVO: "ThinkSystem SR680a V3",
    ServerVendor.NVIDIA: "DGX H100",
}
_PRICE_PER_GPU_HOUR: Final = Decimal("2.50")
_PRICE_PER_CPU_NODE_HOUR: Final = Decimal("1.50")


def synthetic_site(
    nodes: int = 64,
    gpus: int = 8,
    vendor: ServerVendor = ServerVendor.DELL,
    options: LayoutOptions | None = None,
) -> SiteDocument:
    """Return a site of ``nodes`` like servers, ``node-0001`` and on, with ``gpus`` H100 each.

    Servers with eight GPUs have eight InfiniBand rails and stand eight to a rack; others have none
    and stand 32 to a rack. Where ``options`` are given, their ``vendors`` say whose BMCs there are.

    Raises:
        ValueError: ``nodes`` is not 1 to 16,000 or ``gpus`` not 0 to 64.
    """
    if not 0 <= gpus <= 64:
        raise ValueError(f"a server has 0 to 64 GPUs, not {gpus}")
    chosen = options or LayoutOptions(
        name="demo", description=f"{nodes} simulated servers", vendors=(vendor,)
    )
    kind = NodeType(
        name=f"h100-{gpus}" if gpus else "cpu",
        vendor=vendor,
        model=_SERVER_MODELS[vendor],
        gpu=GpuSet(vendor=GpuVendor.NVIDIA, model="H100", count=gpus, memory_gib=80)
        if gpus
        else None,
        cpu=Cpu(cores=112),
        memory_gib=2048,
        disks=(Disk(name="nvme0n1", size_gib=894), Disk(name="nvme1n1", size_gib=3576)),
        infiniband_rails=RAILS if gpus == RAILS else 0,
        price_per_node_hour=_PRICE_PER_GPU_HOUR * gpus if gpus else _PRICE_PER_CPU_NODE_HOUR,
        currency="EUR",
    )
    return lay_out([PlannedNode(f"node-{n:04d}", kind) for n in range(1, nodes + 1)], chosen)


@dataclass(frozen=True)
class DefaultSite:
    """What ``write_default_site`` wrote."""

    site_file: Path
    simulator_file: Path
    document: SiteDocument


def write_default_site(
    data_dir: Path,
    nodes: int = 64,
    ports: SimPorts | None = None,
    speed: float = 60,
    hardware_time: HardwareTime = "normal",
) -> DefaultSite:
    """Write ``site.yaml`` and ``sim.yaml`` of a synthetic site into ``data_dir``.

    Passwords are new each time. Files there are replaced, each whole; ``site.yaml`` comes last, so
    where it stands both belong together. Both are readable by their owner only.

    Raises:
        OSError: ``data_dir`` cannot be written.
        ValueError: ``nodes`` is not 1 to 16,000.
    """
    ports = ports or SimPorts()
    document = synthetic_site(
        nodes,
        options=LayoutOptions(name="demo", description=f"{nodes} simulated servers", ports=ports),
    )
    config = simulator_config(document, ports, speed=speed, hardware_time=hardware_time)
    written = DefaultSite(data_dir / "site.yaml", data_dir / "sim.yaml", document)
    text = "# What stands in the simulated data center; dflare.sim alone reads it.\n"
    written.site_file.unlink(missing_ok=True)
    write_private(written.simulator_file, text + render_data(config))
    write_site(written.site_file, document)
    return written
