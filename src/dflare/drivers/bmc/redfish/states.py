"""Reading power, boot progress and health from a ComputerSystem resource."""

from datetime import datetime
from typing import Any, cast

from dflare.drivers.bmc.port import Observed, Power
from dflare.drivers.bmc.redfish.client import Document

_POWER = {"On": Power.ON, "Off": Power.OFF}


def power_of(system: Document) -> Power:
    """Resource.PowerState; the states between count as ``changing``."""
    return _POWER.get(str(system.get("PowerState")), Power.CHANGING)


def observed(system: Document) -> Observed:
    """What a ComputerSystem (schema 1.14 and later for BootProgress) shows."""
    progress = cast("Document", system.get("BootProgress") or {})
    state = str(progress.get("LastState") or "")
    status = cast("Document", system.get("Status") or {})
    return Observed(
        power=power_of(system),
        boot_progress=state,
        os_running=state == "OSRunning",
        progress_at=_time(progress.get("LastStateTime")),
        last_reset_at=_time(system.get("LastResetTime")),
        health=str(status.get("HealthRollup") or status.get("Health") or ""),
    )


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value)) if value else None
    except ValueError:
        return None
