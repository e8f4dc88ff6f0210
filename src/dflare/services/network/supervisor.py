"""Runs the reconcilers of the devices that this process holds leases of, and the sweep."""

import asyncio
import contextlib
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from dflare.kit.db import Database
from dflare.kit.telemetry import log
from dflare.services.network import device_rows, pools, repository
from dflare.services.network.reconciler import SCHEMA, DeviceReconciler, Tools


class Supervisor:
    """The site-worker's part of network: ``run`` until cancelled."""

    def __init__(self, tools: Tools, site_ids: Sequence[str] | None = None) -> None:
        """``site_ids`` are the sites to serve; ``None``: all."""
        self._tools = tools
        self._site_ids = None if site_ids is None else list(site_ids)
        self._running: dict[str, asyncio.Task[None]] = {}
        # Renewing leases must not queue behind the work that depends on them.
        self._leases = Database(
            tools.database.url, application=f"dflare-leases-{tools.holder}", pool_size=1
        )

    async def run(self) -> None:
        """Hold leases and keep a reconciler for each; give the leases up at the end."""
        settings = self._tools.settings
        sweeping = asyncio.create_task(self._sweep_often())
        try:
            while True:
                try:
                    async with asyncio.timeout(settings.lease_s / 2):
                        await self._claim()
                except (SQLAlchemyError, OSError, TimeoutError) as error:
                    # Without the database no write passes its last look, so that reconcilers may
                    # go on trying.
                    log.warning("leases_not_renewed", error=str(error))
                await asyncio.sleep(min(settings.poll_s, settings.lease_s / 4))
        finally:
            await self._stop([sweeping, *self._running.values()])
            with contextlib.suppress(SQLAlchemyError, OSError):
                async with self._leases.transaction(SCHEMA) as session:
                    await device_rows.let_go(session, self._tools.holder)
            await self._leases.dispose()

    async def sweep(self) -> None:
        """Release networks that have drained, free identifiers that have cooled down, and forget
        intents that were settled long ago."""
        tools = self._tools
        async with tools.database.transaction(SCHEMA) as session:
            now = tools.clock.now()
            await pools.free_cooled(session, now)
            await device_rows.forget_intents(session, now)
            clusters = await repository.draining_clusters(session)
        for cluster_id in clusters:
            async with tools.database.transaction(SCHEMA) as session:
                network = await repository.lock_network(session, cluster_id)
                if network is not None:
                    now = tools.clock.now()
                    await repository.release_if_drained(session, network, now, tools.speed)

    async def _claim(self) -> None:
        tools = self._tools
        async with self._leases.transaction(SCHEMA) as session:
            held = await device_rows.claim(
                session, tools.holder, self._site_ids, tools.settings.lease_s
            )
            behind = await device_rows.devices_behind(session, held)
        await self._follow(set(held))
        tools.signals.remind(behind)

    async def _follow(self, held: set[str]) -> None:
        """Start what is newly held, end what is not any more."""
        lost = [task for device, task in self._running.items() if device not in held]
        await self._stop(lost)
        self._running = {
            device: task
            for device, task in self._running.items()
            if device in held and not task.done()
        }
        for device in sorted(held - self._running.keys()):
            reconciler = DeviceReconciler(device, self._tools)
            self._running[device] = asyncio.create_task(reconciler.run(), name=f"device {device}")

    async def _sweep_often(self) -> None:
        while True:
            await asyncio.sleep(self._tools.settings.sweep_every_s)
            try:
                await self.sweep()
            except (SQLAlchemyError, OSError) as error:
                log.warning("sweep_failed", error=str(error))

    async def _stop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
