"""Reads the sensors of all BMCs out of band: no system need run on a node, and none can lie.

One process of a site's workers does it at a time, by a lease; a BMC that does not answer is noted
as that, and costs the others nothing.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from dflare.drivers.bmc.port import BmcError, BmcSensors, SensorKind, SensorReading
from dflare.kit.errors import ProblemError
from dflare.kit.lease import Lease
from dflare.kit.seal import SealError
from dflare.kit.telemetry import log
from dflare.services.metrics import domain
from dflare.services.metrics.contract import BmcDirectory, BmcTarget
from dflare.services.metrics.domain import Sample
from dflare.services.metrics.service_ingest import Ingest
from dflare.services.metrics.settings import MetricsSettings

LEASE = "metrics/bmc"

_NAMES = {
    SensorKind.CELSIUS: domain.TEMPERATURE,
    SensorKind.WATTS: domain.POWER,
    SensorKind.RPM: domain.FAN_SPEED,
    SensorKind.RATIO: domain.FAN_RATIO,
}


@dataclass
class BmcCollector:
    """Sweeps all BMCs every ``scrape_every_s``, so many at a time."""

    directory: BmcDirectory
    bmc: BmcSensors
    ingest: Ingest
    settings: MetricsSettings
    lease: Lease

    async def run(self) -> None:
        """Sweep until cancelled, as long as the lease can be had."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                try:
                    if await self.lease.take():
                        await self._sweep_under_lease()
                except (SQLAlchemyError, OSError, ProblemError, SealError) as error:
                    log.warning("sensor_sweep_failed", error=repr(error)[:300])
                rest_s = self.settings.scrape_every_s - (loop.time() - began)
                await asyncio.sleep(max(1.0, rest_s))
        finally:
            await asyncio.shield(self._give_back())

    async def sweep(self) -> int:
        """Read every BMC once; returns how many answered."""
        targets = await self.directory.targets()
        slots = asyncio.Semaphore(self.settings.scrape_at_once)
        answered = await asyncio.gather(*(self._read(target, slots) for target in targets))
        return sum(answered)

    async def _sweep_under_lease(self) -> None:
        """A sweep that is longer than the lease renews it, and ends where somebody else has it."""
        sweep = asyncio.create_task(self.sweep())
        try:
            while True:
                done, _ = await asyncio.wait([sweep], timeout=self.lease.ttl_s / 3)
                if done or not await self.lease.take():
                    break
            if sweep.done():
                sweep.result()
        finally:
            sweep.cancel()

    async def _read(self, target: BmcTarget, slots: asyncio.Semaphore) -> bool:
        async with slots:
            try:
                async with asyncio.timeout(self.settings.scrape_bmc_s):
                    readings = await self.bmc.sensors(target.access)
            except (BmcError, TimeoutError):
                self.ingest.put(target.node_id, [Sample(domain.BMC_UP, 0)])
                return False
            facts = await self.ingest.facts(target.node_id)
        declared = [] if facts is None else [_declared(facts.gpus)]
        found = [Sample(domain.BMC_UP, 1), *declared, *samples_of(readings)]
        self.ingest.put(target.node_id, found)
        return True

    async def _give_back(self) -> None:
        try:
            await self.lease.give_back()
        except (SQLAlchemyError, OSError, ProblemError) as error:
            log.warning("lease_not_given_back", lease=self.lease.name, error=repr(error)[:200])


def samples_of(readings: Iterable[SensorReading]) -> list[Sample]:
    """What sensors measure, by our names."""
    found: list[Sample] = []
    for reading in readings:
        labels = {"hw_type": str(reading.part), "hw_id": reading.id}
        if reading.kind is SensorKind.CELSIUS and reading.location:
            labels["sensor_location"] = reading.location
        found.append(Sample(_NAMES[reading.kind], reading.value, labels))
    return found


def _declared(gpus: int) -> Sample:
    return Sample(domain.GPU_COUNT, gpus, {"state": "declared"})
