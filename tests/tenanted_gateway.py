"""The real gateway over two tenants that have something of everything.

Every service is the platform's own, wired as in production, on real PostgreSQL. What hardware and
fabrics would answer is left out: steps that touch no device are run, nodes are set to the state
that they would have come to.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
from fastapi import FastAPI
from sqlalchemy import select, text, update
from temporalio.client import Client

from callers import Callers, make_callers
from dflare.apps import events
from dflare.apps.gateway import build_app
from dflare.apps.process import Process
from dflare.apps.wiring import SCHEMAS, Platform
from dflare.kit import outbox
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedSignal, advance, copy_events
from dflare.kit.ids import new_id
from dflare.kit.operations import NewOperation, create_operation
from dflare.kit.plan import OperationState, StepCall
from dflare.kit.seal import Sealer
from dflare.kit.settings import PlatformSettings
from dflare.kit.steps import Step, StepRunner
from dflare.services.auth.contract import ProjectRef
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.steps.base import change_state
from dflare.services.baremetal.tables import KIT as BAREMETAL
from dflare.services.baremetal.tables import Node
from dflare.services.clusters import activities as clusters_activities
from dflare.services.clusters.contract import SLURM
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.clusters.tables import Cluster, NodePool, Scheduler
from dflare.services.clusters.tables import KnownSite as SoldSite
from dflare.services.network import activities as network_activities
from dflare.services.orchestrator import activities as orchestrator_activities
from dflare.services.orchestrator.domain import allocation_event
from dflare.services.orchestrator.sagas import SAGAS
from dflare.services.orchestrator.tables import KIT as ORCHESTRATOR
from dflare.services.orchestrator.tables import Allocation
from dflare.services.registry.contract import QUOTA as REGISTRY_QUOTA
from dflare.services.volumes.contract import QUOTA as VOLUME_QUOTA
from dflare.services.volumes.contract import SnapshotState, VolumeState
from dflare.services.volumes.tables import KnownSite, Snapshot, Volume
from dflare.site.document import SiteDocument
from dflare.site.layout import LayoutOptions
from dflare.site.synthetic import synthetic_site

NODE_TYPE = "h100-8"
SITE = "demo"
URL = "http://127.0.0.1:8080"


@dataclass
class Tenant:
    """What one tenant has. ``marks`` are words that nobody else may ever be told: ids, names, keys,
    texts. ``nodes`` maps ids of its nodes to their names."""

    project: ProjectRef
    cluster: str
    ssh_key: str
    user_data: str
    operation: str = ""
    network: str = ""
    volume: str = ""
    nodes: dict[str, str] = field(default_factory=dict[str, str])
    marks: set[str] = field(default_factory=set[str])


@dataclass
class TenantedGateway:
    """The gateway's application and what stands behind it. ``home`` is the tenant of most callers,
    ``rival`` that of ``other_admin``."""

    platform: Platform
    app: FastAPI
    hub: events.EventHub
    client: httpx.AsyncClient
    callers: Callers
    document: SiteDocument
    home: Tenant
    rival: Tenant

    @property
    def database(self) -> Database:
        """The process's connections."""
        return self.platform.database

    async def relay(self) -> None:
        """What the relay and the worker do: number all events, fold them into read models."""
        await _relay(self.platform)

    async def ask(self, caller: str, method: str, path: str, **more: Any) -> httpx.Response:
        """One request as a caller."""
        headers = self.callers.headers(caller) | more.pop("headers", {})
        return await self.client.request(method, path, headers=headers, **more)

    async def run(self, tenant: Tenant, step: str, **more: Any) -> None:
        """Run a step that touches no device for a tenant's cluster and all its nodes."""
        await _run(self.platform, tenant, step, **more)

    async def spare_node(self, state: NodeState) -> str:
        """A node that nobody holds, in a state; its id."""
        async with self.database.transaction("orchestrator") as session:
            query = "SELECT node_id FROM orchestrator.allocation WHERE state <> 'ended'"
            held = list((await session.execute(text(query))).scalars())
        async with self.database.transaction("baremetal") as session:
            query = select(Node.id).where(Node.id.not_in(held)).order_by(Node.name.desc())
            spare = (await session.scalars(query)).all()
        node_id = spare[0] if state is NodeState.AVAILABLE else spare[1]
        await _set_nodes(self.platform, [node_id], state)
        return node_id

    async def new_cluster(self) -> str:
        """A cluster of the home project without nodes, which may be deleted; its id."""
        now, project = self.platform.process.clock.now(), self.home.project
        cluster = Cluster(
            id=new_id("clu"),
            organization_id=project.organization_id,
            project_id=project.id,
            site_id="site_gone",
            name=f"c-{new_id('x')[-12:]}",
            kind="bare",
            image="base",
            state="failed",
            since=now,
            deadline=None,
            ssh_keys=[],
            user_data_id=None,
            operation_id=new_id("op"),
            created_by="a test",
            created_at=now,
        )
        async with self.database.transaction("clusters") as session:
            session.add(cluster)
        return cluster.id

    async def slurm_cluster(self) -> str:
        """The id of a ready cluster of the home project whose scheduler nobody runs."""
        cluster_id = await self.new_cluster()
        async with self.database.transaction("clusters") as session:
            cluster = await session.get_one(Cluster, cluster_id)
            cluster.kind, cluster.state = SLURM, "ready"
            site_id, host = cluster.site_id, "of-nobody"
            session.add(
                Scheduler(cluster_id=cluster_id, site_id=site_id, host=host, account="training")
            )
        return cluster_id

    async def living_cluster(self) -> tuple[str, str]:
        """A ready cluster of the home project with two nodes of the ledger's alone; the ids of it
        and of one of them."""
        cluster_id = await self.new_cluster()
        now, project = self.platform.process.clock.now(), self.home.project
        async with self.database.transaction("clusters") as session:
            cluster = await session.get_one(Cluster, cluster_id)
            cluster.state = "ready"
            cluster.site_id = (await session.scalars(select(SoldSite.site_id))).one()
            site_id = cluster.site_id
            pool = {"name": "default", "node_type": NODE_TYPE, "count": 2}
            session.add(NodePool(id=new_id("pool"), cluster_id=cluster_id, **pool))
        allocations = [
            Allocation(
                id=new_id("alloc"),
                version=1,
                state="confirmed",
                node_id=(node_id := new_id("node")),
                node_name=f"n-{node_id[-12:]}",
                node_type=NODE_TYPE,
                gpus=8,
                site_id=site_id,
                organization_id=project.organization_id,
                project_id=project.id,
                cluster_id=cluster_id,
                pool="default",
                slot=slot,
                reserved_by="a test",
                operation_id="a test",
                epoch=1,
                since=now,
                created_at=now,
            )
            for slot in range(2)
        ]
        async with self.database.transaction("orchestrator") as session:
            session.add_all(allocations)
            await session.flush()
            events = [allocation_event(one, now) for one in allocations]
            await outbox.emit(session, ORCHESTRATOR, events)
        await self.relay()
        return cluster_id, allocations[0].node_id

    async def new_volume(self) -> str:
        """A volume of the home project that nobody has made yet and that may be changed; its id."""
        now, project = self.platform.process.clock.now(), self.home.project
        async with self.database.transaction("volumes") as session:
            site_id = (await session.scalars(select(KnownSite.site_id))).one()
        volume = Volume(
            id=new_id("vol"),
            organization_id=project.organization_id,
            project_id=project.id,
            site_id=site_id,
            name=f"v-{new_id('x')[-12:]}",
            size_gib=1,
            wanted_gib=1,
            desired_gib=1,
            state=VolumeState.READY,
            since=now,
            operation_id=new_id("op"),
            created_by="a test",
            created_at=now,
        )
        async with self.database.transaction("volumes") as session:
            session.add(volume)
        return volume.id

    async def new_snapshot(self, volume_id: str) -> str:
        """A snapshot of a volume that nobody has taken yet; its name."""
        snapshot = Snapshot(
            id=new_id("snp"),
            volume_id=volume_id,
            name="kept",
            state=SnapshotState.CREATING,
            created_by="a test",
            created_at=self.platform.process.clock.now(),
        )
        async with self.database.transaction("volumes") as session:
            session.add(snapshot)
        return "kept"

    async def new_operation(self, state: OperationState) -> str:
        """An operation of the home project in a state; its id."""
        project = self.home.project
        new = NewOperation(
            id=new_id("op"),
            kind="create_cluster",
            organization_id=project.organization_id,
            project_id=project.id,
            site_id=None,
            resource_kind="cluster",
            resource_id=self.home.cluster,
            plan=SAGAS["create_cluster"],
            targets=[],
            created_by="a test",
            trace={},
        )
        table = CLUSTERS.operation
        async with self.database.transaction("clusters") as session:
            await create_operation(session, CLUSTERS, new, self.platform.process.clock.now())
            await session.execute(update(table).where(table.c.id == new.id).values(state=state))
        return new.id


