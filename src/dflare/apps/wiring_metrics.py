"""Joins what is measured to its store: for ``wiring``, whose size it spares."""

from collections.abc import Coroutine
from typing import Any

from starlette.routing import Route

from dflare.apps.process import Process
from dflare.drivers.bmc.port import BmcSensors
from dflare.kit.lease import Lease, new_holder
from dflare.services.baremetal.bmc_directory import Bmcs
from dflare.services.metrics.api_agent import MeasurementsApi
from dflare.services.metrics.reconciler import LEASE, BmcCollector
from dflare.services.metrics.reconciler_alerts import LEASE as ALERTS_LEASE
from dflare.services.metrics.reconciler_alerts import AlertReconciler
from dflare.services.metrics.service_ingest import Ingest


def site_tasks(
    process: Process, ingest: Ingest, bmc: BmcSensors
) -> list[tuple[str, Coroutine[Any, Any, None]]]:
    """What reads sensors and writes measurements at a site; nothing where nobody keeps them."""
    if not ingest.store.present:
        return []
    holder = new_holder("sensors")
    collector = BmcCollector(
        Bmcs(process.database, process.sealer),
        bmc,
        ingest,
        ingest.settings,
        Lease(process.database, LEASE, holder, ingest.settings.lease_s),
    )
    return [("sensors", collector.run()), ("measurements", ingest.run())]


def central_tasks(parts: Ingest) -> list[tuple[str, Coroutine[Any, Any, None]]]:
    """What looks for alerts."""
    holder = new_holder("alerts")
    lease = Lease(parts.database, ALERTS_LEASE, holder, parts.settings.lease_s)
    alerts = AlertReconciler(parts.database, parts.store, parts.clock, parts.settings, lease)
    return [("alerts", alerts.run())]


def agent_routes(process: Process, ingest: Ingest) -> list[Route]:
    """What nodes send their measurements to, of a process that serves metrics."""
    if not process.serves("metrics"):
        return []
    return MeasurementsApi(ingest, ingest.store, process.sealer).routes()
