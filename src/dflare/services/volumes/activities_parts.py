"""What the steps of volumes at a site work with."""

from dataclasses import dataclass

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.services.volumes.settings import VolumesSettings
from dflare.services.volumes.signals import Signals


@dataclass(frozen=True)
class Parts:
    """Their database, time, patience, and how they wake the reconciler."""

    database: Database
    clock: Clock
    settings: VolumesSettings
    signals: Signals
