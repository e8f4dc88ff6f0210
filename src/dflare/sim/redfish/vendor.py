"""What may differ between vendors' BMCs: paths, names, BIOS attributes and quirks.

Each vendor is a table of its own beside this file; ``personality`` finds it.
"""

from dataclasses import dataclass

from dflare.sim.config import Node


@dataclass(frozen=True, slots=True)
class BiosAttribute:
    """One row of a vendor's attribute registry.

    An enumeration has ``values``; an integer has ``bounds``; a string has neither.
    """

    name: str
    label: str
    default: str | int
    values: tuple[str, ...] = ()
    bounds: tuple[int, int] | None = None
    read_only: bool = False

    @property
    def kind(self) -> str:
        """AttributeRegistry.AttributeType."""
        if self.values:
            return "Enumeration"
        return "Integer" if self.bounds else "String"


@dataclass(frozen=True, slots=True)
class MediaSlot:
    """A virtual drive; ``id`` is its name under the manager, ``system_id`` under the system."""

    id: str
    system_id: str
    media_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor's personality.

    ``bios_settings`` is the last part of the path that takes BIOS changes. ``sku_is_serial``: the
    SKU shows the serial number, as Dell's service tags do. ``refuses_same_state``: a reset into the
    present power state is a 409. ``shows_transitions``: PowerState may read PoweringOn and
    PoweringOff.
    """

    manufacturer: str
    bmc_product: str
    bmc_model: str
    bmc_version: str
    bios_version: str
    redfish_version: str
    system_id: str
    manager_id: str
    chassis_id: str
    registry_id: str
    registry_path: str
    bios_settings: str
    media_slots: tuple[MediaSlot, ...]
    attributes: tuple[BiosAttribute, ...]
    serial_attribute: str | None
    processor_id: str
    gpu_id: str
    session_limit: int
    sku_is_serial: bool
    refuses_same_state: bool
    shows_transitions: bool

    def bios_defaults(self, node: Node) -> dict[str, str | int]:
        """Every attribute as it left the factory."""
        values = {attribute.name: attribute.default for attribute in self.attributes}
        if self.serial_attribute is not None:
            values[self.serial_attribute] = node.serial
        return values
