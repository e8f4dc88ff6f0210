"""Two real Slurm clusters side by side: jobs run, nothing of the one is reached from the other.

The packages are taken from the folder that ``DFLARE_SLURM_PACKAGES`` names, or else from ``.lab/``,
where ``make test-lab`` unpacks them.
"""

import asyncio
import os
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from dflare.sim.slurm.cluster import (
    ClusterFacts,
    ClusterNamespace,
    NamespacesUnavailableError,
    PackagesMissingError,
)
from dflare.sim.slurm.configuration import Host
from dflare.sim.slurm.programs import Programs

KEPT = Path(__file__).parents[2] / ".lab" / "slurm-packages"
PATIENCE_S = 90.0
LARGE = tuple(Host(f"gpu{i}", leaf=f"l{i // 4}", block=f"b{i // 8}") for i in range(16))
SMALL = (Host("one"), Host("two"), Host("odd"))
LAST_PORT_OF_LARGE = 20015
MACHINE_PATHS = [
    path
    for path in ("/etc/shadow", "/var/lib", str(Path.home()), str(Path(__file__).parents[2]))
    if Path(path).exists()
]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def packages() -> Path:
    """The root of the unpacked packages."""
    named = os.environ.get("DFLARE_SLURM_PACKAGES", "off")
    root = (KEPT if named == "off" else Path(named)) / "root"
    try:
        Programs.find(root)
    except PackagesMissingError:
        pytest.skip("no Slurm packages; make test-lab gets them, or name DFLARE_SLURM_PACKAGES")
    return root


@pytest.fixture(scope="module")
async def clusters(packages: Path) -> AsyncIterator[tuple[ClusterNamespace, ClusterNamespace]]:
    """A cluster of 16 nodes with 8 GPUs each, and another tenant's of two nodes."""
    base = Path(tempfile.mkdtemp(prefix="dflare-slurm-"))
    large = ClusterNamespace(base / "large", packages, ClusterFacts("large", LARGE))
    small = ClusterNamespace(base / "small", packages, ClusterFacts("small", SMALL))
    try:
        try:
            await asyncio.gather(large.start(), small.start())
        except NamespacesUnavailableError as error:
            pytest.skip(str(error))
        await asyncio.gather(
            *(large.start_node(host.name) for host in LARGE),
            *(small.start_node(name) for name in ("one", "two")),
        )
        await until(lambda: registered(large, 16))
        await until(lambda: registered(small, 2))
        yield large, small
    finally:
        await asyncio.gather(large.close(), small.close())
        shutil.rmtree(base)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.1)


async def registered(cluster: ClusterNamespace, count: int) -> bool:
    return sum(node.registered for node in (await cluster.nodes()).values()) == count


async def job(cluster: ClusterNamespace, script: str) -> str:
    """What a shell script prints as a job of the cluster, its errors included."""
    done = await cluster.run(["srun", "-N1", "sh", "-c", f"exec 2>&1; {script}"])
    return done.stdout


Pair = tuple[ClusterNamespace, ClusterNamespace]


async def test_a_job_on_128_gpus_finishes_on_16_hosts_and_is_accounted(clusters: Pair) -> None:
    large, _ = clusters
    script = b"#!/bin/sh\nsrun sh -c 'echo $(hostname) $SLURM_STEP_GPUS'\n"
    argv = ["sbatch", "--wait", "-N16", "--gres=gpu:8", "--account=anna", "--wckey=run7", "-oout"]
    sent = await large.run(argv, stdin=script)
    assert sent.code == 0, sent.stderr
    printed = (await large.run(["cat", "out"])).stdout.splitlines()
    assert sorted(printed) == sorted(f"{host.name} 0,1,2,3,4,5,6,7" for host in LARGE)

    number = sent.stdout.split()[-1]
    query = ["sacct", "-XnP", "-j", number, "-o", "state,account,wckey,alloctres%80"]

    async def accounted() -> bool:
        found = (await large.run(query)).stdout.strip()
        return re.search(r"COMPLETED\|anna\|run7\|.*gres/gpu=128", found) is not None

    await until(accounted)


async def test_slurmrestd_answers_on_its_socket_to_a_token_only(clusters: Pair) -> None:
    large, _ = clusters

    async def ping(token: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(large.rest_socket))
        request = (
            "GET /slurm/v0.0.38/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"X-SLURM-USER-NAME: tenant\r\nX-SLURM-USER-TOKEN: {token}\r\n\r\n"
        )
        writer.write(request.encode())
        async with asyncio.timeout(20):
            head = (await reader.readline()).decode()
        writer.close()
        await writer.wait_closed()
        return head

    assert " 200 " in await ping(await large.token())
    assert " 200 " not in await ping("eyJhbGciOiJIUzI1NiJ9.eyJzdW4iOiJ0ZW5hbnQifQ.AAAA")


