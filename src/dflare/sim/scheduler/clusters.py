"""All clusters of the scheduler host, those that an earlier simulator left included."""

import asyncio
import re
from pathlib import Path

from dflare.sim.scheduler.hosted import HostedCluster, RefusedError
from dflare.sim.scheduler.job_truth import JobTruth
from dflare.sim.scheduler.preparation import Preparation
from dflare.sim.scheduler.wire import ClusterWish
from dflare.sim.truth import TruthLog

ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")
JOBS_EVERY_S = 2.0
CONTROLLER_DOMAIN = ".scheduler.internal"


class MountRefusedError(Exception):
    """A folder that a cluster may not see, or that is not there; the text says which and why."""


class NoSuchClusterError(Exception):
    """Nothing is known of the cluster."""


class Clusters:
    """Clusters by id. `folder` holds one folder a cluster; sources of mounts lie below one of
    `volume_roots`."""

    def __init__(
        self,
        folder: Path,
        preparation: Preparation,
        volume_roots: tuple[Path, ...],
        log: TruthLog,
    ) -> None:
        self._log = log
        self._reader: asyncio.Task[None] | None = None
        self.preparation = preparation
        self._folder = folder.absolute()
        self._roots = tuple(root.resolve() for root in volume_roots)
        self._clusters: dict[str, HostedCluster] = {}
        self._removals: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Looks for packages, and takes up the clusters of an earlier simulator."""
        self.preparation.start()
        self._reader = asyncio.create_task(self._read_jobs())
        if self.preparation.packages is None or not self._folder.is_dir():
            return
        for place in sorted(self._folder.iterdir()):
            if not ID.fullmatch(place.name) or place.name.startswith("database-"):
                continue
            cluster = self._clusters[place.name] = self._cluster(place.name)
            if cluster.recall():
                cluster.go_on()
            else:
                await self.remove(place.name)

    async def stop(self) -> None:
        """Ends the work on the clusters; they run on, for the next simulator."""
        tasks = {*self._removals, *([self._reader] if self._reader else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(cluster.leave() for cluster in self._clusters.values()))
        await self.preparation.stop()

    def all(self) -> list[HostedCluster]:
        """Every cluster, oldest first."""
        return list(self._clusters.values())

    def get(self, cluster_id: str) -> HostedCluster:
        """The cluster.

        Raises:
            NoSuchClusterError: nothing is left of it, or it never was.
        """
        cluster = self._clusters.get(cluster_id)
        if cluster is None:
            raise NoSuchClusterError(f"No cluster {cluster_id} runs here.")
        return cluster

    def by_controller(self, name: str) -> HostedCluster | None:
        """The cluster whose controller has this name in a node's settings."""
        label, _, port = name.partition(":")
        if not label.endswith(CONTROLLER_DOMAIN) or port not in ("", "6817"):
            return None
        wanted = label.removesuffix(CONTROLLER_DOMAIN)
        return next((one for one in self.all() if one.id.replace("_", "-") == wanted), None)

    async def ensure(self, cluster_id: str, wish: ClusterWish) -> HostedCluster:
        """Makes the cluster what is wished, in the background.

        Raises:
            MountRefusedError: a source is not to be had.
            RefusedError: see `HostedCluster.ask`.
        """
        for mount in wish.mounts:
            self._check_source(mount.source)
        cluster = self._clusters.get(cluster_id)
        if cluster is None:
            if (self._folder / cluster_id).exists():
                raise RefusedError(f"Files of an earlier cluster {cluster_id} are still there.")
            cluster = self._clusters[cluster_id] = self._cluster(cluster_id)
        await cluster.ask(wish)
        return cluster

    async def remove(self, cluster_id: str) -> None:
        """Ends and deletes a cluster, in the background.

        Raises:
            NoSuchClusterError: nothing is left of it.
        """
        cluster = self.get(cluster_id)
        if cluster.stopping:
            return
        await cluster.remove()
        task = asyncio.create_task(self._forget(cluster))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _forget(self, cluster: HostedCluster) -> None:
        await cluster.until_gone()
        del self._clusters[cluster.id]

    async def _read_jobs(self) -> None:
        while True:
            await asyncio.sleep(JOBS_EVERY_S)
            for cluster in self.all():
                await cluster.read_jobs()

    def _cluster(self, cluster_id: str) -> HostedCluster:
        folder, jobs = self._folder / cluster_id, JobTruth(cluster_id, self._log)
        return HostedCluster(cluster_id, folder, self.preparation, jobs)

    def _check_source(self, source: str) -> None:
        place = Path(source)
        real = place.resolve()
        if not any(real.is_relative_to(root) and real != root for root in self._roots):
            raise MountRefusedError(f"{source} is no volume of this host.")
        if not real.is_dir():
            raise MountRefusedError(f"{source} is not there.")
