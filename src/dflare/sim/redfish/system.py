"""The ComputerSystem and its processors, memory, Ethernet interfaces and secure boot."""

from collections.abc import Callable
from functools import cache
from typing import cast
from urllib.parse import quote

from dflare.sim.firmware import BootSource, Override, Power, Reset
from dflare.sim.host import SameStateError
from dflare.sim.redfish.bmc import (
    NO_CONTENT,
    OK,
    Answer,
    Bmc,
    Document,
    collection,
    link,
    links,
    resource,
    stamp,
)
from dflare.sim.redfish.messages import RedfishError
from dflare.sim.redfish.pcie import GPU_MAKERS, gpu_ids, gpu_path, pcie_links
from dflare.sim.redfish.routing import RouteTable, missing
from dflare.sim.redfish.schemas import ROOT
from dflare.sim.redfish.vendor import OverrideMode, SameState

table = RouteTable()

_SYSTEM = f"{ROOT}/Systems/<system>"
_RESET_ACTION = "ComputerSystem.Reset"
_DIMM_GIB = 64


@table.get(f"{ROOT}/Systems", "ComputerSystemCollection")
def systems(bmc: Bmc) -> Document:
    """The one system."""
    members = [link(bmc.system_path)]
    return collection(f"{ROOT}/Systems", "ComputerSystemCollection", "Systems", members)


@table.get(_SYSTEM, "ComputerSystem")
def system(bmc: Bmc) -> Document:
    """The ComputerSystem."""
    host, node, path = bmc.host, bmc.host.node, bmc.system_path
    return resource(
        path,
        "ComputerSystem",
        "System",
        SystemType="Physical",
        Manufacturer=bmc.vendor.manufacturer,
        Model=node.model,
        SerialNumber=node.serial,
        SKU=node.serial if bmc.vendor.sku_is_serial else node.model,
        PartNumber=f"{node.model.replace(' ', '-').upper()}-A00",
        UUID=node.uuid,
        HostName=node.name,
        AssetTag=host.asset_tag,
        BiosVersion=bmc.vendor.bios_version,
        PowerState=_power_state(bmc),
        LocationIndicatorActive=host.indicator_on,
        LastResetTime=stamp(host.last_reset_at),
        BootProgress={
            "LastState": host.progress.value,
            "LastStateTime": stamp(host.progress_at),
        },
        Boot=_boot(bmc),
        ProcessorSummary={
            "Count": node.cpu_sockets,
            "CoreCount": node.cpu_cores,
            "LogicalProcessorCount": node.cpu_cores * 2,
            "Model": bmc.vendor.cpu.model,
        },
        MemorySummary={"TotalSystemMemoryGiB": node.memory_gib},
        Status=OK,
        Processors=link(f"{path}/Processors"),
        Memory=link(f"{path}/Memory"),
        EthernetInterfaces=link(f"{path}/EthernetInterfaces"),
        Storage=link(f"{path}/Storage"),
        Bios=link(bmc.bios_path),
        SecureBoot=link(f"{path}/SecureBoot"),
        PCIeDevices=pcie_links(bmc),
        Links={"Chassis": [link(bmc.chassis_path)], "ManagedBy": [link(bmc.manager_path)]},
        Actions={
            f"#{_RESET_ACTION}": {
                "target": f"{path}/Actions/{_RESET_ACTION}",
                "ResetType@Redfish.AllowableValues": [kind.value for kind in bmc.vendor.resets],
            }
        },
        **({"VirtualMedia": link(f"{path}/VirtualMedia")} if bmc.vendor.media.under_system else {}),
    )


