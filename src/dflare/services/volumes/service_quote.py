"""Dry runs of orders of volumes: what would come of them, or why they would be refused."""

from dataclasses import dataclass
from decimal import Decimal

from dflare.services.auth.contract import Principal, ProjectRef, Resource
from dflare.services.volumes import repository
from dflare.services.volumes.repository import QuotaUse
from dflare.services.volumes.service import (
    SCHEMA,
    VolumeOrder,
    VolumeService,
    admit,
    check_resizable,
    volume_resource,
)
from dflare.services.volumes.tables import KnownSite


@dataclass(frozen=True)
class VolumeQuote:
    """What an order would get. ``price_per_hour`` is that of the whole volume in ``currency``;
    ``quota`` is before the order. ``held`` is how the size is held, empty until it is known."""

    name: str
    size_gib: int
    site_id: str
    site: str
    price_per_hour: Decimal
    currency: str
    quota: QuotaUse
    held: str = ""


@dataclass(frozen=True)
class QuoteService:
    """Asks what orders ask, and keeps nothing."""

    volumes: VolumeService

    async def create(
        self, principal: Principal, project: ProjectRef, order: VolumeOrder
    ) -> VolumeQuote:
        """What an order of a new volume would get; refused as the order would be."""
        wanted = Resource("volume", "", project.organization_id, project.id)
        await self.volumes.authorizer.check(principal, "volume:create", wanted)
        async with self.volumes.database.transaction(SCHEMA) as session:
            site, quota = await admit(session, project, order, "")
        return _quote(order.name, order.size_gib, site, quota)

    async def resize(
        self, principal: Principal, project: ProjectRef, reference: str, size_gib: int
    ) -> VolumeQuote:
        """What another size would cost; refused as the order would be."""
        volumes = self.volumes
        view = await volumes.get(principal, project, reference)
        volume = view.volume
        await volumes.authorizer.check(principal, "volume:update", volume_resource(volume))
        check_resizable(volume, size_gib)
        # To become smaller no room is needed, even where the limit was lowered meanwhile.
        wanted_gib = size_gib if size_gib > volume.size_gib else 0
        async with volumes.database.transaction(SCHEMA) as session:
            site = await session.get_one(KnownSite, volume.site_id)
            quota = await repository.check_quota(session, project.id, wanted_gib, volume.id)
        return _quote(volume.name, size_gib, site, quota, volume.quota)


def _quote(
    name: str, size_gib: int, site: KnownSite, quota: QuotaUse, held: str = ""
) -> VolumeQuote:
    price = (site.price_per_gib_hour or Decimal(0)) * size_gib
    return VolumeQuote(name, size_gib, site.site_id, site.name, price, site.currency, quota, held)
