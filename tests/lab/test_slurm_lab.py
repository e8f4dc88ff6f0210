"""Slurm with packages that come from the machine's own Debian sources: what the runtime promises,
and two tenants' clusters side by side behind the scheduler host's API."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent_platform import agent_platform
from dflare.embedded.packages import SWITCH_VARIABLE, PackageCache, PackagesState
from scheduler_host import (
    SchedulerHost,
    data_center_with_scheduler,
    provision,
    slots,
    until,
    vendor_data,
    wish,
)
from simulator import simulator

REPOSITORY = Path(__file__).parents[2]
SECRET = "belongs-to-alpha-alone"

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cache() -> PackageCache:
    """The packages, downloaded once."""
    made = PackageCache(REPOSITORY / ".lab" / "slurm-packages")
    status = made.prepare()
    assert status.state is PackagesState.READY, status.reason
    return made


@pytest.mark.parametrize("file", ["test_slurm_cluster.py", "test_scheduler_host.py"])
def test_every_promise_about_clusters_holds_with_downloaded_packages(
    cache: PackageCache, file: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"tests/sim/{file}"],
        cwd=REPOSITORY,
        env={**os.environ, SWITCH_VARIABLE: str(cache.folder)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-1000:]


@dataclass(frozen=True)
class Tenants:
    """Alpha, which has something to lose, and beta, whose jobs look for it."""

    host: SchedulerHost
    data: Path
    volumes: Path
    keys: dict[str, bytes]

    async def of_alpha(self, script: str) -> str:
        return await self.host.job("clu_alpha", script)

    async def of_beta(self, script: str) -> str:
        return await self.host.job("clu_beta", script)


@pytest.fixture(scope="module")
async def tenants(cache: PackageCache) -> AsyncIterator[Tenants]:
    """Two clusters of one node each, with a volume each, in one data directory."""
    with tempfile.TemporaryDirectory(prefix="dflare-tenants-") as folder:
        data = Path(folder)
        volumes = data / "volumes"
        arguments = ["--slurm-packages", str(cache.root), "--clusters", str(data / "clusters")]
        arguments += ["--volume-root", str(volumes)]
        document = data_center_with_scheduler(2, "127.74")
        async with simulator(data, document, arguments) as sim, agent_platform() as platform:
            host = SchedulerHost.of(sim)
            status = await host.until_able()
            assert status["state"] == "ready", status["reason"]
            keys = {name: os.urandom(128) for name in ("alpha", "beta")}
            for number, (name, key) in enumerate(keys.items()):
                await _start(host, volumes, name, key)
                node = vendor_data(f"clu_{name}", f"{name}-0", key)
                await provision(sim, platform, f"n{number}", node)
                await host.until_node(f"clu_{name}", f"{name}-0", state="IDLE")
            yield Tenants(host, data, volumes, keys)
            for name in keys:
                await host.remove(f"clu_{name}")
            await host.http.aclose()


async def _start(host: SchedulerHost, volumes: Path, name: str, key: bytes) -> None:
    source = volumes / f"vol_{name}" / "data"
    source.mkdir(parents=True)
    (source / "text").write_text(f"of {name}\n")
    mounts = [{"source": str(source), "target": "/mnt/data"}]
    body = wish(name, key, slots=slots(1, name), mounts=mounts, account=name)
    await host.put(f"clu_{name}", body)
    await host.until_ready(f"clu_{name}")


async def test_the_other_tenants_munge_key_is_neither_read_nor_used(tenants: Tenants) -> None:
    own, other = tenants.keys["beta"], tenants.keys["alpha"]
    digests = await tenants.of_beta("find / -name '*.key' -type f -exec sha256sum {} + 2>/dev/null")
    assert hashlib.sha256(own).hexdigest() in digests
    assert hashlib.sha256(other).hexdigest() not in digests
    for path in (
        tenants.data / "clusters" / "clu_alpha" / "etc" / "munge.key",
        tenants.data / "clusters" / "clu_alpha" / "wish.json",
        tenants.data,
    ):
        assert path.exists()
        assert "No such file" in await tenants.of_beta(f"ls {path}")
    credential = (await tenants.of_alpha("munge -n -S /cluster/munge/munge.sock")).strip()
    decode = f"echo {credential} | unmunge -S /cluster/munge/munge.sock"
    assert "Success" in await tenants.of_alpha(decode)
    assert "Success" not in await tenants.of_beta(decode)


async def test_the_other_tenants_controller_is_not_reached(tenants: Tenants) -> None:
    assert "ClusterName             = beta" in await tenants.of_beta("scontrol show config")
    assert "alpha" not in await tenants.of_beta("sacctmgr -nP show cluster; sinfo -N; squeue")
    assert "error" in await tenants.of_beta("squeue -M alpha")
    interfaces = await tenants.of_beta("tail -n +3 /proc/net/dev | sed 's/ *\\(.*\\):.*/if=\\1/'")
    # What srun says of its waiting stands beside what the job wrote.
    assert set(re.findall(r"(?m)^if=(\S+)$", interfaces)) == {"lo", "cluster0"}
    head = tenants.host.sim.config
    assert head.scheduler is not None
    for address, port in (
        (head.scheduler.address, head.scheduler_port),
        ("127.0.0.1", head.control_port),
    ):
        connect = f"bash -c 'exec 3<>/dev/tcp/{address}/{port} && echo reached'"
        assert "reached" not in await tenants.of_beta(connect)


async def test_the_other_tenants_processes_are_neither_seen_nor_signalled(tenants: Tenants) -> None:
    mark = "sleep 76544"
    sent = await tenants.host.run(
        "clu_alpha", ["sbatch", "--parsable", "--wrap", f"{mark} & echo $! > /mnt/data/pid; wait"]
    )
    pid_file = tenants.volumes / "vol_alpha" / "data" / "pid"

    async def written() -> bool:
        return pid_file.exists() and bool(pid_file.read_text().strip())

    await until(written)
    look = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    seen_by_alpha = (await tenants.host.run("clu_alpha", ["sh", "-c", look]))["stdout"]
    assert mark in seen_by_alpha
    seen = await tenants.of_beta(look)
    assert "slurmctld" in seen
    assert mark not in seen
    assert "alpha" not in seen
    assert "pytest" not in seen
    # The highest harm of a job is to signal all that it may: its own cluster at most.
    await tenants.of_beta("trap '' TERM; kill -TERM -1")
    assert mark in (await tenants.host.run("clu_alpha", ["sh", "-c", look]))["stdout"]
    await tenants.host.run("clu_alpha", ["scancel", sent["stdout"].strip()])
    await tenants.host.until_ready("clu_beta")
    await tenants.host.until_node("clu_beta", "beta-0", state="IDLE")


async def test_the_other_tenants_volume_is_neither_read_nor_written(tenants: Tenants) -> None:
    await tenants.of_alpha(f"echo {SECRET} > /mnt/data/secret")
    assert SECRET in (tenants.volumes / "vol_alpha" / "data" / "secret").read_text()
    assert await tenants.of_beta("cat /mnt/data/text") == "of beta\n"
    look = "grep -rs --exclude-dir=proc --exclude-dir=sys belongs-to-alpha /mnt /cluster /home /tmp"
    assert SECRET not in await tenants.of_beta(f"{look}; cat /mnt/data/../*/secret")
    source = tenants.volumes / "vol_alpha" / "data"
    for way in (f"cat {source}/secret", f"ls {source}", f"echo x > {source}/secret"):
        assert re.search("No such file|nonexistent|cannot create", await tenants.of_beta(way))
    link = tenants.volumes / "vol_beta" / "data" / "link"
    await tenants.of_beta(f"ln -s {source}/secret /mnt/data/link")
    assert link.is_symlink()
    assert "No such file" in await tenants.of_beta("cat /mnt/data/link")
    refused = await tenants.host.http.put(
        "/v1/clusters/clu_third",
        json=wish("third", os.urandom(64), mounts=[{"source": str(link), "target": "/mnt/x"}]),
    )
    assert refused.status_code == 422
    mounts = await tenants.of_beta("cat /proc/self/mountinfo")
    assert "vol_beta" in mounts
    assert "vol_alpha" not in mounts
    assert "clu_alpha" not in mounts
