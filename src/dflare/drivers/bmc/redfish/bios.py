"""BIOS settings by their vendors' names, resolved against the server's own attribute registry.

Names were seen on Dell R750, HPE DL385 Gen10+ v2, Supermicro 821GE-TNHR, Lenovo SR670 V2 and DGX
H100. They differ by vendor and by build, so each is looked up in the live attributes, and a value
is taken only where the registry (AttributeRegistry 1.3) offers it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from dflare.drivers.bmc.port import (
    BiosOutcome,
    BiosSetting,
    BmcAccess,
    BmcRefusedError,
)
from dflare.drivers.bmc.redfish.client import Document, RedfishClient
from dflare.drivers.bmc.redfish.paths import Finder, SystemPaths, action, link

_OFF = ("Disabled", "Disable")
_ON = ("Enabled", "Enable")
_Names = Mapping[BiosSetting, tuple[tuple[str, tuple[str, ...]], ...]]

_DELL: _Names = {
    # The profile implies C-states off and locks their attributes.
    BiosSetting.PERFORMANCE: (("SysProfile", ("PerfOptimized",)),),
    BiosSetting.C_STATES_OFF: (("SysProfile", ("PerfOptimized",)),),
    BiosSetting.NUMA_PER_SOCKET: (("SubNumaCluster", _OFF),),
    BiosSetting.ASPM_OFF: (("PcieAspmL1", _OFF),),
    BiosSetting.IOMMU_ON: (("ProcVirtualization", _ON),),
    BiosSetting.SRIOV_ON: (("SriovGlobalEnable", _ON),),
    BiosSetting.ABOVE_4G_ON: (("MmioAbove4Gb", _ON),),
}
# A workload profile locks the attributes that it sets, unless it is this one.
_UNLOCKED = ("WorkloadProfile", ("Custom",))
_HPE: _Names = {
    BiosSetting.PERFORMANCE: (_UNLOCKED, ("PowerRegulator", ("StaticHighPerf",))),
    BiosSetting.C_STATES_OFF: (_UNLOCKED, ("MinProcIdlePower", ("NoCStates",))),
    BiosSetting.NUMA_PER_SOCKET: (
        _UNLOCKED,
        ("NumaMemoryDomainsPerSocket", ("OneMemoryDomainPerSocket", "Auto")),
    ),
    BiosSetting.ASPM_OFF: ((r"PciSlot\d+Aspm", _OFF),),
    BiosSetting.IOMMU_ON: (("ProcAmdIoVt", _ON),),
    BiosSetting.SRIOV_ON: (("Sriov", _ON),),
}
_SUPERMICRO: _Names = {
    BiosSetting.PERFORMANCE: (("PowerTechnology", ("Disable", "Custom")),),
    BiosSetting.C_STATES_OFF: (
        ("PackageCState", ("C0/C1 state", "C0_C1state")),
        ("CPUC6Report", _OFF),
    ),
    BiosSetting.NUMA_PER_SOCKET: (("SNC", _OFF), ("NUMA", _ON)),
    BiosSetting.ASPM_OFF: (("PCIeASPMSupport_Global", _OFF),),
    BiosSetting.IOMMU_ON: (("IntelVTforDirectedI_O_VT_d_", _ON),),
    BiosSetting.SRIOV_ON: (("SR_IOVSupport", _ON),),
    BiosSetting.ABOVE_4G_ON: (("Above4GDecoding", _ON),),
}
_LENOVO: _Names = {
    BiosSetting.PERFORMANCE: (("OperatingModes_ChooseOperatingMode", ("MaximumPerformance",)),),
    # The preset turns C-states off and locks their attributes.
    BiosSetting.C_STATES_OFF: (("OperatingModes_ChooseOperatingMode", ("MaximumPerformance",)),),
    BiosSetting.NUMA_PER_SOCKET: (("Processors_SNC", _OFF),),
    BiosSetting.ASPM_OFF: (("Power_ASPM", _OFF),),
    BiosSetting.IOMMU_ON: (("DevicesandIOPorts_IntelVTforDirectedIOVTd", _ON),),
}
_NVIDIA: _Names = {
    BiosSetting.PERFORMANCE: (("AltEngPerfBIAS", ("Performance",)),),
    BiosSetting.C_STATES_OFF: (("PackageCState", ("C0/C1 state", "C0C1state")),),
    BiosSetting.NUMA_PER_SOCKET: (("NumaEn", _ON),),
    BiosSetting.IOMMU_ON: (("VTdSupport", _ON),),
}
_NONE: _Names = {}
_BY_MAKER: tuple[tuple[str, _Names], ...] = (
    ("dell", _DELL),
    ("hpe", _HPE),
    ("hewlett", _HPE),
    ("supermicro", _SUPERMICRO),
    ("lenovo", _LENOVO),
    ("nvidia", _NVIDIA),
)


@dataclass(frozen=True)
class RegistryEntry:
    """A writable attribute: the values that it offers (none listed: any) and its default."""

    values: tuple[str, ...] = ()
    default: str | None = None


Registry = Mapping[str, RegistryEntry]


@dataclass(frozen=True)
class _Bios:
    attributes: Mapping[str, Any]
    settings: str
    etag: str
    reset: str
    registry: str


class BiosSettings:
    """Compares and stages settings; registries are read once a model, BIOS version and process."""

    def __init__(self, client: RedfishClient, finder: Finder) -> None:
        self._client = client
        self._finder = finder
        self._registries: dict[tuple[str, str], Registry] = {}

    async def ensure(self, bmc: BmcAccess, settings: frozenset[BiosSetting]) -> BiosOutcome:
        """See ``BmcDriver.ensure_bios``."""
        paths = await self._finder.system(bmc)
        bios = await self._read(bmc, paths)
        registry = await self._registry(bmc, paths, bios.registry)
        wanted, unsupported = resolve(
            bmc.vendor or paths.model_key, settings, bios.attributes, registry
        )
        differing = {
            name: (str(bios.attributes[name]), value)
            for name, value in wanted.items()
            if str(bios.attributes[name]) != value
        }
        staged = bool(differing) and await self._stage(bmc, paths, bios, differing)
        return BiosOutcome(
            differing=differing,
            staged=staged,
            unsupported=unsupported,
            in_force={name: str(bios.attributes[name]) for name in wanted},
        )

    async def reset(self, bmc: BmcAccess) -> bool:
        """See ``BiosDefaults.reset_bios``."""
        paths = await self._finder.system(bmc)
        if not paths.bios:
            return False
        bios = await self._read(bmc, paths)
        if not bios.reset:
            return False
        registry = await self._registry(bmc, paths, bios.registry)
        if registry is None or changed_attributes(bios.attributes, registry):
            await self._client.post(bmc, bios.reset, {})
        return True

    async def changed(self, bmc: BmcAccess) -> tuple[str, ...]:
        """See ``BiosDefaults.changed_bios``."""
        paths = await self._finder.system(bmc)
        if not paths.bios:
            return ()
        bios = await self._read(bmc, paths)
        registry = await self._registry(bmc, paths, bios.registry)
        if not bios.reset or registry is None:
            return ()
        return changed_attributes(bios.attributes, registry)

    async def _read(self, bmc: BmcAccess, paths: SystemPaths) -> _Bios:
        if not paths.bios:
            raise BmcRefusedError(f"{bmc.address} shows no BIOS")
        answer = await self._client.get(bmc, paths.bios)
        document = answer.document
        settings = link(document, "@Redfish.Settings", "SettingsObject")
        return _Bios(
            attributes=cast("Document", document.get("Attributes") or {}),
            # DGX takes changes at Bios itself.
            settings=settings or paths.bios,
            etag=answer.etag,
            reset=str(action(document, "#Bios.ResetBios").get("target", "")),
            registry=str(document.get("AttributeRegistry") or ""),
        )

    async def _stage(
        self,
        bmc: BmcAccess,
        paths: SystemPaths,
        bios: _Bios,
        differing: Mapping[str, tuple[str, str]],
    ) -> bool:
        """Stage what differs unless all of it waits already; returns whether that was done."""
        etag = bios.etag
        if bios.settings != paths.bios:
            answer = await self._client.get(bmc, bios.settings)
            waiting = cast("Document", answer.document.get("Attributes") or {})
            if all(str(waiting.get(name)) == new for name, (_, new) in differing.items()):
                return False
            etag = answer.etag
        body: Document = {"Attributes": {name: new for name, (_, new) in differing.items()}}
        await self._client.patch(bmc, bios.settings, body, etag)
        return True

    async def _registry(self, bmc: BmcAccess, paths: SystemPaths, name: str) -> Registry | None:
        if not name:
            return None
        key = (paths.model_key, name)
        if key not in self._registries:
            try:
                self._registries[key] = await self._read_registry(bmc, name)
            except BmcRefusedError:
                # A BMC that names a registry and does not have it; the attributes still show.
                return None
        return self._registries[key]

    async def _read_registry(self, bmc: BmcAccess, name: str) -> Registry:
        file = (await self._client.get(bmc, f"/redfish/v1/Registries/{name}")).document
        locations = cast("list[Document]", file.get("Location") or [])
        uri = next((str(at["Uri"]) for at in locations if at.get("Uri")), "")
        if not uri:
            raise BmcRefusedError(f"{bmc.address} does not hold its registry {name}")
        document = (await self._client.get(bmc, uri)).document
        entries = cast("Document", document.get("RegistryEntries") or {})
        found: dict[str, RegistryEntry] = {}
        for row in cast("list[Document]", entries.get("Attributes") or []):
            if not row.get("ReadOnly"):
                values = cast("list[Document]", row.get("Value") or [])
                default = row.get("DefaultValue")
                found[str(row.get("AttributeName"))] = RegistryEntry(
                    tuple(str(value["ValueName"]) for value in values),
                    None if default is None else str(default),
                )
        return found


def resolve(
    maker: str,
    settings: frozenset[BiosSetting],
    attributes: Mapping[str, Any],
    registry: Registry | None,
) -> tuple[dict[str, str], tuple[BiosSetting, ...]]:
    """The wanted value of each attribute, and the settings that have none on this server."""
    names = next((table for start, table in _BY_MAKER if start in maker.lower()), _NONE)
    wanted: dict[str, str] = {}
    unsupported: list[BiosSetting] = []
    for setting in sorted(settings):
        found = {
            attribute: value
            for pattern, values in names.get(setting, ())
            for attribute in attributes
            if _same(pattern, attribute)
            and (value := _value(attribute, values, registry)) is not None
        }
        wanted |= found
        if not found:
            unsupported.append(setting)
    return wanted, tuple(unsupported)


def changed_attributes(attributes: Mapping[str, Any], registry: Registry) -> tuple[str, ...]:
    """Attributes in force that are not at the registry's default."""
    return tuple(
        name
        for name, entry in registry.items()
        if entry.default is not None and name in attributes
        if str(attributes[name]) != entry.default
    )


def _same(pattern: str, attribute: str) -> bool:
    """Supermicro ends names with an underscore and four hexadecimal digits of the build."""
    return re.fullmatch(rf"{pattern}(?:_[0-9A-Fa-f]{{4}})?", attribute) is not None


def _value(attribute: str, values: tuple[str, ...], registry: Registry | None) -> str | None:
    if registry is None:
        return values[0]
    offered = registry.get(attribute)
    if offered is None:
        return None
    return next((v for v in values if not offered.values or v in offered.values), None)
