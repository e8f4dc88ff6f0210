"""The whole platform in this process, for the saga kit: every part real but the processes' borders.

PostgreSQL, Temporal and the simulator are processes of their own; relay, workers, reconcilers and
the agents' API are those of ``dflare.apps``, each with its own connections. The nodes of the site
are divided into lanes by their type, so that cases run side by side and each can look at all the
nodes that its order could have.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sagakit import Disturbance, Sabotaged, Saboteur
from sqlalchemy import func, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

import dflare.apps.migrate as migrate
from baremetal_site import KEYS, OPERATOR, AllowAll
from dflare.apps import relay, site_worker, worker
from dflare.apps.process import Process, running_process
from dflare.apps.wiring import ORDERING, SCHEMAS, Platform
from dflare.embedded.secret_files import ensure_master_key
from dflare.kit import feed_tables
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.feed import Projection, head_position, read_feed
from dflare.kit.idempotency import request_key
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.kit.plan import RESTING_STATES, StepCall
from dflare.kit.seal import Sealer
from dflare.kit.settings import PlatformSettings
from dflare.kit.steps import CutPoint, Outcome, Step
from dflare.kit.tables import KitTables
from dflare.services.auth.contract import ProjectRef
from dflare.services.baremetal.service import BaremetalService
from dflare.services.baremetal.service_site import SiteService
from dflare.services.clusters.service import ClusterOrder, ClusterService
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.tables import SchedulerHost as SchedulerRow
from dflare.services.metering.service import MeteringService
from dflare.services.network.tables import Network, PoolValue
from dflare.services.orchestrator.contract import PoolWish
from dflare.services.orchestrator.service import OrchestratorService
from dflare.services.orchestrator.tables import Node as KnownNode
from dflare.services.orchestrator.tables import QuotaLimit
from dflare.site.document import Credential, SchedulerHost, SiteDocument
from dflare.site.layout import LayoutOptions, PlannedNode, SimPorts, lay_out
from dflare.site.simulator_file import simulator_config
from dflare.site.synthetic import synthetic_site
from scheduler_wire import WireHost
from simulator import SimHandle, free_ports, simulator

LANES, NODES_IN_LANE, ORDERED = 6, 5, 2
DEADLINE_S = 120
_POLL_S = 0.2
_BASE = IPv4Address("127.68.0.0")


@dataclass
class Saboteurs:
    """Saboteurs by project, or by node for what is ordered on one that is no tenant's: each case
    disturbs its own order alone, at one or more steps."""

    database: Database
    take: Callable[[str], Awaitable[None]] | None = None
    by_owner: dict[str, list[Saboteur]] = field(default_factory=dict)

    def begin(self, owner: str, disturbances: Sequence[Disturbance]) -> list[Saboteur]:
        """From now on do this, and nothing else, to what a project orders, or to a node."""
        saboteurs = [Saboteur(self.database, SCHEMAS, active, self.take) for active in disturbances]
        self.by_owner[owner] = saboteurs
        return saboteurs

    def of(self, call: StepCall) -> list[Saboteur]:
        """Who disturbs a call."""
        return self.by_owner.get(call.project_id or call.resource_id, [])

    async def cut(self, point: CutPoint, call: StepCall) -> None:
        """The hook of ``StepRunner``."""
        for saboteur in self.of(call):
            await saboteur.cut(point, call)


@dataclass
class _Step:
    """A real step, sabotaged for the project that calls it."""

    inner: Step[Any]
    saboteurs: Saboteurs

    @property
    def name(self) -> str:
        return self.inner.name

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Any:
        return await self.inner.load(session, call, targets)

    async def act(self, call: StepCall, loaded: Any, targets: list[str]) -> dict[str, Outcome]:
        step = self.inner
        for saboteur in self.saboteurs.of(call):
            step = Sabotaged(step, saboteur)
        return await step.act(call, loaded, targets)

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Any, outcomes: dict[str, Outcome]
    ) -> None:
        await self.inner.record(session, call, loaded, outcomes)


@dataclass(frozen=True)
class _SabotagedPlatform(Platform):
    """The wiring of ``dflare.apps`` with every step sabotaged."""

    saboteurs: Saboteurs | None = None

    def step_activities(
        self, kit: KitTables, steps: Sequence[Step[Any]]
    ) -> list[Callable[..., Awaitable[Any]]]:
        assert self.saboteurs is not None
        return super().step_activities(kit, [_Step(step, self.saboteurs) for step in steps])


@dataclass(frozen=True)
class Lane:
    """Nodes of one type, and the one project that orders them."""

    node_type: str
    project: ProjectRef
    node_names: tuple[str, ...]


@dataclass
class RealPlatform:
    """What tests do with the platform: order, release, and look."""

    database: Database
    sim: SimHandle
    document: SiteDocument
    clusters: ClusterService
    nodes: BaremetalService
    saboteurs: Saboteurs
    processes: Sequence[Process]
    projections: Sequence[Projection]
    lanes: Sequence[Lane]
    scheduler: WireHost | None = None
    site_id: str = ""
    node_ids: dict[str, str] = field(default_factory=dict)

    async def order(self, lane: Lane) -> str:
        """Order a cluster as a tenant does; returns the operation's id."""
        order = ClusterOrder(
            name=new_id("c").replace("_", "-"),
            kind="slurm" if self.scheduler else "bare",
            site=self.document.name,
            image=self.document.images[0].name,
            pools=(PoolWish(pool="main", node_type=lane.node_type, count=ORDERED),),
            ssh_keys=("key",),
            user_data=None,
        )
        request = request_key(OPERATOR.subject, "POST clusters", None, b"")
        _, operation = await self.clusters.create(OPERATOR, lane.project, order, request)
        return str(operation["id"])

    async def release(self, lane: Lane, cluster_id: str) -> str:
        """Order a cluster's release; returns the operation's id."""
        request = request_key(OPERATOR.subject, "DELETE clusters", None, b"")
        _, operation = await self.clusters.delete(OPERATOR, lane.project, cluster_id, request)
        return str(operation["id"])

    def scheduler_of(self, cluster_id: str) -> str:
        """Whether the scheduler host runs the cluster, by its own account."""
        runs = self.scheduler is not None and cluster_id in self.scheduler.clusters
        return "runs" if runs else "none"

    def drained(self, cluster_id: str) -> set[str]:
        """The cluster's slots that take no work, by the scheduler host's own account."""
        drained = self.scheduler.drained if self.scheduler else {}
        return {slot for cluster, slot in drained if cluster == cluster_id}

    async def order_on_node(self, name: str, verb: str) -> str:
        """Order one of baremetal's sagas on a node; returns the operation's id."""
        request = request_key(OPERATOR.subject, f"POST {verb}", None, b"")
        _, operation = await self.nodes.order(OPERATOR, name, verb, request)
        return str(operation["id"])

    async def take(self, node_id: str) -> None:
        """Take a node into quarantine as an operator does; returns once it is shut out."""
        entry = await self.nodes.quarantine(OPERATOR, node_id, "an operator took it")
        operation_id = entry.node.acting_operation_id
        assert operation_id is not None
        await self.rest(operation_id, "baremetal")

    async def rest(self, operation_id: str, service: str = "clusters") -> dict[str, Any]:
        """An operation's row once no workflow carries it on."""

        async def rests() -> bool:
            return (await self.row(operation_id, service))["state"] in RESTING_STATES

        came = await self.until(rests, DEADLINE_S)
        row = await self.row(operation_id, service)
        assert came, f"{operation_id} is still {row['state']} at step {row['position']}"
        return row

    async def row(self, operation_id: str, service: str = "clusters") -> dict[str, Any]:
        """An operation's row."""
        table = ORDERING[service].operation
        async with self.database.transaction(service) as session:
            query = select(table).where(table.c.id == operation_id)
            return dict((await session.execute(query)).mappings().one())

    async def until(self, true: Callable[[], Awaitable[bool]], deadline_s: float) -> bool:
        """Ask until the answer is yes; whether it was within the deadline."""
        end = asyncio.get_running_loop().time() + deadline_s
        while True:
            for process in self.processes:
                assert process.failure is None, f"{process.name}: {process.failure!r}"
            if await true():
                return True
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(_POLL_S)

    async def until_told(self) -> None:
        """Wait until every read model has folded all that happened until now."""

        async def relayed() -> bool:
            async with self.database.across() as connection:
                return (await connection.execute(query)).first() is None

        async def folded() -> bool:
            while left:
                entries, _ = await read_feed(
                    self.database,
                    await self._cursor(left[0]),
                    types=left[0].types,
                    condition=feed_tables.log.c.position <= head,
                    limit=1,
                )
                if entries:
                    return False
                left.pop(0)
            return True

        now = SystemClock().now()
        query = union_all(
            *(
                select(kit.event.c.id).where(~kit.event.c.relayed, kit.event.c.at <= now).limit(1)
                for kit in SCHEMAS.values()
            )
        )
        assert await self.until(relayed, DEADLINE_S), "events were not relayed"
        head = await head_position(self.database)
        left = list(self.projections)
        assert await self.until(folded, DEADLINE_S), "read models did not fold the events"

    async def until_drained(self, cluster_id: str) -> bool:
        """Wait until none of the cluster's identifiers drains any more; whether it came."""

        async def drained() -> bool:
            async with self.database.transaction("network") as session:
                query = (
                    select(PoolValue.value)
                    .join(Network, Network.id == PoolValue.network_id)
                    .where(Network.cluster_id == cluster_id, PoolValue.state == "draining")
                )
                return (await session.execute(query.limit(1))).first() is None

        return await self.until(drained, DEADLINE_S)

    async def _cursor(self, projection: Projection) -> int:
        cursor = projection.kit.feed_cursor
        async with self.database.transaction(projection.kit.schema) as session:
            query = select(cursor.c.position).where(cursor.c.consumer == projection.name)
            return await session.scalar(query) or 0