async def test_no_job_reads_the_munge_key_of_another_cluster(clusters: Pair) -> None:
    large, small = clusters
    foreign = large.folder / "etc" / "munge.key"
    assert foreign.exists()
    assert "No such file" in await job(small, f"cat {foreign}; ls {large.folder}")
    keys = (await job(small, "find / -name 'munge*.key' 2>/dev/null")).split()
    assert keys == ["/etc/slurm/munge.key"]
    own = (await job(small, "sha256sum < /etc/slurm/munge.key")).split()[0]
    other = (await job(large, "sha256sum < /etc/slurm/munge.key")).split()[0]
    assert own != other

    credential = (await job(large, "munge -n -S /cluster/munge/munge.sock")).strip()
    decode = f"echo {credential} | unmunge -S /cluster/munge/munge.sock"
    assert "STATUS:          Success" in await job(large, decode)
    assert "Success" not in await job(small, decode)


async def test_no_job_sees_the_processes_of_another_cluster_or_of_the_machine(
    clusters: Pair,
) -> None:
    large, small = clusters
    looking = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    mark = await large.run(["sh", "-c", "sleep 76543 >/dev/null 2>&1 & echo $!"])
    assert "sleep 76543" in await job(large, looking)
    seen = await job(small, looking)
    assert "slurmctld" in seen
    assert "sleep 76543" not in seen
    assert "pytest" not in seen
    await large.run(["kill", mark.stdout.strip()])


async def test_no_job_reaches_the_network_of_another_cluster_or_of_the_machine(
    clusters: Pair,
) -> None:
    large, small = clusters

    def connect(port: int, address: str = "127.0.0.1") -> str:
        return f"bash -c 'exec 3<>/dev/tcp/{address}/{port} && echo reached'"

    assert "reached" in await job(large, connect(LAST_PORT_OF_LARGE))
    assert "reached" not in await job(small, connect(LAST_PORT_OF_LARGE))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        assert "reached" not in await job(small, connect(port))
    assert "unreachable" in await job(small, connect(53, "198.51.100.1"))
    interfaces = await job(small, "tail -n +3 /proc/net/dev | cut -d: -f1")
    assert set(interfaces.split()) == {"lo", "cluster0"}


async def test_no_job_asks_the_controller_of_another_cluster(clusters: Pair) -> None:
    large, small = clusters
    assert "large" in await job(large, "sacctmgr -nP show cluster format=cluster")
    assert "large" not in await job(small, "sacctmgr -nP show cluster format=cluster")
    assert "ClusterName             = small" in await job(small, "scontrol show config")
    assert "error" in await job(small, "squeue -M large")


async def test_no_job_reads_files_of_another_cluster_or_of_the_machine(clusters: Pair) -> None:
    large, small = clusters
    await job(large, "echo hidden > ~/secret; echo hidden > /tmp/secret")
    assert (await job(large, "cat ~/secret /tmp/secret")).split() == ["hidden", "hidden"]
    assert "hidden" not in await job(small, "cat ~/secret /tmp/secret")
    assert "hidden" not in await job(small, f"cat {large.folder}/home/secret")
    for path in MACHINE_PATHS:
        assert "No such file" in await job(small, f"ls -d {path}")


async def test_a_job_has_no_capability_and_changes_nothing_of_the_machine(clusters: Pair) -> None:
    _, small = clusters
    told = await job(small, "grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status")
    assert told.split() == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
    for path in ("/usr/x", "/etc/x", "/etc/slurm/x", "/slurm/x", "/x"):
        assert "Read-only file system" in await job(small, f"touch {path}")
    refused = await job(small, "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern")
    assert "Read-only file system" in refused
    assert "denied" in await job(small, "ls /proc/1/root/; cat /proc/1/environ")
    assert await job(small, "touch ~/mine && echo wrote") == "wrote\n"