@table.patch(_SYSTEM, "ComputerSystem")
def change_system(bmc: Bmc, body: Document) -> Answer:
    """Change the boot override, the boot order, the asset tag or the locator light."""
    changes: list[Callable[[], None]] = []
    for name, value in body.items():
        if name == "Boot" and isinstance(value, dict):
            changes.append(_boot_change(bmc, cast("Document", value)))
        elif name == "AssetTag" and isinstance(value, str):
            changes.append(lambda tag=value: setattr(bmc.host, "asset_tag", tag))
        elif name == "LocationIndicatorActive" and isinstance(value, bool):
            changes.append(lambda on=value: setattr(bmc.host, "indicator_on", on))
        elif name in ("Boot", "AssetTag", "LocationIndicatorActive"):
            raise RedfishError(400, "PropertyValueTypeError", (str(value), name), (name,))
        else:
            known = name in system(bmc)
            raise RedfishError(
                400, "PropertyNotWritable" if known else "PropertyUnknown", (name,), (name,)
            )
    for change in changes:
        change()
    return bmc.done


@table.post(f"{_SYSTEM}/Actions/{_RESET_ACTION}", "ComputerSystem")
def reset(bmc: Bmc, body: Document) -> Answer:
    """Accept a reset; the power state follows."""
    for name in body:
        if name != "ResetType":
            raise RedfishError(400, "ActionParameterNotSupported", (name, _RESET_ACTION))
    asked = body.get("ResetType")
    if asked is None:
        raise RedfishError(400, "ActionParameterMissing", (_RESET_ACTION, "ResetType"))
    if asked not in [kind.value for kind in bmc.vendor.resets]:
        raise RedfishError(
            400, "ActionParameterValueNotInList", (str(asked), "ResetType", _RESET_ACTION)
        )
    try:
        bmc.host.reset(Reset(str(asked)))
    except SameStateError as error:
        if bmc.vendor.same_state is SameState.CONFLICT:
            raise RedfishError(409, "ResourceInUse") from error
        if bmc.vendor.same_state is SameState.BAD_REQUEST:
            raise RedfishError(
                400, "InvalidOperationForSystemState", (f"Power is {error}",)
            ) from error
    return bmc.done


@table.get(f"{_SYSTEM}/Processors", "ProcessorCollection")
def processors(bmc: Bmc) -> Document:
    """CPUs and accelerators."""
    path = f"{bmc.system_path}/Processors"
    names = [*_cpu_names(bmc), *_gpu_names(bmc)]
    return collection(path, "ProcessorCollection", "Processors", links(path, names))


@table.get(f"{_SYSTEM}/Processors/{{processor}}", "Processor")
def processor(bmc: Bmc, name: str) -> Document:
    """One CPU or accelerator."""
    path = f"{bmc.system_path}/Processors/{quote(name)}"
    cpus, gpus = _cpu_names(bmc), _gpu_names(bmc)
    if name in cpus:
        cores = bmc.host.node.cpu_cores // bmc.host.node.cpu_sockets
        return resource(
            path,
            "Processor",
            f"CPU {cpus.index(name) + 1}",
            ProcessorType="CPU",
            Socket=name,
            Manufacturer=bmc.vendor.cpu.manufacturer,
            Model=bmc.vendor.cpu.model,
            ProcessorArchitecture="x86",
            InstructionSet="x86-64",
            MaxSpeedMHz=bmc.vendor.cpu.max_speed_mhz,
            TotalCores=cores,
            TotalThreads=cores * 2,
            Status=OK,
            Links={"Chassis": link(bmc.chassis_path)},
        )
    if name in gpus:
        index = gpus.index(name)
        gpu = bmc.host.node.gpus[index]
        memory_mib = gpu.memory_gib * 1024
        return resource(
            path,
            "Processor",
            f"GPU {index + 1}",
            ProcessorType="GPU",
            Socket=name,
            Manufacturer=GPU_MAKERS[gpu.vendor].name,
            Model=gpu.model,
            SerialNumber=f"{bmc.host.node.serial}-G{index + 1}",
            ProcessorMemory=[
                {"IntegratedMemory": True, "MemoryType": "HBM3", "CapacityMiB": memory_mib}
            ],
            MemorySummary={"TotalMemorySizeMiB": memory_mib},
            Status=OK,
            Links={
                "Chassis": link(bmc.chassis_path),
                "PCIeDevice": link(gpu_path(bmc, index)),
            },
        )
    raise missing(path)


