"""The whole data center in one process: BMCs, switches, the InfiniBand manager, the control API."""

import asyncio
import gc
import logging
import signal
from dataclasses import dataclass
from pathlib import Path

import orjson
from starlette.types import ASGIApp

from dflare.sim.certificates import Authority
from dflare.sim.clock import SimClock
from dflare.sim.config import SimConfig
from dflare.sim.control import ControlApi
from dflare.sim.fabric.state import Fabric
from dflare.sim.faults import FaultPlan
from dflare.sim.network import CabledNetwork
from dflare.sim.redfish.app import RedfishApp
from dflare.sim.scheduler.api import scheduler_app
from dflare.sim.scheduler.clusters import Clusters
from dflare.sim.scheduler.preparation import Preparation
from dflare.sim.scheduler.slurmd import SlurmNodes
from dflare.sim.server import device_server, listen, raise_file_limit
from dflare.sim.truth import TruthLog
from dflare.sim.world import World

_FILES_A_DEVICE = 8
_SPARE_FILES = 512
_DEVICES_A_CERTIFICATE = 32
"""A client keeps the names of its peer's certificate with each connection, so one certificate for
all devices would cost it what no real site does."""
_log = logging.getLogger("dflare.sim")


@dataclass(frozen=True)
class SchedulerPlaces:
    """Where the scheduler host finds Slurm's packages (None: nowhere), keeps its clusters, and may
    mount from."""

    packages: Path | None
    clusters: Path
    volume_roots: tuple[Path, ...] = ()


async def run(
    config: SimConfig, log_file: Path, ready_file: Path | None, places: SchedulerPlaces
) -> None:
    """Serve until SIGTERM or SIGINT.

    ``ca.pem`` beside ``log_file`` holds the certificate authority's certificate. ``ready_file``
    appears, as JSON, when every address answers, and goes when the process ends.

    Raises:
        PortInUseError: an address of the file is taken.
        OSError: a file cannot be written.
    """
    raise_file_limit(len(config.nodes) * _FILES_A_DEVICE + _SPARE_FILES)
    clock = SimClock(config.speed)
    truth = TruthLog(log_file, clock)
    faults = FaultPlan(config.seed)
    fabric = Fabric(config, clock, truth, faults)
    clusters = Clusters(
        places.clusters, Preparation(places.packages, places.clusters), places.volume_roots, truth
    )
    slurm = SlurmNodes(clusters, truth, faults)
    world = World(config, clock, truth, faults, CabledNetwork(config, fabric, faults), slurm)
    control = ControlApi(world, fabric, clock, truth, faults, clusters)
    devices = _device_apps(config, world, fabric)
    if config.scheduler and config.scheduler_port and config.scheduler_credentials:
        app = scheduler_app(clusters, config.scheduler_credentials, faults, config.scheduler.name)
        devices.append((app, [(config.scheduler.address, config.scheduler_port)]))
        await clusters.start()
    ca_file = log_file.with_name("ca.pem")
    authority = Authority(ca_file)
    control_site = (config.control_address, config.control_port)
    servers = [(device_server(control.app(), None), listen([control_site]))]
    for app, sites in devices:
        for start in range(0, len(sites), _DEVICES_A_CERTIFICATE):
            group = sites[start : start + _DEVICES_A_CERTIFICATE]
            context = authority.server_context(address for address, _ in group)
            servers.append((device_server(app, context), listen(group)))
    # What stands until the end needs no look from the collector again and again.
    gc.freeze()
    serving = [asyncio.create_task(server.serve(made)) for server, made in servers]
    try:
        await asyncio.gather(*(server.ready.wait() for server, _ in servers))
        _announce(ready_file, config, ca_file)
        _log.info("ready: %d hosts, %d switches", len(config.nodes), len(config.switches))
        await _until_told_to_stop()
    finally:
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*serving)
        await world.stop()
        await clusters.stop()
        await fabric.stop()
        truth.close()
        _withdraw(ready_file)


def _device_apps(
    config: SimConfig, world: World, fabric: Fabric
) -> list[tuple[ASGIApp, list[tuple[str, int]]]]:
    """The apps that devices speak through, each with the addresses of its devices."""
    apps: list[tuple[ASGIApp, list[tuple[str, int]]]] = [
        (RedfishApp(config, world), [(node.bmc_address, config.bmc_port) for node in config.nodes]),
        (fabric.nvue_app(), [(switch.address, config.nvue_port) for switch in config.switches]),
    ]
    if config.ufm is not None:
        apps.append((fabric.ufm_app(), [(config.ufm.address, config.ufm_port)]))
    return apps


async def _until_told_to_stop() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()


def _announce(ready_file: Path | None, config: SimConfig, ca_file: Path) -> None:
    if ready_file is None:
        return
    document = {
        "control_url": f"http://{config.control_address}:{config.control_port}",
        "ca_file": str(ca_file.resolve()),
    }
    partial = ready_file.with_name(f"{ready_file.name}.part")
    partial.write_bytes(orjson.dumps(document))
    partial.replace(ready_file)


def _withdraw(ready_file: Path | None) -> None:
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
