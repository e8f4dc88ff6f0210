"""Read models of the metering service: the ledger and the prices."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import cast

from sqlalchemy import Table, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.feed import FeedEntry, Projection
from dflare.services.baremetal.contract import SiteDeclared
from dflare.services.metering.tables import KIT, LedgerEntry, Price
from dflare.services.orchestrator.contract import AllocationFacts

_INSTANT = timedelta(microseconds=1)
_LEDGER = cast("Table", LedgerEntry.__table__)


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
                newest = (
                    await session.scalars(
                        select(Price)
                        .where(Price.site_id == site.site_id, Price.node_type == node_type.name)
                        .order_by(Price.valid_from.desc())
                        .limit(1)
                    )
                ).first()
                if newest is not None and (
                    newest.site_version >= entry.resource_version
                    or (newest.price_per_node_hour, newest.currency) == (price, site.currency)
                ):
                    continue
                # The clock of the later writer may be behind that of the earlier one.
                valid_from = max(entry.at, newest.valid_from + _INSTANT) if newest else entry.at
                session.add(
                    Price(
                        site_id=site.site_id,
                        node_type=node_type.name,
                        valid_from=valid_from,
                        price_per_node_hour=price,
                        currency=site.currency,
                        site_version=entry.resource_version,
                    )
                )
                await session.flush()


def projections() -> list[Projection]:
    """All read models of this service."""
    return [LedgerProjection(), PricesProjection()]
