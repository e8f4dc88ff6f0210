"""Promises of nodes that leave a Slurm cluster, and of its drains, against a host on the wire."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_host import SlurmHost
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.plan import StepCall, StepReport
from dflare.kit.seal import Sealer
from dflare.kit.steps import StepRunner
from dflare.services.baremetal.credentials import device_secret
from dflare.services.clusters.activities_idle import site_steps
from dflare.services.clusters.domain_life import find_conditions
from dflare.services.clusters.reconciler_drains import DrainReconciler, changes
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.tables import (
    KIT,
    Cluster,
    Drain,
    Member,
    Scheduler,
    SchedulerHost,
)
from scheduler_wire import WireHost, wire_host
from stores import drop_database
from tenancy import NOW, migrated_database

CLUSTER, OPERATION, SITE = "clu_1", "op_1", "site_1"
NODES = ("node_0", "node_1")
REASON = f"dflare:{OPERATION}: it leaves the cluster"


@dataclass
class Slurm:
    """What scontrol and squeue do on the wire's host: jobs by slot, and states."""

    jobs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    down: set[str] = field(default_factory=set[str])
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def ran(self, request: dict[str, Any]) -> tuple[int, str, str]:
        program, *arguments = request["argv"]
        values = dict(one.lstrip("-").split("=", 1) for one in arguments if "=" in one)
        if program == "squeue":
            return 0, "".join(f"{job}\n" for job in self.jobs.get(values["nodelist"], [])), ""
        for slot in values["NodeName"].split(","):
            if values["State"] == "RESUME":
                self.reasons.pop(slot, None)
                self.down.discard(slot)
                continue
            self.reasons[slot] = values["Reason"]
            if values["State"] == "DOWN":
                self.down.add(slot)
                self.jobs.pop(slot, None)
        return 0, "", ""

    def node(self, slot: str) -> dict[str, Any]:
        busy = "MIXED" if self.jobs.get(slot) else "IDLE"
        state = ("DOWN" if slot in self.down else busy) + "+DRAIN" * (slot in self.reasons)
        reason = self.reasons.get(slot, "")
        return {
            "state": state,
            "reason": f"{reason} [root@now]" if reason else "",
            "registered": True,
            "fault": "",
        }


@dataclass
class Site:
    """A cluster of two nodes with its scheduler."""

    database: Database
    clock: ManualClock
    hosts: SchedulerHosts
    slurm: Slurm

    async def step(self, name: str, *, undoing: bool = False, **params: str) -> StepReport:
        steps = {one.name: one for one in site_steps(self.hosts, self.clock)}
        call = StepCall(
            operation_id=OPERATION,
            ordering_service="clusters",
            attempt=1,
            step=name,
            index=2,
            undoing=undoing,
            batch=new_id("batch"),
            resource_id=CLUSTER,
            targets=NODES,
            params=params,
            deadline_at=self.clock.now() + timedelta(minutes=5),
        )
        return await StepRunner(self.database, KIT, self.clock).run(steps[name], call, 1)

    async def drain(self, node: str, owner: str = OPERATION, why: str = "") -> None:
        values = {"cluster_id": CLUSTER, "node_id": node, "owner": owner, "since": NOW}
        async with self.database.transaction("clusters") as session:
            reason = why or "it leaves the cluster"
            await session.execute(insert(Drain).values(**values, reason=reason))

    async def observe(self) -> None:
        """What the reconciler of schedulers keeps of them."""
        nodes = {slot: self.slurm.node(slot) for slot in ("gpu-0", "gpu-1")}
        async with self.database.transaction("clusters") as session:
            await session.execute(update(Scheduler).values(nodes=nodes, state="ready"))


