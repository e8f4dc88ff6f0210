"""PCIe devices of the chassis: the accelerators, and the BMC's own display adapter.

Schemas: PCIeDevice, PCIeFunction (DSP8010). Class codes: PCI Code and ID Assignment Specification
1.16, classes 03 (display controllers; 0302 is a 3D controller, 0300 shows a console) and 12
(processing accelerators). Vendor ids: PCI-SIG's list; 1da3 is Habana Labs, Intel's maker of Gaudi.
"""

from dataclasses import dataclass
from urllib.parse import quote

from dflare.sim.config import Gpu
from dflare.sim.redfish.bmc import OK, Bmc, Document, collection, link, links, resource
from dflare.sim.redfish.routing import RouteTable, missing
from dflare.sim.redfish.schemas import ROOT

table = RouteTable()

_DEVICES = f"{ROOT}/Chassis/<chassis>/PCIeDevices"
_FUNCTION = "1"


@dataclass(frozen=True, slots=True)
class GpuMaker:
    """A maker of accelerators as Redfish and PCI show it."""

    name: str
    vendor_id: str
    device_id: str
    class_code: str
    device_class: str


GPU_MAKERS = {
    "nvidia": GpuMaker("NVIDIA", "0x10de", "0x2330", "0x030200", "DisplayController"),
    "amd": GpuMaker("AMD", "0x1002", "0x74a1", "0x120000", "ProcessingAccelerators"),
    "intel": GpuMaker("Intel", "0x1da3", "0x1060", "0x120000", "ProcessingAccelerators"),
}
_CONSOLE = GpuMaker("ASPEED", "0x1a03", "0x2000", "0x030000", "DisplayController")
_CONSOLE_ID = "VGA"


def gpu_ids(bmc: Bmc) -> list[str]:
    """Names of the accelerators, in their order."""
    return [bmc.vendor.names.gpu.format(n + 1) for n in range(len(bmc.host.node.gpus))]


def gpu_path(bmc: Bmc, index: int) -> str:
    """The path of the PCIe device of an accelerator."""
    return f"{_base(bmc)}/{_gpu_names(bmc)[index]}"


def pcie_links(bmc: Bmc) -> list[Document]:
    """References to every device, as ComputerSystem.PCIeDevices has them."""
    return links(_base(bmc), [*_gpu_names(bmc), _CONSOLE_ID])


@table.get(_DEVICES, "PCIeDeviceCollection")
def devices(bmc: Bmc) -> Document:
    """The devices."""
    return collection(_base(bmc), "PCIeDeviceCollection", "PCIe Devices", pcie_links(bmc))


@table.get(f"{_DEVICES}/{{device}}", "PCIeDevice")
def device(bmc: Bmc, name: str) -> Document:
    """One device."""
    maker, gpu, number = _find(bmc, name)
    path = f"{_base(bmc)}/{quote(name)}"
    dead = gpu is not None and number - 1 in bmc.host.measurements.dead_gpus()
    document = resource(
        path,
        "PCIeDevice",
        gpu.model if gpu else "Video Controller",
        DeviceType="SingleFunction",
        Manufacturer=maker.name,
        Model=gpu.model if gpu else "AST2600",
        PCIeFunctions=link(f"{path}/PCIeFunctions"),
        Status={"State": "UnavailableOffline", "Health": "Critical"} if dead else OK,
        Links={"Chassis": [link(bmc.chassis_path)]},
    )
    if gpu:
        document["SerialNumber"] = f"{bmc.host.node.serial}-G{number}"
        document["PCIeInterface"] = {
            "PCIeType": "Gen5",
            "MaxPCIeType": "Gen5",
            "LanesInUse": 16,
            "MaxLanes": 16,
        }
    return document


@table.get(f"{_DEVICES}/{{device}}/PCIeFunctions", "PCIeFunctionCollection")
def functions(bmc: Bmc, name: str) -> Document:
    """The functions of a device: one."""
    _find(bmc, name)
    path = f"{_base(bmc)}/{quote(name)}/PCIeFunctions"
    return collection(path, "PCIeFunctionCollection", "PCIe Functions", links(path, [_FUNCTION]))


@table.get(f"{_DEVICES}/{{device}}/PCIeFunctions/{_FUNCTION}", "PCIeFunction")
def function(bmc: Bmc, name: str) -> Document:
    """One function: who made it and of which class it is."""
    maker, _, _ = _find(bmc, name)
    path = f"{_base(bmc)}/{quote(name)}"
    return resource(
        f"{path}/PCIeFunctions/{_FUNCTION}",
        "PCIeFunction",
        "PCIe Function",
        FunctionId=0,
        FunctionType="Physical",
        DeviceClass=maker.device_class,
        ClassCode=maker.class_code,
        VendorId=maker.vendor_id,
        DeviceId=maker.device_id,
        Status=OK,
        Links={"PCIeDevice": link(path)},
    )


def _base(bmc: Bmc) -> str:
    return f"{bmc.chassis_path}/PCIeDevices"


def _gpu_names(bmc: Bmc) -> list[str]:
    return [bmc.vendor.names.pcie.format(name) for name in gpu_ids(bmc)]


def _find(bmc: Bmc, name: str) -> tuple[GpuMaker, Gpu | None, int]:
    """The maker of a device, and the accelerator with its number from 1, if it is one."""
    if name == _CONSOLE_ID:
        return _CONSOLE, None, 0
    names = _gpu_names(bmc)
    if name not in names:
        raise missing(f"{_base(bmc)}/{quote(name)}")
    index = names.index(name)
    gpu = bmc.host.node.gpus[index]
    return GPU_MAKERS[gpu.vendor], gpu, index + 1
