"""All the servers of the file, switched off and blank at the start."""

import asyncio

from dflare.sim.clock import SimClock
from dflare.sim.config import SimConfig
from dflare.sim.faults import FaultPlan
from dflare.sim.host import Host, Lab
from dflare.sim.media import ImageStore
from dflare.sim.network import HostNetwork
from dflare.sim.redfish.personality import personality_of
from dflare.sim.scheduler.slurmd import SlurmNodes
from dflare.sim.truth import TruthLog


class World:
    """The hosts by name and by the address of their BMC."""

    def __init__(
        self,
        config: SimConfig,
        clock: SimClock,
        log: TruthLog,
        faults: FaultPlan,
        network: HostNetwork,
        slurm: SlurmNodes,
    ) -> None:
        self.config = config
        self._images = ImageStore()
        lab = Lab(clock, log, faults, config.times, network, self._images, slurm)
        self.hosts: dict[str, Host] = {}
        self.by_bmc_address: dict[str, Host] = {}
        for node in config.nodes:
            vendor = personality_of(node.personality)
            media = vendor.media
            slots = [slot.id for slot in media.slots]
            host = Host(node, lab, vendor.bios_defaults(node), slots, media.boot_source)
            self.hosts[node.name] = host
            self.by_bmc_address[node.bmc_address] = host

    def find(self, text: str) -> list[dict[str, str]]:
        """Every place where ``text`` still stands, on hosts without power too."""
        return [place for host in self.hosts.values() for place in host.places_of(text)]

    async def stop(self) -> None:
        """End every task and process of every host."""
        await asyncio.gather(*(host.stop() for host in self.hosts.values()))
        await self._images.stop()
