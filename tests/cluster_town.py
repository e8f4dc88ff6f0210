"""A running cluster over the real ledger of nodes, for tests of its life.

Of its operations the steps of clusters and orchestrator are carried out, which are all that touch
no device.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from sqlalchemy import insert, select

from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.ids import new_id
from dflare.kit.operations import lock_operation
from dflare.kit.plan import Plan, StepCall, StepReport
from dflare.kit.seal import Sealer
from dflare.kit.steps import Step, StepRunner
from dflare.services.auth.contract import Principal
from dflare.services.clusters import activities, activities_life, api, api_life
from dflare.services.clusters.reconciler import ClusterReconciler
from dflare.services.clusters.service import ClusterService
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.service_life import LifeService
from dflare.services.clusters.tables import KIT, KnownSite
from dflare.services.orchestrator import activities as ledger
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.tables import KIT as LEDGER
from dflare.services.orchestrator.tables import Allocation
from orchestrator_fleet import Fleet
from stores import drop_database
from tenancy import (
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    VIEWER,
    Tenancy,
    application,
    client,
    migrated_database,
)

CLUSTERS = f"/projects/{RED.id}/clusters"
C1 = f"{CLUSTERS}/c1"
POOL = f"{C1}/pools/main"
NODES = 8


@dataclass
class Town:
    """A small fleet, the API over it, and a cluster that lives there."""

    database: Database
    clock: ManualClock
    fleet: Fleet
    calls: dict[str, httpx.AsyncClient]
    positions: int = field(default=1_000)

    async def ask(
        self, method: str, path: str, caller: Principal = MEMBER, **more: Any
    ) -> httpx.Response:
        return await self.calls[caller.subject].request(method, path, **more)

    async def shown(self) -> dict[str, Any]:
        return (await self.ask("GET", C1)).json()

    async def order(self, method: str, path: str, **more: Any) -> str:
        answer = await self.ask(method, path, **more)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def operation(self, operation_id: str) -> dict[str, Any]:
        async with self.database.transaction("clusters") as session:
            return dict(await lock_operation(session, KIT, operation_id))

    async def carry_out(self, operation_id: str, *, until: str = "") -> None:
        """Do the operation's steps that touch no device, up to one of them."""
        row = await self.operation(operation_id)
        for index, step in enumerate(Plan.model_validate(row["plan"]).steps):
            if step.service in ("clusters", "orchestrator"):
                targets = row["targets"] if step.on == "nodes" else [row["resource_id"]]
                report = await self.step(operation_id, step.name, index, targets, step.params)
                assert report.failed == {}, report.failed
            if step.name == until:
                break
        await self.tell()

    async def undo(self, operation_id: str, *steps: str) -> None:
        row = await self.operation(operation_id)
        for index, name in enumerate(steps):
            on_nodes = not name.endswith("resize_undone@1")
            targets = row["targets"] if on_nodes else [row["resource_id"]]
            await self.step(operation_id, name, index, targets, {}, undoing=True)
        await self.tell()

    async def step(
        self,
        operation_id: str,
        name: str,
        index: int,
        targets: Sequence[str],
        params: dict[str, str],
        **more: Any,
    ) -> StepReport:
        steps: dict[str, Step[Any]] = {
            step.name: step
            for step in (
                *activities.steps(self.clock),
                *activities_life.steps(self.clock, SAGAS.__getitem__),
                *ledger.steps(self.clock),
            )
        }
        row = await self.operation(operation_id)
        call = StepCall(
            operation_id=operation_id,
            ordering_service="clusters",
            attempt=1,
            generation=more.pop("generation", 1),
            step=name,
            index=index,
            batch=new_id("batch"),
            project_id=row["project_id"],
            resource_id=row["resource_id"],
            targets=tuple(targets),
            params=params,
            deadline_at=self.clock.now() + timedelta(minutes=5),
            **more,
        )
        kit = KIT if name.startswith("clusters.") else LEDGER
        return await StepRunner(self.database, kit, self.clock).run(steps[name], call, 1)

    async def tell(self) -> None:
        """Let clusters hear of what became of its nodes."""
        async with self.database.transaction("orchestrator") as session:
            table = LEDGER.event
            query = select(table).where(table.c.type == "allocation.changed")
            rows = (await session.execute(query.order_by(table.c.ordinal))).mappings().all()
        entries = [self.entry(row["type"], row["data"], row["resource_version"]) for row in rows]
        async with self.database.transaction("clusters") as session:
            await activities.MembersProjection().apply(session, entries)

    async def node_is(self, number: int, state: str, version: int, reason: str = "") -> None:
        data = {
            "node_id": self.fleet.node_id(number),
            "site_id": self.fleet.site_id,
            "name": f"n{number:04}",
            "state": state,
            "reason": reason,
        }
        entry = self.entry("node.state_changed", data, version, data["node_id"])
        async with self.database.transaction("clusters") as session:
            await activities_life.NodesProjection().apply(session, [entry])

    def entry(self, kind: str, data: dict[str, Any], version: int, of: str = "") -> FeedEntry:
        self.positions += 1
        return FeedEntry(
            position=self.positions,
            source="test",
            event_id=new_id("evt"),
            type=kind,
            organization_id=None,
            project_id=None,
            site_id=None,
            resource_kind="",
            resource_id=of,
            resource_version=version,
            operation_id=None,
            at=self.clock.now(),
            data=data,
        )

    async def allocations(self) -> dict[str, Allocation]:
        return {one.node_id: one for one in await self.fleet.allocations()}

    async def events(self, kind: str) -> list[dict[str, Any]]:
        async with self.database.transaction("clusters") as session:
            query = select(KIT.event.c.data).where(KIT.event.c.type == kind)
            return list(await session.scalars(query.order_by(KIT.event.c.ordinal)))

    async def operations(self, kind: str) -> list[dict[str, Any]]:
        async with self.database.transaction("clusters") as session:
            query = select(KIT.operation).where(KIT.operation.c.kind == kind)
            return [dict(row) for row in (await session.execute(query)).mappings()]

    def later(self, passed: timedelta) -> None:
        self.clock.at += passed

    @property
    def reconciler(self) -> ClusterReconciler:
        return ClusterReconciler(self.database, self.clock, self.fleet.service)


