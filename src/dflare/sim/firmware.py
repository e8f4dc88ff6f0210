"""What a host's firmware keeps: boot settings, virtual media, BIOS attributes, progress."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Power(StrEnum):
    """Redfish Resource.PowerState."""

    ON = "On"
    OFF = "Off"
    POWERING_ON = "PoweringOn"
    POWERING_OFF = "PoweringOff"


class Reset(StrEnum):
    """The Redfish Resource.ResetType values that a host performs."""

    ON = "On"
    FORCE_ON = "ForceOn"
    FORCE_OFF = "ForceOff"
    GRACEFUL_SHUTDOWN = "GracefulShutdown"
    GRACEFUL_RESTART = "GracefulRestart"
    FORCE_RESTART = "ForceRestart"
    POWER_CYCLE = "PowerCycle"
    PUSH_POWER_BUTTON = "PushPowerButton"
    NMI = "Nmi"


class System(StrEnum):
    """What runs on a host."""

    AGENT = "agent"
    TENANT = "tenant"
    RESCUE = "rescue"


class Progress(StrEnum):
    """Redfish ComputerSystem.BootProgressTypes, as far as a host shows them."""

    NONE = "None"
    PRIMARY_PROCESSOR = "PrimaryProcessorInitializationStarted"
    HARDWARE_COMPLETE = "SystemHardwareInitializationComplete"
    SETUP = "SetupEntered"
    OS_BOOT_STARTED = "OSBootStarted"
    OS_RUNNING = "OSRunning"


class BootSource(StrEnum):
    """Redfish ComputerSystem.BootSource, as far as a host boots from them.

    ``UsbCd`` is Supermicro's own.
    """

    NONE = "None"
    CD = "Cd"
    DISK = "Hdd"
    PXE = "Pxe"
    HTTP = "UefiHttp"
    SETUP = "BiosSetup"
    USB_CD = "UsbCd"


class Override(StrEnum):
    """Redfish ComputerSystem.BootSourceOverrideEnabled."""

    DISABLED = "Disabled"
    ONCE = "Once"
    CONTINUOUS = "Continuous"


@dataclass(slots=True)
class BootSettings:
    """The boot override and the order that is tried after it."""

    target: BootSource = BootSource.NONE
    enabled: Override = Override.DISABLED
    mode: str = "UEFI"
    order: tuple[BootSource, ...] = (BootSource.DISK, BootSource.CD)

    def take(self) -> list[BootSource]:
        """The sources to try at this boot, best first; a one-time override is used up. Hosts are
        UEFI systems, which honour no override of Legacy mode."""
        order = list(self.order)
        honoured = self.enabled is not Override.DISABLED and self.mode == "UEFI"
        if honoured and self.target is not BootSource.NONE:
            order.insert(0, self.target)
        if self.enabled is Override.ONCE:
            self.enabled, self.target = Override.DISABLED, BootSource.NONE
        return order


@dataclass(slots=True)
class VirtualMedia:
    """One virtual drive of the BMC."""

    image: str | None = None
    inserted: bool = False
    write_protected: bool = True


@dataclass(slots=True)
class BiosJob:
    """A change of BIOS attributes that waits for the next reset, or that has been done."""

    id: str
    attributes: dict[str, str | int]
    created_at: datetime
    ended_at: datetime | None = None
    ok: bool | None = None


@dataclass(slots=True)
class Bios:
    """Attributes in force and those that wait for the next reset."""

    defaults: dict[str, str | int]
    changed: dict[str, str | int] = field(default_factory=dict[str, "str | int"])
    pending: dict[str, str | int] = field(default_factory=dict[str, "str | int"])
    reset_pending: bool = False
    jobs: list[BiosJob] = field(default_factory=list[BiosJob])
    applied_at: datetime | None = None

    def attributes(self) -> dict[str, str | int]:
        """Every attribute with the value in force."""
        return {**self.defaults, **self.changed}

    @property
    def waiting(self) -> bool:
        """Whether the next reset has something to apply."""
        return bool(self.pending) or self.reset_pending

    def stage(
        self, attributes: dict[str, str | int], now: datetime, job_prefix: str
    ) -> BiosJob | None:
        """Let ``attributes`` wait for the next reset; the last 20 jobs are remembered. There is a
        job where the BMC's jobs have names."""
        self.pending.update(attributes)
        if not job_prefix:
            return None
        number = (
            int(self.jobs[-1].id.removeprefix(job_prefix)) + 1 if self.jobs else 100_000_000_001
        )
        job = BiosJob(f"{job_prefix}{number}", dict(attributes), now)
        self.jobs = [*self.jobs[-19:], job]
        return job

    def apply(self, now: datetime, *, ignored: bool) -> dict[str, str | int]:
        """Apply what waits; returns what changed. ``ignored`` drops it instead, silently."""
        if self.reset_pending and not ignored:
            self.changed.clear()
        before = self.attributes()
        if not ignored:
            self.changed.update(self.pending)
        self.applied_at = now
        self.pending, self.reset_pending = {}, False
        for job in self.jobs:
            if job.ended_at is None:
                job.ended_at, job.ok = now, True
        return {name: value for name, value in self.attributes().items() if before[name] != value}
