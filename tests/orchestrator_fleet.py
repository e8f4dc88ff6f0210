"""A fleet of nodes in orchestrator's read model, and orders upon it, without any device."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.ids import new_id
from dflare.kit.plan import StepCall, StepReport
from dflare.kit.steps import StepRunner
from dflare.services.orchestrator import activities
from dflare.services.orchestrator.contract import (
    PoolWish,
    Reservation,
    Wishes,
)
from dflare.services.orchestrator.projections import PlacementProjection
from dflare.services.orchestrator.reconciler import Sweeper
from dflare.services.orchestrator.service import OrchestratorService
from dflare.services.orchestrator.tables import (
    KIT,
    Allocation,
    Claim,
    QuotaUsage,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Fleet:
    """A declared site of its own, and the service over it."""

    database: Database
    clock: ManualClock = field(default_factory=lambda: ManualClock(START))
    site_id: str = field(default_factory=lambda: new_id("site"))
    project_id: str = field(default_factory=lambda: new_id("prj"))
    positions: int = 0
    racks_per_rail_block: int = 0

    @property
    def service(self) -> OrchestratorService:
        return OrchestratorService(self.database, self.clock)

    @property
    def sweeper(self) -> Sweeper:
        # The holds' expiry needs no Temporal.
        return Sweeper(self.database, None, {}, self.clock)  # pyright: ignore[reportArgumentType]

    def node_id(self, number: int) -> str:
        return f"node_{self.site_id[-8:]}_{number:04}"

    def entry(self, kind: str, resource_id: str, version: int, data: dict[str, Any]) -> FeedEntry:
        self.positions += 1
        return FeedEntry(
            position=self.positions,
            source="baremetal",
            event_id=new_id("evt"),
            type=kind,
            organization_id=None,
            project_id=None,
            site_id=self.site_id,
            resource_kind="node",
            resource_id=resource_id,
            resource_version=version,
            operation_id=None,
            at=START,
            data=data,
        )

    async def fold(self, *entries: FeedEntry) -> None:
        async with self.database.transaction("orchestrator") as session:
            await PlacementProjection().apply(session, entries)

    async def declare(self, nodes: int, *, quota: int = 1_000) -> None:
        await self.fold(self._site(), *(self._node(number) for number in range(nodes)))
        await self.limit(quota, 1)
        await self.fold(*(self.state(number, "available", 2) for number in range(nodes)))

    def _site(self) -> FeedEntry:
        return self.entry(
            "site.declared",
            self.site_id,
            1,
            {
                "site_id": self.site_id,
                "name": "berlin",
                "currency": "EUR",
                "switches": [],
                "ufm": None,
                "pools": {
                    "vlan": [],
                    "vni": [],
                    "pkey": [],
                    "prefixes": [],
                    "subnet_length": 24,
                    "cooldown_s": 60,
                },
                "node_types": [
                    {
                        "name": "g8",
                        "vendor": "dell",
                        "gpu_model": None,
                        "gpus": 8,
                        "infiniband_rails": 8,
                        "price_per_node_hour": "10",
                    }
                ],
            },
        )

    def _node(self, number: int) -> FeedEntry:
        return self.entry(
            "node.declared",
            self.node_id(number),
            1,
            {
                "node_id": self.node_id(number),
                "site_id": self.site_id,
                "name": f"n{number:04}",
                "node_type": "g8",
                "gpus": 8,
                "row": "a",
                "rack": f"r{number // 4}",
                "block": "b0",
                "nvlink_domain": None,
                "ethernet": [],
                "infiniband": self._rails(number),
            },
        )

    def _rails(self, number: int) -> list[dict[str, Any]]:
        if not self.racks_per_rail_block:
            return []
        block = number // 4 // self.racks_per_rail_block
        return [
            {
                "name": f"hca{rail}",
                "guid": f"{number:08x}{rail:08x}",
                "rail": rail,
                "switch": f"ib-{block}-{rail}",
                "port": str(number),
            }
            for rail in range(2)
        ]

    def state(self, number: int, state: str, version: int, *, cordoned: bool = False) -> FeedEntry:
        return self.entry(
            "node.state_changed",
            self.node_id(number),
            version,
            {
                "node_id": self.node_id(number),
                "site_id": self.site_id,
                "name": f"n{number:04}",
                "state": state,
                "reason": "",
                "cordoned": cordoned,
            },
        )

    async def limit(self, nodes: int, version: int) -> None:
        await self.fold(
            self.entry(
                "quota.changed",
                self.project_id,
                version,
                {
                    "project_id": self.project_id,
                    "organization_id": "org_a",
                    "node_type": "g8",
                    "nodes": nodes,
                },
            )
        )

    def wishes(self, count: int, **values: Any) -> Wishes:
        return Wishes(
            organization_id="org_a",
            project_id=values.pop("project_id", self.project_id),
            cluster_id=values.pop("cluster_id", new_id("clu")),
            pools=(PoolWish(pool="main", node_type=values.pop("node_type", "g8"), count=count),),
            **{"site_id": self.site_id, **values},
        )

    async def run(
        self,
        step: str,
        operation_id: str,
        cluster_id: str,
        targets: Sequence[str],
        **params: str,
    ) -> StepReport:
        steps = {one.name: one for one in activities.steps(self.clock)}
        call = StepCall(
            operation_id=operation_id,
            ordering_service="clusters",
            attempt=1,
            step=step,
            index=0,
            batch=new_id("batch"),
            resource_id=cluster_id,
            targets=tuple(targets),
            params=params,
            deadline_at=self.clock.now() + timedelta(minutes=5),
        )
        return await StepRunner(self.database, KIT, self.clock).run(steps[step], call, 1)

    async def allocations(self, **by: str) -> list[Allocation]:
        async with self.database.transaction("orchestrator") as session:
            query = select(Allocation).where(Allocation.site_id == self.site_id).filter_by(**by)
            return list(await session.scalars(query.order_by(Allocation.node_id, Allocation.id)))

    async def used(self) -> int:
        async with self.database.transaction("orchestrator") as session:
            query = select(QuotaUsage.nodes).where(QuotaUsage.project_id == self.project_id)
            return await session.scalar(query) or 0

    async def claims(self) -> dict[str, str]:
        async with self.database.transaction("orchestrator") as session:
            rows = await session.execute(
                select(Claim.node_id, Claim.operation_id).where(
                    Claim.ended_at.is_(None), Claim.site_id == self.site_id
                )
            )
            return {row.node_id: row.operation_id for row in rows}


def ids(reservation: Reservation) -> list[str]:
    return [placed.node_id for placed in reservation.placed]
