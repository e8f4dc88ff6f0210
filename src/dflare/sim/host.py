"""One server: power, POST, boot, what runs on it, and what its disks and memory hold.

Power and boot go through one transition at a time; a new reset ends the one under way. Memory
holds its content through a warm restart and loses it when the power goes.
"""

import asyncio
import uuid
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime

from dflare.sim.agent import Agent, phone_home
from dflare.sim.clock import SimClock
from dflare.sim.config import HardwareTimes, Node
from dflare.sim.disk import ConfigDrive, DiskContent
from dflare.sim.exporters import send_measurements
from dflare.sim.faults import FaultPlan
from dflare.sim.firmware import (
    Bios,
    BootSettings,
    BootSource,
    Power,
    Progress,
    Reset,
    System,
    VirtualMedia,
)
from dflare.sim.machine import HostMachine
from dflare.sim.measurements import Measurements
from dflare.sim.media import AgentMedium, ImageStore, MediaError, read_agent_medium
from dflare.sim.network import HostNetwork
from dflare.sim.processes import HostProcesses
from dflare.sim.scheduler.slurmd import SlurmNodes, settings_of
from dflare.sim.truth import TruthLog


@dataclass(frozen=True, slots=True)
class Lab:
    """What all hosts share."""

    clock: SimClock
    log: TruthLog
    faults: FaultPlan
    times: HardwareTimes
    network: HostNetwork
    images: ImageStore
    slurm: SlurmNodes


class SameStateError(Exception):
    """A reset asks for the power state that is there already."""


class NotRunningError(Exception):
    """The act needs a tenant's system and none runs."""


