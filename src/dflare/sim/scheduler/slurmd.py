"""What a server does that was made a node of a Slurm cluster, by the vendor data on its disk.

The tenant's system finds a munge key and the name of its node and of its controller there, as
cloud-init writes them (`#cloud-config` with `write_files`), and its slurmd starts with it. Where
the controller does not answer yet it tries again, as systemd would.
"""

import asyncio
import base64
import binascii
import hashlib
import logging
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from dflare.sim.faults import FaultPlan
from dflare.sim.scheduler.clusters import Clusters
from dflare.sim.scheduler.hosted import HostedCluster, NotReadyError
from dflare.sim.truth import TruthLog

KEY_FILE, OPTIONS_FILE = "/etc/munge/munge.key", "/etc/default/slurmd"
TRY_AGAIN_S = 0.2
_log = logging.getLogger("dflare.sim.scheduler")


@dataclass(frozen=True)
class NodeSettings:
    """What vendor data say of a node: its slot, its controller (`host:port`) and its munge key."""

    slot: str
    controller: str
    munge_key: bytes = field(repr=False)

    def document(self) -> dict[str, object]:
        """The ground truth; the key by its digest alone."""
        return {
            "slot": self.slot,
            "controller": self.controller,
            "munge_key_sha256": hashlib.sha256(self.munge_key).hexdigest(),
        }


def settings_of(vendor_data: str) -> NodeSettings | None:
    """The settings of a Slurm node in vendor data; None where there are none."""
    if not vendor_data.startswith("#cloud-config"):
        return None
    try:
        read: object = yaml.safe_load(vendor_data)
        files = _files(read)
        options = _options(files[OPTIONS_FILE].decode())
        return NodeSettings(options["-N"], options["--conf-server"], files[KEY_FILE])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, binascii.Error):
        return None


class SlurmNodes:
    """The slurmds of all servers."""

    def __init__(self, clusters: Clusters, log: TruthLog, faults: FaultPlan) -> None:
        self._clusters = clusters
        self._log = log
        self._faults = faults

    async def run(self, host: str, vendor_data: str) -> None:
        """Keeps the slurmd of one server running until cancelled; without settings returns."""
        settings = settings_of(vendor_data)
        if settings is None:
            return
        key = settings.munge_key
        if self._faults.hit("munge_key_wrong", host) is not None:
            key = secrets.token_bytes(len(key))
        mute = self._faults.hit("slurmd_silent", host) is not None
        while True:
            cluster = self._clusters.by_controller(settings.controller)
            if cluster is not None:
                await self._live(cluster, host, settings.slot, key, mute=mute)
            await asyncio.sleep(TRY_AGAIN_S)

    async def kill(self, host: str) -> bool:
        """SIGKILL for the slurmd of a server; false where none runs."""
        for cluster in self._clusters.all():
            for slot, holder in cluster.holders.items():
                if holder == host:
                    await cluster.kill(f"slurmd.{slot}")
                    self._log.append("service_killed", host, service="slurmd", slot=slot)
                    return True
        return False

    def gpus_in_use(self, host: str) -> frozenset[int]:
        """The numbers of the accelerators of a server that jobs hold, of whichever cluster."""
        return frozenset[int]().union(*(one.gpus_in_use(host) for one in self._clusters.all()))

    def running_on(self, host: str) -> dict[str, str] | None:
        """Cluster and slot whose slurmd runs on a server."""
        for cluster in self._clusters.all():
            for slot, holder in cluster.holders.items():
                if holder == host:
                    return {"cluster": cluster.id, "slot": slot}
        return None

    async def _live(
        self, cluster: HostedCluster, host: str, slot: str, key: bytes, *, mute: bool
    ) -> None:
        """From the start of a slurmd to the end of its host's power or of its cluster."""
        facts: dict[str, str] = {"slot": slot, "cluster": cluster.id}
        started, how = False, "power"
        try:
            ended = await cluster.start_node(slot, host, key, mute=mute)
            started = True
            self._log.append("slurmd_started", host, **facts)
            await ended.wait()
            how = "controller gone"
        except NotReadyError as error:
            _log.debug("%s waits for its controller: %s", host, error)
        finally:
            # The power is gone whatever else is cancelled while the processes are killed.
            await asyncio.shield(asyncio.ensure_future(cluster.cut_node(slot, host)))
            if started:
                self._log.append("slurmd_stopped", host, **facts, how=how)


def _files(read: object) -> dict[str, bytes]:
    if not isinstance(read, Mapping):
        raise TypeError("no mapping")
    document = cast("Mapping[str, Any]", read)
    written: Sequence[Mapping[str, Any]] = document.get("write_files") or ()
    return {str(one["path"]): _content(one) for one in written}


def _content(entry: Mapping[str, Any]) -> bytes:
    text = str(entry.get("content") or "")
    if entry.get("encoding") in ("b64", "base64"):
        return base64.b64decode("".join(text.split()), validate=True)
    return text.encode()


def _options(text: str) -> dict[str, str]:
    """The options of slurmd in a file of shell variables."""
    for line in text.splitlines():
        name, found, value = line.strip().partition("=")
        if found and name == "SLURMD_OPTIONS":
            words = [word for part in shlex.split(value) for word in part.split()]
            return dict(zip(words[::2], words[1::2], strict=True))
    raise KeyError("SLURMD_OPTIONS")
