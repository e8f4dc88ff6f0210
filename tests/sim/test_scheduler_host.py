"""The scheduler host over the wire: real Slurm controllers, and servers that become their nodes."""

import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent_platform import AgentPlatform
from scheduler_host import (
    SchedulerHost,
    data_center_with_scheduler,
    packages_or_skip,
    provision,
    reset,
    slots,
    until,
    vendor_data,
    wish,
)
from simulator import SimHandle, simulator

KEY, OTHER_KEY = b"k" * 128, b"o" * 128
ID = "clu_one"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
async def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which volumes lie."""
    return tmp_path_factory.mktemp("volumes")


@pytest.fixture(scope="module")
async def hosted(volumes: Path) -> AsyncIterator[SimHandle]:
    """Four servers and a scheduler host with Slurm."""
    packages = packages_or_skip()
    with tempfile.TemporaryDirectory(prefix="dflare-scheduler-") as folder:
        arguments = ["--slurm-packages", str(packages), "--volume-root", str(volumes)]
        document = data_center_with_scheduler(4, "127.73")
        async with simulator(Path(folder), document, arguments) as sim:
            host = SchedulerHost.of(sim)
            status = await host.until_able()
            if status["state"] == "unavailable":
                pytest.skip(status["reason"])
            yield sim
            for cluster in (await sim.control.get("/truth/clusters")).json()["clusters"]:
                await host.remove(cluster["id"])
            await host.http.aclose()


@pytest.fixture(scope="module")
async def host(hosted: SimHandle) -> AsyncIterator[SchedulerHost]:
    """The API with one cluster that is ready."""
    made = SchedulerHost.of(hosted)
    said = await made.put(ID, wish("one", KEY, 6))
    assert said["state"] == "starting"
    await made.until_ready(ID)
    yield made
    await made.http.aclose()


async def test_the_status_says_which_slurm_there_is(host: SchedulerHost) -> None:
    status = await host.until_able()
    assert status["state"] == "ready"
    assert status["version"][0].isdigit()


async def test_a_cluster_has_its_services_and_its_slots_before_any_server(
    host: SchedulerHost,
) -> None:
    cluster = await host.get(ID)
    assert cluster is not None
    assert {name: one["state"] for name, one in cluster["services"].items()} == dict.fromkeys(
        ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmrestd"), "running"
    )
    assert set(cluster["nodes"]) == {f"gpu-{n}" for n in range(6)}
    assert cluster["nodes"]["gpu-0"]["fault"] == "its slurmd was not started"


async def test_a_server_joins_by_its_vendor_data_and_runs_jobs_of_the_project(
    host: SchedulerHost, platform: AgentPlatform
) -> None:
    sim, here = host.sim, await host.sim.mark()
    await provision(sim, platform, "n0", vendor_data(ID, "gpu-0", KEY))
    await host.until_node(ID, "gpu-0", registered=True, state="IDLE")
    started = await sim.log(kind="slurmd_started", after=here)
    assert [(e["subject"], e["slot"], e["cluster"]) for e in started] == [("n0", "gpu-0", ID)]
    truth = (await sim.truth("n0"))["slurm"]
    assert truth["running"] == {"cluster": ID, "slot": "gpu-0"}
    assert len(truth["munge_key_sha256"]) == 64

    sent = await host.run(ID, ["sbatch", "--wait", "--gres=gpu:8", "-oout"], "#!/bin/sh\nhostname")
    assert sent["code"] == 0, sent
    assert (await host.run(ID, ["cat", "out"]))["stdout"] == "gpu-0\n"

    async def billed() -> bool:
        told = await host.run(ID, ["sacct", "-XnP", "-o", "state,account,alloctres"])
        return "COMPLETED|my-project|" in told["stdout"] and "gres/gpu=8" in told["stdout"]

    await until(billed)

    async def told() -> bool:
        ended = await sim.log(kind="job_ended", subject="n0", after=here)
        return [(e["gpus"], e["account"], e["how"]) for e in ended] == [(8, "my-project", "done")]

    await until(told)
    (started,) = await sim.log(kind="job_started", subject="n0", after=here)
    (ended,) = await sim.log(kind="job_ended", subject="n0", after=here)
    assert (started["job"], started["slot"]) == (ended["job"], "gpu-0")
    assert 0 < ended["at"] - started["at"] < 60


async def test_a_server_that_loses_its_power_takes_its_slurmd_along_and_comes_back_with_it(
    host: SchedulerHost, platform: AgentPlatform
) -> None:
    sim = host.sim
    await provision(sim, platform, "n1", vendor_data(ID, "gpu-1", KEY))
    await host.until_node(ID, "gpu-1", state="IDLE")
    here = await sim.mark()
    argv = ["sbatch", "--parsable", "--no-requeue", "-wgpu-1", "--wrap", "sleep 1000"]
    job = (await host.run(ID, argv))["stdout"].strip()

    async def runs() -> bool:
        return await state_of(host, job) == "RUNNING gpu-1"

    await until(runs)
    await reset(sim, "n1", "ForceOff")
    await sim.until("n1", power="Off")
    (stopped,) = await sim.log(kind="slurmd_stopped", subject="n1", after=here)
    assert (stopped["slot"], stopped["how"]) == ("gpu-1", "power")
    (ended,) = await sim.log(kind="job_ended", subject="n1", after=here)
    assert (ended["job"], ended["how"]) == (job, "power")
    await host.run(ID, ["scancel", job])
    assert (await sim.truth("n1"))["slurm"]["running"] is None
    processes = (await host.run(ID, ["ps", "axww", "-o", "args"]))["stdout"]
    assert "slurmd -D -N gpu-0" in processes
    assert "slurmd -D -N gpu-1" not in processes
    await reset(sim, "n1", "On")
    await host.until_node(ID, "gpu-1", state="IDLE")
    assert len(await sim.log(kind="slurmd_started", subject="n1", after=here)) == 1


async def test_a_server_with_another_munge_key_never_registers_and_it_is_said_why(
    host: SchedulerHost, platform: AgentPlatform
) -> None:
    await provision(host.sim, platform, "n2", vendor_data(ID, "gpu-2", OTHER_KEY))
    await host.until_node(ID, "gpu-2", fault="its munge key is not the cluster's", registered=False)


async def test_scripted_faults_of_slurmd_hold_for_one_boot(
    host: SchedulerHost, platform: AgentPlatform
) -> None:
    sim = host.sim
    await sim.fault("munge_key_wrong", "n3", count=1)
    await provision(sim, platform, "n3", vendor_data(ID, "gpu-3", KEY))
    await host.until_node(ID, "gpu-3", fault="its munge key is not the cluster's")
    await sim.fault("slurmd_silent", "n3", count=1)
    await reset(sim, "n3", "ForceRestart")
    await host.until_node(ID, "gpu-3", fault="its slurmd has not registered", registered=False)
    await reset(sim, "n3", "ForceRestart")
    await host.until_node(ID, "gpu-3", registered=True)


async def test_a_stand_in_takes_the_slot_over_from_the_server_that_had_it(
    host: SchedulerHost, platform: AgentPlatform
) -> None:
    sim = host.sim
    await provision(sim, platform, "n2", vendor_data(ID, "gpu-3", KEY))

    async def moved() -> bool:
        clusters = (await sim.control.get("/truth/clusters")).json()["clusters"]
        return clusters[0]["nodes"].get("gpu-3") == "n2"

    await until(moved)
    await host.until_node(ID, "gpu-3", state="IDLE")
    await reset(sim, "n3", "ForceOff")
    await sim.until("n3", power="Off")
    assert "slurmd -D -N gpu-3" in (await host.run(ID, ["ps", "axww", "-o", "args"]))["stdout"]


@pytest.mark.parametrize("service", ["slurmctld", "slurmdbd", "mariadbd", "munged"])
async def test_a_killed_service_is_started_again(host: SchedulerHost, service: str) -> None:
    before = await host.get(ID)
    assert before is not None
    answer = await host.sim.control.post(f"/clusters/{ID}/kill", json={"service": service})
    assert answer.status_code == 204, answer.text

    async def replaced() -> bool:
        now = await host.get(ID)
        assert now is not None
        one = now["services"][service]
        return (
            one["restarts"] > before["services"][service]["restarts"]
            and one["ended"] == "signal 9"
            and now["state"] == "ready"
        )

    await until(replaced)
    assert (await host.run(ID, ["srun", "-N1", "true"]))["code"] == 0


async def test_a_killed_slurmd_is_started_again(host: SchedulerHost) -> None:
    async def registered_at() -> str:
        shown = await host.run(ID, ["scontrol", "-o", "show", "node", "gpu-0"])
        return shown["stdout"].partition("SlurmdStartTime=")[2].partition(" ")[0]

    before = await registered_at()
    answer = await host.sim.control.post("/hosts/n0/kill", json={"service": "slurmd"})
    assert answer.status_code == 204, answer.text

    async def again() -> bool:
        return await registered_at() not in {before, ""}

    # Slurm takes a node for idle until it hears otherwise, and a step sent to nobody hangs.
    await until(again)
    await host.until_node(ID, "gpu-0", state="IDLE")
    assert (await host.run(ID, ["srun", "-wgpu-0", "hostname"]))["stdout"] == "gpu-0\n"


async def test_more_slots_and_other_switches_come_while_jobs_run(host: SchedulerHost) -> None:
    job = await running_job(host)

    async def runs() -> bool:
        return await state_of(host, job) == "RUNNING gpu-0"

    more = [*slots(6), *slots(2, "cpu", gpus=0, switch=None)]
    await host.put(ID, wish("one", KEY, slots=more))
    await host.until_node(ID, "cpu-1", registered=False)
    await until(runs)
    more[0]["switch"] = "leaf-9"
    await host.put(ID, wish("one", KEY, slots=more))

    async def moved() -> bool:
        shown = await host.run(ID, ["scontrol", "show", "topology", "gpu-0"])
        return "leaf-leaf-9" in shown["stdout"]

    await until(moved)
    await until(runs)
    assert (await host.run(ID, ["srun", "-wgpu-1", "hostname"]))["stdout"] == "gpu-1\n"
    await host.run(ID, ["scancel", job])


async def test_a_mounted_volume_is_seen_by_jobs_and_nothing_beside_it(
    host: SchedulerHost, volumes: Path
) -> None:
    for name in ("mine", "foreign"):
        (volumes / name / "data").mkdir(parents=True)
        (volumes / name / "data" / "text").write_text(name)
    source = str(volumes / "mine" / "data")
    mounts = [
        {"source": source, "target": "/mnt/data", "read_only": False},
        {"source": source, "target": "/mnt/fixed", "read_only": True},
    ]
    wanted = wish("one", KEY, slots=slots(6), mounts=mounts)

    job = await running_job(host)
    refused = await host.http.put(f"/v1/clusters/{ID}", json=wanted)
    assert refused.status_code == 409
    assert "Jobs run" in refused.json()["detail"]
    await host.run(ID, ["scancel", job])
    # A controller that was killed may take a job for running whose srun ended meanwhile.
    await host.run(ID, ["scancel", "--user=tenant"])

    said = ""

    async def taken() -> bool:
        nonlocal said
        answer = await host.http.put(f"/v1/clusters/{ID}", json=wanted)
        said = answer.text
        return answer.status_code == 200

    await until(taken, lambda: said)
    await host.until_ready(ID)
    await host.until_node(ID, "gpu-0", state="IDLE")
    assert await host.job(ID, "cat /mnt/data/text; echo new > /mnt/data/file") == "mine"
    assert (volumes / "mine" / "data" / "file").read_text() == "new\n"
    assert "Read-only" in await host.job(ID, "touch /mnt/fixed/x")
    assert "No such file" in await host.job(ID, f"ls {volumes}")
    assert "foreign" not in await host.job(ID, "cat /mnt/data/../*/text /mnt/data/../../*/*/text")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"munge_key": "b" * 60}, 409, "munge key"),
        ({"munge_key": "AAAA"}, 422, "munge_key has"),
        ({"munge_key": "no base64!"}, 422, "base64"),
        ({"slots": []}, 422, "slots"),
        ({"slots": [*slots(1), *slots(1)]}, 422, "gpu-0 stands twice"),
        ({"slots": slots(1, "Gpu\nState=UP")}, 422, "name"),
        ({"name": "x\nSlurmUser=root"}, 422, "name"),
        ({"account": "a account=b"}, 422, "account"),
        ({"mounts": [{"source": "/etc", "target": "/mnt/x"}]}, 422, "no volume of this host"),
        ({"mounts": [{"source": "/etc", "target": "/etc"}]}, 422, "choose a place"),
        ({"mounts": [{"source": "/etc", "target": "/mnt/../etc"}]}, 422, "choose a place"),
        ({"nonsense": 1}, 422, "nonsense"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_with_the_reason(
    host: SchedulerHost, change: dict[str, Any], status: int, words: str
) -> None:
    answer = await host.http.put(f"/v1/clusters/{ID}", json=wish("one", KEY) | change)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert words in problem["detail"]
    assert KEY.decode() not in answer.text


async def test_a_volume_root_itself_and_a_link_out_of_it_are_refused(
    host: SchedulerHost, volumes: Path
) -> None:
    (volumes / "out").symlink_to("/etc")
    for source in (volumes, volumes / "out", volumes / "nowhere", volumes / ".." / ".."):
        mounts = [{"source": str(source), "target": "/mnt/x"}]
        body = wish("other", KEY, mounts=mounts)
        answer = await host.http.put("/v1/clusters/clu_other", json=body)
        assert answer.status_code == 422, source


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/clusters/clu_none", None, 404),
        ("DELETE", "/v1/clusters/clu_none", None, 404),
        ("POST", "/v1/clusters/clu_none/run", {"argv": ["true"]}, 404),
        ("POST", f"/v1/clusters/{ID}/run", {"argv": []}, 422),
        ("POST", f"/v1/clusters/{ID}/run", {"argv": ["true"], "stdin": "!"}, 422),
        ("POST", f"/v1/clusters/{ID}/run", {"argv": ["sleep", "99"], "timeout_s": 0.3}, 504),
        ("PUT", "/v1/clusters/..%2F..", wish("x", KEY), 404),
        ("PUT", "/v1/clusters/UPPER", wish("x", KEY), 422),
    ],
)
async def test_the_api_answers_what_went_wrong(
    host: SchedulerHost, method: str, path: str, body: Any, status: int
) -> None:
    answer = await host.http.request(method, path, json=body)
    assert answer.status_code == status, answer.text


async def test_nobody_gets_in_without_the_account(hosted: SimHandle) -> None:
    for auth in (None, ("dflare", "wrong")):
        stranger = SchedulerHost.of(hosted, auth=auth)
        for path in ("/v1/status", f"/v1/clusters/{ID}"):
            answer = await stranger.http.get(path)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
        await stranger.http.aclose()


async def test_a_removed_cluster_leaves_no_process_no_mount_and_no_file(
    hosted: SimHandle,
) -> None:
    host = SchedulerHost.of(hosted)
    await host.put("clu_gone", wish("gone", KEY))
    early = await host.http.post("/v1/clusters/clu_gone/run", json={"argv": ["sinfo"]})
    assert early.status_code == 409
    await host.until_ready("clu_gone")
    await host.run("clu_gone", ["sh", "-c", "mkdir -p ~/closed/in; touch ~/closed/in/x"])
    await host.run("clu_gone", ["chmod", "000", "/home/tenant/closed/in", "/home/tenant/closed"])
    folder = str(hosted.log_file.parent / "clusters" / "clu_gone")
    assert any(folder in line for line in command_lines())
    await host.remove("clu_gone")
    assert not any(folder in line for line in command_lines())
    assert not os.path.exists(folder)  # noqa: ASYNC240 - one look
    again = await host.put("clu_gone", wish("gone", OTHER_KEY))
    assert again["state"] == "starting"
    await host.remove("clu_gone")
    await host.http.aclose()


async def test_the_next_simulator_finds_the_clusters_again() -> None:
    packages = packages_or_skip()
    with tempfile.TemporaryDirectory(prefix="dflare-scheduler-") as folder:
        arguments = ["--slurm-packages", str(packages)]
        document = data_center_with_scheduler(1, "127.72")
        async with simulator(Path(folder), document, arguments) as sim:
            host = SchedulerHost.of(sim)
            if (await host.until_able())["state"] == "unavailable":
                pytest.skip("no namespaces here")
            await host.put(ID, wish("one", KEY))
            await host.until_ready(ID)
            sent = await host.run(ID, ["sbatch", "--parsable", "--wrap", "true"])
            await host.http.aclose()
        async with simulator(Path(folder), document, arguments) as sim:
            host = SchedulerHost.of(sim)
            await host.until_ready(ID)
            shown = await host.run(ID, ["squeue", "-h", "-o", "%i"])
            assert shown["stdout"] == sent["stdout"]
            await host.put(ID, wish("one", KEY))
            await host.remove(ID)
            await host.http.aclose()


async def test_without_packages_clusters_are_refused_with_what_to_do(tmp_path: Path) -> None:
    status = {"state": "unavailable", "reason": "no source has slurmctld, do this", "versions": {}}
    (tmp_path / "status.json").write_text(json.dumps(status))
    cases = [
        ([], "unavailable", "DFLARE_SLURM_PACKAGES"),
        (["--slurm-packages", str(tmp_path / "root")], "unavailable", "do this"),
        (["--slurm-packages", str(tmp_path / "later" / "root")], "preparing", "downloaded"),
    ]
    for number, (arguments, state, words) in enumerate(cases):
        document = data_center_with_scheduler(1, f"127.7{number}")
        async with simulator(tmp_path / str(number), document, arguments) as sim:
            host = SchedulerHost.of(sim)

            async def told(host: SchedulerHost = host, words: str = words) -> bool:
                found = (await host.http.get("/v1/status")).json()["slurm"]
                return words in found["reason"]

            await until(told)
            found = (await host.http.get("/v1/status")).json()["slurm"]
            assert (found["state"], found["version"]) == (state, None)
            refused = await host.http.put(f"/v1/clusters/{ID}", json=wish("one", KEY))
            assert refused.status_code == 503
            assert words in refused.json()["detail"]
            await host.http.aclose()


async def running_job(host: SchedulerHost) -> str:
    """A job that runs on the first node until it is cancelled."""
    sent = await host.run(ID, ["sbatch", "--parsable", "-wgpu-0", "--wrap", "sleep 1000"])
    job = sent["stdout"].strip()

    async def runs() -> bool:
        return await state_of(host, job) == "RUNNING gpu-0"

    await until(runs)
    return job


async def state_of(host: SchedulerHost, job: str) -> str:
    shown = await host.run(ID, ["squeue", "-h", "-j", job, "-o", "%T %N"])
    return shown["stdout"].strip()


def command_lines() -> list[str]:
    """The command lines of every process."""
    lines: list[str] = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                lines.append((place / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return lines
