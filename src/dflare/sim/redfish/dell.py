"""Dell: the paths, attribute names and quirks of iDRAC 9 on a PowerEdge.

Sources: Dell iDRAC9 Redfish API guide (resource paths, ``@Redfish.Settings`` on Bios, jobs named
``JID_…``); attribute names as seen on an R750.
"""

from dflare.sim.redfish.vendor import BiosAttribute, MediaSlot, Vendor

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
    BiosAttribute("BootMode", "Boot Mode", "Uefi", ("Uefi", "Bios")),
    BiosAttribute("TpmSecurity", "TPM Security", "On", ("On", "Off")),
    BiosAttribute("AcPwrRcvry", "AC Power Recovery", "Last", ("Last", "On", "Off")),
    BiosAttribute("AcPwrRcvryUserDelay", "User Defined Delay", 120, bounds=(120, 600)),
)

DELL = Vendor(
    manufacturer="Dell Inc.",
    bmc_product="Integrated Dell Remote Access Controller",
    bmc_model="16G Monolithic",
    bmc_version="7.10.50.00",
    bios_version="1.15.2",
    redfish_version="1.20.1",
    system_id="System.Embedded.1",
    manager_id="iDRAC.Embedded.1",
    chassis_id="System.Embedded.1",
    registry_id="BiosAttributeRegistry.v1_0_7",
    registry_path="/redfish/v1/Systems/System.Embedded.1/Bios/BiosRegistry",
    bios_settings="Settings",
    media_slots=(
        MediaSlot("CD", "1", ("CD", "DVD")),
        MediaSlot("RemovableDisk", "2", ("USBStick",)),
    ),
    attributes=_ATTRIBUTES,
    serial_attribute="SystemServiceTag",
    processor_id="CPU.Socket.{}",
    gpu_id="Video.Slot.{}-1",
    session_limit=8,
    sku_is_serial=True,
    refuses_same_state=True,
    shows_transitions=False,
)
