"""The bare-metal service on a simulated data center: real PostgreSQL, BMCs and agents at the wire.

async with baremetal_site(url, folder, nodes=4) as site:
    await site.enrol()
    order = site.order(["node-0001"])
    await site.provision(order)
"""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import select, text

import dflare.services.baremetal as package
from dflare.drivers.bmc.port import BmcAccess
from dflare.drivers.bmc.redfish.driver import RedfishDriver
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.idempotency import request_key
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.kit.plan import Plan, StepCall, StepReport
from dflare.kit.seal import Sealer
from dflare.kit.steps import CutHook, Step, StepRunner
from dflare.services.auth.contract import Principal, ProjectRef, Resource, Scope
from dflare.services.baremetal.activities import steps
from dflare.services.baremetal.agent_sessions import AgentSessions
from dflare.services.baremetal.api_agent import AgentApi
from dflare.services.baremetal.image_files import ImageFiles
from dflare.services.baremetal.projections import BootConfigs, Claims, Holders
from dflare.services.baremetal.service import BaremetalService
from dflare.services.baremetal.service_site import Applied, SiteService
from dflare.services.baremetal.settings import BaremetalSettings
from dflare.services.baremetal.steps.base import StepParts
from dflare.services.baremetal.tables import KIT, Node
from dflare.services.clusters.contract import ClusterDeclared
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState, ClaimFacts
from dflare.services.orchestrator.sagas import SAGAS
from dflare.site.document import SiteDocument
from dflare.site.layout import LayoutOptions, SimPorts
from dflare.site.simulator_file import simulator_config
from dflare.site.synthetic import synthetic_site
from simulator import SimHandle, free_ports, simulator

MIGRATIONS = {"baremetal": Path(package.__path__[0]) / "migrations"}
KEYS = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBdiMotuZ4lxkDV9k7aC7gYwVWJ4RpKzpFzzzzzzzzzz a@b",)
OPERATOR = Principal("usr_operator", "user", "operator")
_bases = itertools.count(100)


class AllowAll:
    """Scopes by subject, and every action allowed: policy is auth's own matter."""

    def __init__(self) -> None:
        self.scopes: dict[str, Scope] = {}

    async def authenticate(self, token: str) -> Principal:
        raise AssertionError(f"no token is used here: {token}")

    def scope(self, principal: Principal) -> Scope:
        return self.scopes.get(principal.subject, Scope.system("the operator of a test"))

    def project(self, scope: Scope, reference: str) -> ProjectRef:
        raise AssertionError(f"no project is asked for here: {reference}")

    async def check(self, principal: Principal, action: str, resource: Resource) -> None:
        return None

    async def readable(
        self, principal: Principal, action: str, resources: Sequence[Resource]
    ) -> list[bool]:
        return [True] * len(resources)


class Plans:
    """The pure part of the orchestrator."""

    def plan(self, saga: str) -> Plan:
        return SAGAS[saga]


@dataclass(frozen=True)
class Order:
    """An order of a cluster: who acts, on which nodes."""

    operation_id: str
    cluster_id: str
    node_ids: tuple[str, ...]
    ordering_service: str = "clusters"


