"""Whether Slurm clusters can be run here, found out beside everything else.

The packages may come while the simulator runs: `dflare up` downloads them. The folder beside their
root says how that goes (`status.json`: `state` and `reason`). Once they are there, one cluster
without nodes is started for a moment: it shows whether the kernel gives namespaces, says Slurm's
version and leaves a ready database folder (`slurm/database.py`) for all the clusters to come.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from dflare.sim.slurm.cluster import (
    ClusterFacts,
    ClusterFailedError,
    ClusterGoneError,
    ClusterNamespace,
    NamespacesUnavailableError,
    OrderRefusedError,
    PackagesMissingError,
)
from dflare.sim.slurm.configuration import Host
from dflare.sim.slurm.programs import Programs

LOOK_AGAIN_S = 1.0
TRY_AGAIN_S = 30.0
SWITCHED_OFF = (
    "No folder with Slurm's packages is named: unset DFLARE_SLURM_PACKAGES (it may be off), then "
    "run `dflare down` and `dflare up`."
)
_log = logging.getLogger("dflare.sim.scheduler")

State = Literal["ready", "preparing", "unavailable"]


@dataclass(frozen=True)
class Status:
    """Whether clusters can be run; ``reason`` tells a person what to install or to change."""

    state: State
    version: str | None = None
    reason: str = ""


class Preparation:
    """Looks for packages and namespaces until there are both, and makes the database folder."""

    def __init__(self, packages: Path | None, clusters: Path) -> None:
        """`packages` is the root of the unpacked packages, `clusters` a folder of one's own."""
        self.packages = packages.absolute() if packages else None
        self._clusters = clusters.absolute()
        self._status = (
            Status("preparing", reason="Slurm is being looked for.")
            if packages
            else Status("unavailable", reason=SWITCHED_OFF)
        )
        self._template: Path | None = None
        self._task: asyncio.Task[None] | None = None
        self._done = asyncio.Event()

    def start(self) -> None:
        """Begins to look."""
        if self.packages is not None:
            self._task = asyncio.create_task(self._prepare(self.packages))

    async def stop(self) -> None:
        """Ends the look."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def status(self) -> Status:
        """How it stands."""
        return self._status

    async def template(self) -> Path | None:
        """The ready database folder, waited for while it is made; None where there is none."""
        await self._done.wait()
        return self._template

    async def _prepare(self, packages: Path) -> None:
        while (missing := _missing(packages)) is not None:
            self._status = missing
            await asyncio.sleep(LOOK_AGAIN_S)
        place = _template_place(packages, self._clusters)
        while True:
            try:
                await self._try(packages, place)
                return
            except (
                NamespacesUnavailableError,
                ClusterFailedError,
                ClusterGoneError,
                OrderRefusedError,
                OSError,
            ) as error:
                self._status = Status("unavailable", reason=str(error))
                _log.warning("no Slurm clusters: %s", error)
            await asyncio.sleep(TRY_AGAIN_S)

    async def _try(self, packages: Path, place: Path) -> None:
        self._clusters.mkdir(mode=0o700, parents=True, exist_ok=True)
        trial = ClusterNamespace(
            self._clusters / ".trial", packages, ClusterFacts("trial", (Host("none"),))
        )
        try:
            await trial.destroy()
            self._status = Status("ready", version=await trial.start_bare())
            if not _there(place):
                # Clusters can do without: then each of them sets up a database of its own.
                with contextlib.suppress(ClusterFailedError, ClusterGoneError, OSError):
                    await trial.set_up_database()
                    await trial.close()
                    await asyncio.to_thread(_keep, trial.folder / "inside" / "mysql", place)
            self._template = place if _there(place) else None
        finally:
            await trial.destroy()
            self._done.set()


def _missing(packages: Path) -> Status | None:
    """Why the packages cannot be used yet; None when they can."""
    try:
        Programs.find(packages)
        said: dict[str, Any] = {}
    except PackagesMissingError as error:
        said = {"state": "unavailable", "reason": str(error)}
        if not packages.exists():
            said["state"] = "preparing"
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            told = cast(
                "dict[str, Any]", orjson.loads((packages.parent / "status.json").read_bytes())
            )
            if told.get("state") != "ready":
                said = told
    if not said:
        return None
    state: State = "unavailable" if said.get("state") == "unavailable" else "preparing"
    waiting = "Slurm's packages are being downloaded."
    reason = waiting if state == "preparing" else str(said.get("reason") or "")
    return Status(state, reason=reason)


def _there(place: Path) -> bool:
    return place.is_dir()


def _template_place(packages: Path, clusters: Path) -> Path:
    """Beside the packages, where data directories share them; by the server that made it."""
    server = (packages / "usr/sbin/mariadbd").stat()
    mark = hashlib.sha256(f"{server.st_size}/{server.st_mtime_ns}".encode()).hexdigest()[:12]
    parent = packages.parent if os.access(packages.parent, os.W_OK) else clusters
    return parent / f"database-{mark}"


def _keep(made: Path, place: Path) -> None:
    """Moves the folder to its place; one that another program put there meanwhile stays."""
    staged = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.copytree(made, staged)
        staged.rename(place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
