"""One Slurm cluster of real daemons in namespaces of its own."""

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dflare.sim.slurm import configuration as conf
from dflare.sim.slurm.configuration import ClusterFacts
from dflare.sim.slurm.orders import (
    ClusterGoneError,
    Inside,
    NamespacesUnavailableError,
    OrderRefusedError,
    Output,
)
from dflare.sim.slurm.programs import PackagesMissingError, Programs
from dflare.sim.slurm.sandbox import CLUSTER, CONTROLLER, ETC, HOME, PACKAGES

__all__ = [
    "ClusterFacts",
    "ClusterFailedError",
    "ClusterGoneError",
    "ClusterNamespace",
    "NamespacesUnavailableError",
    "NodeView",
    "OrderRefusedError",
    "Output",
    "PackagesMissingError",
    "ServiceStatus",
]

READY_TIMEOUT_S = 60.0
END_PATIENCE_S = 10.0
STOP_GRACE_S = 5.0
POLL_S = 0.05
MUNGE_KEY_BYTES = 128
_MOST_GPUS = 16
_SUPERVISED_COMPONENT = "SUPERVISED_COMPONENT"
_KEPT_VARIABLES = ("PATH", "LANG", "PYTHONPATH", "SUPERVISED_DATA_DIR")
_FOLDERS = ("etc", "log", "run", "state", "spool", "munge", "gpu", "mysql")
_KEY_FAULT = re.compile(r"munge|Invalid credential|[Aa]uthentication|Protocol authentication")


class ClusterFailedError(Exception):
    """A daemon did not become ready; the text says which and ends with its log."""


@dataclass(frozen=True)
class ServiceStatus:
    """One supervised process: `state` is running, backing-off, stopping or stopped; `since` is in
    seconds since the epoch; `ended` says how its last life ended."""

    state: str
    pid: int
    restarts: int
    ended: str
    since: float


@dataclass(frozen=True)
class NodeView:
    """A node as slurmctld sees it, and what is wrong with it (empty if nothing is).

    `registered` says whether its slurmd ever registered.
    """

    name: str
    state: str
    reason: str
    registered: bool
    fault: str


