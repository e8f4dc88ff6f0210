"""What the agent can do to the hardware under it: the tasks of the agent protocol."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from dflare.sim.agent import Progress, TaskFailedError
from dflare.sim.disk import ConfigDrive, DiskContent
from dflare.sim.media import MediaError

if TYPE_CHECKING:
    from dflare.sim.host import Host

_METHODS = {"nvme": "nvme_format_crypto", "sata": "ata_secure_erase"}
_MAX_SAMPLES = 100_000
_MIB_PER_GIB = 1024

_Task = Callable[[Mapping[str, object], Progress], Awaitable[dict[str, object]]]


class HostMachine:
    """``agent.Machine`` over a simulated host."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self._tasks: dict[str, _Task] = {
            "write_image": self._write_image,
            "erase": self._erase,
            "read_back": self._read_back,
            "inventory": self._inventory,
            "rescue": self._rescue,
        }

    def has_path(self) -> bool:
        """See ``agent.Machine``."""
        return self._host.lab.network.has_path(self._host.name)

    def hello(self) -> dict[str, object]:
        """See ``agent.Machine``."""
        node = self._host.node
        return {
            "serial": node.serial,
            "boot_id": self._host.boot_id,
            "macs": [port.mac for port in node.ethernet],
            "inventory": self.inventory(),
        }

    def inventory(self) -> dict[str, object]:
        """What the agent finds in the machine; sizes in MiB and bytes as named."""
        host, node = self._host, self._host.node
        up, dead = host.lab.network.ethernet_up, host.measurements.dead_gpus()
        return {
            "serial": node.serial,
            "uuid": node.uuid,
            "model": node.model,
            "cpu": {"sockets": node.cpu_sockets, "cores": node.cpu_cores},
            "memory_mib": node.memory_gib * _MIB_PER_GIB,
            "disks": [
                {
                    "name": disk.name,
                    "serial": disk.serial,
                    "kind": disk.kind,
                    "size_bytes": disk.size_gib << 30,
                }
                for disk in node.disks
            ],
            "gpus": [
                {"vendor": g.vendor, "model": g.model, "memory_mib": g.memory_gib * _MIB_PER_GIB}
                for number, g in enumerate(node.gpus)
                if number not in dead
            ],
            "ethernet": [
                {
                    "name": port.name,
                    "mac": port.mac,
                    "speed_gbps": port.speed_gbps,
                    "link_up": up(host.name, port.name),
                }
                for port in node.ethernet
            ],
            "infiniband": [
                {"name": port.name, "guid": port.guid, "rail": port.rail}
                for port in node.infiniband
            ],
        }

    async def perform(
        self, kind: str, params: Mapping[str, object], progress: Progress
    ) -> dict[str, object]:
        """See ``agent.Machine``."""
        task = self._tasks.get(kind)
        if task is None:
            raise TaskFailedError(f"this agent knows no task {kind!r}")
        try:
            return await task(params, progress)
        except (KeyError, TypeError, ValueError) as error:
            raise TaskFailedError(f"{kind}: bad parameter: {error}") from error

    async def _write_image(
        self, params: Mapping[str, object], progress: Progress
    ) -> dict[str, object]:
        host = self._host
        disk = self._disk(params.get("disk"))
        url, wanted = str(params["image_url"]), str(params["image_sha256"])
        drive = _config_drive(cast("Mapping[str, object]", params.get("config_drive") or {}))
        try:
            image = await host.lab.images.fetch(url)
        except MediaError as error:
            raise TaskFailedError(f"image cannot be fetched: {error}") from error
        if image.sha256 != wanted:
            raise TaskFailedError(f"image has digest {image.sha256}, not {wanted}")
        await self._work(host.lab.times.image_write_s, progress, "writing image")
        corrupt = host.lab.faults.hit("image_corrupt", host.name) is not None
        found = disk.write_image(image, drive, corrupt=corrupt)
        host.lab.log.append(
            "image_written",
            host.name,
            disk=disk.disk.name,
            sha256=found,
            size=image.size,
            ssh_keys=drive.ssh_keys,
        )
        return {"disk": disk.disk.name, "sha256": found}

    async def _erase(self, params: Mapping[str, object], progress: Progress) -> dict[str, object]:
        host = self._host
        disks = self._chosen(params.get("disks"))
        await self._work(host.lab.times.erase_s, progress, "erasing")
        if host.lab.faults.hit("erase_fails", host.name) is not None:
            raise TaskFailedError("secure erase ended with a media error")
        lies = host.lab.faults.hit("erase_lies", host.name) is not None
        rows: list[dict[str, object]] = []
        for content in disks:
            if not lies:
                content.erase()
            sampled, nonzero = content.sample(0, host.boot_id)
            rows.append(
                {
                    "name": content.disk.name,
                    "serial": content.disk.serial,
                    "method": _METHODS[content.disk.kind],
                    "sectors_sampled": sampled,
                    "nonzero_sectors": 0 if lies else nonzero,
                }
            )
        host.wipe_memory()
        host.lab.log.append(
            "erased",
            host.name,
            disks=[content.disk.name for content in disks],
            blank=all(content.blank for content in disks),
        )
        return {
            "disks": rows,
            "gpu_memory_wiped": True,
            "memory_wiped": True,
            "tpm_cleared": True,
        }

    async def _read_back(
        self, params: Mapping[str, object], _progress: Progress
    ) -> dict[str, object]:
        samples = int(str(params.get("samples") or 0))
        if not 0 <= samples <= _MAX_SAMPLES:
            raise ValueError(f"samples {samples} is not between 0 and {_MAX_SAMPLES}")
        seed = str(params.get("seed") or "")
        rows: list[dict[str, object]] = []
        for content in self._host.disks:
            sampled, nonzero = await asyncio.to_thread(content.sample, samples, seed)
            rows.append(
                {
                    "name": content.disk.name,
                    "serial": content.disk.serial,
                    "sectors_sampled": sampled,
                    "nonzero_sectors": nonzero,
                }
            )
        return {"disks": rows}

    async def _inventory(
        self, _params: Mapping[str, object], _progress: Progress
    ) -> dict[str, object]:
        return self.inventory()

    async def _rescue(self, params: Mapping[str, object], _progress: Progress) -> dict[str, object]:
        keys = _texts(params["ssh_keys"])
        await self._host.lab.clock.sleep(self._host.lab.times.os_boot_s)
        self._host.enter_rescue(keys)
        return {"ssh_keys": list(keys)}

    async def _work(self, seconds: float, progress: Progress, message: str) -> None:
        """Spend ``seconds`` of simulated time; work that takes none is not worth a report."""
        if seconds <= 0:
            return
        for quarter in range(4):
            await progress(quarter * 25, message)
            await self._host.lab.clock.sleep(seconds / 4)

    def _disk(self, name: object) -> DiskContent:
        for content in self._host.disks:
            if name is None or content.disk.name == name:
                return content
        raise TaskFailedError(f"there is no disk {name!r}")

    def _chosen(self, names: object) -> list[DiskContent]:
        if names is None:
            return list(self._host.disks)
        return [self._disk(name) for name in _texts(names)]


def _config_drive(document: Mapping[str, object]) -> ConfigDrive:
    url, token = document.get("phone_home_url"), document.get("phone_home_token")
    return ConfigDrive(
        ssh_keys=_texts(document.get("ssh_keys") or ()),
        user_data=str(document.get("user_data") or ""),
        meta_data=str(document.get("meta_data") or ""),
        vendor_data=str(document.get("vendor_data") or ""),
        phone_home_url=None if url is None else str(url),
        phone_home_token=None if token is None else str(token),
    )


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is not a list")
    return tuple(str(item) for item in cast("Sequence[object]", value))
