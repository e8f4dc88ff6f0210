"""Taking measurements in: each is labelled with its node, and with whoever has the node then.

What a node says of itself is never believed: labels of site, node and tenant come from the read
models alone. A measurement belongs to the project that had the node at its time, and to nobody
before the hand-over and after the request of release.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ProblemError
from dflare.kit.series import SeriesStore
from dflare.kit.telemetry import log
from dflare.services.auth.contract import Scope
from dflare.services.metrics import domain, repository
from dflare.services.metrics.domain import Sample, line
from dflare.services.metrics.repository import Had, NodeFacts
from dflare.services.metrics.settings import MetricsSettings

SCHEMA = "metrics"
MOST_WAITING = 400_000
"""Samples that wait for the store at most; those that are too many are lost."""
BATCH = 20_000
NODES_FOR_S = 5.0
"""How long what is known of nodes is kept before it is read again."""
LATE = timedelta(seconds=60)

_SCOPE = Scope.system("measurements are labelled with whoever has the node")


@dataclass(frozen=True)
class Measured:
    """What was measured on a node at one time."""

    node_id: str
    at: datetime
    samples: tuple[Sample, ...]


@dataclass
class Ingest:
    """Gathers measurements and writes them in batches. ``run`` must run beside it."""

    database: Database
    store: SeriesStore
    clock: Clock
    settings: MetricsSettings
    lost: int = 0
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while measurements look into the database: a thousand nodes that send at once would take
    every connection from those who act on devices in the same process."""
    _waiting: list[Measured] = field(default_factory=list[Measured])
    _count: int = 0
    _nodes: Mapping[str, NodeFacts] = field(default_factory=dict[str, NodeFacts])
    _nodes_at: float = float("-inf")

    async def run(self) -> None:
        """Write what is gathered until cancelled; a store that is away costs measurements only."""
        while True:
            await asyncio.sleep(self.settings.write_every_s)
            try:
                await self.flush()
            except (SQLAlchemyError, OSError, ProblemError) as error:
                log.warning("measurements_wait", waiting=self._count, error=repr(error)[:300])

    def put(self, node_id: str, samples: Sequence[Sample]) -> None:
        """Take measurements of now."""
        if self._count + len(samples) > MOST_WAITING:
            self.lost += len(samples)
            return
        self._waiting.append(Measured(node_id, self.clock.now(), tuple(samples)))
        self._count += len(samples)

    async def flush(self) -> None:
        """Write all that is gathered; what the store does not take stays for the next time."""
        while self._waiting:
            batch, size = 0, 0
            while batch < len(self._waiting) and size < BATCH:
                size += len(self._waiting[batch].samples)
                batch += 1
            taken = self._waiting[:batch]
            await self.store.write(await self._lines(taken))
            del self._waiting[:batch]
            self._count -= size

    async def facts(self, node_id: str) -> NodeFacts | None:
        """What is known of a node; None where there is none."""
        return (await self._known()).get(node_id)

    async def owner(self, node_id: str) -> Had | None:
        """Who has a node now."""
        now = self.clock.now()
        async with self.database.reading(SCHEMA) as session:
            found = await repository.tenancies(session, _SCOPE, now, [node_id])
        return owner_at(found.get(node_id, []), now)

    async def _known(self) -> Mapping[str, NodeFacts]:
        loop = asyncio.get_running_loop()
        if loop.time() - self._nodes_at <= NODES_FOR_S:
            return self._nodes
        async with self.looking:
            # Whoever waited finds what another one has read meanwhile.
            if loop.time() - self._nodes_at > NODES_FOR_S:
                async with self.database.reading(SCHEMA) as session:
                    self._nodes = await repository.nodes(session, _SCOPE)
                self._nodes_at = loop.time()
        return self._nodes

    async def _lines(self, taken: Sequence[Measured]) -> list[str]:
        nodes = await self._known()
        ids = sorted({one.node_id for one in taken})
        since = min(one.at for one in taken) - LATE
        async with self.database.reading(SCHEMA) as session:
            had = await repository.tenancies(session, _SCOPE, since, ids)
        lines: list[str] = []
        for one in taken:
            facts = nodes.get(one.node_id)
            if facts is None:
                continue
            owned = labels_of(facts, owner_at(had.get(one.node_id, []), one.at))
            at_ms = round(one.at.timestamp() * 1000)
            lines += [
                line(sample.name, {**sample.labels, **owned}, sample.value, at_ms)
                for sample in one.samples
                if domain.is_known(sample)
            ]
        return lines


def owner_at(had: Sequence[Had], at: datetime) -> Had | None:
    """Who had a node at a time, out of all who had it."""
    for one in had:
        if one.had_from <= at and (one.had_to is None or at < one.had_to):
            return one
    return None


def labels_of(facts: NodeFacts, owner: Had | None) -> dict[str, str]:
    """The labels that the platform gives every measurement of a node."""
    labels = {"site": facts.site, "node": facts.name, "vendor": facts.vendor}
    if owner is not None:
        labels |= {
            "organization": owner.organization_id,
            "project": owner.project_id,
            "cluster": owner.cluster,
        }
    return labels
