"""Which job held which GPUs of which server, noted by the servers and not by Slurm's accounting.

Each slurmd runs a prolog and an epilog for a job (`slurm/configuration.py`); what they write inside
is read from there into the truth log. A job whose server loses its power has no epilog. Jobs run
as the user who writes these lines, so they are the truth of simulated tenants that do not forge.
"""

import asyncio
import re
from collections.abc import Mapping

from dflare.sim.slurm.cluster import ClusterNamespace
from dflare.sim.slurm.configuration import JOB_LOG
from dflare.sim.truth import TruthLog

_LINE = re.compile(r"(\d+\.\d+) (started|ended) ([a-z0-9-]+) (\d+) ([0-9,]+|-) (\S+)")


class JobTruth:
    """The jobs of one cluster. Entries are `job_started` and `job_ended` with the server as subject
    and `cluster`, `slot`, `job`, `gpus` (how many), `account`, `at` (seconds since the epoch) and,
    for the end, `how`: `done` or `power`."""

    def __init__(self, cluster_id: str, log: TruthLog) -> None:
        self._cluster_id = cluster_id
        self._log = log
        self._offset = 0
        self._open: dict[tuple[str, str], tuple[str, dict[str, object]]] = {}
        self._gpus: dict[tuple[str, str], frozenset[int]] = {}
        self._reading = asyncio.Lock()
        self._begun = 0

    async def read(self, namespace: ClusterNamespace, holders: Mapping[str, str]) -> None:
        """Takes what is new; many that ask at once share one look. Raises `ClusterGoneError`,
        `TimeoutError`."""
        begun = self._begun
        async with self._reading:
            if self._begun > begun:
                return
            self._begun += 1
            argv = ["tail", "-c", f"+{self._offset + 1}", JOB_LOG]
            text = (await namespace.run(argv, timeout_s=10)).stdout
            whole = text[: text.rfind("\n") + 1]
            self._offset += len(whole.encode())
            for line in whole.splitlines():
                if (found := _LINE.fullmatch(line)) is not None:
                    self._note(found, holders)

    def gpus_in_use(self, host: str) -> frozenset[int]:
        """The numbers of the accelerators of a server that jobs hold."""
        held = (self._gpus[key] for key, (holder, _) in self._open.items() if holder == host)
        return frozenset[int]().union(*held)

    def lost(self, slot: str) -> None:
        """The server of the slot has no power any more."""
        for key in [key for key in self._open if key[0] == slot]:
            host, facts = self._open.pop(key)
            self._gpus.pop(key, None)
            self._log.append("job_ended", host, **facts, at=None, how="power")

    def _note(self, found: re.Match[str], holders: Mapping[str, str]) -> None:
        at, word, slot, job, gpus, account = found.groups()
        key = (slot, job)
        if word == "ended":
            if (opened := self._open.pop(key, None)) is not None:
                host, facts = opened
                self._gpus.pop(key, None)
                self._log.append("job_ended", host, **facts, at=float(at), how="done")
        elif slot in holders and key not in self._open:
            facts: dict[str, object] = {
                "cluster": self._cluster_id,
                "slot": slot,
                "job": job,
                "gpus": 0 if gpus == "-" else len(gpus.split(",")),
                "account": account,
            }
            self._open[key] = (holders[slot], facts)
            numbers = () if gpus == "-" else gpus.split(",")
            self._gpus[key] = frozenset(int(number) for number in numbers if number)
            self._log.append("job_started", holders[slot], **facts, at=float(at))
