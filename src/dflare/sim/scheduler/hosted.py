"""One cluster on the scheduler host: brought to what was last asked for, and kept there."""

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import orjson

from dflare.sim.scheduler.job_truth import JobTruth
from dflare.sim.scheduler.preparation import Preparation
from dflare.sim.scheduler.wire import ClusterWish, RunWish, SlotWish
from dflare.sim.slurm.cluster import (
    ClusterFacts,
    ClusterFailedError,
    ClusterGoneError,
    ClusterNamespace,
    NamespacesUnavailableError,
    NodeView,
    OrderRefusedError,
    Output,
    PackagesMissingError,
    ServiceStatus,
)
from dflare.sim.slurm.configuration import FIRST_NODE_PORT, Host
from dflare.sim.slurm.sandbox import HOME, Binds

CONTROLLER_SERVICES = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmrestd")
UNPLACED = "unplaced"
"""The switch of slots without a server: with a topology, a node outside of it never gets a job."""

SLURM_NAME_CHARACTERS = 40
"""Slurm cuts longer names of clusters (slurm.conf(5), ClusterName)."""

ASK_TIMEOUT_S = 10.0
TRY_AGAIN_S, REMOVE_AGAIN_S = 5.0, 1.0
_WISH_FILE, _ENDING_FILE = "wish.json", "ending"
_log = logging.getLogger("dflare.sim.scheduler")

State = Literal["starting", "ready", "degraded", "failed", "stopping"]


class NotReadyError(Exception):
    """The cluster's controller set does not run now; the text says how it stands."""


class RefusedError(Exception):
    """What was asked cannot be done to this cluster as it is; the text says why."""