@asynccontextmanager
async def real_platform(
    database_url: str, temporal_address: str, folder: Path, scheduler: WireHost | None = None
) -> AsyncGenerator[RealPlatform]:
    """Everything started, the site declared and enrolled, a project with its limit a lane. With a
    ``scheduler`` host clusters are of kind ``slurm``."""
    document, config, lanes = _site()
    document = _with_scheduler(document, scheduler)
    await upgrade_all(database_url, migrate.locations())
    ensure_master_key(folder / "master-key")
    async with simulator(folder, config) as sim, contextlib.AsyncExitStack() as stack:
        settings = PlatformSettings(
            postgres_url=database_url,
            temporal_address=temporal_address,
            secret_key_file=str(folder / "master-key"),
            agent_port=free_ports(1)[0],
            device_ca_file=str(_trusted(folder, sim, scheduler)),
            heartbeat_s=5,
            sticky_queue_s=0.5,
            data_dir=str(folder),
        )
        central, at_site, forwarding = [
            await stack.enter_async_context(running_process(name, settings))
            for name in ("worker", "site-worker", "relay")
        ]
        database = Database(database_url, application="test", pool_size=20)
        stack.push_async_callback(database.dispose)
        saboteurs = Saboteurs(database)
        platforms = [
            _SabotagedPlatform(process, saboteurs.cut, saboteurs) for process in (central, at_site)
        ]
        await worker.serve(central, platforms[0])
        await site_worker.serve(at_site, platforms[1])
        await relay.serve(forwarding)
        orchestrator = OrchestratorService(database, SystemClock())
        common = (database, SystemClock(), Sealer.from_file(folder / "master-key"), AllowAll())
        platform = RealPlatform(
            database=database,
            sim=sim,
            document=document,
            clusters=ClusterService(*common, orchestrator),
            nodes=BaremetalService(*common, orchestrator),
            saboteurs=saboteurs,
            processes=(central, at_site, forwarding),
            projections=platforms[0].projections(),
            lanes=lanes,
            scheduler=scheduler,
        )
        saboteurs.take = platform.take
        await _enrol(platform, SiteService(*common, orchestrator))
        await _allow(platform, KeyService(*common))
        yield platform