@dataclass
class BaremetalSite:
    """The service, its steps, and the simulator."""

    database: Database
    parts: StepParts
    sim: SimHandle
    document: SiteDocument
    service: BaremetalService
    sites: SiteService
    authorizer: AllowAll
    steps: dict[str, Step[Any]]
    ids: dict[str, str] = field(default_factory=dict[str, str])
    site_id: str = ""
    cut: CutHook | None = None
    _epochs: Any = field(default_factory=lambda: itertools.count(1))
    _attempts: Any = field(default_factory=lambda: itertools.count(1))

    async def apply(self, document: SiteDocument | None = None) -> Applied:
        """Declare the site; remembers its nodes' ids by name."""
        document = document or self.document
        request = request_key(OPERATOR.subject, "PUT /v1/sites/x", None, b"")
        _, applied = await self.sites.apply(OPERATOR, document, request)
        assert applied.site is not None
        self.site_id = applied.site.id
        async with self.database.transaction("baremetal") as session:
            rows = await session.execute(
                select(Node.name, Node.id).where(Node.retired_at.is_(None))
            )
            self.ids = {row[0]: row[1] for row in rows.all()}
        return applied

    async def enrol(self, names: Sequence[str] | None = None) -> StepReport:
        """Declare the site where it is not, and enrol nodes (all)."""
        if not self.ids:
            await self.apply()
        order = Order(new_id("op"), "", self.nodes(names), "baremetal")
        await self.claim(order)
        report = await self.run("baremetal.enrol@1", order)
        await self.unclaim(order)
        return report

    def nodes(self, names: Sequence[str] | None = None) -> tuple[str, ...]:
        """Ids of nodes by name."""
        return tuple(self.ids[name] for name in (names or sorted(self.ids)))

    async def order(self, names: Sequence[str], keys: Sequence[str] = KEYS) -> Order:
        """An order of a cluster on these nodes: its events, as the other services emit them."""
        order = Order(new_id("op"), new_id("clu"), self.nodes(names))
        declared = ClusterDeclared(
            cluster_id=order.cluster_id,
            name="train",
            organization_id="org_a",
            project_id="prj_a",
            site_id=self.site_id,
            image="default",
            ssh_keys=tuple(keys),
        )
        await self.fold(BootConfigs(), order.cluster_id, 1, declared.model_dump(mode="json"))
        await self.allocate(order, AllocationState.CONFIRMED)
        await self.claim(order)
        return order

    async def release_order(self, order: Order) -> Order:
        """The release of an order: it has the allocations and the claims from now on."""
        release = replace(order, operation_id=new_id("op"))
        await self.allocate(release, AllocationState.RELEASING)
        await self.unclaim(order)
        await self.claim(release)
        return release

    async def allocate(self, order: Order, state: AllocationState) -> None:
        """``allocation.changed`` of an order's nodes."""
        names = {id_: name for name, id_ in self.ids.items()}
        for node_id in order.node_ids:
            facts = AllocationFacts(
                allocation_id=f"alc_{order.cluster_id}_{node_id}",
                version=1,
                state=state,
                node_id=node_id,
                node_name=names[node_id],
                node_type="h100-8",
                gpus=8,
                site_id=self.site_id,
                organization_id="org_a",
                project_id="prj_a",
                cluster_id=order.cluster_id,
                pool="default",
                operation_id=order.operation_id,
                epoch=next(self._epochs),
            )
            await self.fold(Holders(), facts.allocation_id, 1, facts.model_dump(mode="json"))

    async def claim(self, order: Order, *, held: bool = True) -> None:
        """``claim.changed`` of an order's nodes."""
        for node_id in order.node_ids:
            facts = ClaimFacts(
                claim_id=f"clm_{order.operation_id}_{node_id}",
                version=1 if held else 2,
                node_id=node_id,
                site_id=self.site_id,
                operation_id=order.operation_id,
                held=held,
            )
            await self.fold(Claims(), facts.claim_id, facts.version, facts.model_dump(mode="json"))

    async def unclaim(self, order: Order) -> None:
        """The claims end."""
        await self.claim(order, held=False)

    async def fold(self, projection: Any, resource_id: str, version: int, data: Any) -> None:
        """Let a projection fold one event."""
        entry = FeedEntry(
            position=1,
            source="test",
            event_id=new_id("evt"),
            type=next(iter(projection.types)),
            organization_id=None,
            project_id=None,
            site_id=self.site_id,
            resource_kind="test",
            resource_id=resource_id,
            resource_version=version,
            operation_id=None,
            at=datetime.now(UTC),
            data=data,
        )
        async with self.database.transaction("baremetal") as session:
            await projection.apply(session, [entry])

    async def run(
        self,
        name: str,
        order: Order,
        *,
        deadline_s: float = 60,
        generation: int = 1,
        undoing: bool = False,
        params: dict[str, str] | None = None,
        targets: Sequence[str] | None = None,
    ) -> StepReport:
        """Run a step for an order, asking again for pending targets until the deadline."""
        call = StepCall(
            operation_id=order.operation_id,
            ordering_service=order.ordering_service,
            attempt=1,
            generation=generation,
            step=name,
            index=0,
            undoing=undoing,
            batch=f"{(targets or order.node_ids)[0]}",
            site_id=self.site_id,
            resource_id=order.cluster_id or self.site_id,
            targets=tuple(targets or order.node_ids),
            params=params or {},
            deadline_at=datetime.now(UTC) + timedelta(seconds=deadline_s),
        )
        runner = StepRunner(self.database, KIT, SystemClock(), cut=self.cut)
        return await runner.run_patiently(self.steps[name], call, next(self._attempts))

    async def provision(self, order: Order) -> StepReport:
        """From the pool to the tenant."""
        for name in ("prepare", "profile", "provision"):
            report = await self.run(f"baremetal.{name}@1", order)
            assert not report.failed, report
        return await self.run("baremetal.start@1", order)

    async def node(self, name: str) -> Node:
        """A node's row."""
        async with self.database.transaction("baremetal") as session:
            return (await session.scalars(select(Node).where(Node.id == self.ids[name]))).one()

    async def states(self) -> dict[str, str]:
        """Every node's state by name."""
        async with self.database.transaction("baremetal") as session:
            rows = await session.execute(select(Node.name, Node.state))
            return {row[0]: row[1] for row in rows.all()}

    async def events(self, kind: str) -> list[dict[str, Any]]:
        """Data of the emitted events of a type, in order."""
        async with self.database.transaction("baremetal") as session:
            rows = await session.execute(
                text("SELECT data FROM baremetal.event WHERE type = :kind ORDER BY ordinal"),
                {"kind": kind},
            )
            return [row[0] for row in rows.all()]

    def access(self, name: str) -> BmcAccess:
        """A node's BMC with its account."""
        node = next(node for node in self.document.nodes if node.name == name)
        account = self.document.credentials[node.bmc.credentials_ref]
        assert account.password is not None
        password = account.password.get_secret_value()
        return BmcAccess(node.bmc.address, account.username, password, "dell")


