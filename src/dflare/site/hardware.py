"""Servers and accelerators that sites are made of where nothing else is said.

Models are as their makers' data sheets name them (2025); prices are stated, not observed.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from dflare.site.document import GpuVendor, ServerVendor


@dataclass(frozen=True)
class Accelerator:
    """An accelerator: ``short`` begins the name of its node types."""

    short: str
    model: str
    memory_gib: int
    price_per_hour: Decimal


ACCELERATORS: Final = {
    GpuVendor.NVIDIA: Accelerator("h100", "H100", 80, Decimal("2.50")),
    GpuVendor.AMD: Accelerator("mi300x", "MI300X", 192, Decimal("2.20")),
    GpuVendor.INTEL: Accelerator("gaudi3", "Gaudi 3", 128, Decimal("1.40")),
}

_MODELS: Final = {
    ServerVendor.DELL: "PowerEdge XE9680",
    ServerVendor.HPE: "Cray XD670",
    ServerVendor.SUPERMICRO: "SYS-821GE-TNHR",
    ServerVendor.LENOVO: "ThinkSystem SR680a V3",
    ServerVendor.NVIDIA: "DGX H100",
}
_MODELS_FOR_OTHERS: Final = {
    (ServerVendor.HPE, GpuVendor.AMD): "ProLiant Compute XD685",
    (ServerVendor.HPE, GpuVendor.INTEL): "ProLiant Compute XD680",
    (ServerVendor.SUPERMICRO, GpuVendor.AMD): "AS-8125GS-TNMR2",
    (ServerVendor.SUPERMICRO, GpuVendor.INTEL): "SYS-822GA-NGR3",
    (ServerVendor.LENOVO, GpuVendor.AMD): "ThinkSystem SR685a V3",
}


def server_model(vendor: ServerVendor, maker: GpuVendor | None) -> str:
    """The model that ``vendor`` sells with eight accelerators by ``maker``."""
    if maker is None:
        return _MODELS[vendor]
    return _MODELS_FOR_OTHERS.get((vendor, maker), _MODELS[vendor])
