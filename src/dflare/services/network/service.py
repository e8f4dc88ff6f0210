"""What people ask of network: its networks, devices and pools, and to freeze a site."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import NotFoundError
from dflare.kit.outbox import AuditRecord, Event, emit, record_audit
from dflare.kit.pagination import cut
from dflare.services.auth.contract import Authorizer, Principal, ProjectRef, Resource
from dflare.services.network import pools, site_rows
from dflare.services.network.domain import PoolKind
from dflare.services.network.repository import find_network, list_networks
from dflare.services.network.site_rows import DeviceWork
from dflare.services.network.tables import KIT, Device, Intent, Network, Site

SCHEMA = "network"


@dataclass(frozen=True)
class DeviceView:
    """A device, who reconciles it, what of its ports waits, and its writes that are not over."""

    device: Device
    work: DeviceWork
    intents: Sequence[Intent]


@dataclass(frozen=True)
class FreezeView:
    """Whether a site is frozen, by whom and why; ``waiting`` counts by device the ports whose
    desired state was not seen yet."""

    site_id: str
    name: str
    frozen: bool
    frozen_by: str
    frozen_reason: str
    frozen_at: datetime | None
    waiting: dict[str, int]


class NetworkService:
    """Every method loads first, then decides, then acts."""

    def __init__(self, database: Database, clock: Clock, authorizer: Authorizer) -> None:
        self._database = database
        self._clock = clock
        self._authorizer = authorizer

    async def networks(
        self, principal: Principal, project: ProjectRef | None, after: str | None, limit: int
    ) -> tuple[list[Network], str | None]:
        """One page in order of ids, and the id to go on behind where there are more."""
        scope = self._authorizer.scope(principal)
        async with self._database.reading(SCHEMA) as session:
            found = await list_networks(
                session, scope, after=after, limit=limit + 1, project=project and project.id
            )
        page, last = cut(found, limit)
        allowed = await self._authorizer.readable(
            principal, "network:list", [_network_resource(network) for network in page]
        )
        shown = [network for network, may in zip(page, allowed, strict=True) if may]
        return shown, last.id if last else None

    async def network(self, principal: Principal, network_id: str) -> Network:
        """One network.

        Raises:
            NotFoundError: none that the caller may know of.
        """
        scope = self._authorizer.scope(principal)
        async with self._database.reading(SCHEMA) as session:
            network = await find_network(session, scope, network_id)
        if network is None:
            raise NotFoundError(f"there is no network {network_id}")
        await self._authorizer.check(principal, "network:read", _network_resource(network))
        return network

    async def devices(
        self, principal: Principal, site: str, after: str | None, limit: int
    ) -> tuple[list[DeviceView], str | None]:
        """One page of a site's devices."""
        found = await self._site(principal, site, "device:list", "device")
        async with self._database.reading(SCHEMA) as session:
            rows = await site_rows.list_devices(session, found.id, after, limit + 1)
            page, last = cut(rows, limit)
            ids = [device.id for device in page]
            work = await site_rows.work_of(session, ids)
            intents = await site_rows.intents_of(session, ids)
        views = [DeviceView(d, work.get(d.id, DeviceWork()), intents.get(d.id, [])) for d in page]
        return views, last.id if last else None

    async def usage(self, principal: Principal, site: str) -> dict[PoolKind, dict[str, int]]:
        """How many identifiers of each kind are in each state."""
        found = await self._site(principal, site, "pool:list", "pool")
        async with self._database.reading(SCHEMA) as session:
            return await pools.usage(session, found)

    async def frozen(self, principal: Principal, site: str) -> FreezeView:
        """Whether the site is frozen, and what waits."""
        found = await self._site(principal, site, "device:list", "device")
        async with self._database.reading(SCHEMA) as session:
            return await self._freeze_view(session, found)

    async def freeze(self, principal: Principal, site: str, reason: str) -> FreezeView:
        """Stop all writes to the site's devices; reads go on."""
        found = await self._site(principal, site, "site:freeze", "site")
        return await self._set_frozen(principal, found.id, reason, frozen=True)

    async def unfreeze(self, principal: Principal, site: str) -> FreezeView:
        """Let writes go on, with everything that waited."""
        found = await self._site(principal, site, "site:freeze", "site")
        return await self._set_frozen(principal, found.id, "", frozen=False)

    async def _site(self, principal: Principal, site: str, action: str, kind: str) -> Site:
        scope = self._authorizer.scope(principal)
        async with self._database.reading(SCHEMA) as session:
            found = await site_rows.find_site(session, scope, site)
        if found is None:
            raise NotFoundError(f"there is no site {site}")
        await self._authorizer.check(principal, action, Resource(kind, found.id))
        return found

    async def _set_frozen(
        self, principal: Principal, site_id: str, reason: str, *, frozen: bool
    ) -> FreezeView:
        now = self._clock.now()
        async with self._database.transaction(SCHEMA) as session:
            site = await site_rows.lock_site(session, site_id)
            if site.frozen != frozen:
                site.frozen = frozen
                site.frozen_by = principal.name if frozen else ""
                site.frozen_reason = reason
                site.frozen_at = now if frozen else None
                site.version += 1
                await session.flush()
                await emit(session, KIT, [_frozen_event(site, principal, now)])
                if not frozen:
                    await site_rows.ask_site(session, site.id)
            await record_audit(
                session,
                KIT,
                AuditRecord(
                    at=now,
                    principal=principal.subject,
                    action="site:freeze" if frozen else "site:unfreeze",
                    resource_kind="site",
                    resource_id=site.id,
                    detail={"reason": reason},
                ),
            )
            return await self._freeze_view(session, site)

    async def _freeze_view(self, session: AsyncSession, site: Site) -> FreezeView:
        return FreezeView(
            site_id=site.id,
            name=site.name,
            frozen=site.frozen,
            frozen_by=site.frozen_by,
            frozen_reason=site.frozen_reason,
            frozen_at=site.frozen_at,
            waiting=await site_rows.waiting_ports(session, site.id),
        )


def _network_resource(network: Network) -> Resource:
    return Resource("network", network.id, network.organization_id, network.project_id)


def _frozen_event(site: Site, principal: Principal, now: datetime) -> Event:
    return Event(
        type="site.frozen",
        resource_kind="site",
        resource_id=site.id,
        resource_version=site.version,
        at=now,
        data={
            "site_id": site.id,
            "frozen": site.frozen,
            "by": principal.name,
            "reason": site.frozen_reason,
        },
        site_id=site.id,
    )
