"""What a driver of scheduler hosts must do. The host here answers as a test says; that Slurm itself
does what its programs are asked is tested in ``tests/e2e/test_slurm.py``."""

import base64
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dflare.drivers.scheduler.port import (
    BoundVolume,
    ControllerState,
    JobScript,
    NoSuchClusterError,
    SchedulerHostDriver,
    SchedulerNotReadyError,
    SchedulerRefusedError,
    SchedulerSpec,
    SchedulerState,
    SchedulerUnavailableError,
    SchedulerUnreachableError,
    Slot,
)
from dflare.drivers.scheduler.rest import HostRest
from dflare.drivers.scheduler.slurm_accounts import host_names
from dflare.drivers.scheduler.slurm_host import SlurmHost
from scheduler_wire import WireHost, wire_host

SLOTS = tuple(
    Slot(f"gpu-{n}", "gpu", 64, 1024, 8, "h100", "leaf-1" if n < 2 else None) for n in range(4)
)
SPEC = SchedulerSpec(
    "clu_1", "ml", b"k" * 128, SLOTS, (BoundVolume("/v/1", "/mnt/data", True),), "vision"
)
DONE = "7,3,a|b\tc,vision,*alice,gpu,CANCELLED by 1000,1795523820,1795523823,1795523883,60,2"
DONE = "\x1f".join([*DONE.split(","), "cpu=2,gres/gpu=16,node=2", "0:9", "gpu-[0-1]"])
WAITS = "8,4,later,,,gpu,PENDING,1795523820,Unknown,Unknown,0,16,,0:0,None assigned"
WAITS = WAITS.replace(",", "\x1f")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[WireHost]:
    async with wire_host(tmp_path) as host:
        yield host


@pytest.fixture
async def driver(host: WireHost) -> AsyncIterator[SchedulerHostDriver]:
    rest = HostRest(ca_file=str(host.ca_file), timeout_s=5)
    yield SlurmHost(rest, host.access)
    await rest.close()


