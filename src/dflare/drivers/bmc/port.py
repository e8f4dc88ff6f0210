"""What baremetal needs of a server's management controller (BMC).

Verbs are re-entrant: each looks at the BMC first and writes only what differs. They return what
was observed, never what was asked for. A failed call raises ``BmcError``; nothing is retried here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol


class BmcError(Exception):
    """A call to a BMC failed. ``transient``: the same call may succeed later."""

    transient = True


class BmcUnreachableError(BmcError):
    """No connection, no answer in time, or the connection broke."""


class BmcFaultError(BmcError):
    """The BMC answered that it cannot now (5xx, 409, 412, 429)."""


class BmcConflictError(BmcFaultError):
    """The server is, or is becoming, what was asked for (409)."""


class BmcRefusedError(BmcError):
    """The BMC refuses for good: wrong credentials, a missing ability, a malformed request."""

    transient = False


@dataclass(frozen=True)
class BmcAccess:
    """How to reach a BMC. ``address`` is ``host:port``; the password never shows in ``repr``."""

    address: str
    username: str
    password: str = field(repr=False)
    vendor: str = ""


class Power(StrEnum):
    """Whether the server draws power; ``changing`` is neither for sure."""

    ON = "on"
    OFF = "off"
    CHANGING = "changing"


class BootTarget(StrEnum):
    """Where a one-time boot goes."""

    CD = "cd"
    DISK = "disk"


@dataclass(frozen=True)
class Observed:
    """A server as its BMC shows it.

    ``os_running`` is that of ``BootProgress``; ``last_reset_at`` and ``progress_at`` are the BMC's
    own clock, to be compared with each other only. ``health`` is ``OK``, ``Warning``, ``Critical``
    or empty.
    """

    power: Power
    boot_progress: str
    os_running: bool
    progress_at: datetime | None
    last_reset_at: datetime | None
    health: str


class GpuMaker(StrEnum):
    """Who made an accelerator."""

    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"


@dataclass(frozen=True)
class Inventory:
    """What stands in the server. MACs are lower case with colons, GUIDs 16 hexadecimal digits.

    ``gpu_makers`` are those that are known of its GPUs. ``document`` is the whole of it for people,
    JSON-like.
    """

    serial: str
    manufacturer: str
    model: str
    gpus: int
    macs: frozenset[str]
    guids: frozenset[str]
    power: Power
    document: dict[str, Any]
    gpu_makers: frozenset[GpuMaker] = frozenset()


class BiosSetting(StrEnum):
    """Settings that every vendor names differently; the driver knows the names."""

    PERFORMANCE = "performance"
    C_STATES_OFF = "c_states_off"
    NUMA_PER_SOCKET = "numa_per_socket"
    ASPM_OFF = "aspm_off"
    IOMMU_ON = "iommu_on"
    SRIOV_ON = "sriov_on"
    ABOVE_4G_ON = "above_4g_on"


@dataclass(frozen=True)
class BiosOutcome:
    """Attributes in force. ``differing`` maps an attribute to (in force, wanted); they wait for a
    reset. ``staged`` says that this call staged them; ``unsupported`` settings have no attribute on
    this server.
    """

    differing: Mapping[str, tuple[str, str]]
    staged: bool
    unsupported: tuple[BiosSetting, ...]
    in_force: Mapping[str, str]

    @property
    def applied(self) -> bool:
        """Whether everything wanted is in force."""
        return not self.differing


class SensorKind(StrEnum):
    """What a sensor measures, with its unit."""

    CELSIUS = "celsius"
    WATTS = "watts"
    RPM = "rpm"
    RATIO = "ratio"
    """A fan's speed as a part of its fastest, from 0 to 1."""


class SensorPart(StrEnum):
    """What a sensor measures it of."""

    GPU = "gpu"
    CPU = "cpu"
    MEMORY = "memory"
    FAN = "fan"
    POWER_SUPPLY = "power_supply"
    ENCLOSURE = "enclosure"


@dataclass(frozen=True)
class SensorReading:
    """One value. ``id`` is the BMC's name of the sensor, ``location`` says where air is measured
    (``intake``, ``exhaust``) and is empty elsewhere."""

    id: str
    kind: SensorKind
    part: SensorPart
    value: float
    location: str = ""


class BmcDriver(Protocol):
    """A BMC's verbs. Every one may raise ``BmcError`` and returns within about 30 s."""

    async def inventory(self, bmc: BmcAccess) -> Inventory:
        """Read the whole inventory."""
        ...

    async def observe(self, bmc: BmcAccess) -> Observed:
        """Read power, boot progress and health."""
        ...

    async def ensure_power(self, bmc: BmcAccess, wanted: Power) -> Observed:
        """Ask for ``wanted`` (on, or off at once) unless it is so. The answer may show the change
        under way, or even the state before it: then ``observe`` until it is so."""
        ...

    async def boot(self, bmc: BmcAccess, target: BootTarget | None) -> None:
        """Start the server anew: reset it at once where it runs, turn it on where it is off. This
        boot, and that alone, goes to ``target``; without one it follows the server's boot order.
        Not idempotent: call it once a boot."""
        ...

    async def ensure_media(self, bmc: BmcAccess, url: str | None) -> str | None:
        """Insert the image at ``url`` as virtual CD, or eject; returns what was inserted before.
        What a boot from it brings is seen by that boot."""
        ...

    async def ensure_bios(self, bmc: BmcAccess, settings: frozenset[BiosSetting]) -> BiosOutcome:
        """Compare ``settings`` with the attributes in force and stage what differs for the next
        reset."""
        ...


class BiosDefaults(Protocol):
    """An extra ability: factory defaults."""

    async def reset_bios(self, bmc: BmcAccess) -> bool:
        """Stage factory defaults for the next reset; returns whether the BMC offers it. Does
        nothing where no attribute differs from them."""
        ...

    async def changed_bios(self, bmc: BmcAccess) -> tuple[str, ...]:
        """Writable attributes in force that differ from the registry's defaults; empty where the
        BMC offers no defaults."""
        ...


class BmcSensors(Protocol):
    """An extra ability: what the server's sensors measure, beside any system that runs on it."""

    async def sensors(self, bmc: BmcAccess) -> list[SensorReading]:
        """Read every sensor that has a value now. May raise ``BmcError``."""
        ...
