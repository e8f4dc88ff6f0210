"""A site of like servers, for a first look, tests and measurements."""

from collections.abc import Sequence
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
from dflare.site.hardware import ACCELERATORS, server_model
from dflare.site.layout import RAILS, LayoutOptions, PlannedNode, SimPorts, lay_out
from dflare.site.render import render_data, write_private, write_site
from dflare.site.simulator_file import HardwareTime, simulator_config

__all__ = ["DefaultSite", "SimPorts", "synthetic_site", "write_default_site"]

_PRICE_PER_CPU_NODE_HOUR: Final = Decimal("1.50")


def synthetic_site(
    nodes: int = 64,
    gpus: int = 8,
    vendor: ServerVendor = ServerVendor.DELL,
    options: LayoutOptions | None = None,
    makers: Sequence[GpuVendor] = (GpuVendor.NVIDIA,),
) -> SiteDocument:
    """Return a site of ``nodes`` servers, ``node-0001`` and on, with ``gpus`` accelerators each.

    The servers are alike but for the makers of their accelerators: each of ``makers`` has an equal
    share of the nodes, one after the other, and a node type (``h100-8``, ``mi300x-8``,
    ``gaudi3-8``). Servers with eight GPUs have eight InfiniBand rails and stand eight to a rack;
    others have none and stand 32 to a rack. Where ``options`` are given, their ``vendors`` say
    whose BMCs there are.

    Raises:
        ValueError: ``nodes`` is not 1 to 16,000, ``gpus`` not 0 to 64, or ``makers`` is empty.
    """
    if not 0 <= gpus <= 64:
        raise ValueError(f"a server has 0 to 64 GPUs, not {gpus}")
    if not makers:
        raise ValueError("makers is empty: name at least one")
    chosen = options or LayoutOptions(
        name="demo", description=f"{nodes} simulated servers", vendors=(vendor,)
    )
    kinds = [_kind(chosen.vendors[0], gpus, maker) for maker in makers]
    planned = [
        PlannedNode(f"node-{number + 1:04d}", kinds[number * len(kinds) // nodes])
        for number in range(nodes)
    ]
    return lay_out(planned, chosen)


def _kind(vendor: ServerVendor, gpus: int, maker: GpuVendor) -> NodeType:
    made = ACCELERATORS[maker]
    return NodeType(
        name=f"{made.short}-{gpus}" if gpus else "cpu",
        vendor=vendor,
        model=server_model(vendor, maker if gpus else None),
        gpu=GpuSet(vendor=maker, model=made.model, count=gpus, memory_gib=made.memory_gib)
        if gpus
        else None,
        cpu=Cpu(cores=112),
        memory_gib=2048,
        disks=(Disk(name="nvme0n1", size_gib=894), Disk(name="nvme1n1", size_gib=3576)),
        infiniband_rails=RAILS if gpus == RAILS else 0,
        price_per_node_hour=made.price_per_hour * gpus if gpus else _PRICE_PER_CPU_NODE_HOUR,
        currency="EUR",
    )


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
    vendors: tuple[ServerVendor, ...] = (ServerVendor.DELL,),
    makers: Sequence[GpuVendor] = (GpuVendor.NVIDIA,),
) -> DefaultSite:
    """Write ``site.yaml`` and ``sim.yaml`` of a synthetic site into ``data_dir``.

    Servers take ``vendors`` in turn; ``makers`` of accelerators share the nodes equally. Passwords
    are new each time. Files there are replaced, each whole; ``site.yaml`` comes last, so
    where it stands both belong together. Both are readable by their owner only.

    Raises:
        OSError: ``data_dir`` cannot be written.
        ValueError: ``nodes`` is not 1 to 16,000.
    """
    ports = ports or SimPorts()
    document = synthetic_site(
        nodes,
        options=LayoutOptions(
            name="demo",
            description=f"{nodes} simulated servers",
            ports=ports,
            vendors=vendors,
        ),
        makers=makers,
    )
    config = simulator_config(document, ports, speed=speed, hardware_time=hardware_time)
    written = DefaultSite(data_dir / "site.yaml", data_dir / "sim.yaml", document)
    text = "# What stands in the simulated data center; dflare.sim alone reads it.\n"
    written.site_file.unlink(missing_ok=True)
    write_private(written.simulator_file, text + render_data(config))
    write_site(written.site_file, document)
    return written
