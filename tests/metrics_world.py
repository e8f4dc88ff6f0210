"""The metrics service over real PostgreSQL, with a store of series where a test gives one."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any

from sqlalchemy import select

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.series import Sample as Found
from dflare.kit.series import SeriesStore
from dflare.services.metrics.projections import projections
from dflare.services.metrics.service_ingest import Ingest
from dflare.services.metrics.settings import MetricsSettings
from dflare.services.metrics.tables import KIT
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState
from stores import drop_database
from tenancy import BLUE, RED, migrated_database

SITE, SITE_NAME = "site_1", "demo"
PORTS = ("eth0", "eth1", "ib0")


@dataclass
class Scripted(SeriesStore):
    """A store at the edge: it remembers what was written and answers as it is told. ``away``: it
    does not answer."""

    answers: dict[str, list[Found]] = field(default_factory=dict[str, list[Found]])
    written: list[str] = field(default_factory=list[str])
    asked: list[str] = field(default_factory=list[str])
    away: Exception | None = None

    def __post_init__(self) -> None:
        super().__init__("http://127.0.0.1:9")

    async def write(self, lines: Sequence[str]) -> None:
        if self.away is not None:
            raise self.away
        self.written += lines

    async def instant(self, query: str, timeout_s: float = 15.0) -> list[Found]:
        self.asked.append(query)
        if self.away is not None:
            raise self.away
        return next((found for text, found in self.answers.items() if text in query), [])


@dataclass
class World:
    """The service's read models and what takes measurements in."""

    database: Database
    clock: Clock
    store: SeriesStore
    ingest: Ingest
    settings: MetricsSettings
    _versions: Any = field(default_factory=lambda: count(1))

    async def tell(self, kind: str, data: dict[str, Any], **more: Any) -> None:
        """Fold one event into every read model that wants it."""
        version = more.pop("version", None) or next(self._versions)
        entry = FeedEntry(
            position=version,
            source="test",
            event_id=f"evt_{version}",
            type=kind,
            organization_id=data.get("organization_id"),
            project_id=data.get("project_id"),
            site_id=data.get("site_id"),
            resource_kind=kind.partition(".")[0],
            resource_id=more.get("resource_id", data.get("id", "x")),
            resource_version=version,
            operation_id=None,
            at=more.get("at", self.clock.now()),
            data=data,
        )
        for projection in projections():
            if kind in projection.types:
                async with self.database.transaction("metrics") as session:
                    await projection.apply(session, [entry])
        self.ingest._nodes_at = float("-inf")

    async def declare(self, *names: str, gpus: int = 8) -> None:
        """Nodes of the one site."""
        kinds = [{"name": "h100-8", "vendor": "dell"}]
        await self.tell("site.declared", {"site_id": SITE, "name": SITE_NAME, "node_types": kinds})
        for name in names:
            await self.tell(
                "node.declared",
                {
                    "node_id": f"node_{name}",
                    "site_id": SITE,
                    "name": name,
                    "node_type": "h100-8",
                    "gpus": gpus,
                    "row": "r",
                    "rack": "r1",
                    "block": "b",
                    "nvlink_domain": None,
                    "ethernet": [
                        {"name": port, "mac": f"02:00:00:00:00:{n:02}", "switch": "s", "port": port}
                        for n, port in enumerate(PORTS[:2])
                    ],
                    "infiniband": [
                        {"name": "ib0", "guid": "0" * 16, "rail": 0, "switch": "q", "port": "1"}
                    ],
                },
            )

    async def hand_over(
        self, name: str, project: Any = RED, *, since: datetime, until: datetime | None = None
    ) -> None:
        """A node is a project's from one time to another."""
        facts = AllocationFacts(
            allocation_id=f"alloc_{name}_{project.id}",
            version=next(self._versions),
            state=AllocationState.CONFIRMED if until is None else AllocationState.RELEASING,
            node_id=f"node_{name}",
            node_name=name,
            node_type="h100-8",
            gpus=8,
            site_id=SITE,
            organization_id=project.organization_id,
            project_id=project.id,
            cluster_id=f"clu_{project.id}",
            pool="p",
            operation_id="op_1",
            epoch=1,
            usage_from=since,
            usage_to=until,
        )
        await self.tell("allocation.changed", facts.model_dump(mode="json"))

    async def events(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """Type, project and data of every event of the schema, in order."""
        query = select(KIT.event.c.type, KIT.event.c.project_id, KIT.event.c.data)
        async with self.database.reading("metrics") as session:
            rows = (await session.execute(query.order_by(KIT.event.c.ordinal))).all()
        return [(row[0], row[1], row[2]) for row in rows]


@asynccontextmanager
async def metrics_world(
    postgres_url: str, clock: Clock, store: SeriesStore, **settings: Any
) -> AsyncIterator[World]:
    """A world with a database of its own, in which two projects have a cluster each."""
    url = await migrated_database(postgres_url, "metrics")
    database = Database(url, application="test")
    own = MetricsSettings(**settings)
    world = World(database, clock, store, Ingest(database, store, clock, own), own)
    for project in (RED, BLUE):
        name = {"cluster_id": f"clu_{project.id}", "name": f"train-{project.organization_name}"}
        await world.tell("cluster.declared", name)
    yield world
    await store.close()
    await database.dispose()
    drop_database(url)