@asynccontextmanager
async def cluster_town(postgres_url: str) -> AsyncIterator[Town]:
    """A ready cluster ``c1`` of two nodes in pool ``main``, in a fleet of eight."""
    url = await migrated_database(postgres_url, "clusters", "orchestrator")
    database, at = Database(url, application="test-life"), ManualClock(NOW)
    fleet = Fleet(database, at, project_id=RED.id)
    await fleet.declare(NODES)
    async with database.transaction("clusters") as session:
        await session.execute(
            insert(KnownSite).values(
                site_id=fleet.site_id,
                name="hall-1",
                currency="EUR",
                node_types={"g8": "12.50"},
                images=["base"],
                version=1,
            )
        )
    tenancy, sealer = Tenancy(), Sealer(bytes(range(32)))
    clusters = ClusterService(
        database=database, clock=at, sealer=sealer, authorizer=tenancy, orchestrator=fleet.service
    )
    keys = KeyService(database=database, clock=at, sealer=sealer, authorizer=tenancy)
    life = LifeService(database, at, tenancy, fleet.service, clusters)

    def routes(principal: Any) -> Any:
        both = api.router(clusters, keys, tenancy, principal)
        both.include_router(api_life.router(life, tenancy, principal))
        return both

    app = application(tenancy, routes)
    async with AsyncExitStack() as stack:
        calls = {
            caller.subject: await stack.enter_async_context(client(app, caller))
            for caller in (OPERATOR, MEMBER, VIEWER)
        }
        town = Town(database, at, fleet, calls)
        body = {"name": "c1", "pools": [{"name": "main", "node_type": "g8", "count": 2}]}
        await town.carry_out(await town.order("POST", CLUSTERS, json=body))
        yield town
    await database.dispose()
    drop_database(url)