async def test_a_killed_slurmctld_comes_back_with_its_jobs(clusters: Pair) -> None:
    large, _ = clusters
    sent = await large.run(["sbatch", "--parsable", "-N2", "--wrap", "srun sleep 3000"])
    number = sent.stdout.strip()

    async def runs() -> bool:
        shown = await large.run(["squeue", "-h", "-j", number, "-o", "%T"])
        return shown.stdout.strip() == "RUNNING"

    await until(runs)
    await large.run(["touch", "running"])
    saved = ["find", "/cluster/state/job_state", "-newer", "running"]

    async def job_is_saved() -> bool:
        # slurmctld writes its jobs down within five seconds, not with each answer.
        return "job_state" in (await large.run(saved)).stdout

    await until(job_is_saved)
    before = (await large.services())["slurmctld"]
    await large.kill("slurmctld")

    async def replaced() -> bool:
        now = (await large.services())["slurmctld"]
        return now.restarts > before.restarts and now.state == "running"

    await until(replaced)
    await until(runs)
    assert (await large.services())["slurmctld"].ended == "signal 9"
    await large.run(["scancel", number])


async def test_a_host_without_power_loses_its_steps_and_its_neighbours_keep_theirs(
    clusters: Pair,
) -> None:
    large, _ = clusters
    argv = ["sbatch", "--parsable", "--no-requeue", "-wgpu14,gpu15", "--wrap", "srun sleep 8765"]
    number = (await large.run(argv)).stdout.strip()

    async def hosts_of_sleep() -> set[str]:
        script = "for p in $(pgrep -x sleep); do nsenter_name $p; done"
        look = (
            'nsenter_name() { tr "\\0" "\\n" < /proc/$1/environ | '
            'sed -n "s/^SLURMD_NODENAME=//p"; }; '
        )
        return set((await large.run(["sh", "-c", look + script])).stdout.split())

    async def on_both() -> bool:
        return await hosts_of_sleep() == {"gpu14", "gpu15"}

    await until(on_both)
    await large.cut_node("gpu15")
    assert "gpu15" not in await hosts_of_sleep()
    services = await large.services()
    assert services["slurmd.gpu15"].state == "stopped"
    assert services["slurmd.gpu14"].state == "running"
    await large.run(["scancel", number])
    await large.start_node("gpu15")

    async def back() -> bool:
        return (await large.nodes())["gpu15"].state == "IDLE"

    await until(back)


async def test_a_host_that_never_registers_and_one_with_a_wrong_key_are_told_apart(
    clusters: Pair,
) -> None:
    _, small = clusters
    odd = (await small.nodes())["odd"]
    assert not odd.registered
    assert odd.state.startswith(("UNKNOWN", "DOWN"))
    assert odd.fault == "its slurmd was not started"

    await small.start_node("odd", munge_key=os.urandom(128))

    async def named() -> bool:
        return "munge key is not the cluster's" in (await small.nodes())["odd"].fault

    await until(named)
    assert not (await small.nodes())["odd"].registered

    await small.cut_node("odd")
    await small.start_node("odd")
    await until(lambda: registered(small, 3))
    assert (await small.nodes())["odd"].fault == ""


async def test_another_program_finds_the_cluster_again(clusters: Pair, packages: Path) -> None:
    _, small = clusters
    again = ClusterNamespace(small.folder, packages, small.facts)
    assert await again.is_running()
    before = await small.services()
    await again.start()
    assert {name: facts.pid for name, facts in (await again.services()).items()} == {
        name: facts.pid for name, facts in before.items()
    }
    assert small.folder.stat().st_mode & 0o777 == 0o700


async def test_a_command_that_takes_too_long_is_killed(clusters: Pair) -> None:
    _, small = clusters
    with pytest.raises(TimeoutError):
        await small.run(["sleep", "54321"], timeout_s=0.5)

    async def gone() -> bool:
        return "54321" not in (await small.run(["ps", "axww", "-o", "args"])).stdout

    await until(gone)


async def test_closing_leaves_no_process_and_no_mount(packages: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="dflare-slurm-"))
    try:
        cluster = ClusterNamespace(folder / "x", packages, ClusterFacts("x", (Host("one"),)))
        await cluster.start()
        await cluster.start_node("one")
        await until(lambda: registered(cluster, 1))
        (mine,) = {pid for pid in processes() if f"init\0{folder}/x" in command(pid)}
        space = (mine / "ns" / "pid").stat().st_ino
        inside = {pid for pid in processes() if namespace(pid) == space}
        assert len(inside) >= 7
        await cluster.close()
        assert not await cluster.is_running()
        assert {pid for pid in processes() if namespace(pid) == space} == set()
        assert str(folder) not in mounts()
        await cluster.close()
        await cluster.destroy()
        assert not (folder / "x").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdecimal()]


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def namespace(process: Path) -> int:
    """The process ids' namespace of a living process; 0 for one that ended."""
    try:
        if (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return 0
        return (process / "ns" / "pid").stat().st_ino
    except OSError:
        return 0
