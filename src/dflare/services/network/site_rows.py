"""Rows about a site's devices for its operators."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.auth.contract import Scope
from dflare.services.network.tables import (
    Device,
    DeviceLease,
    Intent,
    PortDesired,
    PortObserved,
    Site,
)


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """``ports`` are declared, ``waiting`` of them were not seen as desired yet; ``holder`` is the
    process that reconciles the device now."""

    ports: int = 0
    waiting: int = 0
    holder: str = ""


async def find_site(session: AsyncSession, scope: Scope, reference: str) -> Site | None:
    """A site by id or name. Sites are nobody's: within every scope that is not empty."""
    if not (scope.everything or scope.organization_ids or scope.project_ids):
        return None
    return await session.scalar(
        select(Site).where(or_(Site.id == reference, Site.name == reference))
    )


async def lock_site(session: AsyncSession, site_id: str) -> Site:
    """A site's row, locked."""
    return (
        await session.execute(select(Site).where(Site.id == site_id).with_for_update())
    ).scalar_one()


async def ask_site(session: AsyncSession, site_id: str) -> None:
    """Want a pass of every device of the site."""
    locked = await session.scalars(
        select(Device.id).where(Device.site_id == site_id).order_by(Device.id).with_for_update()
    )
    await session.execute(
        update(Device)
        .where(Device.id.in_(list(locked)))
        .values(desired_version=Device.desired_version + 1)
        .execution_options(synchronize_session=False)
    )


async def list_devices(
    session: AsyncSession, site_id: str, after: str | None, limit: int
) -> list[Device]:
    """A page of a site's devices in the order of their ids."""
    query = select(Device).where(Device.site_id == site_id)
    if after is not None:
        query = query.where(Device.id > after)
    return list(await session.scalars(query.order_by(Device.id).limit(limit)))


async def work_of(session: AsyncSession, device_ids: Sequence[str]) -> dict[str, DeviceWork]:
    """What of each device's ports waits, and who reconciles it."""
    rows = await session.execute(
        select(
            DeviceLease.device_id,
            func.count(PortDesired.port_id),
            func.count(PortDesired.port_id).filter(_unmet()),
            DeviceLease.holder,
        )
        .outerjoin(PortDesired, PortDesired.device_id == DeviceLease.device_id)
        .outerjoin(PortObserved, PortObserved.port_id == PortDesired.port_id)
        .where(DeviceLease.device_id.in_(device_ids))
        .group_by(DeviceLease.device_id)
    )
    return {r[0]: DeviceWork(r[1], r[2], r[3]) for r in rows}


async def intents_of(session: AsyncSession, device_ids: Sequence[str]) -> dict[str, list[Intent]]:
    """The writes of each device that may still take effect, oldest first."""
    rows = await session.scalars(
        select(Intent)
        .where(Intent.device_id.in_(device_ids), Intent.closed_at.is_(None))
        .order_by(Intent.id)
    )
    found: defaultdict[str, list[Intent]] = defaultdict(list)
    for intent in rows:
        found[intent.device_id].append(intent)
    return found


async def waiting_ports(session: AsyncSession, site_id: str) -> dict[str, int]:
    """By device: how many ports were not seen as desired yet."""
    rows = await session.execute(
        select(PortDesired.device_id, func.count())
        .join(Device, Device.id == PortDesired.device_id)
        .outerjoin(PortObserved, PortObserved.port_id == PortDesired.port_id)
        .where(Device.site_id == site_id, _unmet())
        .group_by(PortDesired.device_id)
        .order_by(PortDesired.device_id)
    )
    return {row[0]: row[1] for row in rows}


def _unmet() -> ColumnElement[bool]:
    return or_(
        PortObserved.port_id.is_(None),
        ~PortObserved.matches,
        PortObserved.compared_version != PortDesired.version,
    )