class ClusterNamespace:
    """A cluster below one folder (mode 0700), with all its processes in namespaces of its own.

    The processes outlive the object and the program that made it: another object for the same
    folder finds them again (`is_running`). Files that a job could have replaced by a link are read
    and written inside the namespaces only, never from here.
    """

    def __init__(self, folder: Path, packages: Path, facts: ClusterFacts) -> None:
        """`packages` is the root into which the Debian packages are unpacked.

        Raises `PackagesMissingError`.
        """
        self.folder = folder.absolute()
        self.facts = facts
        self._programs = Programs.find(packages.absolute())
        self._inside = Inside(self.folder)

    @property
    def rest_socket(self) -> Path:
        """The socket on which slurmrestd answers, with a token of `token` only."""
        return self.folder / "inside" / conf.REST_SOCKET.removeprefix(f"{CLUSTER}/")

    async def is_running(self) -> bool:
        """Whether process 1 of the cluster lives."""
        return await self._inside.process() is not None

    async def start(self, binds: Mapping[str, Path] | None = None) -> None:
        """Starts what does not run yet of namespaces, munged, MariaDB, slurmdbd, slurmctld and
        slurmrestd, and returns when the controller answers.

        `binds` gives the cluster further folders of this machine by their absolute path inside;
        they count only when the namespaces are made. Raises `NamespacesUnavailableError` and
        `ClusterFailedError`.
        """
        if not await self.is_running():
            self._make_folders()
            await self._inside.start(self._programs.root, binds or {}, _environment(self.facts))
        await self._configure()
        await self._start("munged", _munged(conf.MUNGE_SOCKET, "munge.key"))
        await asyncio.gather(self._start_database(), self._until_munge_answers())
        await self._start("slurmdbd", ["slurmdbd", "-D"])
        await self._until(
            "slurmdbd", ["bash", "-c", f"</dev/tcp/127.0.0.1/{conf.DATABASE_DAEMON_PORT}"]
        )
        await self.run(["sacctmgr", "--immediate", "add", "cluster", self.facts.name])
        await self._start("slurmctld", ["slurmctld", "-D"])
        await self._until("slurmctld", ["bash", "-c", "scontrol ping | grep -q 'is UP'"])
        await self._start_rest()

    async def start_node(self, name: str, *, munge_key: bytes | None = None) -> None:
        """Starts the slurmd of a declared host; it registers by itself a moment later.

        `munge_key` gives the host a key of its own, as a host has that was provisioned wrongly.
        Raises `ClusterGoneError`, and `ValueError` for a host that was not declared.
        """
        if name not in {host.name for host in self.facts.hosts}:
            raise ValueError(f"{name!r} is no host of cluster {self.facts.name}")
        environment: dict[str, str] = {}
        if munge_key is not None:
            environment["SLURM_CONF"] = await self._start_own_munged(name, munge_key)
        argv = ["slurmd", "-D", "-N", name, "-d", "/run/bin/slurmstepd"]
        await self._start(_slurmd(name), argv, hostname=name, environment=environment)

    async def stop_node(self, name: str, grace_s: float = STOP_GRACE_S) -> None:
        """Ends a host's slurmd in order, then everything else on it; SIGKILL after the grace,
        because a slurmd that is still registering ignores SIGTERM."""
        await self._inside.order("stop", name=_slurmd(name), grace_s=grace_s)
        await self.cut_node(name)

    async def cut_node(self, name: str) -> None:
        """Takes a host's power: its slurmd, steps and jobs are gone at once and stay so."""
        await self._inside.order("cut", hostname=name)

    async def kill(self, service: str) -> None:
        """SIGKILL for `slurmctld`, `slurmdbd`, `slurmrestd`, `mariadbd`, `munged` or
        `slurmd.<host>`; it is started again by its supervision."""
        await self._inside.order("kill", name=service)

    async def services(self) -> dict[str, ServiceStatus]:
        """Every supervised process by name. Raises `ClusterGoneError`."""
        answer = await self._inside.order("status")
        return {name: ServiceStatus(**facts) for name, facts in answer["services"].items()}

    async def nodes(self) -> dict[str, NodeView]:
        """Every declared host as slurmctld sees it, and why one is not there."""
        shown = await self.run(["scontrol", "--oneliner", "show", "nodes"])
        services = await self.services()
        views = [_node_facts(line) for line in shown.stdout.splitlines() if line.strip()]
        faults = {
            name: await self._fault(name, services.get(_slurmd(name)))
            for name, _, _, registered in views
            if not registered
        }
        return {
            name: NodeView(name, state, reason, registered, faults.get(name, ""))
            for name, state, reason, registered in views
        }

    async def run(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        directory: str = HOME,
        hostname: str = CONTROLLER,
        timeout_s: float = 60.0,
    ) -> Output:
        """Runs a program as the cluster's user (sbatch, srun, squeue, sinfo, sacct, scontrol, …).

        A member of the project is carried by `SLURM_ACCOUNT`, `SLURM_WCKEY` and their SBATCH and
        SALLOC forms in `environment`. Raises `TimeoutError`, `ClusterGoneError`.
        """
        return await self._inside.run(
            argv,
            env={**self._programs.environment(), **(environment or {})},
            stdin=stdin,
            directory=directory,
            hostname=hostname,
            timeout_s=timeout_s,
        )

    async def token(self, lifespan_s: int = 600) -> str:
        """A token for slurmrestd. Raises `ClusterFailedError`."""
        said = await self.run(["scontrol", "token", f"lifespan={lifespan_s}"])
        if said.code != 0 or "=" not in said.stdout:
            raise ClusterFailedError(f"slurmctld gave no token: {said.stderr.strip()}")
        return said.stdout.partition("=")[2].strip()

    async def log(self, service: str, lines: int = 20) -> str:
        """The last lines that a service wrote: its own log and what went to its terminal."""
        files = [f"{CLUSTER}/log/{service}.log", _terminal(service)]
        told = await self.run(["tail", "-q", "-n", str(lines), *files])
        return told.stdout

    async def close(self) -> None:
        """Ends everything inside; no process, mount or network of the cluster remains. The folder
        stays, and `start` goes on from it. A cluster that does not run is no error."""
        await self._inside.end(END_PATIENCE_S)

    async def destroy(self) -> None:
        """Ends everything inside and deletes the folder."""
        await self.close()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=False)

    def _make_folders(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for name in ("control", "etc", "inside", "home", "root"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        _keep_secret(self.folder / "etc" / "munge.key", secrets.token_bytes(MUNGE_KEY_BYTES))
        _keep_secret(self.folder / "etc" / "jwt.key", secrets.token_bytes(32))
        _keep_secret(self.folder / "control" / "password", secrets.token_hex(16).encode())

    async def _configure(self) -> None:
        version = await self.run(["slurmctld", "-V"])
        found = re.search(r"(\d+)\.(\d+)", version.stdout)
        if found is None:
            raise ClusterFailedError(f"slurmctld does not run: {version.stderr.strip()}")
        files = conf.configuration(
            self.facts,
            plugins=conf.plugin_folder(self._programs.plugins),
            version=(int(found[1]), int(found[2])),
            password=(self.folder / "control" / "password").read_text(),
        )
        for name, text in files.items():
            _write_closed(self.folder / "etc" / name, text.encode())
        folders = [*_FOLDERS, *(f"spool/{host.name}" for host in self.facts.hosts)]
        script = [
            f"cd {CLUSTER} && mkdir -p {' '.join(folders)} && chmod 755 . munge",
            # Debian's slurmd counts a GPU only if its file is a device, through a link or not.
            f"for i in $(seq 0 {_MOST_GPUS - 1}); do ln -sfn /dev/null gpu/gpu$i; done",
        ]
        made = await self.run(["sh", "-c", "; ".join(script)])
        if made.code != 0:
            raise ClusterFailedError(f"The cluster's folders cannot be made: {made.stderr.strip()}")

    async def _start_database(self) -> None:
        """MariaDB with its system tables, and slurmdbd's own user in it."""
        base = [f"--basedir={PACKAGES}/usr", f"--lc-messages-dir={PACKAGES}/usr/share/mysql"]
        data = f"--datadir={CLUSTER}/mysql"
        if (await self.run(["test", "-e", f"{CLUSTER}/mysql/installed"])).code != 0:
            install = ["mariadb-install-db", "--no-defaults", *base, data]
            install += ["--auth-root-authentication-method=normal", "--skip-test-db"]
            done = await self.run(install, timeout_s=READY_TIMEOUT_S)
            if done.code != 0:
                raise ClusterFailedError(
                    f"MariaDB cannot be set up: {(done.stdout + done.stderr)[-2000:]}"
                )
            await self.run(["touch", f"{CLUSTER}/mysql/installed"])
        server = ["mariadbd", "--no-defaults", *base, data]
        server += [f"--plugin-dir={PACKAGES}/usr/lib/mysql/plugin", "--bind-address=127.0.0.1"]
        server += [f"--socket={conf.DATABASE_SOCKET}", f"--pid-file={CLUSTER}/run/mariadb.pid"]
        server += ["--innodb-buffer-pool-size=24M", "--innodb-lock-wait-timeout=900"]
        server += ["--innodb-log-file-size=16M", "--performance-schema=OFF"]
        # What a killed process wrote is kept; only a crash of the machine could lose a second.
        server += ["--innodb-flush-log-at-trx-commit=2"]
        await self._start("mariadbd", server)
        password = (self.folder / "control" / "password").read_text()
        statements = (
            "create database if not exists slurm_accounting;"
            f"create user if not exists slurm@'127.0.0.1' identified by '{password}';"
            "grant all on slurm_accounting.* to slurm@'127.0.0.1';"
        )
        client = ["mariadb", "--no-defaults", "-uroot", f"--socket={conf.DATABASE_SOCKET}"]
        await self._until("mariadbd", client, stdin=statements.encode())

    async def _start_rest(self) -> None:
        # slurmrestd refuses to be the user of slurmctld unless told; it takes tokens only.
        environment = {"SLURM_JWT": "daemon", "SLURMRESTD_SECURITY": "disable_user_check"}
        argv = [
            "sh",
            "-c",
            f"rm -f {conf.REST_SOCKET}; exec slurmrestd -a rest_auth/jwt unix:{conf.REST_SOCKET}",
        ]
        await self._start("slurmrestd", argv, environment=environment)
        await self._until("slurmrestd", ["test", "-S", conf.REST_SOCKET])

    async def _start_own_munged(self, name: str, key: bytes) -> str:
        """A munged of the host's own with another key; returns the slurm.conf that uses it."""
        socket = f"{CLUSTER}/munge/{name}.sock"
        _write_closed(self.folder / "etc" / f"munge.{name}.key", key)
        text = conf.slurm_conf(self.facts, conf.plugin_folder(self._programs.plugins), socket)
        _write_closed(self.folder / "etc" / f"slurm.{name}.conf", text.encode())
        # slurmd looks for gres.conf and topology.conf beside its slurm.conf, where both are.
        await self._start(f"munged.{name}", _munged(socket, f"munge.{name}.key"), hostname=name)
        await self._until(f"munged.{name}", ["test", "-S", socket])
        return f"{ETC}/slurm.{name}.conf"

    async def _until_munge_answers(self) -> None:
        await self._until(
            "munged",
            ["sh", "-c", f"munge -n -S {conf.MUNGE_SOCKET} | unmunge -S {conf.MUNGE_SOCKET}"],
        )

    async def _start(
        self,
        service: str,
        argv: Sequence[str],
        *,
        hostname: str = CONTROLLER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        await self._inside.order(
            "start",
            name=service,
            argv=list(argv),
            env={**self._programs.environment(), **(environment or {})},
            hostname=hostname,
            log=_terminal(service),
        )

    async def _until(self, service: str, probe: Sequence[str], *, stdin: bytes = b"") -> None:
        """Repeats a probe until it succeeds. Raises `ClusterFailedError` when time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_TIMEOUT_S
        while (tried := await self.run(probe, stdin=stdin)).code != 0:
            if loop.time() > deadline:
                raise ClusterFailedError(
                    f"{service} is not ready ({tried.stderr.strip()}). Its log ends:\n"
                    f"{await self.log(service)}"
                )
            await asyncio.sleep(POLL_S)

    async def _fault(self, name: str, slurmd: ServiceStatus | None) -> str:
        """Why a host never registered, as far as its slurmd tells."""
        if slurmd is None or slurmd.state == "stopped":
            return "its slurmd was not started"
        if slurmd.state != "running":
            return f"its slurmd ended: {slurmd.ended}"
        lines = [line for line in (await self.log(_slurmd(name))).splitlines() if "error:" in line]
        if refused := [line for line in lines if _KEY_FAULT.search(line)]:
            return f"its munge key is not the cluster's: {refused[-1]}"
        return f"its slurmd has not registered{f': {lines[-1]}' if lines else ''}"


def _environment(facts: ClusterFacts) -> dict[str, str]:
    """The environment of process 1: no setting of the simulator, but the mark of a supervisor, by
    which that one finds the cluster at its own end. The component is another one than the
    simulator, so that the cluster outlives the simulator's restarts."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, _SUPERVISED_COMPONENT: f"slurm.{facts.name}"}


def _munged(socket: str, key: str) -> list[str]:
    # --force: the folders above belong to users that do not exist inside, which it would refuse.
    name = Path(socket).stem
    return [
        "munged",
        "--foreground",
        "--force",
        f"--socket={socket}",
        f"--key-file={ETC}/{key}",
        f"--pid-file={CLUSTER}/run/{name}.pid",
        f"--seed-file={CLUSTER}/run/{name}.seed",
        f"--log-file={CLUSTER}/log/{name}.log",
    ]


def _slurmd(name: str) -> str:
    return f"slurmd.{name}"


def _terminal(service: str) -> str:
    return f"{CLUSTER}/log/{service}.out"


def _keep_secret(path: Path, value: bytes) -> None:
    """Writes a secret that is kept once it exists."""
    if not path.exists():
        _write_closed(path, value)


def _write_closed(path: Path, value: bytes) -> None:
    """Replaces a file that its owner alone may read, whole."""
    staged = path.with_name(f".{path.name}.new")
    staged.touch(mode=0o600)
    staged.write_bytes(value)
    staged.replace(path)


def _node_facts(line: str) -> tuple[str, str, str, bool]:
    """Name, state, reason and whether it registered, of one line of `scontrol -o show nodes`."""
    facts = dict(re.findall(r"(\w+)=(\S+)", line))
    reason = re.search(r"Reason=(.*?)(?: \[| Comment=|$)", line)
    registered = facts.get("SlurmdStartTime", "None") not in ("None", "Unknown")
    return facts["NodeName"], facts["State"], reason[1].strip() if reason else "", registered
