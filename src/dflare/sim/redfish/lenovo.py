"""Lenovo: the paths, attribute names and quirks of XCC on a ThinkSystem.

Sources: Lenovo's XCC REST API guide (``Bios/Pending`` holds what waits, a registry under
``/redfish/v1/schemas/registries``, drives ``EXT1``, ``RDOC1`` and ``Remote1``); attribute names as
seen on an SR670 V2. Quirks, each met by clients in the field:

- Media are inserted and ejected by a PATCH of the drive that says ``Inserted``; there are no
  actions (sushy, ``virtual_media.py``).
- A preset operating mode locks the C-state attributes; ``CustomMode`` frees them.
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

_SWITCH = ("Enable", "Disable")
_CUSTOM = ("OperatingModes_ChooseOperatingMode", "CustomMode")
_MEDIA = ("CD", "DVD", "USBStick")

_ATTRIBUTES = (
    BiosAttribute(
        "OperatingModes_ChooseOperatingMode",
        "Choose Operating Mode",
        "MaximumEfficiency",
        ("MinimalPower", "MaximumEfficiency", "MaximumPerformance", "CustomMode"),
    ),
    BiosAttribute(
        "Processors_CStates", "C-States", "Legacy", ("Legacy", "Disable"), unlocked_by=_CUSTOM
    ),
    BiosAttribute(
        "Processors_C1EnhancedMode", "C1 Enhanced Mode", "Enable", _SWITCH, unlocked_by=_CUSTOM
    ),
    BiosAttribute("Processors_HyperThreading", "Hyper-Threading", "Enable", _SWITCH),
    BiosAttribute("Processors_SNC", "SNC", "Disable", ("Enable", "Disable", "Auto")),
    BiosAttribute("Power_ASPM", "ASPM", "Auto", ("Auto", "Disable")),
    BiosAttribute(
        "Processors_IntelVirtualizationTechnology",
        "Intel Virtualization Technology",
        "Enable",
        _SWITCH,
    ),
    BiosAttribute(
        "DevicesandIOPorts_IntelVTforDirectedIOVTd",
        "Intel VT for Directed I/O (VT-d)",
        "Disable",
        _SWITCH,
    ),
)

LENOVO = Vendor(
    maker="Lenovo",
    manufacturer="Lenovo",
    bmc_product="Lenovo XClarity Controller",
    bmc_model="Lenovo XClarity Controller",
    bmc_version="AFBT58B 5.70",
    bios_version="U8E132B",
    redfish_version="1.15.0",
    system_id="1",
    manager_id="1",
    chassis_id="1",
    account_id="1",
    registry_id="BiosAttributeRegistry.1.0.0",
    registry_path="/redfish/v1/schemas/registries/BiosAttributeRegistry.1.0.0.json",
    bios=BiosPaths(
        bios="Bios",
        settings="Pending",
        reset="Actions/Bios.ResetBios",
        shows_all=True,
        job="",
    ),
    media=MediaRules(
        slots=(
            MediaSlot("EXT1", "EXT1", _MEDIA),
            MediaSlot("RDOC1", "RDOC1", _MEDIA),
            MediaSlot("Remote1", "Remote1", _MEDIA),
        ),
        under_system=True,
        boot_source=BootSource.CD,
        insert_takes=frozenset(
            {
                "Image",
                "Inserted",
                "WriteProtected",
                "TransferProtocolType",
                "UserName",
                "Password",
            }
        ),
        insert_needs=("Image", "Inserted"),
        refuses_empty_eject=False,
        by_patch=True,
    ),
    names=PartNames(
        processor="{}",
        gpu="slot_{}",
        dimm="{number}",
        adapter="ob_{}",
        infiniband="slot_{}",
        port="{port}",
        storage="NVMe",
        pcie="{}",
    ),
    cpu=Cpu("Intel(R) Corporation", "Intel(R) Xeon(R) Platinum 8380", 3400),
    attributes=_ATTRIBUTES,
    serial_attribute=None,
    resets=(
        Reset.ON,
        Reset.NMI,
        Reset.GRACEFUL_SHUTDOWN,
        Reset.GRACEFUL_RESTART,
        Reset.FORCE_ON,
        Reset.FORCE_OFF,
        Reset.FORCE_RESTART,
    ),
    boot_sources=(
        BootSource.NONE,
        BootSource.PXE,
        BootSource.CD,
        BootSource.DISK,
        BootSource.SETUP,
    ),
    boot_references=((BootSource.DISK, "Boot0003"), (BootSource.CD, "Boot0001")),
    session_limit=16,
    same_state=SameState.ACCEPTED,
    override_mode=OverrideMode.KEPT,
    error_style=ErrorStyle.WHOLE,
    action_answer=ActionAnswer.EMPTY,
    sku_is_serial=False,
    shows_transitions=False,
    needs_if_match=False,
    weak_etags=False,
    expands=True,
    gpus_are_processors=True,
    has_sensors=True,
    registry_gzip=False,
)