def _scheduled(host: WireHost, sealer: Sealer) -> list[Any]:
    access = host.access
    secret = device_secret(sealer, SITE, access.name, access.username, access.password)
    cluster = {
        "id": CLUSTER,
        "organization_id": "org",
        "project_id": "proj",
        "site_id": SITE,
        "name": "ml",
        "kind": "slurm",
        "image": "base",
        "state": "resizing",
        "since": NOW,
        "ssh_keys": [],
        "operation_id": OPERATION,
        "created_by": "user",
        "created_at": NOW,
    }
    members = [
        {
            "allocation_id": f"alloc_{number}",
            "cluster_id": CLUSTER,
            "node_id": node,
            "node_name": node,
            "node_type": "g8",
            "pool": "gpu",
            "slot": number,
            "state": "confirmed",
            "version": 1,
        }
        for number, node in enumerate(NODES)
    ]
    scheduler = {"cluster_id": CLUSTER, "site_id": SITE, "host": access.name, "account": "ml"}
    declared = {
        "site_id": SITE,
        "name": access.name,
        "address": access.address,
        "secret": secret,
        "ordinal": 0,
        "declared": True,
        "version": 1,
    }
    return [
        insert(Cluster).values(**cluster),
        insert(Member).values(members),
        insert(Scheduler).values(**scheduler),
        insert(SchedulerHost).values(**declared),
    ]


