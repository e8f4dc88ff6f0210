"""HPE: the paths, attribute names and quirks of iLO 6 on a ProLiant with AMD processors.

Sources: HPE's server management portal (Bios resource definitions of iLO 6: ``bios`` and
``bios/settings``, the latter with every attribute; ``Bios.ResetBios`` stands under the settings;
message registry iLO.2.19); attribute names as seen on a DL385 Gen10 Plus v2. Quirks, each met by
clients in the field:

- Messages are ids and arguments without text; ``error.code`` is ``iLO.0.10.ExtendedInfo``, in
  successes too (python-ilorest; NVIDIA's libredfish reads ``SystemResetRequired`` there).
- A reset into the present power state is a 400 InvalidOperationForSystemState (sushy,
  ``connector.py``).
- ``BootSourceOverrideMode`` cannot be written (community.general, issue 3509).
- The attribute registry is compressed, and refused to clients that do not take that (sushy,
  ``connector.py``).
- Ejecting from an empty drive is a 400 (NoVirtualMediaConnectionAvailable of the registry).
- Attributes that a workload profile sets can be changed under the profile ``Custom`` alone (the
  registry's dependencies; HPE's workload performance guide).
- Accelerators are PCIe devices of the chassis; the processors are CPUs.
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
_CUSTOM = ("WorkloadProfile", "Custom")

_ATTRIBUTES = (
    BiosAttribute("SerialNumber", "Serial Number", "", read_only=True),
    BiosAttribute(
        "WorkloadProfile",
        "Workload Profile",
        "GeneralPowerEfficientCompute",
        (
            "GeneralPowerEfficientCompute",
            "GeneralPeakFrequencyCompute",
            "GeneralThroughputCompute",
            "Virtualization-PowerEfficient",
            "Virtualization-MaxPerformance",
            "LowLatency",
            "HighPerformanceCompute(HPC)",
            "I/OThroughput",
            "Custom",
        ),
    ),
    BiosAttribute(
        "PowerRegulator",
        "Power Regulator",
        "DynamicPowerSavings",
        ("DynamicPowerSavings", "StaticLowPower", "StaticHighPerf", "OsControl"),
        unlocked_by=_CUSTOM,
    ),
    BiosAttribute(
        "MinProcIdlePower",
        "Minimum Processor Idle Power Core C-State",
        "C6",
        ("C6", "NoCStates"),
        unlocked_by=_CUSTOM,
    ),
    BiosAttribute(
        "NumaMemoryDomainsPerSocket",
        "NUMA memory domains per socket",
        "Auto",
        (
            "Auto",
            "OneMemoryDomainPerSocket",
            "TwoMemoryDomainsPerSocket",
            "FourMemoryDomainsPerSocket",
        ),
        unlocked_by=_CUSTOM,
    ),
    BiosAttribute(
        "NumaGroupSizeOpt", "NUMA Group Size Optimization", "Flat", ("Clustered", "Flat")
    ),
    *(
        BiosAttribute(
            f"PciSlot{slot}Aspm", f"PCI Slot {slot} ASPM", "Auto", ("Auto", "Disabled", "AspmL1")
        )
        for slot in range(1, 5)
    ),
    BiosAttribute("ProcAmdIoVt", "AMD I/O Virtualization Technology", "Disabled", _SWITCH),
    BiosAttribute("Sriov", "SR-IOV", "Disabled", _SWITCH),
    BiosAttribute("ProcSMT", "AMD SMT Option", "Enabled", _SWITCH),
    BiosAttribute("BootMode", "Boot Mode", "Uefi", ("Uefi", "LegacyBios")),
)

HPE = Vendor(
    maker="HPE",
    manufacturer="HPE",
    bmc_product="iLO 6",
    bmc_model="iLO 6",
    bmc_version="iLO 6 v1.71",
    bios_version="A55 v2.62 (03/06/2025)",
    redfish_version="1.20.0",
    system_id="1",
    manager_id="1",
    chassis_id="1",
    account_id="1",
    registry_id="BiosAttributeRegistryA55.v1_3_40",
    registry_path="/redfish/v1/registrystore/registries/en/biosattributeregistrya55.v1_3_40",
    bios=BiosPaths(
        bios="bios",
        settings="settings",
        reset="settings/Actions/Bios.ResetBios",
        shows_all=True,
        job="",
    ),
    media=MediaRules(
        slots=(
            MediaSlot("1", "", ("Floppy", "USBStick")),
            MediaSlot("2", "", ("CD", "DVD")),
        ),
        under_system=False,
        boot_source=BootSource.CD,
        insert_takes=frozenset({"Image", "Inserted", "WriteProtected", "UserName", "Password"}),
        insert_needs=("Image",),
        refuses_empty_eject=True,
    ),
    names=PartNames(
        processor="{}",
        gpu="DA{:06x}",
        dimm="proc{bank_number}dimm{slot}",
        adapter="DC{:06x}",
        infiniband="DC{:06x}",
        port="{port}",
        storage="DE00B000",
        pcie="{}",
    ),
    cpu=Cpu("AMD", "AMD EPYC 9654 96-Core Processor", 3700),
    attributes=_ATTRIBUTES,
    serial_attribute="SerialNumber",
    resets=(
        Reset.ON,
        Reset.FORCE_OFF,
        Reset.GRACEFUL_SHUTDOWN,
        Reset.FORCE_RESTART,
        Reset.NMI,
        Reset.PUSH_POWER_BUTTON,
        Reset.GRACEFUL_RESTART,
    ),
    boot_sources=(
        BootSource.NONE,
        BootSource.CD,
        BootSource.DISK,
        BootSource.PXE,
        BootSource.HTTP,
        BootSource.SETUP,
    ),
    boot_references=((BootSource.DISK, "Boot0010"), (BootSource.CD, "Boot0012")),
    session_limit=10,
    same_state=SameState.BAD_REQUEST,
    override_mode=OverrideMode.READ_ONLY,
    error_style=ErrorStyle.TERSE,
    action_answer=ActionAnswer.EXTENDED,
    sku_is_serial=False,
    shows_transitions=False,
    needs_if_match=False,
    weak_etags=True,
    expands=True,
    gpus_are_processors=False,
    has_sensors=False,
    registry_gzip=True,
)
