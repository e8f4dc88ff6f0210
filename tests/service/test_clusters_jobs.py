"""Promises of jobs: submitted once, followed in the scheduler's own accounting, told to the last
run, whoever submitted them. The scheduler host is at the other end of a wire; real Slurm is met in
``tests/lab/test_jobs_lab.py``."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_host import SlurmHost
from dflare.kit.clock import ManualClock
from dflare.kit.db import Database
from dflare.kit.seal import Sealer
from dflare.services.auth.contract import Principal
from dflare.services.clusters import api_jobs
from dflare.services.clusters.contract import JobFacts
from dflare.services.clusters.domain_jobs import not_a_members
from dflare.services.clusters.reconciler_jobs import CLAIM_S, OUTPUT_MOST, JobReconciler
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.service_jobs import JobService
from dflare.services.clusters.tables import KIT, Cluster, Scheduler, SchedulerHost
from scheduler_wire import WireHost, wire_host
from stores import drop_database
from tenancy import (
    MEMBER,
    NOW,
    OPERATOR,
    RED,
    STRANGER,
    VIEWER,
    Tenancy,
    application,
    client,
    migrated_database,
)
from wire_slurm import Slurm

CLUSTER = f"/projects/{RED.id}/clusters/ml"
JOBS = f"{CLUSTER}/jobs"
SCRIPT = "#!/bin/sh\nsrun hostname\n"


@dataclass
class Shop:
    """The jobs API, a site's worker, and a scheduler host."""

    database: Database
    clock: ManualClock
    host: WireHost
    slurm: Slurm
    worker: Callable[[str], JobReconciler]
    clients: dict[str, httpx.AsyncClient]
    _first: JobReconciler | None = None

    async def look(self, *, after_s: float = 20) -> None:
        """One pass of a worker, so much later."""
        self.clock.at += timedelta(seconds=after_s)
        self._first = self._first or self.worker("first")
        await self._first.look()

    async def submit(self, caller: Principal = MEMBER, **more: Any) -> dict[str, Any]:
        body = {"script": SCRIPT, "name": "train", "options": ["--nodes=2"], **more}
        answer = await self.clients[caller.subject].post(JOBS, json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def jobs(self) -> list[dict[str, Any]]:
        answer = await self.clients[MEMBER.subject].get(JOBS)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    async def job(self) -> dict[str, Any]:
        (only,) = await self.jobs()
        return only

    async def output(self, job: str, **params: int) -> dict[str, Any]:
        path = f"{JOBS}/{job}/output"
        answer = await self.clients[MEMBER.subject].get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def told(self) -> list[JobFacts]:
        async with self.database.transaction("clusters") as session:
            event = KIT.event.c
            query = select(event.data, event.resource_version).where(event.type == "job.changed")
            rows = (await session.execute(query.order_by(event.ordinal))).all()
        facts = [JobFacts.model_validate(row[0]) for row in rows]
        assert [one.version for one in facts] == [row[1] for row in rows]
        return facts

    async def change(self, table: type[Cluster] | type[Scheduler], **values: Any) -> None:
        async with self.database.transaction("clusters") as session:
            await session.execute(update(table).values(**values))


def _rows(host: WireHost, sealer: Sealer) -> list[Any]:
    account = json.dumps({"username": host.access.username, "password": host.access.password})
    secret = base64.b64encode(sealer.seal("device/site_1/ctl-1", account.encode())).decode()
    return [
        Cluster(
            id="clu_1",
            organization_id=RED.organization_id,
            project_id=RED.id,
            site_id="site_1",
            name="ml",
            kind="slurm",
            image="base",
            state="ready",
            since=NOW,
            ssh_keys=[],
            operation_id="op_1",
            created_by="user_red",
            created_at=NOW,
        ),
        SchedulerHost(
            site_id="site_1",
            name="ctl-1",
            ordinal=0,
            address=host.access.address,
            secret=secret,
            version=1,
        ),
        Scheduler(
            cluster_id="clu_1", site_id="site_1", host="ctl-1", account="training", state="ready"
        ),
    ]


@pytest.fixture
async def shop(postgres_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    url = await migrated_database(postgres_url, "clusters")
    database = Database(url, application="test-jobs")
    tenancy, clock, sealer = Tenancy(), ManualClock(NOW), Sealer(bytes(range(32)))
    service = JobService(database, clock, tenancy)
    app = application(tenancy, lambda principal: api_jobs.router(service, tenancy, principal))
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(wire_host(tmp_path))
        host.clusters["clu_1"] = {"slots": []}
        slurm = Slurm()
        host.slurm = slurm
        async with database.transaction("clusters") as session:
            session.add_all(_rows(host, sealer))
        rest = HostRest(ca_file=str(host.ca_file), timeout_s=5)
        stack.push_async_callback(rest.close)
        hosts = SchedulerHosts(database, sealer, lambda access: SlurmHost(rest, access))

        def worker(name: str) -> JobReconciler:
            return JobReconciler(database, clock, hosts, name)

        clients = {
            caller.subject: await stack.enter_async_context(client(app, caller))
            for caller in (OPERATOR, MEMBER, VIEWER, STRANGER)
        }
        yield Shop(database, clock, host, slurm, worker, clients)
    await database.dispose()
    drop_database(url)


async def test_a_job_is_submitted_for_its_project_and_member_and_followed_to_its_end(
    shop: Shop,
) -> None:
    submitted = await shop.submit(environment={"EPOCHS": "3"})
    assert (submitted["state"], submitted["scheduler_id"]) == ("pending", None)
    await shop.look()
    first = shop.host.ran[0]
    assert first["argv"] == [
        "sbatch",
        "--parsable",
        "--nodes=2",
        f"--comment=dflare:{submitted['id']}",
        "--job-name=train",
        "--account=training",
        f"--wckey={MEMBER.subject}",
    ]
    assert (first["stdin"].decode(), first["environment"]) == (SCRIPT, {"EPOCHS": "3"})
    assert (await shop.job())["state"] == "submitted"
    shop.slurm.turn(1, "RUNNING", start=5)
    await shop.look()
    running = await shop.job()
    assert (running["state"], running["nodes"], running["gpus"]) == ("running", 2, 16)
    shop.slurm.turn(1, "COMPLETED", start=5, end=65, elapsed=60)
    await shop.look()
    ended = await shop.job()
    assert (ended["state"], ended["exit_code"], ended["reason"]) == ("ended", 0, "")
    assert Decimal(ended["gpu_seconds"]) == 16 * 60
    told = await shop.told()
    assert [one.version for one in told] == list(range(1, len(told) + 1))
    assert [one.state for one in told][-1] == "ended"
    (run,) = told[-1].runs
    assert (run.gpu_milli, run.usage_from) == (16_000, NOW + timedelta(seconds=5))
    assert run.usage_to == NOW + timedelta(seconds=65)
    assert (told[-1].account, told[-1].member) == ("training", MEMBER.subject)


async def test_a_job_submitted_on_the_cluster_itself_is_the_projects_too(shop: Shop) -> None:
    shop.slurm.add(submit_line="sbatch a.sh", wckey="", name="by hand")
    shop.slurm.turn(1, "FAILED", start=1, end=31, elapsed=30, code="3:0")
    await shop.look()
    job = await shop.job()
    assert (job["direct"], job["name"], job["account"]) == (True, "by hand", "training")
    assert (job["state"], job["reason"], job["exit_code"]) == ("ended", "Slurm says FAILED", 3)
    (facts,) = await shop.told()
    assert (facts.project_id, facts.organization_id, facts.member) == (
        RED.id,
        RED.organization_id,
        "",
    )
    answer = await shop.clients[MEMBER.subject].get(f"{JOBS}/1/output")
    assert (answer.status_code, "on the cluster itself" in answer.text) == (409, True)


async def test_a_job_that_is_queued_again_has_a_run_for_each_time(shop: Shop) -> None:
    await shop.submit()
    await shop.look()
    shop.slurm.turn(1, "NODE_FAIL", start=0, end=100, elapsed=100)
    await shop.look()
    shop.slurm.turn(1, "PENDING", again=True)
    await shop.look()
    waiting = await shop.job()
    assert (waiting["state"], waiting["runs"]) == ("submitted", 1)
    shop.slurm.turn(1, "COMPLETED", start=200, end=250, elapsed=50)
    await shop.look()
    job = await shop.job()
    assert (job["state"], job["runs"], Decimal(job["gpu_seconds"])) == ("ended", 2, 16 * 150)
    assert [run.number for run in (await shop.told())[-1].runs] == [1, 2]


async def test_a_job_that_is_to_run_again_has_not_ended_and_writes_anew(shop: Shop) -> None:
    await shop.submit()
    await shop.look()
    shop.slurm.jobs[1].output = b"first run, and long\n"
    # Accounting hears of the next run only once it may begin, some minutes later.
    shop.slurm.turn(1, "REQUEUED", start=0, end=100, elapsed=100)
    await shop.look()
    assert (await shop.job())["state"] == "submitted"
    shop.slurm.jobs[1].output = b"second\n"
    shop.slurm.turn(1, "COMPLETED", start=200, end=250, elapsed=50, again=True)
    await shop.look()
    await shop.look()
    output = await shop.output("1")
    assert (output["text"], output["state"]) == ("second\n", "complete")
    assert (await shop.job())["runs"] == 2


@pytest.mark.parametrize(
    ("forgotten", "reason"),
    [(False, "Slurm says CANCELLED"), (True, "Slurm knows it no longer")],
)
async def test_a_job_cancelled_before_it_ran_again_ends_though_accounting_never_hears_of_it(
    shop: Shop, forgotten: bool, reason: str
) -> None:
    await shop.submit()
    await shop.look()
    shop.slurm.turn(1, "REQUEUED", start=0, end=100, elapsed=100)
    await shop.look()
    assert (await shop.job())["state"] == "submitted"
    shop.slurm.jobs[1].controller, shop.slurm.jobs[1].forgotten = "CANCELLED", forgotten
    for _ in range(2):
        await shop.look()
        job = await shop.job()
        assert (job["state"], job["reason"], job["runs"]) == ("ended", reason, 1)


async def test_time_in_which_a_job_was_suspended_is_not_told(shop: Shop) -> None:
    await shop.submit()
    await shop.look()
    shop.slurm.turn(1, "COMPLETED", start=0, end=1000, elapsed=400)
    await shop.look()
    assert Decimal((await shop.job())["gpu_seconds"]) == 16 * 400


async def test_a_job_that_never_ran_had_nothing(shop: Shop) -> None:
    await shop.submit()
    await shop.look()
    shop.slurm.turn(1, "CANCELLED by 0", end=10)
    await shop.look()
    job = await shop.job()
    assert (job["state"], job["runs"], job["reason"]) == ("ended", 0, "Slurm says CANCELLED")
    assert (await shop.told())[-1].runs == ()


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_submission_whose_answer_was_lost_is_found_and_never_repeated(
    shop: Shop, forgotten: bool
) -> None:
    submitted = await shop.submit()
    shop.slurm.lost = True
    await shop.look()
    assert ((await shop.job())["state"], shop.slurm.submissions) == ("submitting", 1)
    # Its controller forgets a job some minutes after its end.
    shop.slurm.jobs[1].forgotten = forgotten
    shop.slurm.lost = False
    await shop.look()
    assert (await shop.job())["state"] == "submitting", "whoever claimed it may be at it still"
    await shop.look(after_s=CLAIM_S)
    job = await shop.job()
    assert (job["id"], job["state"], job["scheduler_id"]) == (submitted["id"], "submitted", "1")
    assert (shop.slurm.submissions, job["direct"]) == (1, False)


async def test_a_submission_that_never_arrived_is_made_after_it_was_looked_for(shop: Shop) -> None:
    await shop.submit()
    shop.host.clusters.clear()
    await shop.look()
    assert ((await shop.job())["state"], shop.slurm.submissions) == ("submitting", 0)
    shop.host.clusters["clu_1"] = {"slots": []}
    await shop.look(after_s=CLAIM_S + 1)
    assert ((await shop.job())["state"], shop.slurm.submissions) == ("submitted", 1)


async def test_a_scheduler_that_starts_is_waited_for(shop: Shop) -> None:
    await shop.submit()
    shop.host.failed = "slurmctld starts"
    await shop.look()
    shop.host.failed = ""
    await shop.look()
    assert ((await shop.job())["state"], shop.slurm.submissions) == ("submitted", 1)


async def test_a_job_that_the_scheduler_refuses_says_why(shop: Shop) -> None:
    await shop.submit()
    shop.slurm.refuses = "Requested node configuration is not available"
    await shop.look()
    job = await shop.job()
    assert (job["state"], shop.slurm.refuses in job["reason"]) == ("refused", True)
    assert (await shop.output(job["id"]))["state"] == "complete"
    shop.slurm.refuses = ""
    await shop.look(after_s=CLAIM_S + 1)
    assert ((await shop.job())["state"], shop.slurm.submissions) == ("refused", 0)


async def test_two_workers_submit_a_job_once(shop: Shop) -> None:
    await shop.submit()
    await shop.worker("a").look()
    await shop.worker("b").look()
    await shop.look()
    assert (len(await shop.jobs()), shop.slurm.submissions) == (1, 1)


async def test_a_job_of_an_unknown_number_waits_while_a_submission_is_open(shop: Shop) -> None:
    submitted = await shop.submit()
    shop.slurm.lost = True
    await shop.look()
    shop.slurm.lost = False
    shop.slurm.add(submit_line="sbatch b.sh")
    await shop.look()
    assert [job["id"] for job in await shop.jobs()] == [submitted["id"]]
    await shop.look(after_s=CLAIM_S)
    assert {(job["scheduler_id"], job["direct"]) for job in await shop.jobs()} == {
        ("1", False),
        ("2", True),
    }


async def test_nothing_is_submitted_while_the_site_is_frozen(shop: Shop) -> None:
    await shop.submit()
    async with shop.database.transaction("clusters") as session:
        await session.execute(update(SchedulerHost).values(frozen=True))
    await shop.look()
    assert ((await shop.job())["state"], shop.slurm.submissions) == ("pending", 0)


async def test_jobs_of_a_released_cluster_end_when_they_were_last_seen(shop: Shop) -> None:
    await shop.submit(name="runs")
    await shop.look()
    shop.slurm.turn(1, "RUNNING", start=1)
    await shop.look()
    seen = shop.clock.at
    await shop.submit(name="waits")
    await shop.change(Scheduler, state="gone")
    await shop.look(after_s=500)
    jobs = {job["name"]: job for job in await shop.jobs()}
    assert (jobs["waits"]["state"], jobs["runs"]["state"]) == ("refused", "ended")
    last = next(one for one in reversed(await shop.told()) if one.name == "runs")
    assert [run.usage_to for run in last.runs] == [seen]


async def test_what_a_job_wrote_is_read_as_it_grows_and_to_its_end(shop: Shop) -> None:
    submitted = await shop.submit()
    await shop.look()
    shop.slurm.turn(1, "RUNNING", start=1)
    shop.slurm.jobs[1].output = b"epoch 1\n"
    await shop.look()
    part = await shop.output(submitted["id"])
    assert (part["text"], part["state"], part["next_offset"]) == ("epoch 1\n", "open", 8)
    shop.slurm.jobs[1].output += b"epoch 2\n"
    shop.slurm.turn(1, "COMPLETED", start=1, end=2, elapsed=1)
    await shop.look()
    rest = await shop.output(submitted["id"], offset=part["next_offset"])
    assert (rest["text"], rest["state"]) == ("epoch 2\n", "complete")
    assert (await shop.output("1", offset=6, limit=4))["text"] == "1\nep"


async def test_of_a_job_that_writes_without_end_the_first_part_is_kept(shop: Shop) -> None:
    await shop.submit()
    await shop.look()
    shop.slurm.turn(1, "COMPLETED", start=1, end=2, elapsed=1)
    shop.slurm.jobs[1].output = b"x" * (OUTPUT_MOST + 5)
    for _ in range(20):
        await shop.look()
    job = await shop.job()
    end = await shop.output("1", offset=OUTPUT_MOST - 3)
    assert (job["output_bytes"], end["text"], end["state"]) == (OUTPUT_MOST, "xxx", "truncated")


async def test_a_request_that_is_repeated_is_one_job(shop: Shop) -> None:
    member = shop.clients[MEMBER.subject]
    body = {"script": SCRIPT, "name": "train"}
    key = {"Idempotency-Key": "k1"}
    first = await member.post(JOBS, json=body, headers=key)
    second = await member.post(JOBS, json=body, headers=key)
    assert first.json()["id"] == second.json()["id"]
    other = await member.post(JOBS, json={**body, "name": "other"}, headers=key)
    assert (other.status_code, len(await shop.jobs())) == (409, 1)


@pytest.mark.parametrize(
    ("values", "word"),
    [({"kind": "bare"}, "--kind slurm"), ({"state": "creating"}, "is creating")],
)
async def test_a_cluster_that_runs_no_jobs_says_what_would(
    shop: Shop, values: dict[str, str], word: str
) -> None:
    await shop.change(Cluster, **values)
    answer = await shop.clients[MEMBER.subject].post(JOBS, json={"script": SCRIPT})
    assert (answer.status_code, word in answer.text) == (409, True)


async def test_only_members_submit_and_strangers_see_nothing(shop: Shop) -> None:
    await shop.submit()
    codes = {
        caller.subject: [
            (await shop.clients[caller.subject].post(JOBS, json={"script": SCRIPT})).status_code,
            (await shop.clients[caller.subject].get(JOBS)).status_code,
        ]
        for caller in (VIEWER, STRANGER)
    }
    assert codes == {VIEWER.subject: [403, 200], STRANGER.subject: [404, 404]}


@pytest.mark.parametrize(
    "option",
    ["--account=other", "-Aother", "--acc=other", "--wckey", "--comment=x", "-J x", "--par"],
)
async def test_for_whom_a_job_is_cannot_be_chosen(shop: Shop, option: str) -> None:
    body = {"script": SCRIPT, "options": [option]}
    answer = await shop.clients[MEMBER.subject].post(JOBS, json=body)
    assert (answer.status_code, "is set for you" in answer.text) == (422, True)


@pytest.mark.parametrize("option", ["--nodes=2", "-N2", "--gres=gpu:8", "--array=1-3", "--time=1"])
def test_what_a_job_needs_is_its_members_to_say(option: str) -> None:
    assert not not_a_members(option)


async def test_a_script_that_is_none_is_refused(shop: Shop) -> None:
    answer = await shop.clients[MEMBER.subject].post(JOBS, json={"script": "srun hostname"})
    assert answer.status_code == 422


async def test_tasks_of_an_array_are_runs_of_one_job(shop: Shop) -> None:
    submitted = await shop.submit(options=["--array=1-2"])
    await shop.look()
    job = shop.slurm.jobs[1]
    job.records.clear()
    shop.slurm.turn(1, "COMPLETED", start=0, end=10, elapsed=10)
    shop.slurm.turn(1, "RUNNING", start=5, again=True)
    await shop.look()
    found = await shop.job()
    assert (found["id"], found["state"], found["runs"]) == (submitted["id"], "running", 2)
