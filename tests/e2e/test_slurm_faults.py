"""A Slurm cluster's life among faults: daemons and workers are killed while it grows, shrinks and
is released, and jobs and drains stand in the way.

One platform lives through all of it in order, so that damage of one part shows in the next. Where
an operation has to be struck in, a lock on the table that it writes next, or a job that it waits
for, keeps it from ending before. What is judged is Slurm, the simulator's truth, and the ledger.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from dflare.drivers.scheduler.port import JobRecord, JobScript, SlotObserved
from dflare.drivers.scheduler.slurm_host import SlurmHost
from running_platform import (
    KILL_SETTINGS,
    PlatformHandle,
    Tenant,
    brief,
    ok,
    running_platform,
    running_steps,
)
from site_files import PlatformWish
from slurm_platform import admitted_order, order_of, scheduler_host, slurm_environment

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

NODES = 8
HOLD = "#!/bin/sh\nwhile ! test -e go; do sleep 0.2; done\n"
OWN_REASON = "the tenant looks at it"


@dataclass
class Story:
    """What was seen, in order."""

    grown: dict[str, Any] = field(default_factory=dict[str, Any])
    drained_after_growth: dict[str, SlotObserved] = field(default_factory=dict[str, SlotObserved])
    refused: dict[str, Any] = field(default_factory=dict[str, Any])
    after_refusal: dict[str, Any] = field(default_factory=dict[str, Any])
    waited_at: list[str] = field(default_factory=list[str])
    job_during_wait: JobRecord | None = None
    job: JobRecord | None = None
    shrunk: dict[str, Any] = field(default_factory=dict[str, Any])
    drained_after_shrink: dict[str, SlotObserved] = field(default_factory=dict[str, SlotObserved])
    undrain_by_other: tuple[int, str] = (0, "")
    drained_again: SlotObserved | None = None
    undrained: dict[str, SlotObserved] = field(default_factory=dict[str, SlotObserved])
    ran_on: str = ""
    killed: list[str] = field(default_factory=list[str])
    restarts: int = 0
    clusters_left: list[Any] = field(default_factory=list[Any])
    states: dict[str, int] = field(default_factory=dict[str, int])
    allocations: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    claims: int = 0
    audit: str = ""


@dataclass
class Lab:
    """The platform with one tenant's cluster ``ml``, as its tenant and its saboteur reach it."""

    platform: PlatformHandle
    host: SlurmHost
    tenant: Tenant
    story: Story
    cluster_id: str = ""

    @property
    def clusters(self) -> str:
        """The path of the project's clusters."""
        return f"/v1/projects/{self.tenant.project_id}/clusters"

    async def order(self, name: str, count: int) -> dict[str, Any]:
        """Order a Slurm cluster."""
        return await admitted_order(self.platform, self.tenant, order_of(name, count))

    async def scale(self, count: int, drain: str = "wait") -> dict[str, Any]:
        """Order another size of the cluster."""
        path, body = f"{self.clusters}/ml/pools/gpu", {"count": count, "drain": drain}
        return await self.platform.repeated(self.tenant.http, "PATCH", path, body)

    async def reach(self, operation: dict[str, Any], wanted: str) -> None:
        """Wait until the step runs, or has run while something holds a later one."""

        async def reached() -> bool:
            seen = await self.platform.operation(operation["id"])
            assert seen is None or seen["state"] in {"pending", "running"}, brief(seen)
            return seen is not None and any(
                step["name"] == wanted and step["state"] in {"running", "done"}
                for step in seen["steps"]
            )

        await self.platform.until(reached, 60)

    @asynccontextmanager
    async def held(self, table: str) -> AsyncIterator[None]:
        """Within, nothing is written to the table."""
        async with self.platform.database() as database:
            # The lock goes with the connection, however that ends.
            await database.execute(f"BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            yield

    async def kill_slurmctld(self) -> None:
        """SIGKILL for the cluster's controller, as soon as there is one to kill."""
        path = f"/clusters/{self.cluster_id}/kill"

        async def killed() -> bool:
            answer = await self.platform.sim.http.post(path, json={"service": "slurmctld"})
            return answer.status_code == 204

        await self.platform.until(killed, 30)

    async def kill_slurmd(self, slot: str) -> None:
        """SIGKILL for the slurmd of a slot."""
        (truth,) = await self.clusters_in_truth()
        path = f"/hosts/{truth['nodes'][slot]}/kill"
        ok(await self.platform.sim.http.post(path, json={"service": "slurmd"}))

    async def kill(self, process: str) -> None:
        """SIGKILL for a process of the platform; comes back when another is healthy."""
        pid = self.platform.kill(process)
        self.story.killed.append(process)
        await self.platform.until_healthy(other_than=pid)

    async def clusters_in_truth(self) -> list[dict[str, Any]]:
        """What runs on the scheduler host, as the simulator knows it."""
        return ok(await self.platform.sim.http.get("/truth/clusters"))["clusters"]

    async def slots(self) -> dict[str, SlotObserved]:
        """The slots as Slurm shows them; none while its controller does not answer."""
        seen = await self.host.observe(self.cluster_id)
        assert seen is not None
        return dict(seen.nodes)

    async def until_slot(self, slot: str, holds: Callable[[SlotObserved], bool]) -> SlotObserved:
        """Wait until Slurm shows the slot so."""
        found: SlotObserved | None = None

        async def so() -> bool:
            nonlocal found
            found = (await self.slots()).get(slot)
            return found is not None and holds(found)

        try:
            await self.platform.until(so, 30)
        except TimeoutError:
            raise AssertionError(f"{slot} stays {found}") from None
        assert found is not None
        return found

    async def two_slots(self) -> dict[str, SlotObserved]:
        """The two slots that the story drains, when Slurm's controller answers."""
        return {name: await self.until_slot(name, lambda one: True) for name in ("gpu-0", "gpu-1")}

    async def scontrol(self, slot: str, *wish: str) -> None:
        """Change a node as the tenant may with Slurm's own tool."""
        argv = ["scontrol", "update", f"NodeName={slot}", *wish]
        done = await self.host.run(self.cluster_id, argv)
        assert done.code == 0, done

    async def job(self, job_id: str) -> JobRecord:
        """The job in Slurm's accounting, once it has been written there."""
        found: dict[str, JobRecord] = {}

        async def known() -> bool:
            nonlocal found
            found = {one.job_id: one for one in await self.host.jobs(self.cluster_id)}
            return job_id in found and found[job_id].started_at is not None

        await self.platform.until(known, 30)
        return found[job_id]

    async def node_in(self, slot: int) -> str:
        """The name of the server that stands in for a slot."""
        nodes = (await self.platform.cluster(self.tenant, "ml"))["nodes"]
        return next(node["name"] for node in nodes if node["slot"] == slot)

    async def cli(self, *arguments: str) -> None:
        """Run ``dflare cluster`` as the tenant."""
        who = {"token": self.tenant.token, "project": self.tenant.project_id}
        done = await self.platform.cli("cluster", *arguments, **who)
        assert done.exit_code == 0, done.err or done.out


def is_drained(slot: SlotObserved) -> bool:
    """Whether Slurm lets no job begin there."""
    return "DRAIN" in slot.state


@pytest.fixture(scope="module")
async def story() -> AsyncIterator[Story]:
    """The whole life, told once."""
    environment = {**slurm_environment(), **KILL_SETTINGS}
    wish = PlatformWish(nodes=NODES, environment=environment)
    async with running_platform(wish) as platform:
        await platform.apply_site()
        async with scheduler_host(platform) as host:
            lab = Lab(platform, host, await platform.tenant("red", {"h100-8": NODES}), Story())
            parts: tuple[Callable[[Lab], Awaitable[None]], ...] = (
                _begin,
                _grow,
                _shrink_refused,
                _shrink,
                _undrain,
                _release,
            )
            for part in parts:
                await part(lab)
            yield lab.story


async def _begin(lab: Lab) -> None:
    """Two nodes, one drained by Slurm's own tool and one by the program."""
    await lab.platform.wait(await lab.order("ml", 2), deadline_s=120)
    lab.cluster_id = (await lab.platform.cluster(lab.tenant, "ml"))["id"]
    await lab.scontrol("gpu-0", "State=DRAIN", f"Reason={OWN_REASON}")
    await lab.cli("drain", "ml", await lab.node_in(1), "--reason", "its fans are loud")
    await lab.until_slot("gpu-1", is_drained)


async def _grow(lab: Lab) -> None:
    """The controller is killed before it hears of new nodes, and while they register."""
    operation = await lab.scale(4)
    await lab.reach(operation, "baremetal.prepare@1")
    await lab.kill_slurmctld()
    async with lab.held("orchestrator.allocation"):
        await lab.reach(operation, "clusters.await_nodes@1")
        await lab.kill_slurmctld()
    await lab.platform.wait(operation, deadline_s=120)
    lab.story.grown = await lab.platform.cluster(lab.tenant, "ml")
    lab.story.drained_after_growth = await lab.two_slots()
    seen = await lab.host.observe(lab.cluster_id)
    assert seen is not None
    lab.story.restarts = seen.daemons["slurmctld"].restarts


async def _shrink_refused(lab: Lab) -> None:
    """A job runs on a node that is to leave."""
    options = ("--nodelist=gpu-3",)
    job_id = await lab.host.submit(lab.cluster_id, JobScript(HOLD, "hold", options))
    lab.story.job = await lab.job(job_id)
    operation = await lab.scale(2, "refuse")
    lab.story.refused = await lab.platform.wait(operation, state="failed", deadline_s=90)
    await lab.until_slot("gpu-2", lambda slot: not is_drained(slot))
    lab.story.after_refusal = await lab.platform.cluster(lab.tenant, "ml")


async def _shrink(lab: Lab) -> None:
    """Below the same job, the slurmd under it and a site-worker are killed, then a worker."""
    assert lab.story.job is not None
    operation = await lab.scale(2, "wait")
    await lab.reach(operation, "clusters.await_idle@1")
    await lab.kill_slurmd("gpu-3")
    await lab.kill("site-worker")
    seen = await lab.platform.operation(operation["id"])
    assert seen is not None
    lab.story.waited_at = list(running_steps(seen))
    lab.story.job_during_wait = await lab.job(lab.story.job.job_id)
    async with lab.held("orchestrator.allocation"):
        await lab.host.run(lab.cluster_id, ["touch", "go"])
        await lab.reach(operation, "orchestrator.release@1")
        await lab.kill("worker")
    await lab.platform.wait(operation, deadline_s=120)
    lab.story.job = await lab.job(lab.story.job.job_id)
    lab.story.shrunk = await lab.platform.cluster(lab.tenant, "ml")
    lab.story.drained_after_shrink = await lab.two_slots()


async def _undrain(lab: Lab) -> None:
    """Others try to end the drains, then their owners do."""
    node = await lab.node_in(1)
    path = f"{lab.clusters}/ml/nodes/{node}/undrain"
    answer = await lab.platform.operator.post(path)
    lab.story.undrain_by_other = (answer.status_code, answer.json().get("detail", ""))
    await lab.scontrol("gpu-1", "State=RESUME")
    lab.story.drained_again = await lab.until_slot("gpu-1", is_drained)

    await lab.cli("undrain", "ml", await lab.node_in(0))
    await lab.cli("undrain", "ml", node)
    await lab.until_slot("gpu-1", lambda slot: not is_drained(slot))
    lab.story.undrained = await lab.two_slots()
    done = await lab.host.run(lab.cluster_id, ["srun", "--nodes=1", "hostname"])
    lab.story.ran_on = done.stdout.strip()
    await lab.scontrol("gpu-0", "State=RESUME")
    await lab.until_slot("gpu-0", lambda slot: not is_drained(slot))


async def _release(lab: Lab) -> None:
    """The controller and the site-worker are killed before the controller is stopped."""
    platform = lab.platform
    async with lab.held("orchestrator.allocation"):
        operation = await platform.release(lab.tenant, "ml")
        await lab.reach(operation, "orchestrator.release@1")
        await lab.kill_slurmctld()
        pid = platform.kill("site-worker")
        lab.story.killed.append("site-worker")
    await platform.until_healthy(other_than=pid)
    await platform.wait(operation, deadline_s=120)
    await platform.until_available(NODES)
    story = lab.story
    killed = await platform.sim.log(kind="service_killed")
    story.killed += [entry["service"] for entry in killed]
    story.clusters_left = await lab.clusters_in_truth()
    story.states = await platform.node_states()
    async with platform.database() as database:
        rows = await database.fetch(
            "SELECT state, usage_from, usage_to FROM orchestrator.allocation"
        )
        story.claims = await database.fetchval(
            "SELECT count(*) FROM orchestrator.claim WHERE ended_at IS NULL"
        )
    story.allocations = [
        (row["state"], row["usage_from"] is not None and row["usage_from"] < row["usage_to"])
        for row in rows
    ]
    story.audit = (await platform.audit_usage())["state"]


def test_a_cluster_grows_while_its_controller_is_killed(story: Story) -> None:
    assert (story.grown["state"], len(story.grown["nodes"])) == ("ready", 4)
    assert [node["slot"] for node in story.grown["nodes"]] == [0, 1, 2, 3]
    assert story.restarts >= 2


def test_a_shrink_that_refuses_to_wait_fails_naming_the_job_and_takes_nothing(
    story: Story,
) -> None:
    assert story.job is not None
    assert f"job {story.job.job_id} hold" in story.refused["reason"]
    assert "gpu-3" in story.refused["reason"]
    assert (story.after_refusal["state"], len(story.after_refusal["nodes"])) == ("ready", 4)


def test_a_shrink_waits_for_the_job_which_survives_its_killed_slurmd(story: Story) -> None:
    assert story.waited_at == ["clusters.await_idle@1"]
    assert story.job_during_wait is not None
    assert story.job_during_wait.state == "RUNNING"
    assert story.job is not None
    assert (story.job.state, story.job.exit_code) == ("COMPLETED", 0)
    assert story.job.nodes == ("gpu-3",)


def test_a_cluster_shrinks_while_a_slurmd_and_workers_are_killed(story: Story) -> None:
    assert (story.shrunk["state"], len(story.shrunk["nodes"])) == ("ready", 2)
    assert [node["slot"] for node in story.shrunk["nodes"]] == [0, 1]


def test_drains_outlive_killed_controllers_growth_and_shrinking(story: Story) -> None:
    for seen in (story.drained_after_growth, story.drained_after_shrink):
        assert is_drained(seen["gpu-0"])
        assert OWN_REASON in seen["gpu-0"].reason
        assert is_drained(seen["gpu-1"])
        assert "its fans are loud" in seen["gpu-1"].reason


def test_only_its_owner_ends_a_drain(story: Story) -> None:
    status, detail = story.undrain_by_other
    assert status == 409
    assert "its fans are loud" in detail
    assert story.drained_again is not None
    assert "its fans are loud" in story.drained_again.reason
    assert is_drained(story.undrained["gpu-0"])
    assert OWN_REASON in story.undrained["gpu-0"].reason
    assert not is_drained(story.undrained["gpu-1"])
    assert story.ran_on == "gpu-1"


def test_nothing_is_left_of_the_clusters_whatever_was_killed(story: Story) -> None:
    assert sorted(story.killed) == sorted(
        ["slurmctld"] * 3 + ["slurmd"] + ["site-worker"] * 2 + ["worker"]
    )
    assert story.clusters_left == []
    assert story.states["available"] == NODES
    assert story.claims == 0


def test_every_node_was_billed_once_and_not_after_its_end(story: Story) -> None:
    assert {state for state, _ in story.allocations} == {"ended"}
    assert [billed for _, billed in story.allocations] == [True] * 4
    assert story.audit == "clean"
