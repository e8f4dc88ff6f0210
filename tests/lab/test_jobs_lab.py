"""Jobs on real Slurm: submitted by the site's worker and by hand, and told by real accounting.

The scheduler host is the simulator's, with the packages that ``make test-lab`` left.
"""

import base64
import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_platform import agent_platform
from dflare.drivers.scheduler.port import JobScript
from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_host import SlurmHost
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.seal import Sealer
from dflare.services.clusters import api_jobs, reconciler_jobs
from dflare.services.clusters.reconciler_jobs import JobReconciler
from dflare.services.clusters.repository_scheduler import SchedulerHosts
from dflare.services.clusters.service_jobs import JobService
from dflare.services.clusters.tables import Cluster, Scheduler
from dflare.services.clusters.tables import SchedulerHost as HostRow
from scheduler_host import (
    ACCOUNT,
    SchedulerHost,
    data_center_with_scheduler,
    packages_or_skip,
    provision,
    until,
    vendor_data,
    wish,
)
from simulator import simulator
from stores import drop_database
from tenancy import MEMBER, NOW, RED, Tenancy, application, client, migrated_database

ID, KEY = "clu_jobs", b"j" * 128
JOBS = f"/projects/{RED.id}/clusters/ml/jobs"

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@dataclass
class Lab:
    """A cluster of two nodes, its jobs' API, and a worker that follows them."""

    host: SchedulerHost
    worker: JobReconciler
    member: httpx.AsyncClient

    async def submit(self, script: str, *options: str, name: str = "job") -> str:
        body = {"script": f"#!/bin/sh\n{script}\n", "options": list(options), "name": name}
        answer = await self.member.post(JOBS, json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    async def until_job(self, job: str, **wanted: Any) -> dict[str, Any]:
        """Looks until a job is as wanted."""
        found: dict[str, Any] = {}

        async def as_wanted() -> bool:
            nonlocal found
            await self.worker.look()
            answer = await self.member.get(f"{JOBS}/{job}")
            found = answer.json() if answer.is_success else {}
            return bool(found) and all(found[key] == value for key, value in wanted.items())

        await until(as_wanted, lambda: str(found))
        return found


def _rows(sealer: Sealer, address: str) -> list[Any]:
    secret = sealer.seal("device/site_1/head-0", json.dumps(ACCOUNT).encode())
    return [
        Cluster(
            id=ID,
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
        HostRow(
            site_id="site_1",
            name="head-0",
            ordinal=0,
            address=address,
            secret=base64.b64encode(secret).decode(),
            version=1,
        ),
        Scheduler(
            cluster_id=ID, site_id="site_1", host="head-0", account="my-project", state="ready"
        ),
    ]


@pytest.fixture
async def lab(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    packages = packages_or_skip()
    # Every pass reads: how often is for a platform that has other things to do.
    monkeypatch.setattr(reconciler_jobs, "BUSY_EVERY_S", 0.0)
    monkeypatch.setattr(reconciler_jobs, "IDLE_EVERY_S", 0.0)
    url = await migrated_database(postgres_url, "clusters")
    database, sealer, tenancy = Database(url, application="test-jobs"), Sealer(b"s" * 32), Tenancy()
    clock = SystemClock()
    service = JobService(database, clock, tenancy)
    app = application(tenancy, lambda principal: api_jobs.router(service, tenancy, principal))
    with tempfile.TemporaryDirectory(prefix="dflare-jobs-") as folder:
        document = data_center_with_scheduler(2, "127.74")
        arguments = ["--slurm-packages", str(packages)]
        async with simulator(Path(folder), document, arguments) as sim:
            host = SchedulerHost.of(sim)
            status = await host.until_able()
            if status["state"] == "unavailable":
                pytest.skip(status["reason"])
            await host.put(ID, wish("ml", KEY))
            await host.until_ready(ID)
            async with agent_platform() as platform:
                for number in range(2):
                    data = vendor_data(ID, f"gpu-{number}", KEY)
                    await provision(sim, platform, f"n{number}", data)
                    await host.until_node(ID, f"gpu-{number}", state="IDLE")
            async with database.transaction("clusters") as session:
                session.add_all(_rows(sealer, str(host.http.base_url)))
            rest = HostRest(ca_file=str(sim.ca_file))
            hosts = SchedulerHosts(database, sealer, lambda access: SlurmHost(rest, access))
            async with client(app, MEMBER) as member:
                yield Lab(host, JobReconciler(database, clock, hosts, "lab"), member)
            await rest.close()
            await host.remove(ID)
            await host.http.aclose()
    await database.dispose()
    drop_database(url)


async def test_real_slurm_tells_what_every_job_had_whoever_submitted_it(lab: Lab) -> None:
    until_told = "srun hostname | sort; until [ -e go ]; do sleep 0.2; done"
    job = await lab.submit(until_told, "--nodes=2", "--gres=gpu:8")
    running = await lab.until_job(job, state="running")
    assert (running["nodes"], running["gpus"]) == (2, 16)
    await lab.host.run(ID, ["touch", "go"])
    ended = await lab.until_job(job, state="ended", output_bytes=len("gpu-0\ngpu-1\n"))
    assert (ended["scheduler_state"], ended["exit_code"]) == ("COMPLETED", 0)
    assert (ended["account"], ended["member"]) == ("my-project", MEMBER.subject)
    assert Decimal(ended["gpu_seconds"]) >= 16
    output = (await lab.member.get(f"{JOBS}/{job}/output")).json()
    assert (output["text"], output["state"]) == ("gpu-0\ngpu-1\n", "complete")

    by_hand = await lab.host.run(
        ID, ["sbatch", "--parsable", "--gres=gpu:4", "-J", "by hand"], "#!/bin/sh\nsleep 2; exit 3"
    )
    number = by_hand["stdout"].strip()
    direct = await lab.until_job(number, state="ended")
    assert (direct["direct"], direct["name"], direct["account"]) == (True, "by hand", "my-project")
    assert (direct["scheduler_state"], direct["exit_code"], direct["gpus"]) == ("FAILED", 3, 4)
    assert Decimal(direct["gpu_seconds"]) > 0

    impossible = await lab.submit("true", "--partition=nowhere")
    refused = await lab.until_job(impossible, state="refused")
    assert "invalid partition" in refused["reason"]

    again = await lab.submit("sleep 600", "--gres=gpu:1", "--requeue")
    waiting = await lab.until_job(again, state="running")
    await lab.host.run(ID, ["scontrol", "requeue", waiting["scheduler_id"]])
    await lab.until_job(again, state="submitted", runs=1)
    await lab.host.run(ID, ["scancel", waiting["scheduler_id"]])
    cancelled = await lab.until_job(again, state="ended")
    assert (cancelled["runs"], cancelled["reason"]) == (1, "Slurm says CANCELLED")


async def test_a_submission_to_real_slurm_whose_answer_is_lost_is_found_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    submissions: list[str] = []
    submit = SlurmHost.submit

    async def lose(host: SlurmHost, cluster_id: str, job: JobScript) -> str:
        submissions.append(await submit(host, cluster_id, job))
        raise TimeoutError("the answer is lost")

    monkeypatch.setattr(SlurmHost, "submit", lose)
    monkeypatch.setattr(reconciler_jobs, "CLAIM_S", 0.0)
    job = await lab.submit("sleep 1", "--gres=gpu:1", name="lost")
    found = await lab.until_job(job, state="ended")
    assert (found["scheduler_id"], len(submissions)) == (submissions[0], 1)
    # Once the controller has forgotten a job, the line that submitted it is still accounted; it
    # takes accounting some seconds to hear of a job, for which the claim lasts long enough.
    monkeypatch.setattr(reconciler_jobs, "_MARKED", ("true",))
    monkeypatch.setattr(reconciler_jobs, "CLAIM_S", 15.0)
    other = await lab.submit("sleep 1", "--gres=gpu:1", name="lost-too")
    found = await lab.until_job(other, state="ended")
    assert (found["scheduler_id"], len(submissions)) == (submissions[1], 2)
