"""Reading what stands in a server.

Schemas: Processor (ProcessorType), PCIeDevice, PCIeFunction (ClassCode, VendorId),
EthernetInterface, NetworkAdapter, Port (Ethernet and InfiniBand objects), Storage, Manager of the
DSP8010 bundle.
"""

import asyncio
import re
from typing import Any, cast

from dflare.drivers.bmc.port import BmcAccess, GpuMaker, Inventory
from dflare.drivers.bmc.redfish.client import Document, RedfishClient
from dflare.drivers.bmc.redfish.paths import Finder, SystemPaths, link
from dflare.drivers.bmc.redfish.states import power_of

_ACCELERATORS = frozenset({"GPU", "Accelerator"})
# PCI classes: 3D controllers and processing accelerators. Class 0300 is a console's adapter.
_ACCELERATOR_CLASSES = ("0x0302", "0x1200")
_MAKERS = (
    (GpuMaker.NVIDIA, "nvidia", "0x10de"),
    (GpuMaker.AMD, "amd", "0x1002"),
    (GpuMaker.AMD, "advanced micro devices", "0x1002"),
    (GpuMaker.INTEL, "intel", "0x8086"),
    (GpuMaker.INTEL, "habana", "0x1da3"),
)
_NOT_HEXADECIMAL = re.compile(r"[^0-9a-f]")


async def read_inventory(client: RedfishClient, finder: Finder, bmc: BmcAccess) -> Inventory:
    """The whole inventory; independent parts are read side by side.

    Raises:
        BmcError: a part cannot be read.
    """
    paths, answer = await finder.read_system(bmc)
    system = answer.document
    processors, interfaces, storage, manager, chassis = await asyncio.gather(
        finder.members(bmc, link(system, "Processors"), expands=paths.expands),
        finder.members(bmc, link(system, "EthernetInterfaces"), expands=paths.expands),
        finder.members(bmc, link(system, "Storage"), expands=paths.expands),
        _optional(client, bmc, paths.manager),
        _optional(client, bmc, paths.chassis),
    )
    ports = await _ports(finder, bmc, paths, chassis)
    gpus = [p for p in processors if p.get("ProcessorType") in _ACCELERATORS]
    if not gpus:
        gpus = await _accelerators(finder, bmc, paths, chassis)
    macs = {_mac(i.get("PermanentMACAddress") or i.get("MACAddress")) for i in interfaces}
    guids: set[str] = set()
    for port in ports:
        macs |= {_mac(mac) for mac in _listed(port, "Ethernet", "AssociatedMACAddresses")}
        guids |= {_guid(guid) for guid in _listed(port, "InfiniBand", "AssociatedPortGUIDs")}
    memory = cast("Document", system.get("MemorySummary") or {})
    return Inventory(
        serial=str(system.get("SerialNumber") or ""),
        manufacturer=str(system.get("Manufacturer") or ""),
        model=str(system.get("Model") or ""),
        gpus=len(gpus),
        macs=frozenset(macs - {""}),
        guids=frozenset(guids - {""}),
        power=power_of(system),
        document={
            "uuid": system.get("UUID"),
            "bios_version": system.get("BiosVersion"),
            "bmc_version": manager.get("FirmwareVersion"),
            "bmc_model": manager.get("Model"),
            "memory_gib": memory.get("TotalSystemMemoryGiB"),
            "cpus": [
                {"model": p.get("Model"), "cores": p.get("TotalCores")}
                for p in processors
                if p.get("ProcessorType") == "CPU"
            ],
            "gpus": [{"model": p.get("Model"), "maker": p.get("Manufacturer")} for p in gpus],
            "drives": sum(len(cast("list[Any]", s.get("Drives") or [])) for s in storage),
            "macs": sorted(macs - {""}),
            "guids": sorted(guids - {""}),
        },
        gpu_makers=frozenset(maker for gpu in gpus if (maker := _maker(gpu))),
    )


async def _accelerators(
    finder: Finder, bmc: BmcAccess, paths: SystemPaths, chassis: Document
) -> list[Document]:
    """PCIe devices that are accelerators, for BMCs that do not show them as processors."""
    where = link(chassis, "PCIeDevices")
    devices = await finder.members(bmc, where, expands=paths.expands)
    functions = await asyncio.gather(
        *(finder.members(bmc, link(d, "PCIeFunctions"), expands=paths.expands) for d in devices)
    )
    return [
        {**device, "VendorId": offered[0].get("VendorId")}
        for device, offered in zip(devices, functions, strict=True)
        if any(
            str(f.get("ClassCode") or "").lower().startswith(_ACCELERATOR_CLASSES) for f in offered
        )
    ]


async def _ports(
    finder: Finder, bmc: BmcAccess, paths: SystemPaths, chassis: Document
) -> list[Document]:
    where = link(chassis, "NetworkAdapters")
    adapters = await finder.members(bmc, where, expands=paths.expands)
    found = await asyncio.gather(
        *(finder.members(bmc, link(a, "Ports"), expands=paths.expands) for a in adapters)
    )
    return [port for ports in found for port in ports]


async def _optional(client: RedfishClient, bmc: BmcAccess, path: str) -> Document:
    return (await client.get(bmc, path)).document if path else {}


def _maker(gpu: Document) -> GpuMaker | None:
    """Who made an accelerator: by the vendor's id where there is one, else by its name."""
    vendor_id = str(gpu.get("VendorId") or "").lower()
    name = str(gpu.get("Manufacturer") or "").lower()
    return next(
        (m for m, start, id_ in _MAKERS if vendor_id == id_ or (not vendor_id and start in name)),
        None,
    )


def _listed(document: Document, part: str, name: str) -> list[str]:
    values = cast("list[Any]", cast("Document", document.get(part) or {}).get(name) or [])
    return [str(value) for value in values]


def _mac(value: object) -> str:
    digits = _NOT_HEXADECIMAL.sub("", str(value or "").lower())
    if len(digits) != 12:
        return ""
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def _guid(value: object) -> str:
    digits = _NOT_HEXADECIMAL.sub("", str(value or "").lower().removeprefix("0x"))
    return digits.rjust(16, "0") if 0 < len(digits) <= 16 else ""
