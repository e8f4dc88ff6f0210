"""Dell: the paths, attribute names and quirks of iDRAC 9 on a PowerEdge.

Sources: Dell iDRAC9 Redfish API guide (resource paths, ``@Redfish.Settings`` on Bios, jobs named
``JID_…``); attribute names as seen on an R750.
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

_SWITCH = ("Enabled", "Disabled")

_ATTRIBUTES = (
    BiosAttribute("SystemServiceTag", "System Service Tag", "", read_only=True),
    BiosAttribute("SystemBiosVersion", "System BIOS Version", "1.15.2", read_only=True),
    BiosAttribute(
        "SysProfile",
        "System Profile",
        "PerfPerWattOptimizedDapc",
        (
            "PerfPerWattOptimizedDapc",
            "PerfPerWattOptimizedOs",
            "PerfOptimized",
            "PerfWorkStationOptimized",
            "Custom",
        ),
    ),
    BiosAttribute("ProcCStates", "C States", "Enabled", ("Enabled", "Disabled", "Autonomous")),
    BiosAttribute("ProcC1E", "C1E", "Enabled", _SWITCH),
    BiosAttribute("ProcTurboMode", "Turbo Boost", "Enabled", _SWITCH),
    BiosAttribute("LogicalProc", "Logical Processor", "Enabled", _SWITCH),
    BiosAttribute("ProcVirtualization", "Virtualization Technology", "Enabled", _SWITCH),
    BiosAttribute("SubNumaCluster", "Sub NUMA Cluster", "Disabled", ("Disabled", "2-way", "4-way")),
    BiosAttribute("NodeInterleave", "Node Interleaving", "Disabled", _SWITCH),
    BiosAttribute("MemOpMode", "Memory Operating Mode", "OptimizerMode", ("OptimizerMode",)),
    BiosAttribute("PcieAspmL1", "PCI ASPM L1 Link Power Management", "Enabled", _SWITCH),
    BiosAttribute("SriovGlobalEnable", "SR-IOV Global Enable", "Disabled", _SWITCH),
    BiosAttribute("MmioAbove4Gb", "Memory Mapped I/O above 4 GB", "Enabled", _SWITCH),
    BiosAttribute("BootMode", "Boot Mode", "Uefi", ("Uefi", "Bios")),
    BiosAttribute("TpmSecurity", "TPM Security", "On", ("On", "Off")),
    BiosAttribute("AcPwrRcvry", "AC Power Recovery", "Last", ("Last", "On", "Off")),
    BiosAttribute("AcPwrRcvryUserDelay", "User Defined Delay", 120, bounds=(120, 600)),
)

DELL = Vendor(
    maker="Dell",
    manufacturer="Dell Inc.",
    bmc_product="Integrated Dell Remote Access Controller",
    bmc_model="16G Monolithic",
    bmc_version="7.10.50.00",
    bios_version="1.15.2",
    redfish_version="1.20.1",
    system_id="System.Embedded.1",
    manager_id="iDRAC.Embedded.1",
    chassis_id="System.Embedded.1",
    account_id="2",
    registry_id="BiosAttributeRegistry.v1_0_7",
    registry_path="/redfish/v1/Systems/System.Embedded.1/Bios/BiosRegistry",
    bios=BiosPaths(
        bios="Bios",
        settings="Settings",
        reset="Actions/Bios.ResetBios",
        shows_all=False,
        job="JID_",
    ),
    media=MediaRules(
        slots=(
            MediaSlot("CD", "1", ("CD", "DVD")),
            MediaSlot("RemovableDisk", "2", ("USBStick",)),
        ),
        under_system=True,
        boot_source=BootSource.CD,
        insert_takes=frozenset(
            {
                "Image",
                "Inserted",
                "WriteProtected",
                "TransferMethod",
                "TransferProtocolType",
                "UserName",
                "Password",
            }
        ),
        insert_needs=("Image",),
        refuses_empty_eject=False,
    ),
    names=PartNames(
        processor="CPU.Socket.{}",
        gpu="Video.Slot.{}-1",
        dimm="DIMM.Socket.{bank}{slot}",
        adapter="NIC.Slot.{}",
        infiniband="InfiniBand.Slot.{}",
        port="{adapter}-{port}",
        storage="CPU.1",
        pcie="{}-0",
    ),
    cpu=Cpu("Intel", "Intel(R) Xeon(R) Platinum 8480+", 3800),
    attributes=_ATTRIBUTES,
    serial_attribute="SystemServiceTag",
    resets=tuple(kind for kind in Reset if kind is not Reset.FORCE_ON),
    boot_sources=(
        BootSource.NONE,
        BootSource.CD,
        BootSource.DISK,
        BootSource.PXE,
        BootSource.HTTP,
        BootSource.SETUP,
    ),
    boot_references=((BootSource.DISK, "Boot0000"), (BootSource.CD, "Boot0001")),
    session_limit=8,
    same_state=SameState.CONFLICT,
    override_mode=OverrideMode.KEPT,
    error_style=ErrorStyle.WHOLE,
    action_answer=ActionAnswer.EMPTY,
    sku_is_serial=True,
    shows_transitions=False,
    needs_if_match=False,
    weak_etags=False,
    expands=True,
    gpus_are_processors=True,
    has_sensors=True,
    registry_gzip=False,
)
