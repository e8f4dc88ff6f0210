"""Read models of the metering service: the ledgers and the prices."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import cast

from sqlalchemy import Table, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.feed import FeedEntry, Projection
from dflare.services.baremetal.contract import SiteDeclared
from dflare.services.clusters.contract import JobFacts
from dflare.services.metering.tables import (
    KIT,
    JobEntry,
    LedgerEntry,
    Price,
    RegistryEntry,
    VolumeEntry,
    VolumePrice,
)
from dflare.services.orchestrator.contract import AllocationFacts
from dflare.services.registry.contract import RegistryUsage
from dflare.services.volumes.contract import VolumeUsage

_INSTANT = timedelta(microseconds=1)
_LEDGER = cast("Table", LedgerEntry.__table__)
_VOLUMES = cast("Table", VolumeEntry.__table__)
_REGISTRY = cast("Table", RegistryEntry.__table__)
_JOBS = cast("Table", JobEntry.__table__)


class LedgerProjection:
    """One ledger entry an allocation, from its hand-over on."""

    name = "metering.ledger"
    kit = KIT
    types = frozenset({"allocation.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each allocation that was handed over."""
        newest: dict[str, AllocationFacts] = {}
        for entry in entries:
            facts = AllocationFacts.model_validate(entry.data)
            known = newest.get(facts.allocation_id)
            if facts.usage_from is not None and (known is None or known.version < facts.version):
                newest[facts.allocation_id] = facts
        if not newest:
            return
        kept = (
            "allocation_id",
            "version",
            "organization_id",
            "project_id",
            "cluster_id",
            "site_id",
            "node_id",
            "node_name",
            "node_type",
            "gpus",
            "usage_from",
            "usage_to",
        )
        statement = insert(_LEDGER)
        changing = ("version", "usage_from", "usage_to")
        await (await session.connection()).execute(
            statement.on_conflict_do_update(
                index_elements=["allocation_id"],
                set_={name: statement.excluded[name] for name in changing},
                where=_LEDGER.c.version < statement.excluded.version,
            ),
            [{name: getattr(facts, name) for name in kept} for facts in newest.values()],
        )


class VolumesProjection:
    """One entry for each size that a volume had, and for how long."""

    name = "metering.volumes"
    kit = KIT
    types = frozenset({"volume.usage_changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each interval."""
        await _keep_intervals(session, _VOLUMES, VolumeUsage, entries)


class RegistryProjection:
    """One entry for each number of bytes that a project's repositories held, and for how long."""

    name = "metering.registry"
    kit = KIT
    types = frozenset({"registry.usage"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the newest version of each interval."""
        await _keep_intervals(session, _REGISTRY, RegistryUsage, entries)


async def _keep_intervals(
    session: AsyncSession,
    table: Table,
    kind: type[VolumeUsage] | type[RegistryUsage],
    entries: Sequence[FeedEntry],
) -> None:
    newest: dict[str, VolumeUsage | RegistryUsage] = {}
    for entry in entries:
        facts = kind.model_validate(entry.data)
        known = newest.get(facts.interval_id)
        if known is None or known.version < facts.version:
            newest[facts.interval_id] = facts
    if not newest:
        return
    statement = insert(table)
    changing = ("version", "usage_from", "usage_to")
    await (await session.connection()).execute(
        statement.on_conflict_do_update(
            index_elements=["interval_id"],
            set_={name: statement.excluded[name] for name in changing},
            where=table.c.version < statement.excluded.version,
        ),
        [facts.model_dump() for facts in newest.values()],
    )


class JobsProjection:
    """One entry for each run of a job."""

    name = "metering.jobs"
    kit = KIT
    types = frozenset({"job.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Keep the runs of the newest version of each job."""
        newest: dict[str, JobFacts] = {}
        for entry in entries:
            facts = JobFacts.model_validate(entry.data)
            known = newest.get(facts.job_id)
            if facts.runs and (known is None or known.version < facts.version):
                newest[facts.job_id] = facts
        if not newest:
            return
        statement = insert(_JOBS)
        keys = ("job_id", "run")
        await (await session.connection()).execute(
            statement.on_conflict_do_update(
                index_elements=keys,
                set_={c.name: statement.excluded[c.name] for c in _JOBS.c if c.name not in keys},
                where=_JOBS.c.version < statement.excluded.version,
            ),
            [row for facts in newest.values() for row in _runs(facts)],
        )


def _runs(job: JobFacts) -> list[dict[str, object]]:
    return [
        {
            **job.model_dump(exclude={"state", "runs"}),
            "scheduler_id": job.scheduler_id or "",
            **run.model_dump(exclude={"number"}),
            "run": run.number,
        }
        for run in job.runs
    ]


class PricesProjection:
    """Price steps from ``site.declared``: a new step where a price or currency changed."""

    name = "metering.prices"
    kit = KIT
    types = frozenset({"site.declared"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Fold declarations in their order."""
        for entry in entries:
            site = SiteDeclared.model_validate(entry.data)
            for node_type in site.node_types:
                price = Decimal(node_type.price_per_node_hour)
                await _price_nodes(session, entry, site, node_type.name, price)
            await _price_volumes(session, entry, site)


async def _price_nodes(
    session: AsyncSession, entry: FeedEntry, site: SiteDeclared, node_type: str, price: Decimal
) -> None:
    query = select(Price).where(Price.site_id == site.site_id, Price.node_type == node_type)
    newest = (await session.scalars(query.order_by(Price.valid_from.desc()).limit(1))).first()
    if newest is not None and (
        newest.site_version >= entry.resource_version
        or (newest.price_per_node_hour, newest.currency) == (price, site.currency)
    ):
        return
    session.add(
        Price(
            site_id=site.site_id,
            node_type=node_type,
            valid_from=_valid_from(entry, newest.valid_from if newest else None),
            price_per_node_hour=price,
            currency=site.currency,
            site_version=entry.resource_version,
        )
    )
    await session.flush()


async def _price_volumes(session: AsyncSession, entry: FeedEntry, site: SiteDeclared) -> None:
    """A site's first declaration brings a step even without a price: usage before the first step
    has its price, and what was free then must not be billed at a later price."""
    written = site.volume_price_per_gib_hour
    price = None if written is None else Decimal(written)
    query = select(VolumePrice).where(VolumePrice.site_id == site.site_id)
    newest = (await session.scalars(query.order_by(VolumePrice.valid_from.desc()).limit(1))).first()
    if newest is not None and (
        newest.site_version >= entry.resource_version
        or (newest.price_per_gib_hour, newest.currency) == (price, site.currency)
    ):
        return
    session.add(
        VolumePrice(
            site_id=site.site_id,
            valid_from=_valid_from(entry, newest.valid_from if newest else None),
            price_per_gib_hour=price,
            currency=site.currency,
            site_version=entry.resource_version,
        )
    )
    await session.flush()


def _valid_from(entry: FeedEntry, earlier: datetime | None) -> datetime:
    # The clock of the later writer may be behind that of the earlier one.
    return max(entry.at, earlier + _INSTANT) if earlier else entry.at


def projections() -> list[Projection]:
    """All read models of this service."""
    return [
        LedgerProjection(),
        VolumesProjection(),
        RegistryProjection(),
        JobsProjection(),
        PricesProjection(),
    ]