def simulated_site(
    nodes: int, *, zero_times: bool = True, speed: float = 600
) -> tuple[SiteDocument, dict[str, Any]]:
    """A site document and the simulator's file of the same site, at addresses of its own."""
    bmc, nvue, ufm, control = free_ports(4)
    ports = SimPorts(bmc=bmc, nvue=nvue, ufm=ufm, control=control)
    base = IPv4Address(f"127.{next(_bases)}.0.0")
    options = LayoutOptions(name="demo", ports=ports, address_base=base)
    document = synthetic_site(nodes, options=options)
    config = simulator_config(
        document, ports, speed=speed, hardware_time="zero" if zero_times else "normal"
    )
    return document, config


@asynccontextmanager
async def baremetal_site(
    database_url: str,
    folder: Path,
    nodes: int = 2,
    *,
    zero_times: bool = True,
    speed: float = 600,
    settings: BaremetalSettings | None = None,
    migrate: bool = True,
) -> AsyncIterator[BaremetalSite]:
    """The simulator as a process, the service and its agent API in this one."""
    document, config = simulated_site(nodes, zero_times=zero_times, speed=speed)
    if migrate:
        await upgrade_all(database_url, MIGRATIONS)
    database = Database(database_url, application="test-baremetal")
    clock, sealer = SystemClock(), Sealer(b"k" * 32)
    async with simulator(folder, config) as sim:
        listener = socket.create_server(("127.0.0.1", 0))
        public_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sessions = AgentSessions(database, sealer, clock)
        images = ImageFiles(folder / "images", public_url)
        driver = RedfishDriver(str(sim.ca_file))
        parts = StepParts(
            database=database,
            clock=clock,
            sealer=sealer,
            bmc=driver,
            bios_defaults=driver,
            sessions=sessions,
            images=images,
            settings=settings or BaremetalSettings(),
            public_url=public_url,
            speed=1.0 if zero_times else speed,
        )
        authorizer, plans = AllowAll(), Plans()
        server = uvicorn.Server(
            uvicorn.Config(
                AgentApi(sessions, images, public_url).app(), log_config=None, lifespan="off"
            )
        )
        tasks = [
            asyncio.create_task(sessions.run()),
            asyncio.create_task(server._serve([listener])),
        ]
        try:
            yield BaremetalSite(
                database=database,
                parts=parts,
                sim=sim,
                document=document,
                service=BaremetalService(database, clock, sealer, authorizer, plans),
                sites=SiteService(database, clock, sealer, authorizer, plans),
                authorizer=authorizer,
                steps={step.name: step for step in steps(parts)},
            )
        finally:
            tasks[0].cancel()
            server.should_exit = server.force_exit = True
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
            await driver.close()
            await database.dispose()
