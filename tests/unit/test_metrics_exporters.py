"""What simulated servers' exporters say, and what becomes of it under our names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dflare.services.metrics import domain
from dflare.services.metrics.domain import Sample
from dflare.services.metrics.domain_exporters import gpus_seen, samples_of
from dflare.sim.clock import SimClock
from dflare.sim.config import SimConfig
from dflare.sim.exporters import exposition
from dflare.sim.faults import FaultPlan
from dflare.sim.firmware import Power, System
from dflare.sim.host import Host
from dflare.sim.measurements import Measurements
from dflare.sim.network import CabledNetwork, PortState
from dflare.sim.scheduler.clusters import Clusters
from dflare.sim.scheduler.preparation import Preparation
from dflare.sim.scheduler.slurmd import SlurmNodes
from dflare.sim.truth import TruthLog
from dflare.sim.world import World
from simulator import data_center

GPUS = {
    "nvidia": {"vendor": "nvidia", "model": "NVIDIA H100 80GB HBM3", "memory_gib": 80},
    "amd": {"vendor": "amd", "model": "AMD Instinct MI300X", "memory_gib": 192},
    "intel": {"vendor": "intel", "model": "Intel Gaudi 3", "memory_gib": 128},
}


class Linked:
    """Switches whose ports all have a link and a VLAN."""

    def port_state(self, switch: str, port: str) -> PortState:
        return PortState(True, frozenset({1}))


class Wall:
    """A wall clock that moves when it is told to."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def host_of(tmp_path: Path, wall: Wall) -> Callable[[str], Host]:
    """A server of a vendor's accelerators that runs a tenant's system."""

    def make(vendor: str) -> Host:
        document = data_center(1, gpus=8)
        document["nodes"][0]["gpus"] = [GPUS[vendor]] * 8
        config, clock = SimConfig.model_validate(document), SimClock(60)
        truth, faults = TruthLog(tmp_path / f"{vendor}.log", clock), FaultPlan(1)
        clusters = Clusters(tmp_path, Preparation(None, tmp_path), (), truth)
        network = CabledNetwork(config, Linked(), faults)
        slurm = SlurmNodes(clusters, truth, faults)
        host = World(config, clock, truth, faults, network, slurm).hosts["n0"]
        host.measurements = Measurements(host, wall)
        host.power, host.system = Power.ON, System.TENANT
        truth.close()
        return host

    return make


def ports_of(host: Host) -> frozenset[str]:
    return frozenset(port.name for port in (*host.node.ethernet, *host.node.infiniband))