class Host:
    """A simulated server. ``virtual_cd`` is the boot source that its BMC's virtual CD shows as."""

    def __init__(
        self,
        node: Node,
        lab: Lab,
        bios: dict[str, str | int],
        slots: list[str],
        virtual_cd: BootSource,
    ) -> None:
        self.node = node
        self.name = node.name
        self.lab = lab
        self.power = Power.OFF
        self.progress = Progress.NONE
        self.progress_at: datetime = lab.clock.utc()
        self.last_reset_at: datetime = lab.clock.utc()
        self.virtual_cd = virtual_cd
        self.boot = BootSettings(order=(BootSource.DISK, virtual_cd))
        self.bios = Bios(bios)
        self.secure_boot = False
        self.media = {slot: VirtualMedia() for slot in slots}
        self.asset_tag = ""
        self.indicator_on = False
        self.disks = [DiskContent(disk) for disk in node.disks]
        self.memory: list[str] = []
        self.gpu_memory: list[str] = []
        self.tpm_owned = False
        self.system: System | None = None
        self.running_keys: tuple[str, ...] = ()
        self.boot_id = ""
        self.processes = HostProcesses()
        self.measurements = Measurements(self)
        self._transition: asyncio.Task[None] | None = None
        self._program: asyncio.Task[None] | None = None

    @property
    def powered(self) -> bool:
        """Whether the host draws power (also while it turns on or off)."""
        return self.power is not Power.OFF

    def reset(self, kind: Reset) -> None:
        """Accept a reset; it is carried out in simulated time.

        Raises:
            SameStateError: the host is on or off already, as the reset would have it.
        """
        rising = self.power in (Power.ON, Power.POWERING_ON)
        if kind in (Reset.ON, Reset.FORCE_ON) and rising:
            raise SameStateError("on")
        if kind in (Reset.FORCE_OFF, Reset.GRACEFUL_SHUTDOWN) and self.power is Power.OFF:
            raise SameStateError("off")
        self.lab.log.append("reset_asked", self.name, reset=kind.value, power=self.power.value)
        if kind is Reset.NMI or self.lab.faults.hit("power_stuck", self.name) is not None:
            return
        if kind is Reset.PUSH_POWER_BUTTON:
            kind = Reset.GRACEFUL_SHUTDOWN if rising else Reset.ON
        self.last_reset_at = self.lab.clock.utc()
        self._begin(self._carry_out(kind))

    def wipe_memory(self) -> None:
        """Clear main and accelerator memory and the TPM."""
        self.memory.clear()
        self.gpu_memory.clear()
        self.tpm_owned = False
        self.lab.log.append("memory_wiped", self.name)

    def enter_rescue(self, keys: tuple[str, ...]) -> None:
        """Run a system in memory that holders of ``keys`` can enter; the agent stays beside it."""
        self.system, self.running_keys = System.RESCUE, keys
        self.lab.log.append("system_started", self.name, system="rescue", ssh_keys=keys)

    def load_gpus(self, load: Mapping[int, float]) -> None:
        """What a tenant's program does: keep accelerators busy, each from 0 to 1, until its system
        ends or another load is set.

        Raises:
            NotRunningError: no tenant's system runs.
            ValueError: there is no such accelerator, or a load is none.
        """
        if self.system is not System.TENANT:
            raise NotRunningError(f"{self.name}: no tenant's system runs")
        self.measurements.set_load(load)

    def write_secret(self, text: str) -> None:
        """What a tenant does: put ``text`` on every disk, into memory and accelerator memory.

        Raises:
            NotRunningError: no tenant's system runs.
        """
        if self.system is not System.TENANT:
            raise NotRunningError(f"{self.name}: no tenant's system runs")
        for content in self.disks:
            content.write_text(text, f"{content.disk.serial}/{self.boot_id}/{text}")
        self.memory.append(text)
        if self.node.gpus:
            self.gpu_memory.append(text)
        self.lab.log.append("secret_written", self.name, ssh_keys=self.running_keys)

    def places_of(self, text: str) -> list[dict[str, str]]:
        """Every place of the host where ``text`` still stands."""
        found = [
            {"host": self.name, "place": f"disk {content.disk.name}"}
            for content in self.disks
            if content.holds(text)
        ]
        for place, texts in (("memory", self.memory), ("gpu memory", self.gpu_memory)):
            if any(text in held for held in texts):
                found.append({"host": self.name, "place": place})
        return found

    async def fail(self) -> None:
        """Lose power at once, as with a blown supply; the host can be turned on again."""
        await self._cancel(self._transition)
        await self._halt()
        self._power_is_off("lost")

    async def stop(self) -> None:
        """End every task and process of the host."""
        await self._cancel(self._transition)
        await self._halt()

    def document(self) -> dict[str, object]:
        """The ground truth of this host."""
        return {
            "name": self.name,
            "power": self.power.value,
            "boot_progress": self.progress.value,
            "system": self.system.value if self.system else None,
            "boot_id": self.boot_id,
            "ssh_keys_running": list(self.running_keys),
            "ssh_keys_on_disk": sorted(
                {
                    key
                    for content in self.disks
                    if content.config_drive
                    for key in content.config_drive.ssh_keys
                }
            ),
            "slurm": self._slurm(),
            "disks": [content.document() for content in self.disks],
            "memory": list(self.memory),
            "gpu_memory": list(self.gpu_memory),
            "tpm_owned": self.tpm_owned,
            "bios": dict(self.bios.changed),
            "bios_pending": dict(self.bios.pending),
            "virtual_media": {slot: m.image for slot, m in self.media.items() if m.inserted},
        }

    def _slurm(self) -> dict[str, object] | None:
        """What the disks say of a Slurm node, and what runs of it."""
        for content in self.disks:
            drive = content.config_drive
            if drive is not None and (settings := settings_of(drive.vendor_data)) is not None:
                running = self.lab.slurm.running_on(self.name)
                return {**settings.document(), "running": running}
        return None

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        before, self._transition = self._transition, None
        if before is not None:
            before.cancel()
        self._transition = asyncio.create_task(work)
        self._transition.add_done_callback(self._note_crash)

    async def _carry_out(self, kind: Reset) -> None:
        times, clock = self.lab.times, self.lab.clock
        if kind in (Reset.FORCE_OFF, Reset.GRACEFUL_SHUTDOWN):
            await self._turn_off(graceful=kind is Reset.GRACEFUL_SHUTDOWN)
            return
        if kind is Reset.POWER_CYCLE or self.power is Power.POWERING_OFF:
            await self._turn_off(graceful=False)
        if self.power in (Power.OFF, Power.POWERING_ON):
            self.power = Power.POWERING_ON
            await clock.sleep(times.power_on_s)
            self.power = Power.ON
            self.lab.log.append("power_on", self.name)
        else:
            if kind is Reset.GRACEFUL_RESTART and self.system is not None:
                await clock.sleep(times.power_off_s)
            await self._halt()
            self.lab.log.append("restarted", self.name)
        await self._boot()

    async def _turn_off(self, *, graceful: bool) -> None:
        if self.power is not Power.OFF:
            self.power = Power.POWERING_OFF
            if not graceful:
                await self._halt()
            await self.lab.clock.sleep(self.lab.times.power_off_s)
        await self._halt()
        self._power_is_off("off")

    def _power_is_off(self, how: str) -> None:
        self.power = Power.OFF
        self.memory.clear()
        self.gpu_memory.clear()
        self._reached(Progress.NONE)
        self.lab.log.append("power_off", self.name, how=how)

    async def _halt(self) -> None:
        """End what runs, at once."""
        program, self._program = self._program, None
        self.system, self.running_keys = None, ()
        self.measurements.restarted()
        await self._cancel(program)
        await self.processes.kill()

    async def _boot(self) -> None:
        lab = self.lab
        self._reached(Progress.PRIMARY_PROCESSOR)
        await lab.clock.sleep(lab.times.post_s)
        if self.bios.waiting:
            await lab.clock.sleep(lab.times.bios_apply_s)
            ignored = lab.faults.hit("bios_ignored", self.name) is not None
            changed = self.bios.apply(lab.clock.utc(), ignored=ignored)
            lab.log.append("bios_applied", self.name, changed=changed, ignored=ignored)
        self._reached(Progress.HARDWARE_COMPLETE)
        sources = self.boot.take()
        if lab.faults.hit("boot_fails", self.name) is not None:
            lab.log.append("boot_failed", self.name, reason="fault")
            return
        for source in sources:
            if source is BootSource.SETUP:
                self._reached(Progress.SETUP)
                return
            if source is self.virtual_cd and (medium := await self._agent_medium()) is not None:
                self._start(self._run_agent(medium))
                return
            if source is BootSource.DISK:
                content = next((c for c in self.disks if c.bootable), None)
                if content is not None:
                    self._start(self._run_tenant(content))
                    return
        lab.log.append("boot_failed", self.name, reason="nothing bootable")

    async def _agent_medium(self) -> AgentMedium | None:
        for media in self.media.values():
            if media.inserted and media.image is not None:
                try:
                    return await read_agent_medium(media.image)
                except MediaError as error:
                    self.lab.log.append("medium_unreadable", self.name, reason=str(error))
        return None

    def _start(self, program: Coroutine[object, object, None]) -> None:
        self.boot_id = str(uuid.uuid4())
        self._reached(Progress.OS_BOOT_STARTED)
        self._program = asyncio.create_task(program)
        self._program.add_done_callback(self._note_crash)

    async def _run_agent(self, medium: AgentMedium) -> None:
        await self.lab.clock.sleep(self.lab.times.agent_boot_s)
        self.system = System.AGENT
        self._reached(Progress.OS_RUNNING)
        self.lab.log.append("system_started", self.name, system="agent", node_id=medium.node_id)
        if self.lab.faults.hit("agent_silent", self.name) is None:
            await Agent(medium, HostMachine(self), f"{self.name}/{self.boot_id}").run()
            self.lab.log.append("agent_stopped", self.name, node_id=medium.node_id)

    async def _run_tenant(self, content: DiskContent) -> None:
        await self.lab.clock.sleep(self.lab.times.os_boot_s)
        drive, image = content.config_drive, content.image
        keys = drive.ssh_keys if drive else ()
        sha256 = image.sha256 if image else None
        self.system, self.running_keys, self.tpm_owned = System.TENANT, keys, True
        self.measurements.restarted()
        self._reached(Progress.OS_RUNNING)
        self.lab.log.append(
            "system_started", self.name, system="tenant", image_sha256=sha256, ssh_keys=keys
        )
        if drive is not None:
            await asyncio.gather(
                self.lab.slurm.run(self.name, drive.vendor_data),
                self._phone_home(content, drive, sha256),
                send_measurements(
                    self, drive, HostMachine(self).has_path, f"{self.name}/{self.boot_id}"
                ),
            )

    async def _phone_home(
        self, content: DiskContent, drive: ConfigDrive, sha256: str | None
    ) -> None:
        if content.phoned_home:
            return
        body: dict[str, object] = {
            "serial": self.node.serial,
            "boot_id": self.boot_id,
            "image_sha256": sha256,
            "ssh_keys": list(drive.ssh_keys),
        }
        seed = f"{self.name}/{self.boot_id}"
        has_path = HostMachine(self).has_path
        content.phoned_home = await phone_home(drive, has_path, body, seed)

    def _reached(self, progress: Progress) -> None:
        self.progress, self.progress_at = progress, self.lab.clock.utc()

    def _note_crash(self, task: asyncio.Task[None]) -> None:
        """A program that dies of what it was sent is a fact about the host, not a silent end."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.lab.log.append("crashed", self.name, reason=f"{type(error).__name__}: {error}")

    async def _cancel(self, task: asyncio.Task[None] | None) -> None:
        """End a task of the host; a task that has ended badly is not this caller's error."""
        if task is None or task is asyncio.current_task():
            return
        task.cancel()
        await asyncio.wait([task])
