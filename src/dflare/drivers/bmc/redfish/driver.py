"""``BmcDriver`` over Redfish."""

from contextlib import suppress
from typing import Any

from dflare.drivers.bmc.port import (
    BiosOutcome,
    BiosSetting,
    BmcAccess,
    BmcConflictError,
    BmcRefusedError,
    BootTarget,
    Inventory,
    Observed,
    Power,
    SensorReading,
)
from dflare.drivers.bmc.redfish.bios import BiosSettings
from dflare.drivers.bmc.redfish.client import RedfishClient
from dflare.drivers.bmc.redfish.inventory import read_inventory
from dflare.drivers.bmc.redfish.paths import Finder, SystemPaths
from dflare.drivers.bmc.redfish.sensors import Sensors
from dflare.drivers.bmc.redfish.states import observed, power_of

# Where a BMC offers "UsbCd" (Supermicro), its virtual CD is that drive and "Cd" another one.
_TARGETS = {BootTarget.CD: ("UsbCd", "Cd"), BootTarget.DISK: ("Hdd",)}


class RedfishDriver:
    """All BMCs of a process. ``ca_file`` holds the authorities that sign their certificates."""

    def __init__(self, ca_file: str = "") -> None:
        self._client = RedfishClient(ca_file)
        self._finder = Finder(self._client)
        self._bios = BiosSettings(self._client, self._finder)
        self._sensors = Sensors(self._client, self._finder)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def inventory(self, bmc: BmcAccess) -> Inventory:
        """See ``BmcDriver``. Paths are looked up anew: enrolment follows a change of hardware."""
        self._finder.forget(bmc)
        return await read_inventory(self._client, self._finder, bmc)

    async def observe(self, bmc: BmcAccess) -> Observed:
        """See ``BmcDriver``."""
        _, answer = await self._finder.read_system(bmc)
        return observed(answer.document)

    async def ensure_power(self, bmc: BmcAccess, wanted: Power) -> Observed:
        """See ``BmcDriver``."""
        paths, answer = await self._finder.read_system(bmc)
        if power_of(answer.document) not in (wanted, Power.CHANGING):
            # Dell answers 409 where the server is on its way there: look once more.
            with suppress(BmcConflictError):
                await self._reset(bmc, paths, "On" if wanted is Power.ON else "ForceOff")
            answer = await self._client.get(bmc, paths.system)
        return observed(answer.document)

    async def boot(self, bmc: BmcAccess, target: BootTarget | None) -> None:
        """See ``BmcDriver``."""
        paths, answer = await self._finder.read_system(bmc)
        if target is not None:
            boot: dict[str, Any] = answer.document.get("Boot") or {}
            wanted = _override(boot, target)
            if any(boot.get(name) != value for name, value in wanted.items()):
                await self._client.patch(bmc, paths.system, {"Boot": wanted}, answer.etag)
        off = power_of(answer.document) is Power.OFF
        await self._reset(bmc, paths, "On" if off else "ForceRestart")

    async def ensure_media(self, bmc: BmcAccess, url: str | None) -> str | None:
        """See ``BmcDriver``."""
        media = await self._finder.media(bmc)
        answer = await self._client.get(bmc, media.slot)
        slot = answer.document
        present = str(slot["Image"]) if slot.get("Inserted") and slot.get("Image") else None
        if present == url:
            return present
        if present is not None:
            if media.eject:
                await self._client.post(bmc, media.eject, {})
            else:
                empty: dict[str, Any] = {"Image": None, "Inserted": False}
                await self._client.patch(bmc, media.slot, empty, answer.etag)
                answer = await self._client.get(bmc, media.slot)
        if url is not None:
            if media.insert:
                # Inserted and WriteProtected are true where they are left out, and Supermicro
                # refuses both.
                await self._client.post(bmc, media.insert, {"Image": url})
            else:
                body = {"Image": url, "Inserted": True, "WriteProtected": True}
                await self._client.patch(bmc, media.slot, body, answer.etag)
        return present

    async def ensure_bios(self, bmc: BmcAccess, settings: frozenset[BiosSetting]) -> BiosOutcome:
        """See ``BmcDriver``."""
        return await self._bios.ensure(bmc, settings)

    async def reset_bios(self, bmc: BmcAccess) -> bool:
        """See ``BiosDefaults``."""
        return await self._bios.reset(bmc)

    async def changed_bios(self, bmc: BmcAccess) -> tuple[str, ...]:
        """See ``BiosDefaults``."""
        return await self._bios.changed(bmc)

    async def sensors(self, bmc: BmcAccess) -> list[SensorReading]:
        """See ``BmcSensors``."""
        return await self._sensors.read(bmc)

    async def _reset(self, bmc: BmcAccess, paths: SystemPaths, kind: str) -> None:
        if paths.resets and kind not in paths.resets:
            raise BmcRefusedError(f"{bmc.address} offers no reset {kind}")
        await self._client.post(bmc, paths.reset, {"ResetType": kind})


def _override(boot: dict[str, Any], target: BootTarget) -> dict[str, str]:
    """The change of Boot that makes one boot go to ``target``, in the BMC's own words.

    The mode is named only where the BMC lists the modes that it takes: some forget it where it is
    left out (Supermicro), others refuse it whatever it is (iLO).
    """
    offered: list[str] = boot.get("BootSourceOverrideTarget@Redfish.AllowableValues") or []
    modes: list[str] = boot.get("BootSourceOverrideMode@Redfish.AllowableValues") or []
    names = _TARGETS[target]
    change = {
        "BootSourceOverrideEnabled": "Once",
        "BootSourceOverrideTarget": next((name for name in names if name in offered), names[-1]),
    }
    if "UEFI" in modes:
        change["BootSourceOverrideMode"] = "UEFI"
    return change