def _site() -> tuple[SiteDocument, dict[str, Any], list[Lane]]:
    bmc, nvue, ufm, control = free_ports(4)
    ports = SimPorts(bmc=bmc, nvue=nvue, ufm=ufm, control=control)
    options = LayoutOptions(name="demo", ports=ports, address_base=_BASE, cooldown_s=1)
    kind = synthetic_site(1, options=options).node_types[0]
    lanes: list[Lane] = []
    planned: list[PlannedNode] = []
    for number in range(LANES):
        lane_type = kind.model_copy(update={"name": f"lane-{number}"})
        names = tuple(f"n{number}-{place}" for place in range(NODES_IN_LANE))
        project = ProjectRef(f"prj_{number}", f"lane-{number}", "org_sagas", "sagas")
        lanes.append(Lane(lane_type.name, project, names))
        planned += [PlannedNode(name, lane_type) for name in names]
    document = lay_out(planned, options)
    return document, dict(simulator_config(document, ports, hardware_time="zero")), lanes


def _with_scheduler(document: SiteDocument, scheduler: WireHost | None) -> SiteDocument:
    """The site with that scheduler host instead of the simulator's, or with none."""
    if scheduler is None:
        return document.model_copy(update={"scheduler_hosts": ()})
    access = scheduler.access
    account = Credential(username=access.username, password=SecretStr(access.password))
    host = SchedulerHost(name=access.name, address=access.address, credentials_ref="scheduler-host")
    credentials = {**document.credentials, "scheduler-host": account}
    return document.model_copy(update={"scheduler_hosts": (host,), "credentials": credentials})


