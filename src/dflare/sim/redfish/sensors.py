"""Sensors of the chassis, one resource each, and the summary of them.

Schemas: Sensor, SensorCollection, EnvironmentMetrics (DSP8010). Vendors whose firmware has none of
these show the same readings in Thermal and Power alone (``chassis``).
"""

from dataclasses import dataclass
from urllib.parse import quote

from dflare.sim.redfish.bmc import OK, Bmc, Document, collection, links, resource
from dflare.sim.redfish.routing import RouteTable, missing
from dflare.sim.redfish.schemas import ROOT

table = RouteTable()

_CHASSIS = f"{ROOT}/Chassis/<chassis>"
_SENSORS = f"{_CHASSIS}/Sensors"


@dataclass(frozen=True, slots=True)
class Reading:
    """One sensor: its id, what it measures where, and its value; none while its part is off."""

    id: str
    name: str
    kind: str
    units: str
    context: str
    value: float | None


def readings(bmc: Bmc) -> list[Reading]:
    """Every sensor of the chassis."""
    board = bmc.host.measurements.board()
    found = [
        Reading("TotalPower", "System Power", "Power", "W", "Chassis", round(board.watts, 1)),
        _celsius("InletTemp", "System Board Inlet Temp", "Intake", board.inlet_c),
        _celsius("ExhaustTemp", "System Board Exhaust Temp", "Exhaust", board.exhaust_c),
    ]
    for number, celsius in enumerate(board.cpu_c, 1):
        found.append(_celsius(f"CPU{number}Temp", f"CPU{number} Temp", "CPU", celsius))
    for number, (celsius, watts) in enumerate(zip(board.gpu_c, board.gpu_w, strict=True), 1):
        found.append(_celsius(f"GPU{number}Temp", f"GPU{number} Temp", "GPU", celsius))
        power = None if watts is None else round(watts, 1)
        found.append(Reading(f"GPU{number}Power", f"GPU{number} Power", "Power", "W", "GPU", power))
    for number, rpm in enumerate(board.fan_rpm, 1):
        name = f"Fan{number}"
        found.append(Reading(name, f"System Board {name}", "Rotational", "RPM", "Fan", rpm))
    return found


def status(reading: Reading) -> Document:
    """A Status of a part that measures, or of one without power."""
    return OK if reading.value is not None else {"State": "UnavailableOffline"}


@table.get(_SENSORS, "SensorCollection")
def sensors(bmc: Bmc) -> Document:
    """The sensors."""
    path = f"{bmc.chassis_path}/Sensors"
    members = links(path, [reading.id for reading in readings(bmc)])
    return collection(path, "SensorCollection", "Sensors", members)


@table.get(f"{_SENSORS}/{{sensor}}", "Sensor")
def sensor(bmc: Bmc, name: str) -> Document:
    """One sensor."""
    path = f"{bmc.chassis_path}/Sensors/{quote(name)}"
    reading = next((one for one in readings(bmc) if one.id == name), None)
    if reading is None:
        raise missing(path)
    return resource(
        path,
        "Sensor",
        reading.name,
        ReadingType=reading.kind,
        ReadingUnits=reading.units,
        PhysicalContext=reading.context,
        Reading=reading.value,
        Status=status(reading),
    )


@table.get(f"{_CHASSIS}/EnvironmentMetrics", "EnvironmentMetrics")
def environment(bmc: Bmc) -> Document:
    """The power of the whole and the air that it takes in."""
    path, by_id = bmc.chassis_path, {reading.id: reading for reading in readings(bmc)}

    def excerpt(name: str) -> Document:
        return {"DataSourceUri": f"{path}/Sensors/{name}", "Reading": by_id[name].value}

    return resource(
        f"{path}/EnvironmentMetrics",
        "EnvironmentMetrics",
        "Environment Metrics",
        PowerWatts=excerpt("TotalPower"),
        TemperatureCelsius=excerpt("InletTemp"),
    )


def _celsius(identity: str, name: str, context: str, value: float | None) -> Reading:
    rounded = None if value is None else round(value, 1)
    return Reading(identity, name, "Temperature", "Cel", context, rounded)
