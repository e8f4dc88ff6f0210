"""Drivers of a replay that choose nodes without a platform: the product's placement, and others."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

from bench.replay_trace import Order
from dflare.services.orchestrator.placement import Candidate, place
from dflare.services.orchestrator.placement_tree import grouped, rack_of


class _Chooser(ABC):
    """Keeps which nodes are free; what is chosen of them is the subclass's."""

    def __init__(self, fleet: Sequence[Candidate]) -> None:
        self._fleet = sorted(fleet, key=lambda node: node.name)
        self._holder: dict[str, str] = {}

    async def place(self, order: Order) -> Sequence[str] | None:
        """As ``Driver.place``."""
        free = [node for node in self._fleet if node.name not in self._holder]
        if len(free) < order.nodes:
            return None
        chosen = [node.name for node in self._choose(free, order.nodes)]
        self._holder |= dict.fromkeys(chosen, order.name)
        return chosen

    async def release(self, order: Order) -> None:
        """As ``Driver.release``."""
        self._holder = {node: name for node, name in self._holder.items() if name != order.name}

    @abstractmethod
    def _choose(self, free: list[Candidate], count: int) -> Sequence[Candidate]:
        """``count`` of the free nodes, of which there are as many, by name."""


class Product(_Chooser):
    """What the orchestrator does with an order that has no wishes."""

    def _choose(self, free: list[Candidate], count: int) -> Sequence[Candidate]:
        choice = place(free, count)
        assert choice is not None, "as many are free"
        return choice.nodes


class FirstFit(_Chooser):
    """The first free nodes by name, which is also the order in which racks were filled."""

    def _choose(self, free: list[Candidate], count: int) -> Sequence[Candidate]:
        return free[:count]


class BestFit(_Chooser):
    """The rack with the least room that holds the whole order; where none does, racks from the one
    with the least room on, as best fit fills bins node by node."""

    def _choose(self, free: list[Candidate], count: int) -> Sequence[Candidate]:
        racks = sorted(
            grouped(free, rack_of).values(), key=lambda nodes: (len(nodes), rack_of(nodes[0]))
        )
        for nodes in racks:
            if len(nodes) >= count:
                return nodes[:count]
        return [node for nodes in racks for node in nodes][:count]


class Random(_Chooser):
    """Any free nodes."""

    def __init__(self, fleet: Sequence[Candidate], seed: int) -> None:
        super().__init__(fleet)
        self._draw = random.Random(seed)

    def _choose(self, free: list[Candidate], count: int) -> Sequence[Candidate]:
        return self._draw.sample(free, count)
