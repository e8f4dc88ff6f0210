"""The simulator's own file: what hardware stands where and how it is cabled.

It is the simulator's only source of cabling. The platform under test has its own ``site.yaml``;
a fault in one of the two files shows as a leak or as an unreachable node, as it would in the field.
"""

from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

import orjson
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Personality(StrEnum):
    """Vendor whose Redfish paths, BIOS attribute names and quirks a BMC shows."""

    DELL = "dell"
    HPE = "hpe"
    SUPERMICRO = "supermicro"
    LENOVO = "lenovo"
    NVIDIA = "nvidia"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Credentials(_Strict):
    """A user name and password that a device accepts."""

    username: str
    password: str


class Gpu(_Strict):
    """One accelerator. ``memory_gib`` is its own memory."""

    vendor: Literal["nvidia", "amd", "intel"]
    model: str
    memory_gib: int = Field(gt=0)


class Disk(_Strict):
    """One local drive; ``size_gib`` is its nominal size (content is kept sparsely)."""

    name: str
    size_gib: int = Field(gt=0)
    kind: Literal["nvme", "sata"] = "nvme"
    serial: str


class EthernetPort(_Strict):
    """A host's Ethernet port and the switch port that its cable ends in."""

    name: str
    mac: str
    speed_gbps: int = 100
    switch: str
    switch_port: str


class InfinibandPort(_Strict):
    """A host channel adapter's port; ``guid`` is 16 hexadecimal digits without prefix."""

    name: str
    guid: str = Field(pattern=r"^[0-9a-f]{16}$")
    rail: int = Field(ge=0)
    switch: str
    switch_port: str


class Node(_Strict):
    """One server: its BMC, parts and cables."""

    name: str
    serial: str
    uuid: str
    personality: Personality = Personality.DELL
    model: str
    bmc_address: str
    cpu_cores: int = Field(gt=0)
    cpu_sockets: int = Field(default=2, gt=0)
    memory_gib: int = Field(gt=0)
    gpus: tuple[Gpu, ...] = ()
    disks: tuple[Disk, ...]
    ethernet: tuple[EthernetPort, ...]
    infiniband: tuple[InfinibandPort, ...] = ()
    nvlink_domain: str | None = None


class EthernetSwitch(_Strict):
    """A leaf or spine that speaks NVUE at ``address``; ``ports`` are its front ports."""

    name: str
    address: str
    role: Literal["leaf", "spine"]
    ports: tuple[str, ...]


class UfmManager(_Strict):
    """The InfiniBand fabric manager; every InfiniBand port of the file belongs to its fabric.

    ``default_membership`` is the setting of that name in the manager's ``gv.cfg``, which no REST
    call changes: how ports that nobody configured are in 0x7fff. ``full`` lets everyone reach
    everyone.
    """

    name: str
    address: str
    default_membership: Literal["full", "limited"] = "full"


class SchedulerHost(_Strict):
    """The operator's machine that runs the controllers of Slurm clusters."""

    name: str
    address: str


class HardwareTimes(_Strict):
    """Durations in simulated seconds; all zero means hardware that answers at once."""

    power_on_s: float = 5
    power_off_s: float = 5
    post_s: float = 60
    bios_apply_s: float = 60
    os_boot_s: float = 30
    agent_boot_s: float = 30
    image_write_s: float = 90
    erase_s: float = 60
    switch_apply_s: float = 3
    ufm_job_s: float = 2


ZERO_TIMES = HardwareTimes(
    **dict.fromkeys(HardwareTimes.model_fields, 0.0)  # pyright: ignore[reportArgumentType]
)


class SimConfig(_Strict):
    """The whole file. ``*_port`` are TCP ports; 0 is refused because devices have fixed addresses.

    ``speed`` is simulated seconds per wall second (1 to 600). ``scheduler`` has a port and
    credentials too, where it is there.
    """

    seed: int = 1
    speed: float = Field(default=60, ge=1, le=600)
    times: HardwareTimes = HardwareTimes()
    bmc_port: int = Field(gt=0)
    nvue_port: int = Field(gt=0)
    ufm_port: int = Field(gt=0)
    scheduler_port: int | None = Field(default=None, gt=0)
    control_address: str = "127.0.0.1"
    control_port: int = Field(gt=0)
    bmc_credentials: Credentials
    nvue_credentials: Credentials
    ufm_credentials: Credentials
    scheduler_credentials: Credentials | None = None
    nodes: tuple[Node, ...]
    switches: tuple[EthernetSwitch, ...]
    ufm: UfmManager | None = None
    scheduler: SchedulerHost | None = None

    @model_validator(mode="after")
    def _scheduler_is_whole(self) -> Self:
        given = (self.scheduler, self.scheduler_port, self.scheduler_credentials)
        if any(part is None for part in given) and any(part is not None for part in given):
            raise ValueError(
                "scheduler, scheduler_port and scheduler_credentials belong together: give all or "
                "none"
            )
        return self

    @model_validator(mode="after")
    def _cables_end_somewhere(self) -> Self:
        front = {(s.name, p) for s in self.switches for p in s.ports}
        used: set[tuple[str, str]] = set()
        for node in self.nodes:
            for port in node.ethernet:
                end = (port.switch, port.switch_port)
                if end not in front:
                    raise ValueError(f"{node.name} {port.name}: no port {end[1]} on {end[0]}")
                if end in used:
                    raise ValueError(f"{node.name} {port.name}: {end} holds another cable already")
                used.add(end)
        for what, values in (
            ("node name", [n.name for n in self.nodes]),
            ("BMC address", [n.bmc_address for n in self.nodes]),
            ("serial", [n.serial for n in self.nodes]),
            ("MAC", [p.mac for n in self.nodes for p in n.ethernet]),
            ("GUID", [p.guid for n in self.nodes for p in n.infiniband]),
        ):
            if len(set(values)) != len(values):
                twice = next(v for v in values if values.count(v) > 1)
                raise ValueError(f"{what} {twice} stands twice")
        if self.ufm is None and any(n.infiniband for n in self.nodes):
            raise ValueError("nodes have InfiniBand ports but the file names no ufm")
        return self


def load(path: Path) -> SimConfig:
    """Read the file at ``path`` (YAML or JSON).

    Raises:
        OSError: it cannot be read.
        pydantic.ValidationError: it is not a valid file; the message names the key.
    """
    content = path.read_bytes()
    try:
        # JSON is YAML too, and its parser needs a hundredth of the time for a large fleet.
        document: object = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = yaml.load(content, Loader=yaml.CSafeLoader)
    return SimConfig.model_validate(document)