def values(samples: list[Sample], name: str, **labels: str) -> dict[str, float]:
    """Values of a measurement by the part that they are of."""
    return {
        sample.labels.get("hw_id", ""): sample.value
        for sample in samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


@pytest.mark.parametrize("vendor", sorted(GPUS))
def test_every_makers_accelerators_measure_the_same_things_under_the_same_names(
    host_of: Callable[[str], Host], vendor: str
) -> None:
    host = host_of(vendor)
    host.measurements.set_load({0: 1.0, 3: 0.5})
    samples = samples_of(exposition(host), ports_of(host))
    busy = values(samples, domain.GPU_UTILIZATION, hw_type="gpu")
    assert busy == pytest.approx({str(n): {0: 1.0, 3: 0.5}.get(n, 0.0) for n in range(8)})
    watts = values(samples, domain.POWER, hw_type="gpu")
    assert watts["0"] > 650 > watts["3"] > 300 > watts["1"] > 50
    celsius = values(samples, domain.TEMPERATURE, hw_type="gpu")
    assert celsius["0"] > celsius["3"] > celsius["1"] > 25
    limit = values(samples, domain.GPU_MEMORY_LIMIT, hw_type="gpu")
    memory = host.node.gpus[0].memory_gib << 30
    assert set(limit.values()) == {memory}
    used = values(samples, domain.GPU_MEMORY_USAGE, hw_type="gpu")
    assert memory > used["0"] > 0.8 * memory
    assert used["1"] < 0.02 * memory
    assert gpus_seen(samples) == 8
    assert all(domain.is_known(sample) for sample in samples)


@pytest.mark.parametrize("vendor", sorted(GPUS))
def test_an_accelerator_that_fell_off_the_bus_is_gone(
    host_of: Callable[[str], Host], vendor: str
) -> None:
    host = host_of(vendor)
    fault = host.lab.faults.add("gpu_dead", "n0", params={"gpu": 5})
    samples = samples_of(exposition(host), ports_of(host))
    assert gpus_seen(samples) == 7
    assert "5" not in values(samples, domain.GPU_UTILIZATION)
    assert values(samples, domain.GPU_ERROR) == ({"5": 79.0} if vendor == "nvidia" else {})
    assert fault.hits == 0, "looking is no occasion"
    host.lab.faults.clear()
    assert gpus_seen(samples_of(exposition(host), ports_of(host))) == 8


def test_a_lost_link_is_down_and_the_others_are_up(host_of: Callable[[str], Host]) -> None:
    host = host_of("nvidia")
    lost = [host.node.infiniband[2].name, host.node.ethernet[0].name]
    for name in lost:
        host.lab.faults.add("link_down", f"n0/{name}")
    samples = samples_of(exposition(host), ports_of(host))
    up = values(samples, domain.NETWORK_UP, hw_type="network")
    assert up == {name: float(name not in lost) for name in ports_of(host)}


def test_counters_grow_with_the_wall_clock_and_with_the_work(
    host_of: Callable[[str], Host], wall: Wall
) -> None:
    host = host_of("nvidia")

    def counted() -> tuple[float, float]:
        samples = samples_of(exposition(host), ports_of(host))
        idle = sum(
            s.value for s in samples if s.name == domain.CPU_TIME and s.labels["cpu_mode"] == "idle"
        )
        received = values(samples, domain.NETWORK_IO, network_io_direction="receive")
        return idle, received[host.node.infiniband[0].name]

    counted()
    wall.now += 10
    idle, moved = counted()
    assert 0.9 * 10 * host.node.cpu_cores < idle < 10 * host.node.cpu_cores
    assert moved == 0
    host.measurements.set_load(dict.fromkeys(range(8), 1.0))
    wall.now += 10
    idle_after, moved = counted()
    assert idle_after - idle < 0.9 * 10 * host.node.cpu_cores
    assert moved > 1e9


def test_what_a_tenant_sends_cannot_name_anything_of_its_own() -> None:
    text = "\n".join(
        (
            'secret_metric{project="proj_blue"} 1',
            'hw_gpu_utilization_ratio{hw_id="0",project="proj_blue"} 1',
            'DCGM_FI_DEV_GPU_UTIL{gpu="0",project="proj_blue",node="other",site="s"} 50',
            'DCGM_FI_DEV_GPU_UTIL{gpu="1\\"} 1 1\\nevil{x=\\"",node="other"} 50',
            'DCGM_FI_DEV_GPU_UTIL{gpu="99999"} 50',
            'DCGM_FI_DEV_GPU_UTIL{gpu="2"} NaN',
            'DCGM_FI_DEV_GPU_UTIL{gpu="2"} +Inf',
            'DCGM_FI_DEV_GPU_UTIL{gpu="3" 50',
            "DCGM_FI_DEV_GPU_UTIL 50",
            'node_network_up{device="tenant-made"} 1',
            'node_network_up{device="eth0"} 1 1700000000000',
            'node_cpu_seconds_total{cpu="0",mode="mine"} 5',
            'DCGM_FI_DEV_GPU_UTIL{gpu="4",x="' + "y" * 10_000 + '"} 50',
            "\x00\xff{",
        )
    )
    assert samples_of(text, frozenset({"eth0"})) == [
        Sample(domain.GPU_UTILIZATION, 0.5, {"hw_type": "gpu", "hw_id": "0"}),
        Sample(domain.NETWORK_UP, 1.0, {"hw_type": "network", "hw_id": "eth0"}),
    ]


@pytest.mark.parametrize("text", ["DCGM_FI_DEV_GPU_UTIL{" + '"' * 4_000, "node_network_up{" * 200])
def test_a_line_that_is_none_costs_no_time(text: str) -> None:
    assert samples_of("\n".join([text] * 200), frozenset()) == []


@pytest.mark.parametrize("prefix", ["", "amd_"])
def test_both_spellings_of_amds_names_are_known(prefix: str) -> None:
    (found,) = samples_of(f'{prefix}gpu_gfx_activity{{gpu_id="3"}} 25', frozenset())
    assert found == Sample(domain.GPU_UTILIZATION, 0.25, {"hw_type": "gpu", "hw_id": "3"})


def test_no_load_is_set_on_an_accelerator_that_is_not_there(
    host_of: Callable[[str], Any],
) -> None:
    host = host_of("amd")
    for load in ({8: 1.0}, {0: 1.5}, {-1: 0.1}):
        with pytest.raises(ValueError, match="busy"):
            host.measurements.set_load(load)