@pytest.fixture
async def site(postgres_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    url = await migrated_database(postgres_url, "clusters")
    database, sealer = Database(url, application="test-idle"), Sealer(bytes(range(32)))
    async with wire_host(tmp_path) as host:
        slurm = Slurm()
        host.slurm = slurm.ran
        host.clusters[CLUSTER] = {"slots": [{"name": "gpu-0"}, {"name": "gpu-1"}]}
        document = {"state": "ready", "reason": "", "services": {}}

        def shown(_: str) -> dict[str, Any]:
            return document | {"nodes": {slot: slurm.node(slot) for slot in ("gpu-0", "gpu-1")}}

        host.document = shown  # pyright: ignore[reportAttributeAccessIssue]
        async with database.transaction("clusters") as session:
            for statement in _scheduled(host, sealer):
                await session.execute(statement)
        rest = HostRest(ca_file=str(host.ca_file))
        hosts = SchedulerHosts(database, sealer, lambda access: SlurmHost(rest, access))
        yield Site(database, ManualClock(NOW), hosts, slurm)
        await rest.close()
    await database.dispose()
    drop_database(url)


async def test_nodes_that_leave_are_drained_with_their_owner_and_waited_for(site: Site) -> None:
    for node in NODES:
        await site.drain(node)
    site.slurm.jobs = {"gpu-1": ["7 train"]}

    first = await site.step("clusters.await_idle@1", jobs="wait")
    assert (first.done, first.pending, first.failed) == (("node_0",), ("node_1",), {})
    assert site.slurm.reasons == {"gpu-0": REASON, "gpu-1": REASON}
    site.slurm.jobs = {}
    assert (await site.step("clusters.await_idle@1", jobs="wait")).done == NODES


async def test_a_shrink_that_refuses_names_the_jobs_and_its_undo_lets_work_begin_again(
    site: Site,
) -> None:
    for node in NODES:
        await site.drain(node)
    site.slurm.jobs = {"gpu-1": [f"{number} train" for number in range(7)]}

    refused = await site.step("clusters.await_idle@1", jobs="refuse")
    assert refused.done == ("node_0",)
    assert "gpu-1 runs job 0 train" in refused.failed["node_1"]
    assert "and 2 more" in refused.failed["node_1"]
    undone = await site.step("clusters.resume_nodes@1", undoing=True)
    assert undone.done == NODES
    assert site.slurm.reasons == {}
    assert site.slurm.jobs["gpu-1"], "the jobs went on"


async def test_jobs_give_way_at_once_where_that_is_asked_for(site: Site) -> None:
    for node in NODES:
        await site.drain(node)
    site.slurm.jobs = {"gpu-1": ["7 train"]}

    assert (await site.step("clusters.await_idle@1", jobs="now")).pending == ("node_1",)
    assert site.slurm.down == {"gpu-1"}
    assert (await site.step("clusters.await_idle@1", jobs="now")).done == NODES


async def test_a_wait_for_jobs_ends_when_the_operation_is_cancelled(site: Site) -> None:
    await site.drain(NODES[1])
    site.slurm.jobs = {"gpu-1": ["7 train"]}
    operation = {
        "id": OPERATION,
        "kind": "shrink_cluster",
        "resource_kind": "cluster",
        "resource_id": CLUSTER,
        "state": "running",
        "since": NOW,
        "plan": {},
        "targets": list(NODES),
        "created_by": "user",
        "created_at": NOW,
        "trace": {},
        "cancel_requested": True,
    }
    async with site.database.transaction("clusters") as session:
        await session.execute(insert(KIT.operation).values(**operation))
    cancelled = await site.step("clusters.await_idle@1", jobs="wait")
    assert list(cancelled.failed) == ["node_1"]


async def test_the_undo_of_a_shrink_leaves_the_drains_of_others(site: Site) -> None:
    await site.drain(NODES[0], owner="user_7", why="fan")
    await site.drain(NODES[1])
    await site.step("clusters.await_idle@1", jobs="wait")
    await site.step("clusters.resume_nodes@1", undoing=True)
    assert site.slurm.reasons == {"gpu-0": "dflare:user_7: fan"}


async def test_a_new_node_in_a_slot_that_was_drained_takes_work(site: Site) -> None:
    site.slurm.reasons = {"gpu-0": "dflare:op_0: it leaves the cluster"}
    site.slurm.down = {"gpu-0"}
    assert (await site.step("clusters.resume_nodes@1")).done == NODES
    assert site.slurm.reasons == {}


async def test_drains_are_told_to_the_scheduler_and_ended_there(site: Site) -> None:
    reconciler = DrainReconciler(site.hosts)
    await site.observe()
    assert await reconciler.look() == 0
    await site.drain(NODES[0], owner="user_7", why="fan")
    site.slurm.reasons["gpu-1"] = "a tenant's own"
    await site.observe()
    assert await reconciler.look() == 1
    assert site.slurm.reasons["gpu-0"] == "dflare:user_7: fan"
    await site.observe()
    assert await reconciler.look() == 0
    async with site.database.transaction("clusters") as session:
        await session.execute(delete(Drain))
    assert await reconciler.look() == 1
    assert site.slurm.reasons == {"gpu-1": "a tenant's own"}


def test_a_drain_that_a_tenant_made_is_neither_renamed_nor_ended() -> None:
    seen = {"gpu-0": {"state": "IDLE+DRAIN", "reason": "mine [root@now]"}}
    assert changes({}, seen, {"gpu-0"}).resume == []
    assert changes({"gpu-0": "dflare:user: fan"}, seen, {"gpu-0"}).drain == {}


def test_a_slot_that_a_node_left_stays_drained_until_another_comes() -> None:
    seen = {"gpu-0": {"state": "DOWN+DRAIN", "reason": "dflare:op_1: it leaves the cluster"}}
    assert changes({}, seen, set()).resume == []
    assert changes({}, seen, {"gpu-0"}).resume == ["gpu-0"]


async def test_a_scheduler_that_does_not_answer_is_a_condition_of_its_cluster(site: Site) -> None:
    async with site.database.transaction("clusters") as session:
        cluster = (await session.scalars(select(Cluster))).one()
        scheduler = (await session.scalars(select(Scheduler))).one()

    def healthy() -> tuple[str, str]:
        found = find_conditions(cluster, [], 0, scheduler, NOW)
        return next((c.status, c.message) for c in found if c.type == "SchedulerHealthy")

    assert healthy()[0] == "unknown"
    scheduler.state = "ready"
    assert healthy()[0] == "true"
    scheduler.state, scheduler.reason = "degraded", "slurmdbd ended"
    assert healthy() == ("false", "the scheduler of cluster ml is degraded: slurmdbd ended")
    assert [c.type for c in find_conditions(cluster, [], 0, None, NOW)] == ["Ready", "NodesHealthy"]
