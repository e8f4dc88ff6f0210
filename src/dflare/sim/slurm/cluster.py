"""One Slurm cluster of real daemons in namespaces of its own."""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dflare.sim.slurm import configuration as conf
from dflare.sim.slurm import database
from dflare.sim.slurm.configuration import ClusterFacts
from dflare.sim.slurm.files import delete, keep_secret, write_closed
from dflare.sim.slurm.orders import (
    ClusterGoneError,
    Inside,
    NamespacesUnavailableError,
    OrderRefusedError,
    Output,
)
from dflare.sim.slurm.programs import PackagesMissingError, Programs
from dflare.sim.slurm.sandbox import CLUSTER, CONTROLLER, ETC, HOME, USER, Binds

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
RESTART, RELOAD = "restart", "reload"
_RELOADED = ("topology.conf", "hosts")
_SUPERVISED_COMPONENT = "SUPERVISED_COMPONENT"
_KEPT_VARIABLES = ("PATH", "LANG", "PYTHONPATH", "SUPERVISED_DATA_DIR")
_FOLDERS = ("etc", "log", "run", "state", "spool", "munge", "gpu", "mysql")
_KEY_FAULT = re.compile(r"munge|Invalid credential|[Aa]uthentication|Protocol authentication")
_STARTED = re.compile(r"slurmd version \S+ started")


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

    def __init__(
        self,
        folder: Path,
        packages: Path,
        facts: ClusterFacts,
        *,
        munge_key: bytes | None = None,
        template: Path | None = None,
    ) -> None:
        """`packages` is the root into which the Debian packages are unpacked, `template` a ready
        data folder of MariaDB. Without a `munge_key` the cluster makes its own.

        Raises `PackagesMissingError`.
        """
        self.folder = folder.absolute()
        self.facts = facts
        self._munge_key = munge_key
        self._template = template
        self._programs = Programs.find(packages.absolute())
        self._inside = Inside(self.folder)

    @property
    def rest_socket(self) -> Path:
        """The socket on which slurmrestd answers, with a token of `token` only."""
        return self.folder / "inside" / conf.REST_SOCKET.removeprefix(f"{CLUSTER}/")

    async def is_running(self) -> bool:
        """Whether process 1 of the cluster lives."""
        return await self._inside.process() is not None

    async def pid(self) -> int | None:
        """Process 1 of the cluster as this machine counts it; None when it is gone."""
        return await self._inside.process()

    async def start(self, binds: Binds | None = None) -> None:
        """Starts what does not run yet of namespaces, munged, MariaDB, slurmdbd, slurmctld and
        slurmrestd, makes what runs know the present `facts`, and returns when the controller
        answers.

        Jobs keep running: other hosts need a new slurmctld, which goes on from the state of the
        old one, other switches new topology only. `binds` count only when the namespaces are made.
        slurmctld comes last: at its first start it ends when slurmdbd does not answer. Raises
        `NamespacesUnavailableError`, `ClusterFailedError` and `ClusterGoneError`.
        """
        await self._start_namespaces(binds or {})
        await self._start_accounting()
        await self._register()
        await asyncio.gather(self._start_controller(), self._start_rest())

    async def start_bare(self) -> str:
        """Starts the namespaces alone, and returns Slurm's version: what can be had here at all.

        Raises `NamespacesUnavailableError` and `ClusterFailedError`.
        """
        return await self._start_namespaces({})

    async def set_up_database(self) -> None:
        """Brings up MariaDB with slurmdbd's tables, and ends it in order, so that the cluster's
        data folder can be copied. The namespaces run. Raises `ClusterFailedError`."""
        await self._start_accounting()
        for service in ("slurmdbd", "mariadbd"):
            await self._inside.order("stop", name=service, grace_s=READY_TIMEOUT_S)

    async def start_node(
        self, name: str, *, munge_key: bytes | None = None, mute: bool = False
    ) -> None:
        """Starts the slurmd of a declared host; it registers by itself a moment later.

        `munge_key` gives the host a key of its own, as a host has that was provisioned wrongly. A
        `mute` one calls a port at which nobody listens. Raises `ClusterGoneError`, and `ValueError`
        for a host that was not declared.
        """
        if name not in {host.name for host in self.facts.hosts}:
            raise ValueError(f"{name!r} is no host of cluster {self.facts.name}")
        environment: dict[str, str] = {}
        if munge_key is not None or mute:
            environment["SLURM_CONF"] = await self._own_settings(name, munge_key, mute=mute)
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
        lines = shown.stdout.splitlines() if shown.code == 0 else []
        views = [_node_facts(line) for line in lines if line.strip()]
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
        """Ends everything inside and deletes the folder; one that is not there is no error."""
        await self.close()
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(delete, self.folder)

    def _make_folders(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for name in ("control", "etc", "inside", "home", "root"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        munge_key = self._munge_key or secrets.token_bytes(MUNGE_KEY_BYTES)
        keep_secret(self.folder / "etc" / "munge.key", munge_key)
        keep_secret(self.folder / "etc" / "jwt.key", secrets.token_bytes(32))
        keep_secret(self.folder / "control" / "password", secrets.token_hex(16).encode())

    async def _start_namespaces(self, binds: Binds) -> str:
        """Ensures process 1, the files and folders; returns Slurm's version."""
        if not await self.is_running():
            self._make_folders()
            inside = self.folder / "inside"
            # Here no job ever ran that could have left a link in the folder.
            if self._template is not None and not any(inside.iterdir()):
                await asyncio.to_thread(database.copy_template, self._template, inside)
            await self._inside.start(self._programs.root, binds, _environment(self.facts))
        return await self._configure()

    async def _configure(self) -> str:
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
            path = self.folder / "etc" / name
            if path.exists() and path.read_text() != text:
                self._note(RELOAD if name in _RELOADED else RESTART)
            write_closed(path, text.encode())
            if name in conf.JOB_HOOKS:
                path.chmod(0o700)
        folders = [*_FOLDERS, *(f"spool/{host.name}" for host in self.facts.hosts)]
        script = [
            f"cd {CLUSTER} && mkdir -p {' '.join(folders)} && chmod 755 . munge",
            # Debian's slurmd counts a GPU only if its file is a device, through a link or not.
            f"for i in $(seq 0 {_MOST_GPUS - 1}); do ln -sfn /dev/null gpu/gpu$i; done",
        ]
        made = await self.run(["sh", "-c", "; ".join(script)])
        if made.code != 0:
            raise ClusterFailedError(f"The cluster's folders cannot be made: {made.stderr.strip()}")
        return version.stdout.split()[-1]

    async def _start_database(self) -> None:
        """MariaDB with its system tables, and slurmdbd's own user in it."""
        if (await self.run(["test", "-e", database.INSTALLED])).code != 0:
            done = await self.run(database.install_argv(), timeout_s=READY_TIMEOUT_S)
            if done.code != 0:
                raise ClusterFailedError(
                    f"MariaDB cannot be set up: {(done.stdout + done.stderr)[-2000:]}"
                )
            await self.run(["touch", database.INSTALLED])
        await self._start("mariadbd", database.server_argv())
        password = (self.folder / "control" / "password").read_text()
        await self._until("mariadbd", database.client_argv(), stdin=database.statements(password))

    async def _start_accounting(self) -> None:
        """munged, MariaDB and slurmdbd."""
        await self._start("munged", _munged(conf.MUNGE_SOCKET, "munge.key"))
        await asyncio.gather(self._start_database(), self._until_munge_answers())
        await self._start("slurmdbd", ["slurmdbd", "-D"])
        await self._until(
            "slurmdbd", ["bash", "-c", f"</dev/tcp/127.0.0.1/{conf.DATABASE_DAEMON_PORT}"]
        )

    async def _register(self) -> None:
        """Makes the cluster and the account of its jobs known to slurmdbd; adding again what is
        there is refused by it and changes nothing."""
        known = self.folder / "control" / "registered"
        wanted = f"{self.facts.name} {self.facts.account}"
        if known.exists() and known.read_text() == wanted:
            return
        orders = [f"add cluster {self.facts.name}"]
        if account := self.facts.account:
            cluster = f"cluster={self.facts.name}"
            orders += [
                f"add account {account} {cluster} description=project organization=project",
                f"add user {USER} {cluster} account={account} defaultaccount={account}",
            ]
        await self.run(["sacctmgr", "--immediate"], stdin="\n".join([*orders, "quit", ""]).encode())
        write_closed(known, wanted.encode())

    async def _start_controller(self) -> None:
        """slurmctld with the settings as they are written now."""
        control = self.folder / "control"
        restart, changed = (control / RESTART).exists(), (control / RELOAD).exists()
        if restart:
            await self._inside.order("stop", name="slurmctld", grace_s=END_PATIENCE_S)
        await self._start("slurmctld", ["slurmctld", "-D"])
        await self._until("slurmctld", ["bash", "-c", "scontrol ping | grep -q 'is UP'"])
        if restart or changed:
            told = await self.run(["scontrol", "reconfigure"])
            if told.code != 0:
                raise ClusterFailedError(f"slurmctld takes no new settings: {told.stderr.strip()}")
        for note in (RESTART, RELOAD):
            (control / note).unlink(missing_ok=True)

    def _note(self, what: str) -> None:
        """Remembers, past this program's end, that slurmctld has older settings than are written.
        Nobody but the simulator reaches this folder."""
        (self.folder / "control" / what).touch()

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

    async def _own_settings(self, name: str, key: bytes | None, *, mute: bool) -> str:
        """The path of a slurm.conf for this host alone, with a munged of its own for its key."""
        socket = conf.MUNGE_SOCKET
        if key is not None:
            socket = f"{CLUSTER}/munge/{name}.sock"
            write_closed(self.folder / "etc" / f"munge.{name}.key", key)
            await self._start(f"munged.{name}", _munged(socket, f"munge.{name}.key"), hostname=name)
            await self._until(f"munged.{name}", ["test", "-S", socket])
        text = conf.slurm_conf(
            self.facts,
            conf.plugin_folder(self._programs.plugins),
            socket,
            conf.DEAD_PORT if mute else conf.CONTROLLER_PORT,
        )
        # slurmd looks for gres.conf and topology.conf beside its slurm.conf, where both are.
        write_closed(self.folder / "etc" / f"slurm.{name}.conf", text.encode())
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
        told = await self.run(["tail", "-n", "40", f"{CLUSTER}/log/{_slurmd(name)}.log"])
        # What an earlier life of it said is of no interest.
        lines = [line for line in _STARTED.split(told.stdout)[-1].splitlines() if "error:" in line]
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


def _node_facts(line: str) -> tuple[str, str, str, bool]:
    """Name, state, reason and whether it registered, of one line of `scontrol -o show nodes`."""
    facts = dict(re.findall(r"(\w+)=(\S+)", line))
    reason = re.search(r"Reason=(.*?)(?: \[| Comment=|$)", line)
    registered = facts.get("SlurmdStartTime", "None") not in ("None", "Unknown")
    return facts["NodeName"], facts["State"], reason[1].strip() if reason else "", registered