@table.get(f"{_SYSTEM}/Memory", "MemoryCollection")
def memory(bmc: Bmc) -> Document:
    """The memory modules."""
    path = f"{bmc.system_path}/Memory"
    return collection(path, "MemoryCollection", "Memory", links(path, list(_dimms(bmc))))


@table.get(f"{_SYSTEM}/Memory/{{dimm}}", "Memory")
def dimm(bmc: Bmc, name: str) -> Document:
    """One memory module."""
    path = f"{bmc.system_path}/Memory/{quote(name)}"
    size_gib = _dimms(bmc).get(name)
    if size_gib is None:
        raise missing(path)
    return resource(
        path,
        "Memory",
        name,
        MemoryType="DRAM",
        MemoryDeviceType="DDR5",
        BaseModuleType="RDIMM",
        CapacityMiB=size_gib * 1024,
        OperatingSpeedMhz=4800,
        ErrorCorrection="MultiBitECC",
        Location={"PartLocation": {"ServiceLabel": name, "LocationType": "Slot"}},
        Manufacturer="Samsung",
        SerialNumber=f"{bmc.host.node.serial}-{name.replace('.', '')}",
        Status=OK,
    )


@table.get(f"{_SYSTEM}/EthernetInterfaces", "EthernetInterfaceCollection")
def interfaces(bmc: Bmc) -> Document:
    """The Ethernet interfaces."""
    path = f"{bmc.system_path}/EthernetInterfaces"
    names = [port.name for port in bmc.host.node.ethernet]
    members = links(path, names)
    return collection(path, "EthernetInterfaceCollection", "Ethernet Interfaces", members)


@table.get(f"{_SYSTEM}/EthernetInterfaces/{{port}}", "EthernetInterface")
def interface(bmc: Bmc, name: str) -> Document:
    """One Ethernet interface; its link is known while the host has power."""
    path = f"{bmc.system_path}/EthernetInterfaces/{quote(name)}"
    port = next((port for port in bmc.host.node.ethernet if port.name == name), None)
    if port is None:
        raise missing(path)
    up = bmc.host.powered and bmc.host.lab.network.ethernet_up(bmc.host.name, name)
    document = resource(
        path,
        "EthernetInterface",
        name,
        MACAddress=port.mac,
        PermanentMACAddress=port.mac,
        SpeedMbps=port.speed_gbps * 1000,
        FullDuplex=True,
        InterfaceEnabled=True,
        LinkStatus="LinkUp" if up else "LinkDown",
        Status=OK,
        Links={"Chassis": link(bmc.chassis_path)},
    )
    document["Id"] = name
    return document


@table.get(f"{_SYSTEM}/SecureBoot", "SecureBoot")
def secure_boot(bmc: Bmc) -> Document:
    """Secure boot."""
    return resource(
        f"{bmc.system_path}/SecureBoot",
        "SecureBoot",
        "UEFI Secure Boot",
        SecureBootEnable=bmc.host.secure_boot,
        SecureBootCurrentBoot="Enabled" if bmc.host.secure_boot else "Disabled",
        SecureBootMode="DeployedMode",
    )


@table.patch(f"{_SYSTEM}/SecureBoot", "SecureBoot")
def change_secure_boot(bmc: Bmc, body: Document) -> Answer:
    """Turn secure boot on or off for the next boot."""
    for name, value in body.items():
        if name != "SecureBootEnable":
            raise RedfishError(400, "PropertyNotWritable", (name,), (name,))
        if not isinstance(value, bool):
            raise RedfishError(400, "PropertyValueTypeError", (str(value), name), (name,))
        bmc.host.secure_boot = value
    return NO_CONTENT


def _power_state(bmc: Bmc) -> str:
    power = bmc.host.power
    if bmc.vendor.shows_transitions:
        return power.value
    return "Off" if power in (Power.OFF, Power.POWERING_ON) else "On"


