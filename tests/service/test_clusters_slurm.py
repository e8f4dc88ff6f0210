"""Promises of kind slurm: when an order of it is admitted, and what its steps do to its host."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from dflare.drivers.scheduler.port import HostAccess
from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_host import SlurmHost
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedEntry
from dflare.kit.plan import StepCall, StepReport
from dflare.kit.seal import Sealer
from dflare.kit.steps import StepRunner
from dflare.services.baremetal.contract import (
    EthernetCable,
    InfinibandCable,
    NodeDeclared,
    NodeTypeFacts,
    PoolFacts,
    SchedulerHostFacts,
    SiteDeclared,
)
from dflare.services.baremetal.credentials import device_secret
from dflare.services.clusters import activities, api
from dflare.services.clusters.activities_scheduler import site_steps
from dflare.services.clusters.contract import ClusterDeclared, SchedulerSecret
from dflare.services.clusters.domain_scheduler import GONE, gpu_type_of
from dflare.services.clusters.reconciler_schedulers import SchedulerReconciler
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.service import ClusterService
from dflare.services.clusters.service_keys import KeyService
from dflare.services.clusters.tables import KIT, Cluster, NodePool, Scheduler, SchedulerHost
from dflare.services.orchestrator.contract import AllocationFacts, AllocationState
from scheduler_wire import WireHost, wire_host
from stores import drop_database
from tenancy import MEMBER, NOW, RED, Rack, Tenancy, application, client, migrated_database

CLUSTERS = f"/projects/{RED.id}/clusters"
SITE = "site_1"


@dataclass
class World:
    """The clusters API, the steps of its site and a scheduler host on the wire."""

    database: Database
    host: WireHost
    hosts: SchedulerHosts
    clock: ManualClock
    sealer: Sealer
    rack: Rack
    calls: httpx.AsyncClient

    async def fold(self, kind: str, data: dict[str, Any], version: int = 1) -> None:
        entry = FeedEntry(
            1, "x", f"evt_{version}", kind, None, None, None, "x", "x", version, None, NOW, data
        )
        for projection in activities.projections():
            if kind in projection.types:
                async with self.database.transaction("clusters") as session:
                    await projection.apply(session, [entry])

    async def declare(self, version: int = 1, *, host: bool = True) -> None:
        access = self.host.access
        secret = device_secret(self.sealer, SITE, access.name, access.username, access.password)
        facts = SchedulerHostFacts(name=access.name, address=access.address, secret=secret)
        pools = PoolFacts(vlan=(), vni=(), pkey=(), prefixes=(), subnet_length=24, cooldown_s=1)
        site = SiteDeclared(
            site_id=SITE,
            name="hall-1",
            currency="EUR",
            switches=(),
            ufm=None,
            pools=pools,
            node_types=(
                NodeTypeFacts(
                    name="g8",
                    vendor="dell",
                    gpu_model="NVIDIA H100 SXM5",
                    gpus=8,
                    infiniband_rails=8,
                    price_per_node_hour="12.50",
                    cpus=112,
                    memory_mib=2048,
                ),
            ),
            images=("base",),
            scheduler_hosts=(facts,) if host else (),
        )
        await self.fold("site.declared", site.model_dump(mode="json"), version)

    async def look(self) -> None:
        await SchedulerReconciler(self.hosts, self.clock).look()

    async def volume(self, name: str, state: str = "ready") -> str:
        data = {"id": f"vol_{name}", "project_id": RED.id, "site_id": SITE, "name": name}
        data |= {"source": f"/store/{name}", "state": state}
        await self.fold("volume.changed", data)
        return data["id"]

    async def order(self, **more: Any) -> httpx.Response:
        pool = {"name": "gpu", "node_type": "g8", "count": 2}
        body = {"name": "ml", "kind": "slurm", "pools": [pool], **more}
        return await self.calls.post(CLUSTERS, json=body)

    async def placed(self) -> str:
        """An admitted order whose nodes are known with their places; returns its cluster."""
        await self.declare()
        await self.look()
        answer = await self.order()
        assert answer.status_code == 202, answer.text
        cluster_id = answer.json()["resource_id"]
        for slot in (0, 1):
            await self.member(cluster_id, f"node_0{slot}", slot)
        return cluster_id

    async def member(
        self, cluster_id: str, node: str, slot: int, state: str = "confirmed", version: int = 1
    ) -> None:
        facts = AllocationFacts(
            allocation_id=f"alloc_{node}",
            version=version,
            state=AllocationState(state),
            node_id=node,
            node_name=node,
            node_type="g8",
            organization_id=RED.organization_id,
            project_id=RED.id,
            cluster_id=cluster_id,
            site_id=SITE,
            pool="gpu",
            slot=slot,
            gpus=8,
            operation_id="op_1",
            epoch=1,
        )
        await self.fold("allocation.changed", facts.model_dump(mode="json"), version)
        declared = NodeDeclared(
            node_id=node,
            site_id=SITE,
            name=node,
            node_type="g8",
            gpus=8,
            row="a",
            rack="r1",
            block="b",
            nvlink_domain=None,
            ethernet=(EthernetCable(name="eth0", mac="m", switch="tor-1", port="1"),),
            infiniband=(
                InfinibandCable(name="ib1", guid="g", rail=1, switch="ib-leaf-9", port="1"),
                InfinibandCable(name="ib0", guid="g", rail=0, switch=f"ib-leaf-{node}", port="1"),
            ),
        )
        await self.fold("node.declared", declared.model_dump(mode="json"))

    async def run(
        self, step: str, cluster_id: str, *targets: str, undoing: bool = False, late: bool = False
    ) -> StepReport:
        self.clock.at += timedelta(seconds=1)
        call = StepCall(
            operation_id=f"op_{self.clock.now().timestamp()}",
            ordering_service="clusters",
            attempt=1,
            step=step,
            index=0,
            undoing=undoing,
            batch="0.1",
            site_id=SITE,
            resource_id=cluster_id,
            targets=targets or (cluster_id,),
            deadline_at=self.clock.now() + timedelta(seconds=1 if late else 600),
        )
        steps = {one.name: one for one in site_steps(self.hosts, self.clock)}
        return await StepRunner(self.database, KIT, self.clock).run(steps[step], call, 1)

    async def row(self, kind: type[Any], **where: Any) -> Any:
        async with self.database.transaction("clusters") as session:
            return (await session.scalars(select(kind).filter_by(**where))).one()

    async def row_of_event(self, kind: str) -> dict[str, Any]:
        async with self.database.transaction("clusters") as session:
            query = select(KIT.event.c.data).where(KIT.event.c.type == kind)
            return dict((await session.scalars(query)).one())

    async def set_state(self, cluster_id: str, state: str, since: datetime | None = None) -> None:
        async with self.database.transaction("clusters") as session:
            statement = update(Cluster).where(Cluster.id == cluster_id)
            await session.execute(statement.values(state=state, since=since or self.clock.now()))


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    url = await migrated_database(postgres_url, "clusters")
    database = Database(url, application="test-slurm")
    clock, sealer, rack, tenancy = ManualClock(NOW), Sealer(bytes(range(32))), Rack(), Tenancy()
    service = ClusterService(database, clock, sealer, tenancy, rack)
    keys = KeyService(database=database, clock=clock, sealer=sealer, authorizer=tenancy)
    app = application(tenancy, lambda principal: api.router(service, keys, tenancy, principal))
    async with wire_host(tmp_path) as host, client(app, MEMBER) as calls:
        rest = HostRest(ca_file=str(host.ca_file), timeout_s=5)

        def connect(access: HostAccess) -> SlurmHost:
            return SlurmHost(rest, access)

        hosts = SchedulerHosts(database, sealer, connect)
        yield World(database, host, hosts, clock, sealer, rack, calls)
        await rest.close()
    await database.dispose()
    drop_database(url)


# --- admission -------------------------------------------------------------------------------


async def test_a_site_without_a_scheduler_host_refuses_slurm_and_goes_on_with_bare(
    world: World,
) -> None:
    await world.declare(host=False)
    refused = await world.order()
    assert refused.status_code == 409
    assert "no host that runs Slurm controllers" in refused.json()["detail"]
    assert "kind bare" in refused.json()["next_step"]
    assert (await world.order(kind="bare")).status_code == 202


async def test_a_host_that_cannot_run_slurm_is_named_with_what_to_do(world: World) -> None:
    await world.declare()
    refused = (await world.order()).json()
    assert "was not heard of lately" in refused["detail"]
    world.host.state, world.host.broken = "unavailable", "needs Debian's package slurmctld"
    await world.look()
    refused = (await world.order()).json()
    assert "needs Debian's package slurmctld" in refused["detail"]
    world.host.state, world.host.broken = "preparing", "packages are being unpacked"
    await world.look()
    refused = (await world.order()).json()
    assert "is getting ready: packages are being unpacked" in refused["detail"]
    assert len(world.rack.held) == 0


async def test_a_host_that_has_not_been_seen_for_long_is_not_believed(world: World) -> None:
    await world.declare()
    await world.look()
    world.clock.at += timedelta(minutes=2)
    assert "was not heard of lately" in (await world.order()).json()["detail"]
    await world.look()
    assert (await world.order()).status_code == 202


async def test_a_host_that_the_site_declares_no_more_gets_no_new_clusters(world: World) -> None:
    await world.declare()
    await world.look()
    await world.declare(version=2, host=False)
    assert "no host that runs Slurm" in (await world.order()).json()["detail"]


async def test_an_order_declares_what_its_nodes_and_volumes_need_and_keeps_the_key_sealed(
    world: World,
) -> None:
    await world.declare()
    await world.look()
    volume = await world.volume("data")
    mounts = [{"volume": "data", "mount": "/mnt/data", "read_only": True}]
    operation = (await world.order(volumes=mounts)).json()
    names = [step["name"] for step in operation["steps"]]
    assert {"volumes.grant@1", "clusters.start_scheduler@1", "clusters.await_nodes@1"} < set(names)
    event = await world.row_of_event("cluster.declared")
    declared = ClusterDeclared.model_validate(event)
    assert declared.kind == "slurm"
    assert [(m.volume_id, m.target, m.read_only) for m in declared.mounts] == [
        (volume, "/mnt/data", True)
    ]
    assert declared.scheduler_sealed is not None
    name = f"scheduler/{declared.cluster_id}"
    opened = world.sealer.open(name, base64.b64decode(declared.scheduler_sealed))
    secret = SchedulerSecret.model_validate_json(opened)
    assert len(base64.b64decode(secret.munge_key)) == 128
    dashed = declared.cluster_id.replace("_", "-")
    assert secret.controller == f"{dashed}.scheduler.internal:6817"
    assert (await world.row(NodePool)).max_nodes == 18


async def test_one_who_looks_at_a_cluster_is_told_how_its_slurm_is(world: World) -> None:
    cluster_id = await world.placed()
    await world.run("clusters.start_scheduler@1", cluster_id)
    shown = (await world.calls.get(f"{CLUSTERS}/ml")).json()
    assert shown["scheduler"] == {
        "state": "ready",
        "reason": "",
        "partitions": ["gpu"],
        "account": RED.name,
    }
    assert shown["volumes"] == []
    assert (await world.calls.get(CLUSTERS)).json()["items"][0]["scheduler"] is None


@pytest.mark.parametrize(
    ("volumes", "says"),
    [
        ([{"volume": "none", "mount": "/mnt/a"}], "no volume none"),
        ([{"volume": "young", "mount": "/mnt/a"}], "no volume young that is ready"),
        ([{"volume": "data", "mount": "/etc"}], "cannot be mounted at /etc"),
        ([{"volume": "data", "mount": "/mnt/../etc"}], "cannot be mounted at"),
        ([{"volume": "data", "mount": "/mnt/a"}, {"volume": "data", "mount": "/mnt/b"}], "twice"),
        (
            [{"volume": "data", "mount": "/mnt/a"}, {"volume": "more", "mount": "/mnt/a/b"}],
            "lies in another volume's place",
        ),
    ],
)
async def test_a_volume_that_cannot_be_mounted_refuses_the_order(
    world: World, volumes: list[dict[str, Any]], says: str
) -> None:
    await world.declare()
    await world.look()
    await world.volume("data")
    await world.volume("more")
    await world.volume("young", "creating")
    refused = await world.order(volumes=volumes)
    assert refused.status_code == 422, refused.text
    assert says in refused.json()["detail"]


async def test_a_bare_cluster_mounts_no_volumes(world: World) -> None:
    await world.declare()
    await world.volume("data")
    refused = await world.order(kind="bare", volumes=[{"volume": "data", "mount": "/mnt/a"}])
    assert (refused.status_code, refused.json()["type"].rsplit("/")[-1]) == (422, "invalid-mount")


# --- steps -----------------------------------------------------------------------------------


async def test_the_host_is_told_every_slot_and_the_leaf_of_those_that_nodes_stand_in_for(
    world: World,
) -> None:
    cluster_id = await world.placed()
    assert (await world.run("clusters.start_scheduler@1", cluster_id)).done == (cluster_id,)
    body = world.host.clusters[cluster_id]
    assert (body["name"], body["account"]) == ("ml", RED.name)
    slots = {slot["name"]: slot for slot in body["slots"]}
    assert list(slots) == [f"gpu-{n}" for n in range(18)]
    assert slots["gpu-1"]["switch"] == "ib-leaf-node_01"
    assert slots["gpu-2"]["switch"] is None
    assert (slots["gpu-2"]["gpu_type"], slots["gpu-2"]["gpus"], slots["gpu-2"]["cpus"]) == (
        "h100",
        8,
        112,
    )
    assert (await world.row(Scheduler)).state == "ready"


async def test_nodes_are_done_when_they_have_registered_and_late_ones_fail_with_a_diagnosis(
    world: World,
) -> None:
    cluster_id = await world.placed()
    await world.run("clusters.start_scheduler@1", cluster_id)
    world.host.absent["gpu-1"] = "its munge key is not the cluster's"
    await_nodes = ("clusters.await_nodes@1", cluster_id, "node_00", "node_01")
    report = await world.run(*await_nodes)
    assert (report.done, report.pending) == (("node_00",), ("node_01",))
    report = await world.run(*await_nodes, late=True)
    assert report.done == ("node_00",)
    assert report.shared == ()
    assert "gpu-1" in report.failed["node_01"]
    assert "its munge key is not the cluster's" in report.failed["node_01"]


async def test_a_controller_that_is_not_up_is_no_fault_of_a_node(world: World) -> None:
    cluster_id = await world.placed()
    await world.run("clusters.start_scheduler@1", cluster_id)
    world.host.failed = "mariadbd does not start"
    await_nodes = ("clusters.await_nodes@1", cluster_id, "node_00")
    # Its host tries again by itself, so that there is something to wait for.
    report = await world.run(*await_nodes)
    assert report.pending == ("node_00",)
    report = await world.run(*await_nodes, late=True)
    assert report.shared == ("node_00",)
    assert "mariadbd does not start" in report.failed["node_00"]
    start = ("clusters.start_scheduler@1", cluster_id)
    assert (await world.run(*start)).pending == (cluster_id,)
    assert "mariadbd does not start" in (await world.run(*start, late=True)).failed[cluster_id]


async def test_a_stand_in_on_another_leaf_changes_what_the_host_is_told(world: World) -> None:
    cluster_id = await world.placed()
    await world.run("clusters.start_scheduler@1", cluster_id)
    await world.member(cluster_id, "node_01", 1, "ended", version=2)
    await world.member(cluster_id, "node_07", 1)
    puts = world.host.told.count(f"PUT /v1/clusters/{cluster_id}")
    for _ in range(2):
        report = await world.run("clusters.await_nodes@1", cluster_id, "node_07")
        assert report.done == ("node_07",)
    assert world.host.told.count(f"PUT /v1/clusters/{cluster_id}") == puts + 1
    assert world.host.clusters[cluster_id]["slots"][1]["switch"] == "ib-leaf-node_07"


async def test_a_host_that_cannot_start_it_fails_the_order_with_what_to_do(world: World) -> None:
    cluster_id = await world.placed()
    world.host.broken = "sysctl kernel.unprivileged_userns_clone=1"
    report = await world.run("clusters.start_scheduler@1", cluster_id)
    assert report.failed == {cluster_id: "sysctl kernel.unprivileged_userns_clone=1"}


async def test_stopping_waits_until_nothing_is_left_and_only_a_release_forgets_the_key(
    world: World,
) -> None:
    cluster_id = await world.placed()
    await world.run("clusters.start_scheduler@1", cluster_id)
    world.host.lingers = 1
    stop = ("clusters.stop_scheduler@1", cluster_id)
    assert (await world.run(*stop, undoing=True)).pending == (cluster_id,)
    assert (await world.run(*stop, undoing=True)).done == (cluster_id,)
    assert (await world.row(Scheduler)).state == GONE
    assert (await world.run("clusters.start_scheduler@1", cluster_id)).done == (cluster_id,)
    world.host.lingers = 0
    assert (await world.run(*stop)).done == (cluster_id,)
    assert (await world.run(*stop)).done == (cluster_id,)
    async with world.database.transaction("clusters") as session:
        assert (await session.execute(select(KIT.secret.c.name))).all() == []


async def test_while_a_site_is_frozen_its_hosts_are_told_nothing(world: World) -> None:
    cluster_id = await world.placed()
    await world.fold("site.frozen", {"site_id": SITE, "frozen": True}, version=1)
    report = await world.run("clusters.start_scheduler@1", cluster_id)
    assert report.pending == (cluster_id,)
    await world.fold("site.frozen", {"site_id": SITE, "frozen": False}, version=2)
    assert (await world.run("clusters.start_scheduler@1", cluster_id)).done == (cluster_id,)
    assert [told for told in world.host.told if told.startswith("PUT")] == [
        f"PUT /v1/clusters/{cluster_id}"
    ]


async def test_what_a_cluster_without_a_scheduler_has_to_stop_is_nothing(world: World) -> None:
    await world.declare()
    cluster_id = (await world.order(kind="bare")).json()["resource_id"]
    assert (await world.run("clusters.stop_scheduler@1", cluster_id)).done == (cluster_id,)


# --- reconciler ------------------------------------------------------------------------------


async def test_a_scheduler_that_its_host_lost_is_told_again(world: World) -> None:
    cluster_id = await world.placed()
    await world.run("clusters.start_scheduler@1", cluster_id)
    await world.set_state(cluster_id, "ready")
    world.host.clusters.clear()
    await world.look()
    assert cluster_id in world.host.clusters


async def test_a_scheduler_that_a_late_call_began_again_is_removed_again(world: World) -> None:
    cluster_id = await world.placed()
    await world.run("clusters.start_scheduler@1", cluster_id)
    body = world.host.clusters[cluster_id]
    assert (await world.run("clusters.stop_scheduler@1", cluster_id)).done == (cluster_id,)
    await world.set_state(cluster_id, "deleted")
    world.host.clusters[cluster_id] = body
    await world.look()
    await world.look()
    assert world.host.clusters == {}
    assert (await world.row(Scheduler)).state == GONE


async def test_a_host_that_does_not_answer_is_kept_as_unavailable(world: World) -> None:
    await world.declare()
    async with world.database.transaction("clusters") as session:
        await session.execute(update(SchedulerHost).values(address="https://127.0.0.1:9"))
    await world.look()
    row = await world.row(SchedulerHost)
    assert row.state == "unavailable"
    assert "127.0.0.1" in row.reason


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ("NVIDIA H100 SXM5 80GB", "h100"),
        ("H100-SXM5-80GB", "h100"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Gaudi", "gaudi"),
        (None, ""),
    ],
)
def test_a_gpu_is_named_in_one_word(model: str | None, word: str) -> None:
    assert gpu_type_of(model) == word