class HostedCluster:
    """A cluster by its id. `folder` is its own, and keeps the last wish for the next simulator."""

    def __init__(
        self, cluster_id: str, folder: Path, preparation: Preparation, jobs: JobTruth
    ) -> None:
        self.id = cluster_id
        self._job_truth = jobs
        self.holders: dict[str, str] = {}
        self._folder = folder
        self._preparation = preparation
        self._wish: ClusterWish | None = None
        self._ports: dict[str, int] = {}
        self._applied: ClusterWish | None = None
        self._namespace: ClusterNamespace | None = None
        self._state: State = "starting"
        self._reason = ""
        self._work: asyncio.Task[None] | None = None
        self._life = asyncio.Event()
        self._life.set()
        self._gone = asyncio.Event()

    @property
    def wish(self) -> ClusterWish | None:
        """What was last asked for."""
        return self._wish

    @property
    def stopping(self) -> bool:
        """Whether it is being removed."""
        return self._state == "stopping"

    def recall(self) -> bool:
        """Reads the last wish of an earlier simulator; false where the cluster was to go."""
        with contextlib.suppress(OSError, ValueError):
            kept = orjson.loads((self._folder / _WISH_FILE).read_bytes())
            self._ports = dict(kept["ports"])
            self._wish = ClusterWish.model_validate(kept["wish"])
        return self._wish is not None and not (self._folder / _ENDING_FILE).exists()

    async def ask(self, wish: ClusterWish) -> None:
        """Brings the cluster to this, in the background; the same again changes nothing.

        Raises:
            RefusedError: the munge key changes, the cluster is being removed, or mounts change
                while jobs run.
        """
        if self.stopping:
            raise RefusedError("The cluster is being removed; ask again when it is gone.")
        before = self._wish
        if before is not None:
            if before.munge_key != wish.munge_key:
                raise RefusedError("The munge key of a cluster cannot change: every node has it.")
            if before.mounts != wish.mounts and (jobs := await self._jobs()):
                raise RefusedError(
                    f"Jobs run ({', '.join(jobs[:5])}), and other mounts need a restart of the "
                    "whole cluster. Wait for them, or cancel them."
                )
        if wish != before:
            self._wish = wish
            self._keep(wish)
        if wish != self._applied or self._state == "failed":
            self.go_on()

    def go_on(self) -> None:
        """Works towards the wish, unless that is under way."""
        if self._work is None or self._work.done():
            if self._applied is None or self._state == "failed":
                self._state, self._reason = "starting", "The controllers are being started."
            self._work = asyncio.create_task(self._converge())

    async def remove(self) -> None:
        """Ends and deletes everything; returns at once, `until_gone` waits."""
        if self.stopping:
            return
        self._state, self._reason = "stopping", "The cluster is being removed."
        await _cancel(self._work)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / _ENDING_FILE).touch(mode=0o600)
        await self.read_jobs()
        self._work = asyncio.create_task(self._remove())

    async def until_gone(self) -> None:
        """Returns when nothing is left of a cluster that is being removed."""
        await self._gone.wait()

    async def leave(self) -> None:
        """Ends the work on the cluster, and lets it run."""
        await _cancel(self._work)

    async def document(self) -> dict[str, Any]:
        """What `GET /v1/clusters/{id}` answers."""
        services: Mapping[str, ServiceStatus] = {}
        nodes: Mapping[str, NodeView] = {}
        state, reason = self._state, self._reason
        namespace = self._namespace
        if namespace is not None and state != "stopping":
            with contextlib.suppress(ClusterGoneError, OrderRefusedError):
                services = await namespace.services()
            if state == "ready":
                nodes, reason = await _nodes(namespace)
                ill = [
                    f"{name} is {services[name].state}" if name in services else f"{name} is gone"
                    for name in CONTROLLER_SERVICES
                    if name not in services or services[name].state != "running"
                ]
                if reason or ill:
                    state, reason = "degraded", "; ".join(ill) or reason
        return {
            "state": state,
            "reason": reason,
            "services": {
                name: {"state": one.state, "restarts": one.restarts, "ended": one.ended}
                for name, one in services.items()
                if name in CONTROLLER_SERVICES
            },
            "nodes": {
                name: {
                    "state": node.state,
                    "reason": node.reason,
                    "registered": node.registered,
                    "fault": node.fault,
                }
                for name, node in nodes.items()
            },
        }

    async def run(self, wish: RunWish) -> Output:
        """Runs a program as the cluster's user.

        Raises:
            NotReadyError: the controllers do not run.
            TimeoutError: it was killed because its time was up.
        """
        try:
            return await self._ready().run(
                wish.argv,
                environment=wish.environment,
                stdin=wish.input(),
                directory=wish.directory or HOME,
                timeout_s=wish.timeout_s,
            )
        except ClusterGoneError as error:
            raise NotReadyError(str(error)) from error

    async def kill(self, service: str) -> None:
        """SIGKILL for one process; its supervision starts it again.

        Raises:
            NotReadyError: the controllers do not run.
            RefusedError: no process has that name.
        """
        try:
            await self._ready().kill(service)
        except ClusterGoneError as error:
            raise NotReadyError(str(error)) from error
        except OrderRefusedError as error:
            raise RefusedError(f"cluster {self.id} runs no {service!r}") from error

    async def start_node(
        self, slot: str, host: str, munge_key: bytes, *, mute: bool
    ) -> asyncio.Event:
        """Starts the slurmd of a slot on a host; the event is set when the cluster's namespaces end
        under it. Another host that held the slot loses it.

        Raises:
            NotReadyError: the controllers do not run, or have no such slot (yet).
        """
        namespace, life = self._ready(), self._life
        wish = self._wish
        if wish is None or slot not in {one.name for one in wish.slots}:
            raise NotReadyError(f"cluster {self.id} has no slot {slot}")
        own_key = None if munge_key == wish.key() else munge_key
        try:
            if self.holders.get(slot) != host:
                await namespace.cut_node(slot)
            self.holders[slot] = host
            await namespace.start_node(slot, munge_key=own_key, mute=mute)
        except (ClusterGoneError, OrderRefusedError, ClusterFailedError, ValueError) as error:
            raise NotReadyError(str(error)) from error
        return life

    async def cut_node(self, slot: str, host: str) -> None:
        """Takes the power of a host that holds the slot; of any other nothing runs here."""
        if self.holders.get(slot) != host:
            return
        await self.read_jobs()
        if self._namespace is not None:
            with contextlib.suppress(ClusterGoneError, OrderRefusedError):
                await self._namespace.cut_node(slot)
        self._job_truth.lost(slot)
        if self.holders.get(slot) == host:
            del self.holders[slot]

    def gpus_in_use(self, host: str) -> frozenset[int]:
        """The numbers of the accelerators of a host that jobs of this cluster hold."""
        return self._job_truth.gpus_in_use(host)

    async def read_jobs(self) -> None:
        """Takes what the servers noted of jobs into the truth log."""
        if self._namespace is not None and self._state in ("ready", "stopping") and self.holders:
            with contextlib.suppress(ClusterGoneError, OrderRefusedError, TimeoutError):
                await self._job_truth.read(self._namespace, self.holders)

    def _ready(self) -> ClusterNamespace:
        if self._namespace is None or self._state != "ready":
            raise NotReadyError(f"The cluster is {self._state}: {self._reason}")
        return self._namespace

    async def _jobs(self) -> list[str]:
        """The jobs that run; none where nothing runs."""
        try:
            told = await self._ready().run(
                ["squeue", "--noheader", "--states=running,suspended,completing", "--format=%i"],
                timeout_s=ASK_TIMEOUT_S,
            )
        except (NotReadyError, ClusterGoneError, TimeoutError):
            return []
        return told.stdout.split()

    async def _converge(self) -> None:
        """Works until what runs is what is wanted; a failure is tried again."""
        while (wish := self._wish) is not None and (
            wish != self._applied or self._state != "ready"
        ):
            try:
                await self._apply(wish)
            except (
                NamespacesUnavailableError,
                PackagesMissingError,
                ClusterFailedError,
                ClusterGoneError,
                OrderRefusedError,
                TimeoutError,
                ValueError,
                OSError,
            ) as error:
                _log.warning("cluster %s: %s", self.id, error)
                self._state, self._reason = "failed", str(error) or type(error).__name__
                await asyncio.sleep(TRY_AGAIN_S)
            else:
                self._applied, self._state, self._reason = wish, "ready", ""

    async def _apply(self, wish: ClusterWish) -> None:
        packages = self._preparation.packages
        if packages is None:
            raise NamespacesUnavailableError(self._preparation.status().reason)
        facts = self._facts(wish)
        namespace = self._namespace
        if namespace is None:
            template = await self._preparation.template()
            namespace = ClusterNamespace(
                self._folder, packages, facts, munge_key=wish.key(), template=template
            )
            self._namespace = namespace
            if await namespace.is_running():
                # Another simulator left it, and its servers lost their power with that one.
                for slot in wish.slots:
                    await namespace.cut_node(slot.name)
        before = self._applied
        if before is not None and before.mounts != wish.mounts:
            self._state, self._reason = "starting", "The cluster is restarted with other mounts."
            await namespace.close()
        namespace.facts = facts
        await namespace.start(_binds(wish))
        await self._watch(namespace)

    async def _watch(self, namespace: ClusterNamespace) -> None:
        """Lets the end of process 1 be known."""
        if not self._life.is_set():
            return
        pid = await namespace.pid()
        if pid is None:
            raise ClusterGoneError("The cluster ended as it became ready.")
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise ClusterGoneError("The cluster ended as it became ready.") from error
        life = self._life = asyncio.Event()
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(watched)
            os.close(watched)
            life.set()
            for slot in self.holders:
                self._job_truth.lost(slot)
            self.holders.clear()
            if self._state == "ready":
                self._state, self._reason = "starting", "The cluster ended and is started again."
                self.go_on()

        loop.add_reader(watched, ended)

    async def _remove(self) -> None:
        """Ends and deletes what there is, again and again until it is gone."""
        while True:
            try:
                packages = self._preparation.packages
                if self._namespace is None and packages is not None:
                    # The name plays no part in ending a cluster.
                    facts = ClusterFacts("ending", (Host("none"),))
                    self._namespace = ClusterNamespace(self._folder, packages, facts)
                if self._namespace is not None:
                    await self._namespace.destroy()
                break
            except (OSError, PackagesMissingError) as error:
                self._reason = f"The cluster cannot be removed yet: {error}"
                _log.warning("cluster %s: %s", self.id, self._reason)
                await asyncio.sleep(REMOVE_AGAIN_S)
        self._gone.set()

    def _facts(self, wish: ClusterWish) -> ClusterFacts:
        return ClusterFacts(
            wish.name[:SLURM_NAME_CHARACTERS].rstrip("-"),
            tuple(_host(slot, self._ports[slot.name]) for slot in wish.slots),
            account=wish.account,
        )

    def _keep(self, wish: ClusterWish) -> None:
        """Writes the wish down, with a port for each slot that no change ever moves."""
        for slot in wish.slots:
            if slot.name not in self._ports:
                last = max(self._ports.values(), default=FIRST_NODE_PORT - 1)
                self._ports[slot.name] = last + 1
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = self._folder / f".wish.{secrets.token_hex(4)}"
        staged.touch(mode=0o600)
        staged.write_bytes(orjson.dumps({"wish": wish.model_dump(), "ports": self._ports}))
        staged.replace(self._folder / _WISH_FILE)


def _host(slot: SlotWish, port: int) -> Host:
    return Host(
        slot.name,
        gpus=slot.gpus,
        gpu_type=slot.gpu_type,
        cpus=slot.cpus,
        memory_mib=slot.memory_mib,
        leaf=slot.switch or UNPLACED,
        partition=slot.partition,
        port=port,
    )


def _binds(wish: ClusterWish) -> Binds:
    return {one.target: (Path(one.source), one.read_only) for one in wish.mounts}


async def _nodes(namespace: ClusterNamespace) -> tuple[Mapping[str, NodeView], str]:
    """The nodes, or why they are not known now."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            nodes = await namespace.nodes()
    except (TimeoutError, ClusterGoneError, OrderRefusedError) as error:
        return {}, f"slurmctld does not answer: {error}".rstrip(": ")
    return nodes, "" if nodes else "slurmctld does not answer"


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task])