@asynccontextmanager
async def tenanted_gateway(database_url: str, folder: Path) -> AsyncIterator[TenantedGateway]:
    """Build everything on a database that has every schema."""
    settings = PlatformSettings(
        postgres_url=database_url,
        temporal_address="127.0.0.1:1",
        secret_key_file=str(folder / "unused"),
        data_dir=str(folder),
        public_url=URL,
    )
    (folder / "secrets").mkdir(exist_ok=True)
    process = Process(
        name="gateway",
        settings=settings,
        database=Database(database_url, application="test-gateway"),
        clock=SystemClock(),
        sealer=Sealer(b"k" * 32),
        feed=FeedSignal(database_url),
        # A gateway starts no workflow: the relay does.
        temporal=cast("Client", None),
    )
    platform = Platform(process)
    await platform.start_gateway()
    hub = events.EventHub(process.database, process.feed, heartbeat_s=0.2)
    process.start(hub.run(), "event-hub")
    app = build_app(platform, hub)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            callers = await make_callers(platform.auth, process.database)
            document = await _declare(platform, client, callers)
            home = await _tenant(platform, client, callers, "member", "home")
            rival = await _tenant(platform, client, callers, "other_admin", "rival")
            _mark_identities(callers, home, rival)
            yield TenantedGateway(platform, app, hub, client, callers, document, home, rival)
    finally:
        for task in list(process.tasks):
            task.cancel()
        await asyncio.gather(*process.tasks, return_exceptions=True)
        await process.database.dispose()


