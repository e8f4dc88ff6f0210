"""The fabrics of one data center: every switch, the InfiniBand manager, and what they programmed.

It is the ``FabricSide`` of ``dflare.sim.network``.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Coroutine
from typing import Literal

from starlette.types import ASGIApp

from dflare.sim.clock import SimClock
from dflare.sim.config import SimConfig
from dflare.sim.fabric.inventory import inventory
from dflare.sim.fabric.nvue import nvue_app
from dflare.sim.fabric.partitions import Membership, Partitions
from dflare.sim.fabric.switch import Switch
from dflare.sim.fabric.ufm import ufm_app
from dflare.sim.fabric.walk import Reachability, walk
from dflare.sim.faults import FaultPlan
from dflare.sim.network import PortState
from dflare.sim.truth import TruthLog


class Fabric:
    """Programmed state, device apps and the ground-truth walk."""

    def __init__(
        self, config: SimConfig, clock: SimClock, log: TruthLog, faults: FaultPlan
    ) -> None:
        self._config = config
        self._faults = faults
        self._tasks: set[asyncio.Task[None]] = set()
        hosts: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for node in config.nodes:
            for cable in node.ethernet:
                hosts[cable.switch][cable.switch_port] = node.name
        self.switches: dict[str, Switch] = {
            switch.name: Switch(
                switch,
                number,
                hosts[switch.name],
                config.times.switch_apply_s,
                clock,
                log,
                faults,
                self._spawn,
            )
            for number, switch in enumerate(config.switches)
        }
        self.partitions = Partitions(
            "ufm" if config.ufm is None else config.ufm.name,
            {port.guid: node.name for node in config.nodes for port in node.infiniband},
            config.times.ufm_job_s,
            "full" if config.ufm is None else config.ufm.default_membership,
            clock,
            log,
            faults,
            self._spawn,
        )

    def port_state(self, switch: str, port: str) -> PortState:
        """The effective state of one front port.

        Raises:
            KeyError: there is no such switch or port.
        """
        return self.switches[switch].port_state(port)

    def nvue_app(self) -> ASGIApp:
        """One app for every switch; ``scope["server"][0]`` is the address of the switch meant."""
        by_address = {s.address: self.switches[s.name] for s in self._config.switches}
        return nvue_app(by_address, self._config.nvue_credentials, self._faults)

    def ufm_app(self) -> ASGIApp:
        """The InfiniBand manager's app."""
        known = inventory(self._config.nodes)
        return ufm_app(self.partitions, known, self._config.ufm_credentials, self._faults)

    def walk(self) -> Reachability:
        """Who reaches whom now, from the programmed state and the cables."""
        views = {name: switch.view for name, switch in self.switches.items()}
        return walk(
            self._config.nodes,
            views,
            self.partitions.by_pkey,
            self.partitions.default_membership,
        )

    def reachability_document(self) -> dict[str, object]:
        """What ``GET /truth/reachability`` answers: ``{"ethernet": [[host…]…], "infiniband":
        [{"pkey": "0x12", "full": [host…], "limited": [host…]}…]}``, hosts alone left out.
        """
        return self.walk().document()

    def set_default_membership(self, membership: Membership) -> None:
        """How ports that nobody configured are in the default InfiniBand partition."""
        self.partitions.set_default_membership(membership)

    async def reset_switch(self, name: str, to: Literal["factory", "previous"]) -> None:
        """Let the switch come back with its factory or its previous configuration.

        Raises:
            KeyError: there is no such switch.
        """
        self.switches[name].reset(to)

    async def stop(self) -> None:
        """End every task: applies and jobs that are still on their way never happen."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
