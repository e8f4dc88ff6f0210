"""Storage: one controller and its drives, under the system and by link from the chassis."""

from urllib.parse import quote

from dflare.sim.redfish.bmc import OK, Bmc, Document, collection, link, links, resource
from dflare.sim.redfish.routing import RouteTable, missing
from dflare.sim.redfish.schemas import ROOT

table = RouteTable()

_STORAGE = f"{ROOT}/Systems/<system>/Storage"
_KINDS = {"nvme": "NVMe", "sata": "SATA"}


@table.get(_STORAGE, "StorageCollection")
def storages(bmc: Bmc) -> Document:
    """The storage subsystems: one."""
    path = f"{bmc.system_path}/Storage"
    return collection(path, "StorageCollection", "Storage Collection", links(path, [_id(bmc)]))


@table.get(f"{_STORAGE}/<storage>", "Storage")
def storage(bmc: Bmc) -> Document:
    """The subsystem with its drives."""
    path = f"{bmc.system_path}/Storage/{_id(bmc)}"
    drives = drive_links(bmc)
    return resource(
        path,
        "Storage",
        "CPU Attached Drives",
        Status=OK,
        Controllers=link(f"{path}/Controllers"),
        Drives=drives,
        Links={"Enclosures": [link(bmc.chassis_path)]},
        **{"Drives@odata.count": len(drives)},
    )


@table.get(f"{_STORAGE}/<storage>/Controllers", "StorageControllerCollection")
def controllers(bmc: Bmc) -> Document:
    """The controllers of the subsystem: one."""
    path = f"{bmc.system_path}/Storage/{_id(bmc)}/Controllers"
    return collection(path, "StorageControllerCollection", "Controllers", links(path, [_id(bmc)]))


@table.get(f"{_STORAGE}/<storage>/Controllers/<storage>", "StorageController")
def controller(bmc: Bmc) -> Document:
    """The controller: the processor that the drives hang on."""
    kinds = sorted({_KINDS[disk.kind] for disk in bmc.host.node.disks})
    return resource(
        f"{bmc.system_path}/Storage/{_id(bmc)}/Controllers/{_id(bmc)}",
        "StorageController",
        "CPU Attached Controller",
        Manufacturer=bmc.vendor.manufacturer,
        Model="CPU attached",
        SupportedControllerProtocols=["PCIe"],
        SupportedDeviceProtocols=kinds,
        Status=OK,
    )


@table.get(f"{_STORAGE}/<storage>/Drives/{{drive}}", "Drive")
def drive(bmc: Bmc, name: str) -> Document:
    """One drive."""
    path = f"{bmc.system_path}/Storage/{_id(bmc)}/Drives/{quote(name)}"
    disk = next((disk for disk in bmc.host.node.disks if disk.name == name), None)
    if disk is None:
        raise missing(path)
    document = resource(
        path,
        "Drive",
        f"Drive {name}",
        CapacityBytes=disk.size_gib << 30,
        BlockSizeBytes=512,
        MediaType="SSD",
        Protocol=_KINDS[disk.kind],
        Manufacturer="Samsung",
        Model=f"PM9A3 {disk.size_gib} GiB",
        SerialNumber=disk.serial,
        FailurePredicted=False,
        Status=OK,
        Links={"Chassis": link(bmc.chassis_path)},
    )
    document["Id"] = name
    return document


def drive_links(bmc: Bmc) -> list[Document]:
    """References to every drive."""
    path = f"{bmc.system_path}/Storage/{_id(bmc)}/Drives"
    return links(path, [disk.name for disk in bmc.host.node.disks])


def _id(bmc: Bmc) -> str:
    return bmc.vendor.names.storage
