"""What a server's parts measure, out of what runs on it at this moment.

Accelerators work while a job holds them (the scheduler's prologs say which) or while a tenant's
program was set to load them; everything else follows: power, heat, fans, traffic, CPU time. Small
differences between servers come from their names, so that the same data center measures the same.
Counters run in wall time, as those who read them do.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dflare.sim.firmware import System

if TYPE_CHECKING:
    from dflare.sim.host import Host

JOB_UTILIZATION = 0.93
_GPU_IDLE_W, _GPU_FULL_W = 70.0, 700.0
_BOARD_W, _OFF_W = 380.0, 15.0
_INLET_C = 23.0
_FANS = 6
_FAN_FULL_RPM = 16_000
_IDLE_BYTES_S = 2_000.0
_RAIL_SHARE = 0.6
"""How much of an InfiniBand port's speed an accelerator at work uses."""
_INFINIBAND_BYTES_S = 50e9


@dataclass(frozen=True, slots=True)
class GpuState:
    """One accelerator that answers. ``utilization`` is 0 to 1, memory in bytes."""

    index: int
    utilization: float
    memory_used: int
    memory_total: int
    power_w: float
    celsius: float


@dataclass(frozen=True, slots=True)
class Board:
    """The server around its accelerators; ``None`` where a part measures nothing without power."""

    watts: float
    inlet_c: float
    exhaust_c: float | None
    cpu_c: tuple[float | None, ...]
    gpu_c: tuple[float | None, ...]
    gpu_w: tuple[float | None, ...]
    fan_rpm: tuple[int, ...]

    def fan_percent(self, number: int) -> int:
        """How fast a fan turns, of its fastest."""
        return round(100 * self.fan_rpm[number] / _FAN_FULL_RPM)


@dataclass(slots=True)
class Counters:
    """What only grows while a system runs: bytes by port and direction, CPU seconds by mode."""

    since: float
    received: dict[str, float] = field(default_factory=dict[str, float])
    sent: dict[str, float] = field(default_factory=dict[str, float])
    cpu_s: dict[str, float] = field(default_factory=dict[str, float])


class Measurements:
    """Of one host. ``now`` is wall time in seconds that never goes back."""

    def __init__(self, host: "Host", now: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._now = now
        self._load: dict[int, float] = {}
        self._counters = Counters(now())

    def set_load(self, load: Mapping[int, float]) -> None:
        """What a tenant's program does: keep accelerators busy, each from 0 to 1.

        Raises:
            ValueError: there is no such accelerator, or a load is none.
        """
        for index, share in load.items():
            if not 0 <= index < len(self._host.node.gpus) or not 0 <= share <= 1:
                raise ValueError(f"GPU {index} cannot be kept {share} busy")
        self.advance()
        self._load = dict(load)

    def restarted(self) -> None:
        """The system began or ended: programs are gone, counters start at nothing."""
        self._load = {}
        self._counters = Counters(self._now())

    def dead_gpus(self) -> frozenset[int]:
        """Accelerators that fell off the bus; a fault without a number takes the first."""
        found: set[int] = set()
        for fault in self._host.lab.faults.standing("gpu_dead", self._host.name):
            number = fault.params.get("gpu", 0)
            if isinstance(number, int):
                found.add(number)
        return frozenset(found)

    def gpus(self) -> list[GpuState]:
        """The accelerators that answer."""
        dead, jobs = self.dead_gpus(), self._host.lab.slurm.gpus_in_use(self._host.name)
        found: list[GpuState] = []
        for index, gpu in enumerate(self._host.node.gpus):
            if index in dead:
                continue
            share = self._share(index, jobs)
            total = gpu.memory_gib << 30
            used = (600 << 20) + int(total * 0.85 * share)
            watts = _GPU_IDLE_W + (_GPU_FULL_W - _GPU_IDLE_W) * share + 4 * self._own(f"w{index}")
            celsius = 31.0 + 38 * share + 2 * self._own(f"c{index}")
            found.append(GpuState(index, share, used, total, watts, celsius))
        return found

    def board(self) -> Board:
        """What the BMC measures."""
        host = self._host
        inlet = _INLET_C + self._own("inlet")
        cpus, all_gpus = host.node.cpu_sockets, len(host.node.gpus)
        if not host.powered:
            none = (None,) * all_gpus
            return Board(_OFF_W, inlet, None, (None,) * cpus, none, none, (0,) * _FANS)
        by_index = {gpu.index: gpu for gpu in self.gpus()}
        states = [by_index.get(index) for index in range(all_gpus)]
        gpu_w = sum(state.power_w for state in states if state)
        heat = gpu_w / (_GPU_FULL_W * max(1, all_gpus))
        rpm = round(_FAN_FULL_RPM * (0.3 + 0.6 * heat))
        return Board(
            watts=_BOARD_W + gpu_w,
            inlet_c=inlet,
            exhaust_c=inlet + 8 + 20 * heat,
            cpu_c=tuple(42 + 18 * heat + self._own(f"cpu{n}") for n in range(cpus)),
            gpu_c=tuple(state.celsius if state else None for state in states),
            gpu_w=tuple(state.power_w if state else None for state in states),
            fan_rpm=(rpm,) * _FANS,
        )

    def counters(self) -> Counters:
        """The counters as they stand now."""
        self.advance()
        return self._counters

    def advance(self) -> None:
        """Let the counters grow up to now, at the rates of what runs."""
        counters, host, now = self._counters, self._host, self._now()
        passed, counters.since = now - counters.since, now
        if host.system is None:
            return
        shares = {gpu.index: gpu.utilization for gpu in self.gpus()}
        busy = sum(shares.values()) / max(1, len(shares))
        cores = host.node.cpu_cores
        for mode, part in (("user", 0.01 + 0.2 * busy), ("system", 0.005 + 0.02 * busy)):
            counters.cpu_s[mode] = counters.cpu_s.get(mode, 0.0) + passed * cores * part
        spent = 0.015 + 0.22 * busy
        counters.cpu_s["idle"] = counters.cpu_s.get("idle", 0.0) + passed * cores * (1 - spent)
        network = host.lab.network
        for port in host.node.ethernet:
            rate = _IDLE_BYTES_S * (1 + 40 * busy) * network.ethernet_up(host.name, port.name)
            self._moved(port.name, passed * rate)
        for number, port in enumerate(host.node.infiniband):
            up = network.infiniband_up(host.name, port.name)
            rate = _INFINIBAND_BYTES_S * _RAIL_SHARE * shares.get(number, 0.0) * up
            self._moved(port.name, passed * rate)

    def _moved(self, port: str, count: float) -> None:
        counters = self._counters
        counters.received[port] = counters.received.get(port, 0.0) + count
        counters.sent[port] = counters.sent.get(port, 0.0) + count

    def _share(self, index: int, jobs: frozenset[int]) -> float:
        if self._host.system is not System.TENANT:
            return 0.0
        job = JOB_UTILIZATION - 0.02 * self._own(f"u{index}") if index in jobs else 0.0
        return max(job, self._load.get(index, 0.0))

    def _own(self, what: str) -> float:
        """A number from 0 to 1 that is this server's own."""
        seed = hashlib.blake2b(f"{self._host.name}/{what}".encode(), digest_size=2).digest()
        return int.from_bytes(seed, "big") / 0xFFFF
