"""The Chassis: network adapters with their ports and functions, power and temperature.

The Ethernet ports share one adapter; each InfiniBand port has an adapter of its own, as
single-port channel adapters do.
"""

from dataclasses import dataclass
from urllib.parse import quote

from dflare.sim.config import EthernetPort, InfinibandPort
from dflare.sim.redfish import sensors
from dflare.sim.redfish.bmc import OK, Bmc, Document, collection, link, links, resource
from dflare.sim.redfish.routing import RouteTable, missing
from dflare.sim.redfish.schemas import ROOT

table = RouteTable()

_CHASSIS = f"{ROOT}/Chassis/<chassis>"
_ADAPTERS = f"{_CHASSIS}/NetworkAdapters"
_BOARD_WATTS = 450
_GPU_WATTS = 700
_CRITICAL_C = {"Intake": 47, "Exhaust": 75}


@dataclass(frozen=True, slots=True)
class _Adapter:
    id: str
    model: str
    ports: dict[str, EthernetPort | InfinibandPort]


@table.get(f"{ROOT}/Chassis", "ChassisCollection")
def chassis_collection(bmc: Bmc) -> Document:
    """The one chassis."""
    members = [link(bmc.chassis_path)]
    return collection(f"{ROOT}/Chassis", "ChassisCollection", "Chassis", members)


@table.get(_CHASSIS, "Chassis")
def chassis(bmc: Bmc) -> Document:
    """The chassis."""
    path, node = bmc.chassis_path, bmc.host.node
    own: Document = {}
    if bmc.vendor.has_sensors:
        own = {name: link(f"{path}/{name}") for name in ("Sensors", "EnvironmentMetrics")}
    return resource(
        path,
        "Chassis",
        "Computer System Chassis",
        **own,
        ChassisType="RackMount",
        Manufacturer=bmc.vendor.manufacturer,
        Model=node.model,
        SerialNumber=node.serial,
        PowerState="On" if bmc.host.powered else "Off",
        Status=OK,
        NetworkAdapters=link(f"{path}/NetworkAdapters"),
        PCIeDevices=link(f"{path}/PCIeDevices"),
        Power=link(f"{path}/Power"),
        Thermal=link(f"{path}/Thermal"),
        Links={
            "ComputerSystems": [link(bmc.system_path)],
            "ManagedBy": [link(bmc.manager_path)],
        },
    )


@table.get(_ADAPTERS, "NetworkAdapterCollection")
def adapters(bmc: Bmc) -> Document:
    """The network adapters."""
    path = f"{bmc.chassis_path}/NetworkAdapters"
    members = links(path, list(_adapters(bmc)))
    return collection(path, "NetworkAdapterCollection", "Network Adapters", members)


@table.get(f"{_ADAPTERS}/{{adapter}}", "NetworkAdapter")
def adapter(bmc: Bmc, name: str) -> Document:
    """One network adapter."""
    found = _find(bmc, name)
    path = _adapter_path(bmc, found)
    return resource(
        path,
        "NetworkAdapter",
        f"Network Adapter {name}",
        Manufacturer="NVIDIA",
        Model=found.model,
        SerialNumber=f"{bmc.host.node.serial}-{name}",
        Status=OK,
        Ports=link(f"{path}/Ports"),
        NetworkDeviceFunctions=link(f"{path}/NetworkDeviceFunctions"),
        Controllers=[
            {
                "FirmwarePackageVersion": "28.39.2048",
                "ControllerCapabilities": {
                    "NetworkPortCount": len(found.ports),
                    "NetworkDeviceFunctionCount": len(found.ports),
                },
                "Links": {
                    "Ports": links(f"{path}/Ports", list(found.ports)),
                    "NetworkDeviceFunctions": links(
                        f"{path}/NetworkDeviceFunctions", list(found.ports)
                    ),
                },
            }
        ],
    )


@table.get(f"{_ADAPTERS}/{{adapter}}/Ports", "PortCollection")
def ports(bmc: Bmc, name: str) -> Document:
    """The ports of an adapter."""
    found = _find(bmc, name)
    path = f"{_adapter_path(bmc, found)}/Ports"
    return collection(path, "PortCollection", "Ports", links(path, list(found.ports)))


@table.get(f"{_ADAPTERS}/{{adapter}}/Ports/{{port}}", "Port")
def port(bmc: Bmc, name: str, port_id: str) -> Document:
    """One port: its MAC address, or its GUID and that of its node."""
    found, physical = _find_port(bmc, name, port_id)
    path = f"{_adapter_path(bmc, found)}/Ports/{quote(port_id)}"
    document = resource(
        path,
        "Port",
        physical.name,
        PortId=physical.name,
        PortType="BidirectionalPort",
        InterfaceEnabled=True,
        Status=OK,
    )
    document["Id"] = port_id
    if isinstance(physical, EthernetPort):
        up = bmc.host.powered and bmc.host.lab.network.ethernet_up(bmc.host.name, physical.name)
        document |= {
            "PortProtocol": "Ethernet",
            "LinkNetworkTechnology": "Ethernet",
            "LinkStatus": "LinkUp" if up else "LinkDown",
            "LinkState": "Enabled",
            "MaxSpeedGbps": physical.speed_gbps,
            "CurrentSpeedGbps": physical.speed_gbps if up else 0,
            "Ethernet": {"AssociatedMACAddresses": [physical.mac]},
        }
        return document
    up = bmc.host.powered and bmc.host.lab.network.infiniband_up(bmc.host.name, physical.name)
    return document | {
        "PortProtocol": "InfiniBand",
        "LinkNetworkTechnology": "InfiniBand",
        "LinkStatus": "LinkUp" if up else "LinkDown",
        "LinkState": "Enabled",
        "MaxSpeedGbps": 400,
        "CurrentSpeedGbps": 400 if up else 0,
        "InfiniBand": {
            "AssociatedPortGUIDs": [_guid(physical.guid)],
            "AssociatedNodeGUIDs": [_guid(physical.guid)],
        },
    }


