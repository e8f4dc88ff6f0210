"""Faults that hardware shows, scripted by a seedable plan.

| kind | target | effect | params |
| --- | --- | --- | --- |
| ``bmc_unreachable`` | host | the BMC drops the connection without an answer | |
| ``bmc_error_500`` | host | the BMC answers 500 with an InternalError message | |
| ``bmc_slow`` | host | the BMC answers late | ``seconds`` (simulated, 30) |
| ``power_stuck`` | host | a reset is accepted and the power state stays as it is | |
| ``boot_fails`` | host | POST ends with nothing booted | |
| ``bios_ignored`` | host | pending BIOS attributes are dropped at the next POST | |
| ``agent_silent`` | host | the agent boots and never says hello | |
| ``image_corrupt`` | host | the image lands on the disk with a flipped byte | |
| ``erase_lies`` | host | erase reports success and the content remains | |
| ``erase_fails`` | host | erase reports failure | |
| ``nvue_apply_fails`` | switch | a revision ends in ``invalid`` | ``reason`` |
| ``nvue_slow`` | switch | an apply takes longer | ``seconds`` (simulated, 60) |
| ``nvue_drops_write`` | switch/port | answers applied, the port keeps its old configuration | |
| ``nvue_unreachable`` | switch | the switch drops the connection without an answer | |
| ``gpu_dead`` | host | an accelerator has fallen off the bus | ``gpu`` (its number, 0) |
| ``link_down`` | host/port | the link of a host's port is lost | |
| ``switch_reset`` | switch | the next apply ends in a reboot with the factory configuration | |
| ``ufm_job_late`` | ufm | a job completes later | ``seconds`` (simulated, 60) |
| ``ufm_job_fails`` | ufm | a job ends as failed and changes nothing | ``reason`` |
| ``ufm_unreachable`` | ufm | the manager drops the connection without an answer | |
| ``slurmd_silent`` | host | the slurmd of the next boot calls a port at which nobody listens | |
| ``munge_key_wrong`` | host | the slurmd of the next boot has another munge key | |
| ``scheduler_unreachable`` | scheduler host | it drops the connection without an answer | |

Targets are matched as shell globs on the device's name of the simulator's file.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

KINDS = frozenset(
    {
        "bmc_unreachable",
        "bmc_error_500",
        "bmc_slow",
        "power_stuck",
        "boot_fails",
        "bios_ignored",
        "agent_silent",
        "image_corrupt",
        "erase_lies",
        "erase_fails",
        "nvue_apply_fails",
        "nvue_slow",
        "nvue_drops_write",
        "nvue_unreachable",
        "gpu_dead",
        "link_down",
        "switch_reset",
        "ufm_job_late",
        "ufm_job_fails",
        "ufm_unreachable",
        "slurmd_silent",
        "munge_key_wrong",
        "scheduler_unreachable",
    }
)


@dataclass(slots=True)
class Fault:
    """A scripted fault. ``remaining`` hits are left (``None``: without limit); ``hits`` counts
    the times it struck; ``probability`` is that of one occasion.
    """

    id: int
    kind: str
    target: str
    remaining: int | None
    probability: float
    params: dict[str, object] = field(default_factory=dict[str, object])
    hits: int = 0

    def seconds(self, default: float) -> float:
        """The parameter ``seconds`` (simulated), or ``default``."""
        value = self.params.get("seconds", default)
        return float(value) if isinstance(value, int | float) else default

    def document(self) -> dict[str, object]:
        """The JSON object that ``GET /faults`` shows."""
        return {
            "id": self.id,
            "kind": self.kind,
            "target": self.target,
            "count": self.remaining,
            "probability": self.probability,
            "params": self.params,
            "hits": self.hits,
        }


class FaultPlan:
    """The faults in force.

    Whether an occasion strikes depends on the seed, the fault, the target and how many occasions
    that target had: not on the order in which different targets come.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._next_id = 1
        self._by_kind: dict[str, list[Fault]] = {}
        self._occasions: Counter[tuple[int, str]] = Counter()

    def add(
        self,
        kind: str,
        target: str = "*",
        count: int | None = None,
        probability: float = 1.0,
        params: dict[str, object] | None = None,
    ) -> Fault:
        """Put a fault in force.

        Raises:
            ValueError: the kind is unknown, the count is not positive, or the probability is not
                in (0, 1].
        """
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}; known: {', '.join(sorted(KINDS))}")
        if count is not None and count < 1:
            raise ValueError(f"count {count} is not positive")
        if not 0 < probability <= 1:
            raise ValueError(f"probability {probability} is not above 0 and at most 1")
        fault = Fault(self._next_id, kind, target, count, probability, dict(params or {}))
        self._next_id += 1
        self._by_kind.setdefault(kind, []).append(fault)
        return fault

    def hit(self, kind: str, target: str) -> Fault | None:
        """The fault that strikes ``target`` on this occasion, counted as one hit; or ``None``."""
        for fault in self._by_kind.get(kind, ()):
            if fault.remaining == 0 or not fnmatchcase(target, fault.target):
                continue
            occasion = self._occasions[fault.id, target]
            self._occasions[fault.id, target] += 1
            draw = random.Random(f"{self._seed}/{fault.id}/{target}/{occasion}")  # noqa: S311
            if draw.random() >= fault.probability:
                continue
            fault.hits += 1
            if fault.remaining is not None:
                fault.remaining -= 1
            return fault
        return None

    def standing(self, kind: str, target: str) -> list[Fault]:
        """The faults of a condition that ``target`` is in now. Looking is no occasion: it counts no
        hit and spends nothing."""
        return [
            fault
            for fault in self._by_kind.get(kind, ())
            if fault.remaining != 0 and fnmatchcase(target, fault.target)
        ]

    def faults(self) -> list[Fault]:
        """Every fault that was added and not cleared, oldest first, spent ones included."""
        every = [fault for faults in self._by_kind.values() for fault in faults]
        return sorted(every, key=lambda fault: fault.id)

    def clear(self, fault_id: int | None = None) -> int:
        """Withdraw one fault, or all of them; returns how many there were."""
        before = len(self.faults())
        if fault_id is None:
            self._by_kind.clear()
        for faults in self._by_kind.values():
            faults[:] = [fault for fault in faults if fault.id != fault_id]
        return before - len(self.faults())