async def test_a_host_says_whether_it_can_run_schedulers_and_why_not(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    assert (await driver.status()).state is SchedulerState.READY
    host.state, host.broken = "unavailable", "apt-get install slurm-wlm"
    status = await driver.status()
    assert (status.state, status.version) == (SchedulerState.UNAVAILABLE, "22.05.8")
    assert status.reason == "apt-get install slurm-wlm"


async def test_what_is_to_be_reaches_the_host_whole_and_may_be_told_again(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    for _ in range(2):
        seen = await driver.ensure(SPEC)
        assert seen.state is ControllerState.READY
        assert set(seen.nodes) == {slot.name for slot in SLOTS}
        assert seen == await driver.observe("clu_1")
    body = host.clusters["clu_1"]
    assert base64.b64decode(body["munge_key"]) == SPEC.munge_key
    assert body["mounts"] == [{"source": "/v/1", "target": "/mnt/data", "read_only": True}]
    assert (body["name"], body["account"]) == ("ml", "vision")
    assert body["slots"][1] == {
        "name": "gpu-1",
        "partition": "gpu",
        "cpus": 64,
        "memory_mib": 1024,
        "gpus": 8,
        "gpu_type": "h100",
        "switch": "leaf-1",
    }
    assert body["slots"][2]["switch"] is None


async def test_a_node_that_never_registered_is_seen_with_what_the_host_knows_of_it(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    host.absent["gpu-2"] = "its munge key is another one"
    seen = (await driver.ensure(SPEC)).nodes
    assert (seen["gpu-2"].registered, seen["gpu-2"].fault) == (
        False,
        "its munge key is another one",
    )
    assert seen["gpu-1"].registered


async def test_a_removed_cluster_is_gone_only_when_nothing_of_it_is_seen(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    await driver.ensure(SPEC)
    host.lingers = 2
    assert [await driver.remove("clu_1") for _ in range(3)] == [False, False, True]
    assert await driver.remove("clu_1")
    assert await driver.observe("clu_1") is None


async def test_only_slots_that_are_not_as_asked_are_drained_or_let_go(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    await driver.ensure(SPEC)
    host.drained["clu_1", "gpu-0"] = "dflare: shrink [root@2026-01-01]"
    await driver.set_drain("clu_1", ["gpu-0", "gpu-1"], "dflare: shrink")
    await driver.set_drain("clu_1", ["gpu-0", "gpu-1"], None)
    await driver.set_drain("clu_1", ["gpu-2"], None)
    drain, resume = host.ran
    assert drain["argv"][2:] == ["NodeName=gpu-1", "State=DRAIN", "Reason=dflare: shrink"]
    assert resume["argv"][2:] == ["NodeName=gpu-0,gpu-1", "State=RESUME"]
    with pytest.raises(SchedulerRefusedError, match="no slot gpu-9"):
        await driver.set_drain("clu_1", ["gpu-9"], "why")


async def test_a_job_goes_with_its_script_and_for_whom_it_is(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    await driver.ensure(SPEC)
    host.answers = [(0, "42;ml\n", "")]
    job = JobScript("#!/bin/sh\nhostname\n", "train", ("--nodes=16",), "vision", "alice")
    assert await driver.submit("clu_1", job) == "42"
    (ran,) = host.ran
    assert ran["stdin"] == b"#!/bin/sh\nhostname\n"
    assert {"--nodes=16", "--job-name=train", "--account=vision", "--wckey=alice"} < set(
        ran["argv"]
    )
    host.answers = [(1, "", "sbatch: error: More nodes than there are")]
    with pytest.raises(SchedulerRefusedError, match="More nodes than there are"):
        await driver.submit("clu_1", job)
    host.answers = [(1, "", "Unable to contact slurm controller (connect failure)")]
    with pytest.raises(SchedulerUnreachableError):
        await driver.submit("clu_1", job)


async def test_accounts_of_jobs_are_read_as_the_scheduler_keeps_them(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    await driver.ensure(SPEC)
    host.answers = [(0, f"{DONE}\n{WAITS}\n", "")]
    done, waits = await driver.jobs("clu_1", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert "--starttime=2026-01-02T03:04:05" in host.ran[0]["argv"]
    assert (done.record_id, done.job_id, done.name) == ("7", "3", "a|b\tc")
    assert (done.account, done.wckey, done.state) == ("vision", "alice", "CANCELLED")
    assert (done.elapsed_s, done.gpus, done.nodes) == (60, 16, ("gpu-0", "gpu-1"))
    assert done.exit_code == -9
    assert done.started_at == datetime.fromtimestamp(1795523823, UTC)
    assert (waits.started_at, waits.ended_at, waits.nodes, waits.gpus) == (None, None, (), 0)
    assert waits.node_count == 16


async def test_output_is_read_from_where_the_job_writes_it(
    host: WireHost, driver: SchedulerHostDriver
) -> None:
    await driver.ensure(SPEC)
    written = base64.b64encode(b"\x00\xff out").decode()
    shown = "JobId=3 WorkDir=/home/t StdErr=/home/t/e StdOut=/home/t/my file.out Power= \n"
    host.answers = [(0, shown, ""), (0, written, "")]
    assert await driver.output("clu_1", "3", 10, 100) == b"\x00\xff out"
    assert host.ran[-1]["argv"][-3:] == ["11", "/home/t/my file.out", "100"]
    host.answers = [(1, "", "Invalid job id specified"), (0, "/home/t\n", ""), (0, written, "")]
    await driver.output("clu_1", "3", 0, 5)
    assert host.ran[-1]["argv"][-2] == "/home/t/slurm-3.out"
    host.answers = [(1, "", "Invalid job id specified"), (0, "\n", "")]
    with pytest.raises(SchedulerRefusedError, match="knows no job 3"):
        await driver.output("clu_1", "3", 0, 5)


async def test_failures_are_told_apart(host: WireHost, driver: SchedulerHostDriver) -> None:
    with pytest.raises(NoSuchClusterError):
        await driver.run("clu_none", ["sinfo"])
    await driver.ensure(SPEC)
    host.answers = [(504, "", "")]
    with pytest.raises(TimeoutError):
        await driver.run("clu_1", ["sleep", "9"], timeout_s=1)
    host.failed = "slurmctld does not start"
    with pytest.raises(SchedulerNotReadyError, match="slurmctld does not start"):
        await driver.run("clu_1", ["sinfo"])
    host.broken = "no user namespaces: sysctl kernel.unprivileged_userns_clone=1"
    with pytest.raises(SchedulerUnavailableError, match="no user namespaces"):
        await driver.ensure(SPEC)
    rest = HostRest(ca_file=str(host.ca_file), timeout_s=5)
    for access, error in (
        (dataclasses.replace(host.access, password="wrong"), SchedulerRefusedError),
        (
            dataclasses.replace(host.access, address="https://127.0.0.1:9"),
            SchedulerUnreachableError,
        ),
    ):
        with pytest.raises(error):
            await SlurmHost(rest, access).status()
    await rest.close()


def test_no_key_and_no_password_is_shown(host: WireHost) -> None:
    assert "kkkk" not in repr(SPEC)
    assert host.access.password not in repr(host.access)


def test_lists_of_hosts_are_read_as_slurm_writes_them() -> None:
    assert host_names("gpu-[0-2,5],cpu-1") == ["gpu-0", "gpu-1", "gpu-2", "gpu-5", "cpu-1"]
    assert host_names("n[08-10]") == ["n08", "n09", "n10"]
    assert host_names("a1,b2") == ["a1", "b2"]