@table.get(f"{_ADAPTERS}/{{adapter}}/NetworkDeviceFunctions", "NetworkDeviceFunctionCollection")
def functions(bmc: Bmc, name: str) -> Document:
    """The functions of an adapter: one a port."""
    found = _find(bmc, name)
    path = f"{_adapter_path(bmc, found)}/NetworkDeviceFunctions"
    members = links(path, list(found.ports))
    return collection(path, "NetworkDeviceFunctionCollection", "Network Functions", members)


@table.get(f"{_ADAPTERS}/{{adapter}}/NetworkDeviceFunctions/{{function}}", "NetworkDeviceFunction")
def function(bmc: Bmc, name: str, function_id: str) -> Document:
    """One function: its addresses."""
    found, physical = _find_port(bmc, name, function_id)
    base = _adapter_path(bmc, found)
    document = resource(
        f"{base}/NetworkDeviceFunctions/{quote(function_id)}",
        "NetworkDeviceFunction",
        physical.name,
        DeviceEnabled=True,
        Status=OK,
        Links={"PhysicalNetworkPortAssignment": link(f"{base}/Ports/{quote(function_id)}")},
    )
    document["Id"] = function_id
    if isinstance(physical, EthernetPort):
        addresses = {"MACAddress": physical.mac, "PermanentMACAddress": physical.mac}
        return document | {"NetDevFuncType": "Ethernet", "Ethernet": addresses}
    guid = _guid(physical.guid)
    addresses = {
        "PortGUID": guid,
        "PermanentPortGUID": guid,
        "NodeGUID": guid,
        "PermanentNodeGUID": guid,
    }
    return document | {"NetDevFuncType": "InfiniBand", "InfiniBand": addresses}


@table.get(f"{_CHASSIS}/Power", "Power")
def power(bmc: Bmc) -> Document:
    """What the chassis draws."""
    path = f"{bmc.chassis_path}/Power"
    capacity = 2 * (_BOARD_WATTS + _GPU_WATTS * len(bmc.host.node.gpus))
    return resource(
        path,
        "Power",
        "Power",
        PowerControl=[
            {
                "@odata.id": f"{path}#/PowerControl/0",
                "MemberId": "0",
                "Name": "System Power Control",
                "PowerConsumedWatts": round(bmc.host.measurements.board().watts),
                "PowerCapacityWatts": capacity,
                "Status": OK,
            }
        ],
    )


@table.get(f"{_CHASSIS}/Thermal", "Thermal")
def thermal(bmc: Bmc) -> Document:
    """Temperatures, and how fast the fans turn, in percent."""
    path = f"{bmc.chassis_path}/Thermal"
    found = sensors.readings(bmc)
    temperatures = [reading for reading in found if reading.kind == "Temperature"]
    board = bmc.host.measurements.board()
    return resource(
        path,
        "Thermal",
        "Thermal",
        Temperatures=[
            {
                "@odata.id": f"{path}#/Temperatures/{number}",
                "MemberId": str(number),
                "Name": reading.name,
                "PhysicalContext": reading.context,
                "ReadingCelsius": reading.value,
                "UpperThresholdCritical": _CRITICAL_C.get(reading.context, 95),
                "Status": sensors.status(reading),
            }
            for number, reading in enumerate(temperatures)
        ],
        Fans=[
            {
                "@odata.id": f"{path}#/Fans/{number}",
                "MemberId": str(number),
                "Name": f"Fan {number + 1}",
                "PhysicalContext": "Fan",
                "Reading": board.fan_percent(number),
                "ReadingUnits": "Percent",
                "Status": OK,
            }
            for number in range(len(board.fan_rpm))
        ],
    )


def _adapters(bmc: Bmc) -> dict[str, _Adapter]:
    node = bmc.host.node
    names = bmc.vendor.names
    found: dict[str, _Adapter] = {}
    if node.ethernet:
        name = names.adapter.format(1)
        numbered = {
            names.port.format(adapter=name, port=n): port for n, port in enumerate(node.ethernet, 1)
        }
        found[name] = _Adapter(name, "ConnectX-7 Ethernet", {**numbered})
    for slot, port in enumerate(node.infiniband, 2):
        name = names.infiniband.format(slot)
        port_id = names.port.format(adapter=name, port=1)
        found[name] = _Adapter(name, "ConnectX-7 InfiniBand NDR", {port_id: port})
    return found


def _find(bmc: Bmc, name: str) -> _Adapter:
    found = _adapters(bmc).get(name)
    if found is None:
        raise missing(f"{bmc.chassis_path}/NetworkAdapters/{quote(name)}")
    return found


def _find_port(bmc: Bmc, name: str, port_id: str) -> tuple[_Adapter, EthernetPort | InfinibandPort]:
    found = _find(bmc, name)
    physical = found.ports.get(port_id)
    if physical is None:
        raise missing(f"{_adapter_path(bmc, found)}/Ports/{quote(port_id)}")
    return found, physical


def _adapter_path(bmc: Bmc, found: _Adapter) -> str:
    return f"{bmc.chassis_path}/NetworkAdapters/{found.id}"


def _guid(guid: str) -> str:
    """A GUID as Port.AssociatedPortGUIDs wants it: four groups of four digits."""
    return ":".join(guid[at : at + 4] for at in range(0, 16, 4))
