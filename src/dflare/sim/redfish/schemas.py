"""The published schemas that the simulated BMCs follow: DMTF DSP8010, bundle 2025.4 and before.

Each version named here stands in that bundle, so that a validator can check every resource.
"""

from functools import cache

ROOT = "/redfish/v1"

VERSIONS: dict[str, str] = {
    "AccountService": "v1_15_0",
    "AttributeRegistry": "v1_3_8",
    "Bios": "v1_2_2",
    "Chassis": "v1_25_0",
    "ComputerSystem": "v1_22_0",
    "Drive": "v1_20_0",
    "EnvironmentMetrics": "v1_4_0",
    "EthernetInterface": "v1_12_2",
    "EventService": "v1_10_2",
    "JsonSchemaFile": "v1_1_4",
    "ManagerAccount": "v1_12_0",
    "Manager": "v1_19_0",
    "ManagerNetworkProtocol": "v1_10_0",
    "Memory": "v1_19_0",
    "MessageRegistryFile": "v1_1_4",
    "NetworkAdapter": "v1_11_0",
    "NetworkDeviceFunction": "v1_9_2",
    "PCIeDevice": "v1_19_0",
    "PCIeFunction": "v1_6_0",
    "Port": "v1_13_0",
    "Power": "v1_7_2",
    "Processor": "v1_20_0",
    "Role": "v1_3_2",
    "SecureBoot": "v1_1_1",
    "Sensor": "v1_11_1",
    "ServiceRoot": "v1_17_0",
    "Session": "v1_7_1",
    "SessionService": "v1_1_9",
    "Settings": "v1_3_5",
    "SoftwareInventory": "v1_10_2",
    "Storage": "v1_17_0",
    "StorageController": "v1_8_0",
    "Task": "v1_7_3",
    "TaskService": "v1_2_1",
    "Thermal": "v1_7_2",
    "UpdateService": "v1_14_1",
    "VirtualMedia": "v1_6_4",
}

COLLECTIONS = (
    "ChassisCollection",
    "ComputerSystemCollection",
    "DriveCollection",
    "EthernetInterfaceCollection",
    "EventDestinationCollection",
    "JsonSchemaFileCollection",
    "ManagerAccountCollection",
    "ManagerCollection",
    "MemoryCollection",
    "MessageRegistryFileCollection",
    "NetworkAdapterCollection",
    "NetworkDeviceFunctionCollection",
    "PCIeDeviceCollection",
    "PCIeFunctionCollection",
    "PortCollection",
    "ProcessorCollection",
    "RoleCollection",
    "SensorCollection",
    "SessionCollection",
    "SoftwareInventoryCollection",
    "StorageCollection",
    "StorageControllerCollection",
    "TaskCollection",
    "VirtualMediaCollection",
)

_UNVERSIONED = ("Message", "Redundancy", "Resource", "RedfishError", "RedfishExtensions")
_PUBLISHED = "http://redfish.dmtf.org/schemas/v1"
_ODATA = "http://docs.oasis-open.org/odata"


def odata_type(schema: str) -> str:
    """The value of ``@odata.type`` of a resource or collection (DSP0266, 8.2)."""
    if (version := VERSIONS.get(schema)) is not None:
        return f"#{schema}.{version}.{schema}"
    return f"#{schema}.{schema}"


def schema_id(schema: str) -> str:
    """The name of a schema with its version: the ``Id`` of its JsonSchemaFile."""
    version = VERSIONS.get(schema)
    return schema if version is None else f"{schema}.{version}"


def published_json(schema: str) -> str:
    """Where DMTF publishes the JSON form of a schema."""
    return f"{_PUBLISHED}/{schema_id(schema)}.json"


@cache
def metadata_document() -> bytes:
    """``/redfish/v1/$metadata``: OData CSDL references to the schemas (DSP0266, 8.4.1)."""
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<edmx:Edmx xmlns:edmx="{_ODATA}/ns/edmx" Version="4.0">',
    ]
    for schema, version in VERSIONS.items():
        parts.append(
            f'<edmx:Reference Uri="{_PUBLISHED}/{schema}_v1.xml">'
            f'<edmx:Include Namespace="{schema}"/>'
            f'<edmx:Include Namespace="{schema}.{version}"/></edmx:Reference>'
        )
    for schema in (*COLLECTIONS, *_UNVERSIONED):
        alias = ' Alias="Redfish"' if schema == "RedfishExtensions" else ""
        space = "RedfishExtensions.v1_0_0" if schema == "RedfishExtensions" else schema
        parts.append(
            f'<edmx:Reference Uri="{_PUBLISHED}/{schema}_v1.xml">'
            f'<edmx:Include Namespace="{space}"{alias}/></edmx:Reference>'
        )
    container = f"ServiceRoot.{VERSIONS['ServiceRoot']}.ServiceContainer"
    parts.append(
        '<edmx:DataServices><Schema xmlns="http://docs.oasis-open.org/odata/ns/edm" '
        f'Namespace="Service"><EntityContainer Name="Service" Extends="{container}"/></Schema>'
        "</edmx:DataServices></edmx:Edmx>"
    )
    return "\n".join(parts).encode()
