"""Reading sensors: one call where a BMC shows each as a resource and expands, two elsewhere.

Schemas: Sensor and SensorCollection; Thermal (Temperatures, Fans) and Power (PowerControl), which
older firmware has in their place; PhysicalContext (DSP8010).
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from dflare.drivers.bmc.port import (
    BmcAccess,
    BmcRefusedError,
    SensorKind,
    SensorPart,
    SensorReading,
)
from dflare.drivers.bmc.redfish.client import Document, RedfishClient
from dflare.drivers.bmc.redfish.paths import Finder, link

_PARTS = {
    "GPU": SensorPart.GPU,
    "GPUSubsystem": SensorPart.GPU,
    "Accelerator": SensorPart.GPU,
    "CPU": SensorPart.CPU,
    "CPUSubsystem": SensorPart.CPU,
    "Memory": SensorPart.MEMORY,
    "MemorySubsystem": SensorPart.MEMORY,
    "Fan": SensorPart.FAN,
    "CoolingSubsystem": SensorPart.FAN,
    "PowerSupply": SensorPart.POWER_SUPPLY,
    "PowerSubsystem": SensorPart.POWER_SUPPLY,
}
_LOCATIONS = {"Intake": "intake", "Exhaust": "exhaust"}
_KINDS = {
    "Temperature": SensorKind.CELSIUS,
    "Power": SensorKind.WATTS,
    "Rotational": SensorKind.RPM,
}
_EXPAND = "?$expand=.($levels=1)"


@dataclass(frozen=True)
class _Places:
    """Where a chassis shows its sensors; empty where it has none of that kind."""

    sensors: str
    thermal: str
    power: str


class Sensors:
    """The sensors of every BMC; where they stand is remembered by address."""

    def __init__(self, client: RedfishClient, finder: Finder) -> None:
        self._client = client
        self._finder = finder
        self._places: dict[str, _Places] = {}

    async def read(self, bmc: BmcAccess) -> list[SensorReading]:
        """Every sensor that has a value now.

        Raises:
            BmcError: they cannot be read. Where they stand is looked up anew the next time.
        """
        try:
            return await self._read(bmc)
        except BmcRefusedError:
            self._places.pop(bmc.address, None)
            raise

    async def _read(self, bmc: BmcAccess) -> list[SensorReading]:
        paths = await self._finder.system(bmc)
        places = self._places.get(bmc.address)
        if places is None:
            chassis = (await self._client.get(bmc, paths.chassis)).document
            places = _Places(
                link(chassis, "Sensors"), link(chassis, "Thermal"), link(chassis, "Power")
            )
            self._places[bmc.address] = places
        # Without expansion each sensor would be a call of its own: the two old summaries are less.
        summaries = [path for path in (places.thermal, places.power) if path]
        if places.sensors and (paths.expands or not summaries):
            if paths.expands:
                collection = await self._client.get(bmc, places.sensors + _EXPAND)
                members = _listed(collection.document, "Members")
            else:
                members = await self._finder.members(bmc, places.sensors, expands=False)
            return [reading for member in members if (reading := _of_sensor(member))]
        answers = await asyncio.gather(*(self._client.get(bmc, path) for path in summaries))
        return [reading for answer in answers for reading in _of_summary(answer.document)]


def _of_sensor(sensor: Document) -> SensorReading | None:
    """A Sensor resource; None where it has no value, or measures what nobody asked for."""
    kind = _KINDS.get(str(sensor.get("ReadingType")))
    if kind is None and str(sensor.get("ReadingType")) == "Percent":
        kind = SensorKind.RATIO if sensor.get("PhysicalContext") == "Fan" else None
    value = _number(sensor.get("Reading"))
    if kind is None or value is None:
        return None
    if kind is SensorKind.RATIO:
        value /= 100
    context = str(sensor.get("PhysicalContext") or "")
    return _reading(str(sensor.get("Id") or sensor.get("Name") or ""), kind, context, value)


def _of_summary(document: Document) -> Iterator[SensorReading]:
    """The readings of Thermal or of Power."""
    for one in _listed(document, "Temperatures"):
        value = _number(one.get("ReadingCelsius"))
        if value is not None:
            context = str(one.get("PhysicalContext") or "")
            yield _reading(_name(one), SensorKind.CELSIUS, context, value)
    for one in _listed(document, "Fans"):
        value = _number(one.get("Reading"))
        if value is not None:
            percent = one.get("ReadingUnits") == "Percent"
            kind = SensorKind.RATIO if percent else SensorKind.RPM
            yield _reading(_name(one), kind, "Fan", value / 100 if percent else value)
    for one in _listed(document, "PowerControl"):
        value = _number(one.get("PowerConsumedWatts"))
        if value is not None:
            yield _reading(_name(one), SensorKind.WATTS, "Chassis", value)


def _reading(name: str, kind: SensorKind, context: str, value: float) -> SensorReading:
    part = _PARTS.get(context, SensorPart.ENCLOSURE)
    return SensorReading(name[:128], kind, part, value, _LOCATIONS.get(context, ""))


def _name(part: Document) -> str:
    return str(part.get("Name") or part.get("MemberId") or "")


def _listed(document: Document, name: str) -> list[Document]:
    return [cast("Document", one) for one in cast("list[Any]", document.get(name) or [])]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
