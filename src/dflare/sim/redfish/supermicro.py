"""Supermicro: the paths, attribute names and quirks of an X13 BMC on an 821GE-TNHR.

Sources: Supermicro's Redfish user guide 4.0 (``Bios/SD`` holds what waits; the registry stands
at ``/registries/…``; names end with four hexadecimal digits of the build); attribute names as seen
on an 821GE-TNHR. Quirks, each met by clients in the field:

- The virtual CD is a USB drive: only ``UsbCd`` boots it, ``Cd`` is a bay without a drive, and
  ``InsertMedia`` refuses ``Inserted`` and ``WriteProtected`` (sushy, ``system.py`` and
  ``virtual_media.py``).
- A boot override that does not name its mode becomes one of Legacy mode, which a UEFI system does
  not honour (DMTF Redfishtool, pull request 106; bmclib, pull request 459).
- Changes need If-Match (DSP0266, 7.5 allows it: 428), as AMI's firmware does (gofish, issue 171).
- No ``$expand``; virtual media stand under the manager alone.
"""

from dflare.sim.firmware import BootSource, Reset
from dflare.sim.redfish.vendor import (
    ActionAnswer,
    BiosAttribute,
    BiosPaths,
    Cpu,
    ErrorStyle,
    MediaRules,
    MediaSlot,
    OverrideMode,
    PartNames,
    SameState,
    Vendor,
)

_SWITCH = ("Disable", "Enable")
_PAST = ("Disabled", "Enabled")

_ATTRIBUTES = (
    BiosAttribute("QuietBoot_0027", "Quiet Boot", "Enabled", _PAST),
    BiosAttribute(
        "PowerTechnology_0071",
        "Power Technology",
        "Energy Efficient",
        ("Disable", "Energy Efficient", "Custom"),
    ),
    BiosAttribute(
        "PackageCState_0093",
        "Package C State",
        "Auto",
        ("C0/C1 state", "C2 state", "C6(non Retention) state", "Auto"),
    ),
    BiosAttribute("CPUC6Report_0094", "CPU C6 Report", "Auto", ("Disable", "Enable", "Auto")),
    BiosAttribute(
        "IntelVirtualizationTechnology_0061", "Intel Virtualization Technology", "Enable", _SWITCH
    ),
    BiosAttribute("SNC_00AE", "SNC", "Disable", ("Disable", "Enable SNC2 (2-clusters)", "Auto")),
    BiosAttribute("NUMA_00A1", "NUMA", "Enabled", _PAST),
    BiosAttribute(
        "PCIeASPMSupport_Global_00C4",
        "PCIe ASPM Support (Global)",
        "Auto",
        ("Disable", "Auto", "L1 Only"),
    ),
    BiosAttribute(
        "IntelVTforDirectedI_O_VT_d__00C9", "Intel VT for Directed I/O (VT-d)", "Disable", _SWITCH
    ),
    BiosAttribute("SR_IOVSupport_0103", "SR-IOV Support", "Disabled", _PAST),
    BiosAttribute("Above4GDecoding_0101", "Above 4G Decoding", "Enabled", _PAST),
)

SUPERMICRO = Vendor(
    maker="Supermicro",
    manufacturer="Supermicro",
    bmc_product="Supermicro X13 BMC",
    bmc_model="ASPEED",
    bmc_version="01.03.18",
    bios_version="2.7",
    redfish_version="1.14.0",
    system_id="1",
    manager_id="1",
    chassis_id="1",
    account_id="2",
    registry_id="BiosAttributeRegistry.v1_0_0",
    registry_path="/registries/BiosAttributeRegistry.1.0.0.json",
    bios=BiosPaths(
        bios="Bios",
        settings="SD",
        reset="Actions/Bios.ResetBios",
        shows_all=False,
        job="",
    ),
    media=MediaRules(
        slots=(MediaSlot("VirtualMedia1", "", ("CD", "DVD")),),
        under_system=False,
        boot_source=BootSource.USB_CD,
        insert_takes=frozenset({"Image", "TransferProtocolType", "UserName", "Password"}),
        insert_needs=("Image",),
        refuses_empty_eject=False,
    ),
    names=PartNames(
        processor="{}",
        gpu="GPU{}",
        dimm="{number}",
        adapter="{}",
        infiniband="{}",
        port="{port}",
        storage="NVMeSSD",
        pcie="{}",
    ),
    cpu=Cpu("Intel(R) Corporation", "Intel(R) Xeon(R) Platinum 8480+", 4000),
    attributes=_ATTRIBUTES,
    serial_attribute=None,
    resets=(
        Reset.ON,
        Reset.FORCE_OFF,
        Reset.GRACEFUL_SHUTDOWN,
        Reset.GRACEFUL_RESTART,
        Reset.FORCE_RESTART,
        Reset.NMI,
        Reset.FORCE_ON,
    ),
    boot_sources=(
        BootSource.NONE,
        BootSource.PXE,
        BootSource.CD,
        BootSource.DISK,
        BootSource.SETUP,
        BootSource.USB_CD,
    ),
    boot_references=((BootSource.DISK, "0001"), (BootSource.USB_CD, "0002")),
    session_limit=16,
    same_state=SameState.ACCEPTED,
    override_mode=OverrideMode.FORGOTTEN,
    error_style=ErrorStyle.WHOLE,
    action_answer=ActionAnswer.SUCCESS,
    sku_is_serial=False,
    shows_transitions=False,
    needs_if_match=True,
    weak_etags=False,
    expands=False,
    gpus_are_processors=True,
    has_sensors=True,
    registry_gzip=False,
)