def site_body(document: SiteDocument) -> dict[str, Any]:
    """The document with its passwords, as an operator sends it."""
    body = document.model_dump(mode="json", exclude_defaults=True)
    for name, credential in document.credentials.items():
        if credential.password is not None:
            body["credentials"][name]["password"] = credential.password.get_secret_value()
    return {"version": document.version, **body}


async def _relay(platform: Platform) -> None:
    """Until nothing is left: a read model may emit events in its turn."""
    copied = 1
    while copied:
        copied = 0
        for kit in SCHEMAS.values():
            while some := await copy_events(platform.database, kit):
                copied += some
        for projection in platform.projections():
            while await advance(platform.database, projection):
                pass


async def _declare(platform: Platform, client: httpx.AsyncClient, callers: Callers) -> SiteDocument:
    document = synthetic_site(24, options=LayoutOptions(name=SITE))
    operator = callers.headers("operator")
    answer = await client.put(f"/v1/sites/{SITE}", json=site_body(document), headers=operator)
    assert answer.status_code == 202, answer.text
    for project in (callers.project, callers.other_project):
        for what in (NODE_TYPE, VOLUME_QUOTA, REGISTRY_QUOTA):
            path = f"/v1/projects/{project.id}/quotas/{what}"
            answer = await client.put(path, json={"nodes": 100}, headers=operator)
            assert answer.status_code == 200, answer.text
    await _relay(platform)
    async with platform.database.transaction("baremetal") as session:
        nodes = list(await session.scalars(select(Node.id)))
    await _set_nodes(platform, nodes, NodeState.AVAILABLE)
    return document


async def _set_nodes(platform: Platform, node_ids: list[str], state: NodeState) -> None:
    now = platform.process.clock.now()
    async with platform.database.transaction("baremetal") as session:
        changed: list[outbox.Event] = []
        query = select(Node).where(Node.id.in_(node_ids)).order_by(Node.id).with_for_update()
        for row in await session.scalars(query):
            change_state(row, state, "as a test wants it", now, None, changed)
        await outbox.emit(session, BAREMETAL, changed)
    if changed:
        await _relay(platform)


