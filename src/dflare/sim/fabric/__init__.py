"""The simulated fabrics: NVUE switches, a UFM manager, and the walk that judges isolation."""

from dflare.sim.fabric.state import Fabric
from dflare.sim.fabric.walk import InfinibandGroup, Reachability

__all__ = ["Fabric", "InfinibandGroup", "Reachability"]