def _trusted(folder: Path, sim: SimHandle, scheduler: WireHost | None) -> Path:
    """The authorities of all devices."""
    bundle = folder / "device-ca.pem"
    authorities = [sim.ca_file, *([scheduler.ca_file] if scheduler else [])]
    bundle.write_text("".join(file.read_text() for file in authorities))
    return bundle


async def _enrol(platform: RealPlatform, sites: SiteService) -> None:
    request = request_key(OPERATOR.subject, "PUT site", None, b"")
    _, applied = await sites.apply(OPERATOR, platform.document, request)
    assert applied.site is not None
    platform.site_id = applied.site.id
    wanted = len(platform.document.nodes)

    async def available() -> bool:
        async with platform.database.transaction("orchestrator") as session:
            query = select(func.count()).where(
                KnownNode.state == "available", KnownNode.node_type != ""
            )
            return await session.scalar(query) == wanted

    assert await platform.until(available, DEADLINE_S), "the site was not enrolled"

    async def seen_ready() -> bool:
        async with platform.database.transaction("clusters") as session:
            states = (await session.scalars(select(SchedulerRow.state))).all()
            return states == ["ready"]

    if platform.scheduler is not None:
        assert await platform.until(seen_ready, DEADLINE_S), "the scheduler host was not seen"
    async with platform.database.transaction("orchestrator") as session:
        rows = await session.execute(select(KnownNode.name, KnownNode.node_id))
        platform.node_ids = {row.name: row.node_id for row in rows}


async def _allow(platform: RealPlatform, keys: KeyService) -> None:
    metering = MeteringService(platform.database, SystemClock(), AllowAll())
    for lane in platform.lanes:
        await keys.add_ssh_key(OPERATOR, lane.project, "key", KEYS[0])
        await metering.set_quota(OPERATOR, lane.project, lane.node_type, NODES_IN_LANE)

    async def known() -> bool:
        async with platform.database.transaction("orchestrator") as session:
            count = await session.scalar(select(func.count()).select_from(QuotaLimit))
            return count == len(platform.lanes)

    assert await platform.until(known, DEADLINE_S), "the limits did not arrive"