async def _tenant(
    platform: Platform, client: httpx.AsyncClient, callers: Callers, caller: str, name: str
) -> Tenant:
    """A tenant with a key, user data, and a cluster of three nodes that was handed over."""
    place = callers.project if name == "home" else callers.other_project
    path, headers = f"/v1/projects/{place.id}", callers.headers(caller)

    async def made(what: str, **body: Any) -> dict[str, Any]:
        answer = await client.post(f"{path}/{what}", json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    material = ("A" if name == "home" else "B") * 43
    public_key = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{material} {name}-laptop"
    key = await made("ssh-keys", name=f"key-of-{name}", public_key=public_key)
    secret = f"#cloud-config of {name}: password-of-{name}"
    user_data = await made("user-data", name=f"data-of-{name}", text=secret)
    operation = await made(
        "clusters",
        name=f"cluster-of-{name}",
        pools=[{"node_type": NODE_TYPE, "count": 3}],
        ssh_keys=[key["id"]],
        user_data=user_data["id"],
    )
    project = platform.authorizer.project(
        platform.authorizer.scope(await platform.authorizer.authenticate(_token(headers))),
        place.id,
    )
    tenant = Tenant(project, operation["resource_id"], key["id"], user_data["id"], operation["id"])
    tenant.marks |= {key["id"], key["name"], public_key, key["fingerprint"], secret}
    tenant.marks |= {user_data["id"], user_data["name"], user_data["sha256"]}
    tenant.marks |= {operation["id"], tenant.cluster, f"cluster-of-{name}"}
    volume = await made("volumes", name=f"volume-of-{name}", size_gib=5)
    tenant.volume = volume["resource_id"]
    tenant.marks |= {volume["id"], tenant.volume, f"volume-of-{name}"}
    await _relay(platform)
    await _hand_over(platform, tenant)
    node = next(iter(tenant.nodes))
    answer = await client.post(f"/v1/nodes/{node}/reboot", headers=headers)
    assert answer.status_code == 202, answer.text
    tenant.marks.add(answer.json()["id"])
    await _relay(platform)
    return tenant


def _token(headers: Mapping[str, str]) -> str:
    return headers["Authorization"].removeprefix("Bearer ")


async def _hand_over(platform: Platform, tenant: Tenant) -> None:
    """Run the steps that touch no device, and set the nodes to what they would have become."""
    async with platform.database.transaction("orchestrator") as session:
        query = """
            SELECT id, node_id, node_name, site_id FROM orchestrator.allocation
            WHERE cluster_id = :cluster
        """
        rows = (await session.execute(text(query), {"cluster": tenant.cluster})).all()
    tenant.nodes = {row.node_id: row.node_name for row in rows}
    tenant.marks |= {row.id for row in rows} | tenant.nodes.keys() | set(tenant.nodes.values())
    for name in (
        "clusters.begin@1",
        "orchestrator.confirm@1",
        "network.attach@1",
        "orchestrator.hand_over@1",
        "clusters.ready@1",
    ):
        await _run(platform, tenant, name, site_id=rows[0].site_id)
    await _set_nodes(platform, list(tenant.nodes), NodeState.ACTIVE)
    async with platform.database.transaction("network") as session:
        query = "SELECT id, subnet FROM network.network WHERE cluster_id = :cluster"
        row = (await session.execute(text(query), {"cluster": tenant.cluster})).one()
    tenant.network = row.id
    tenant.marks |= {row.id, row.subnet}


async def _run(platform: Platform, tenant: Tenant, name: str, **more: Any) -> None:
    """Run a step that touches no device for a tenant's cluster and all its nodes."""
    process = platform.process
    network = network_activities.steps(
        process.database, process.clock, platform.network_settings, platform.signals, 1.0
    )
    steps: dict[str, Step[Any]] = {
        step.name: step
        for step in (
            *clusters_activities.steps(process.clock),
            *orchestrator_activities.steps(process.clock),
            *network,
        )
    }
    service = name.partition(".")[0]
    values: dict[str, Any] = {
        "operation_id": tenant.operation,
        "ordering_service": "clusters",
        "attempt": 1,
        "step": name,
        "index": 0,
        "batch": "0",
        "organization_id": tenant.project.organization_id,
        "project_id": tenant.project.id,
        "resource_id": tenant.cluster,
        "targets": (tenant.cluster,) if service == "clusters" else tuple(tenant.nodes),
        "deadline_at": process.clock.now() + timedelta(seconds=60),
    }
    call = StepCall(**(values | more))
    runner = StepRunner(process.database, SCHEMAS[service], process.clock)
    report = await runner.run(steps[name], call, 1)
    assert len(report.done) == len(call.targets), (name, report)
    await _relay(platform)


def _mark_identities(callers: Callers, home: Tenant, rival: Tenant) -> None:
    """Organizations, projects and people. The projects' names are the same on purpose."""
    for tenant, organization, project in (
        (home, callers.organization, callers.project),
        (rival, callers.other_organization, callers.other_project),
    ):
        tenant.marks |= {organization.id, organization.name, project.id}
        for user in callers.users.values():
            if user.organization_id == organization.id:
                tenant.marks |= {user.id, user.name}