def _boot(bmc: Bmc) -> Document:
    boot = bmc.host.boot
    return {
        "BootSourceOverrideEnabled": boot.enabled.value,
        "BootSourceOverrideTarget": boot.target.value,
        "BootSourceOverrideTarget@Redfish.AllowableValues": [
            source.value for source in bmc.vendor.boot_sources
        ],
        "BootSourceOverrideMode": boot.mode,
        **(
            {"BootSourceOverrideMode@Redfish.AllowableValues": ["UEFI", "Legacy"]}
            if bmc.vendor.override_mode is OverrideMode.FORGOTTEN
            else {}
        ),
        "BootOrder": [dict(bmc.vendor.boot_references)[source] for source in boot.order],
    }


def _boot_change(bmc: Bmc, wanted: Document) -> Callable[[], None]:
    """Check a change of Boot and return what carries it out."""
    boot, rule = bmc.host.boot, bmc.vendor.override_mode
    target, enabled, mode, order = boot.target, boot.enabled, boot.mode, boot.order
    if rule is OverrideMode.FORGOTTEN:
        mode = "Legacy"
    for name, value in wanted.items():
        if name == "BootSourceOverrideTarget":
            target = BootSource(_in_list(name, value, [s.value for s in bmc.vendor.boot_sources]))
            # Naming a target alone means one boot from it, as deployed services read it.
            if "BootSourceOverrideEnabled" not in wanted and enabled is Override.DISABLED:
                enabled = Override.DISABLED if target is BootSource.NONE else Override.ONCE
        elif name == "BootSourceOverrideEnabled":
            enabled = Override(_in_list(name, value, [choice.value for choice in Override]))
        elif name == "BootSourceOverrideMode":
            if rule is OverrideMode.READ_ONLY:
                raise RedfishError(400, "PropertyNotWritable", (name,), (f"Boot/{name}",))
            modes = ["UEFI", "Legacy"] if rule is OverrideMode.FORGOTTEN else ["UEFI"]
            mode = _in_list(name, value, modes)
        elif name == "BootOrder":
            order = _boot_order(bmc, value)
        else:
            known = name in _boot(bmc)
            key = "PropertyNotWritable" if known else "PropertyUnknown"
            raise RedfishError(400, key, (name,), (f"Boot/{name}",))
    if enabled is Override.DISABLED:
        target = BootSource.NONE

    def change() -> None:
        boot.target, boot.enabled, boot.mode, boot.order = target, enabled, mode, order

    return change


def _boot_order(bmc: Bmc, value: object) -> tuple[BootSource, ...]:
    sources = {reference: source for source, reference in bmc.vendor.boot_references}
    items = cast("list[object]", value) if isinstance(value, list) else []
    names = [str(item) for item in items]
    if not names or len(set(names)) != len(names) or not set(names) <= set(sources):
        raise RedfishError(400, "PropertyValueNotInList", (", ".join(names), "BootOrder"))
    return tuple(sources[name] for name in names)


def _in_list(name: str, value: object, allowed: list[str]) -> str:
    if value not in allowed:
        raise RedfishError(400, "PropertyValueNotInList", (str(value), name), (f"Boot/{name}",))
    return str(value)


def _cpu_names(bmc: Bmc) -> list[str]:
    return [bmc.vendor.names.processor.format(n + 1) for n in range(bmc.host.node.cpu_sockets)]


def _gpu_names(bmc: Bmc) -> list[str]:
    return gpu_ids(bmc) if bmc.vendor.gpus_are_processors else []


def _dimms(bmc: Bmc) -> dict[str, int]:
    return _modules(bmc.host.node.memory_gib, bmc.vendor.names.dimm)


@cache
def _modules(total: int, pattern: str) -> dict[str, int]:
    """Modules by name with their size in GiB; at most 32, larger where the host has more memory."""
    size = max(_DIMM_GIB, -(-total // 32))
    names: dict[str, int] = {}
    while total > 0:
        bank, slot = divmod(len(names), 16)
        name = pattern.format(
            number=len(names) + 1, bank="AB"[bank], bank_number=bank + 1, slot=slot + 1
        )
        names[name] = min(size, total)
        total -= size
    return names
