"""Finds the table of a vendor's personality."""

from dflare.sim.config import Personality
from dflare.sim.redfish.dell import DELL
from dflare.sim.redfish.hpe import HPE
from dflare.sim.redfish.lenovo import LENOVO
from dflare.sim.redfish.supermicro import SUPERMICRO
from dflare.sim.redfish.vendor import Vendor

_TABLES: dict[Personality, Vendor] = {
    Personality.DELL: DELL,
    Personality.HPE: HPE,
    Personality.SUPERMICRO: SUPERMICRO,
    Personality.LENOVO: LENOVO,
}


class UnknownPersonalityError(ValueError):
    """The file names a vendor that the simulator has no table for."""


def personality_of(name: Personality) -> Vendor:
    """The vendor's table.

    Raises:
        UnknownPersonalityError: the simulator has no such personality yet.
    """
    vendor = _TABLES.get(name)
    if vendor is None:
        known = ", ".join(sorted(_TABLES))
        raise UnknownPersonalityError(
            f"the simulator has no personality {name.value!r} yet; it has: {known}"
        )
    return vendor
