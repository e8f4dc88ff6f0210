"""What may differ between vendors' BMCs: paths, names, BIOS attributes and quirks.

Each vendor is a table of its own beside this file; ``personality`` finds it.
"""

from dataclasses import dataclass
from enum import StrEnum

from dflare.sim.config import Node
from dflare.sim.firmware import BootSource, Reset


@dataclass(frozen=True, slots=True)
class BiosAttribute:
    """One row of a vendor's attribute registry.

    An enumeration has ``values``; an integer has ``bounds``; a string has neither. ``unlocked_by``
    is the (attribute, value) that must be in force or asked for before this one can be changed.
    """

    name: str
    label: str
    default: str | int
    values: tuple[str, ...] = ()
    bounds: tuple[int, int] | None = None
    read_only: bool = False
    unlocked_by: tuple[str, str] | None = None

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
class Cpu:
    """The processors that a vendor's server of this kind has."""

    manufacturer: str
    model: str
    max_speed_mhz: int


class SameState(StrEnum):
    """What a reset into the present power state is answered with."""

    CONFLICT = "409 ResourceInUse"
    BAD_REQUEST = "400 InvalidOperationForSystemState"
    ACCEPTED = "success, nothing happens"


class OverrideMode(StrEnum):
    """How ``BootSourceOverrideMode`` is handled in a change of Boot."""

    KEPT = "kept unless it is given"
    FORGOTTEN = "becomes Legacy unless it is given"
    READ_ONLY = "refused, whatever it is"


class ErrorStyle(StrEnum):
    """How messages are written: whole, or by id and arguments alone."""

    WHOLE = "whole"
    TERSE = "terse"


class ActionAnswer(StrEnum):
    """What an action or a change that succeeded is answered with."""

    EMPTY = "204"
    SUCCESS = "200 with a Success object"
    EXTENDED = "200 with an error object that holds a Success message"


@dataclass(frozen=True, slots=True)
class BiosPaths:
    """Where the Bios resource stands under the system.

    ``settings`` and ``reset`` are relative to it; without ``settings`` changes go to Bios itself.
    ``shows_all``: the settings object shows every attribute, not only those that wait. ``job`` is
    the start of the names of jobs that apply changes; without one a change makes no job.
    """

    bios: str
    settings: str
    reset: str
    shows_all: bool
    job: str


@dataclass(frozen=True, slots=True)
class MediaRules:
    """Virtual media: the drives and what their actions take.

    ``boot_source`` is the override target that boots the virtual CD; ``Cd`` means a drive that is
    not there where it is another one. ``insert_takes`` are the parameters of InsertMedia,
    ``insert_needs`` those that must be there. ``refuses_empty_eject``: a 400 where nothing is in
    the drive. ``by_patch``: a PATCH of the drive in place of both actions.
    """

    slots: tuple[MediaSlot, ...]
    under_system: bool
    boot_source: BootSource
    insert_takes: frozenset[str]
    insert_needs: tuple[str, ...]
    refuses_empty_eject: bool
    by_patch: bool = False


@dataclass(frozen=True, slots=True)
class PartNames:
    """Patterns of the names of parts; ``{}`` is a number from 1."""

    processor: str
    gpu: str
    dimm: str
    adapter: str
    infiniband: str
    port: str
    storage: str
    pcie: str


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor's personality.

    ``sku_is_serial``: the SKU shows the serial number, as Dell's service tags do.
    ``shows_transitions``: PowerState may read PoweringOn and PoweringOff. ``needs_if_match``: a
    PATCH without If-Match is a 428. ``weak_etags``: ETags are sent as ``W/"…"``. ``expands``: the
    query ``$expand`` is offered. ``gpus_are_processors``: accelerators stand among the processors;
    elsewhere they are PCIe devices only. ``has_sensors``: each sensor is a resource; elsewhere they
    stand in Thermal and Power only. ``registry_gzip``: the attribute registry is sent
    compressed, and a 406 to clients that refuse that. ``maker`` is ServiceRoot.Vendor.
    """

    maker: str
    manufacturer: str
    bmc_product: str
    bmc_model: str
    bmc_version: str
    bios_version: str
    redfish_version: str
    system_id: str
    manager_id: str
    chassis_id: str
    account_id: str
    registry_id: str
    registry_path: str
    bios: BiosPaths
    media: MediaRules
    names: PartNames
    cpu: Cpu
    attributes: tuple[BiosAttribute, ...]
    serial_attribute: str | None
    resets: tuple[Reset, ...]
    boot_sources: tuple[BootSource, ...]
    boot_references: tuple[tuple[BootSource, str], ...]
    session_limit: int
    same_state: SameState
    override_mode: OverrideMode
    error_style: ErrorStyle
    action_answer: ActionAnswer
    sku_is_serial: bool
    shows_transitions: bool
    needs_if_match: bool
    weak_etags: bool
    expands: bool
    gpus_are_processors: bool
    has_sensors: bool
    registry_gzip: bool

    def bios_defaults(self, node: Node) -> dict[str, str | int]:
        """Every attribute as it left the factory."""
        values = {attribute.name: attribute.default for attribute in self.attributes}
        if self.serial_attribute is not None:
            values[self.serial_attribute] = node.serial
        return values
