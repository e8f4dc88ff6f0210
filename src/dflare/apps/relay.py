"""Numbers events, starts workflows, sweeps. ``python -m dflare.apps.relay``.

One relay is active, others wait on its lease. It looks for work with one cheap query; nothing
that it does harms if two were active for a moment.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

from sqlalchemy import Executable, exists, literal, select, union_all

from dflare.apps.deployables import SERVICES
from dflare.apps.process import Process, run_process
from dflare.kit.db import Database
from dflare.kit.feed import COPY_BATCH, copy_events
from dflare.kit.lease import Lease, new_holder
from dflare.kit.plan import RESTING_STATES
from dflare.kit.retention import Retention
from dflare.kit.settings import Settings
from dflare.kit.tables import KitTables, kit_tables, service_metadata
from dflare.kit.telemetry import log
from dflare.services.orchestrator.reconciler import Sweeper, WorkflowStarter
from dflare.services.orchestrator.reconciler_waiting import WaitingOrders

LEASE = "relay"
EVENT, OPERATION = "event", "operation"

Answer = TypeVar("Answer")


class RelaySettings(Settings):
    """Settings of the relay. Times are wall time. ``keep_relayed_hours`` is how long an outbox
    keeps what the log has, ``keep_answers_hours`` how long an idempotency key is known."""

    prefix: ClassVar[str] = "DFLARE_RELAY_"

    poll_s: float = 0.05
    sweep_every_s: float = 2.0
    expire_every_s: float = 5.0
    place_every_s: float = 0.5
    keep_events_days: float = 30.0
    keep_relayed_hours: float = 1.0
    keep_answers_hours: float = 24.0
    lease_s: float = 4.0


class LeaseLostError(Exception):
    """Somebody else is the relay now."""


@dataclass
class Relay:
    """The active relay's loops."""

    database: Database
    lease: Lease
    starter: WorkflowStarter
    sweeper: Sweeper
    waiting: WaitingOrders
    retention: Retention
    settings: RelaySettings
    schemas: Mapping[str, KitTables]
    _query: Executable = field(init=False)

    def __post_init__(self) -> None:
        """Build the one query that says where there is work."""
        questions: list[Any] = []
        for name, kit in self.schemas.items():
            event, operation = kit.event, kit.operation
            unrelayed = exists().where(~event.c.relayed)
            unstarted = exists().where(
                operation.c.started_attempt < operation.c.attempt,
                operation.c.state.not_in(RESTING_STATES),
            )
            questions += [
                select(literal(EVENT), literal(name)).where(unrelayed),
                select(literal(OPERATION), literal(name)).where(unstarted),
            ]
        self._query = union_all(*questions)

    async def run(self) -> None:
        """Wait for the lease, work while it lasts, and wait again."""
        while True:
            if not await self._survive("lease", self.lease.take):
                await asyncio.sleep(self.lease.ttl_s / 4)
                continue
            log.info("relay_active", holder=self.lease.holder)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._keep_lease())
                    group.create_task(self._forward())
                    group.create_task(
                        self._every(self.settings.sweep_every_s, "sweep", self.sweeper.sweep)
                    )
                    group.create_task(
                        self._every(
                            self.settings.expire_every_s, "expire", self.sweeper.expire_holds
                        )
                    )
                    group.create_task(
                        self._every(self.settings.place_every_s, "place", self.waiting.place)
                    )
                    group.create_task(self._every(60, "retention", self.retention.apply))
            except* LeaseLostError:
                log.warning("relay_passive", holder=self.lease.holder)
            finally:
                await self._survive("give_back", self.lease.give_back)

    async def _keep_lease(self) -> None:
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self.lease.ttl_s / 4)
            taken = await self._survive("lease", self.lease.take)
            if taken:
                renewed = loop.time()
            elif taken is False or loop.time() - renewed > self.lease.ttl_s:
                raise LeaseLostError

    async def _forward(self) -> None:
        """Copy events and start workflows as soon as there are any."""
        while True:
            busy = await self._survive("forward", self.forward)
            if not busy:
                await asyncio.sleep(self.settings.poll_s)

    async def forward(self) -> bool:
        """One pass; whether there may be more to do at once."""
        async with self.database.across() as connection:
            rows: Sequence[Any] = (await connection.execute(self._query)).all()
        found: list[tuple[str, str]] = [(row[0], row[1]) for row in rows]
        copies = [self._copy(self.schemas[name]) for kind, name in found if kind == EVENT]
        starts = [self.starter.start()] if any(kind == OPERATION for kind, _ in found) else []
        answers = await asyncio.gather(*copies, *starts, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return bool(found)

    async def _copy(self, kit: KitTables) -> None:
        while await copy_events(self.database, kit) >= COPY_BATCH:
            pass

    async def _every(
        self, seconds: float, name: str, work: Callable[[], Awaitable[object]]
    ) -> None:
        while True:
            await self._survive(name, work)
            await asyncio.sleep(seconds)

    async def _survive(self, name: str, work: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """A store that is down is waited for: the relay logs, pauses, and tries again."""
        try:
            return await work()
        except Exception as error:
            log.warning("relay_trouble", work=name, error=repr(error)[:300])
            await asyncio.sleep(0.5)
            return None


async def serve(process: Process) -> None:
    """Start the relay's task."""
    settings = RelaySettings.read()
    # The kit's tables alone are needed, not the services: the relay stays small.
    schemas = {name: kit_tables(service_metadata(name)) for name in SERVICES}
    holder = new_holder("relay")
    relay = Relay(
        database=process.database,
        lease=Lease(process.database, LEASE, holder, settings.lease_s),
        starter=WorkflowStarter(
            process.database, process.temporal, schemas, process.settings.heartbeat_s
        ),
        sweeper=Sweeper(process.database, process.temporal, schemas, process.clock),
        waiting=WaitingOrders(process.database, schemas, process.clock),
        retention=Retention(
            process.database,
            schemas,
            process.clock,
            keep=timedelta(days=settings.keep_events_days),
            keep_relayed=timedelta(hours=settings.keep_relayed_hours),
            keep_answers=timedelta(hours=settings.keep_answers_hours),
        ),
        settings=settings,
        schemas=schemas,
    )
    process.start(relay.run(), "relay")


if __name__ == "__main__":
    run_process("relay", serve)
