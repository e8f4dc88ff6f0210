"""The steps of this service: on queue ``baremetal.<site>``, wrapped by ``apps/wiring.py``."""

from typing import Any

from dflare.kit.steps import Step
from dflare.services.baremetal.steps.base import StepParts
from dflare.services.baremetal.steps.enrol import Enrol, SetAside
from dflare.services.baremetal.steps.erase import Erase
from dflare.services.baremetal.steps.power import Free, PowerOff, Prepare, Quarantine
from dflare.services.baremetal.steps.profile import Profile
from dflare.services.baremetal.steps.provision import Provision, Reimage, Start
from dflare.services.baremetal.steps.tenant import Reboot, Rescue, Unrescue


def steps(parts: StepParts) -> list[Step[Any]]:
    """Every step that runs at a site. They share ``parts.sessions`` with the agent API."""
    return [
        Enrol(parts),
        SetAside(parts),
        Prepare(parts),
        Profile(parts),
        Provision(parts),
        Start(parts),
        PowerOff(parts),
        Erase(parts),
        Free(parts),
        Quarantine(parts),
        Reboot(parts),
        Rescue(parts),
        Unrescue(parts),
        Reimage(parts),
    ]
