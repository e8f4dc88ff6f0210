"""Rows that a device's reconciler reads and writes: leases, the view, intents, observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.ids import new_id
from dflare.kit.outbox import Event, emit
from dflare.services.baremetal.contract import PoolFacts
from dflare.services.network.domain import (
    DeviceHealth,
    IntentKind,
    Judged,
    NetworkIds,
    OpenIntent,
    WantedPort,
)
from dflare.services.network.errors import LeaseLostError
from dflare.services.network.fabric import DeviceView, Touch
from dflare.services.network.tables import (
    KIT,
    Device,
    DeviceLease,
    Intent,
    Network,
    NetworkDevice,
    Site,
)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass of a reconciler found out, to be recorded at once.

    ``closed`` maps intents to how they ended, ``waiting`` those that stay open to (jobs, certain).
    ``repaired`` counts ports that had drifted from what was desired and seen before.
    """

    judged: Sequence[Judged]
    gone: Sequence[str]
    closed: Mapping[str, str]
    waiting: Mapping[str, tuple[tuple[str, ...], bool]]
    health: DeviceHealth
    reason: str
    read_at: datetime
    repaired: int = 0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is left to do after a pass was recorded."""

    unmet: int = 0
    open_intents: int = 0
    wanted_more: bool = False


@dataclass(slots=True)
class Claimed:
    """The devices that this process may reconcile now, and which of them want a pass."""

    devices: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    behind: set[str] = field(default_factory=set[str])


async def claim(
    session: AsyncSession, holder: str, site_ids: Sequence[str] | None, lease_s: float
) -> list[str]:
    """Take or renew the lease of every device that nobody else holds; returns their ids."""
    rows = await session.scalars(
        text(
            """
            WITH free AS (
                SELECT l.device_id FROM network.device_lease AS l
                JOIN network.device AS d ON d.id = l.device_id AND NOT d.retired
                WHERE (l.holder = :holder OR l.held_until < now())
                  AND (CAST(:sites AS text[]) IS NULL OR l.site_id = ANY(CAST(:sites AS text[])))
                ORDER BY l.device_id
                FOR NO KEY UPDATE OF l
            )
            UPDATE network.device_lease AS l
            SET holder = :holder, held_until = now() + make_interval(secs => :lease)
            FROM free WHERE l.device_id = free.device_id
            RETURNING l.device_id
            """
        ),
        {"holder": holder, "sites": site_ids, "lease": lease_s},
    )
    return list(rows)


async def let_go(session: AsyncSession, holder: str) -> None:
    """Give up every lease at once, so that the next process need not wait for it to expire."""
    await session.execute(
        update(DeviceLease)
        .where(DeviceLease.holder == holder)
        .values(holder="", held_until=datetime.fromtimestamp(0).astimezone())
    )


async def devices_behind(session: AsyncSession, device_ids: Sequence[str]) -> set[str]:
    """Devices of which something is wanted that no read-back answered yet."""
    return set(
        await session.scalars(
            select(Device.id).where(
                Device.id.in_(device_ids), Device.desired_version > Device.observed_version
            )
        )
    )


async def find_devices(session: AsyncSession, device_ids: Sequence[str]) -> list[Device]:
    """Devices that are not retired, by id."""
    return list(
        await session.scalars(
            select(Device).where(Device.id.in_(device_ids), ~Device.retired).order_by(Device.id)
        )
    )


async def load_view(session: AsyncSession, device_id: str, holder: str) -> DeviceView:
    """Everything desired of a device.

    Raises:
        LeaseLostError: another process holds it, or the lease ran out.
    """
    row = (
        await session.execute(
            select(
                Device.site_id,
                Device.name,
                Device.health,
                Device.reason,
                Device.desired_version,
                Site.frozen,
                Site.pools,
            )
            .join(Site, Site.id == Device.site_id)
            .join(DeviceLease, DeviceLease.device_id == Device.id)
            .where(
                Device.id == device_id,
                DeviceLease.holder == holder,
                DeviceLease.held_until > text("now()"),
            )
        )
    ).one_or_none()
    if row is None:
        raise LeaseLostError(device_id)
    # Ports before networks: an order that comes in between then misses both, or its ports alone,
    # and the next pass sees it. The other way round its ports would name a network not read.
    ports = await _port_rows(session, device_id)
    networks = await _networks(session, device_id)
    return DeviceView(
        device_id=device_id,
        site_id=row.site_id,
        name=row.name,
        health=row.health,
        reason=row.reason,
        desired_version=row.desired_version,
        frozen=row.frozen,
        pools=PoolFacts.model_validate(row.pools),
        ports=[
            WantedPort(r[0], r[1], r[2], networks[r[3]] if r[3] else None, *r[4:]) for r in ports
        ],
        lingering=tuple(networks.values()),
        intents=await open_intents(session, device_id),
    )


async def _networks(session: AsyncSession, device_id: str) -> dict[str, NetworkIds]:
    rows = await session.execute(
        select(
            Network.id,
            Network.vrf,
            Network.vlan,
            Network.vni,
            Network.l3_vni,
            Network.subnet,
            Network.pkey,
        )
        .join(NetworkDevice, NetworkDevice.network_id == Network.id)
        .where(NetworkDevice.device_id == device_id, Network.vlan.is_not(None))
    )
    return {r[0]: NetworkIds(*r) for r in rows}


_PORTS = text(
    """
    SELECT d.port_id, p.address, d.node_id, d.network_id, d.allocation_id, d.epoch, d.version,
           d.operation_id, COALESCE(n.epoch, 0) > d.epoch, o.seen, COALESCE(o.matches, false),
           COALESCE(o.compared_version, 0)
    FROM network.port_desired AS d
    JOIN network.port AS p ON p.id = d.port_id
    LEFT JOIN network.port_observed AS o ON o.port_id = d.port_id
    LEFT JOIN network.node_allocation AS n ON n.node_id = d.node_id
    WHERE d.device_id = :device
    """
)


async def _port_rows(session: AsyncSession, device_id: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await session.execute(_PORTS, {"device": device_id})]


async def open_intents(session: AsyncSession, device_id: str) -> list[OpenIntent]:
    """Writes to the device that may still take effect."""
    rows = await session.execute(
        select(
            Intent.id,
            Intent.node_id,
            Intent.network_id,
            Intent.kind,
            Intent.epoch,
            Intent.deadline,
            Intent.jobs,
            Intent.certain,
        ).where(Intent.device_id == device_id, Intent.closed_at.is_(None))
    )
    return [
        OpenIntent(r[0], r[1], r[2], IntentKind(r[3]), r[4], r[5], tuple(r[6]), r[7]) for r in rows
    ]


async def add_intents(
    session: AsyncSession,
    device_id: str,
    holder: str,
    touches: Sequence[Touch],
    now: datetime,
    *,
    leave_within_s: float,
    lands_within_s: float,
) -> list[str]:
    """Write down what is about to be written; ``lands_within_s`` counts from the last moment at
    which the write may leave."""
    leave_by = now + timedelta(seconds=leave_within_s)
    rows: list[dict[str, Any]] = [
        {
            "id": new_id("int"),
            "device_id": device_id,
            "node_id": touch.node_id,
            "network_id": touch.network_id,
            "allocation_id": touch.allocation_id,
            "kind": touch.kind,
            "epoch": touch.epoch,
            "holder": holder,
            "opened_at": now,
            "leave_by": leave_by,
            "deadline": leave_by + timedelta(seconds=lands_within_s),
        }
        for touch in touches
    ]
    await session.execute(insert(Intent), rows)
    return [row["id"] for row in rows]


_MAY_LEAVE = text(
    """
    SELECT NOT s.frozen
       AND NOT EXISTS (
           SELECT 1 FROM network.intent AS i
           LEFT JOIN network.node_allocation AS n ON n.node_id = i.node_id
           WHERE i.id = ANY(CAST(:intents AS text[]))
             AND (i.closed_at IS NOT NULL OR i.leave_by <= :now
                  OR (i.kind = 'open' AND COALESCE(n.epoch, 0) > i.epoch)))
    FROM network.device AS d
    JOIN network.site AS s ON s.id = d.site_id
    JOIN network.device_lease AS l ON l.device_id = d.id
    WHERE d.id = :device AND l.holder = :holder AND l.held_until > now()
    """
)


async def may_leave(
    session: AsyncSession, device_id: str, holder: str, intents: Sequence[str], now: datetime
) -> bool:
    """The last look before a write leaves: the lease holds, the site is not frozen, no node's epoch
    has risen since, and it is not too late for the intents' deadline."""
    return bool(
        await session.scalar(
            _MAY_LEAVE,
            {"device": device_id, "holder": holder, "intents": list(intents), "now": now},
        )
    )


async def record(
    session: AsyncSession, view: DeviceView, holder: str, done: Pass, now: datetime
) -> Recorded:
    """Write down what a pass observed.

    Raises:
        LeaseLostError: another process holds the device now; its observations count.
    """
    lease = await session.scalar(
        select(DeviceLease.device_id).where(
            DeviceLease.device_id == view.device_id, DeviceLease.holder == holder
        )
    )
    if lease is None:
        raise LeaseLostError(view.device_id)
    device = (
        await session.execute(
            select(Device)
            .where(Device.id == view.device_id)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
    ).scalar_one()
    await _save_judged(session, view, done)
    await _close_intents(session, done, now)
    if done.gone and device.desired_version == view.desired_version:
        await session.execute(
            delete(NetworkDevice).where(
                NetworkDevice.device_id == view.device_id, NetworkDevice.network_id.in_(done.gone)
            )
        )
    device.observed_version = max(device.observed_version, view.desired_version)
    device.read_at = done.read_at
    device.repaired += done.repaired
    await set_health(session, device, done.health, done.reason, now)
    return Recorded(
        unmet=sum(not judged.matches for judged in done.judged),
        open_intents=len(done.waiting),
        wanted_more=device.desired_version > view.desired_version,
    )


async def record_failure(
    session: AsyncSession,
    device_id: str,
    waiting: Mapping[str, tuple[tuple[str, ...], bool]],
    health: DeviceHealth,
    reason: str,
    now: datetime,
) -> None:
    """Write down that a device could not be read back; its intents stay open."""
    await _keep_intents(session, waiting)
    device = (
        await session.execute(select(Device).where(Device.id == device_id).with_for_update())
    ).scalar_one()
    await set_health(session, device, health, reason, now)


async def close_unsent(session: AsyncSession, intents: Sequence[str], now: datetime) -> None:
    """Intents whose write was refused at the last look: it never left."""
    await session.execute(
        update(Intent).where(Intent.id.in_(intents)).values(closed_at=now, outcome="not sent")
    )


async def set_health(
    session: AsyncSession, device: Device, health: DeviceHealth, reason: str, now: datetime
) -> None:
    """Change a locked device's health where it differs, and emit that."""
    if device.health == health and device.reason == reason:
        return
    if device.health != health:
        device.since = now
    device.health, device.reason = health, reason
    device.version += 1
    await session.flush()
    data = {
        "device_id": device.id,
        "site_id": device.site_id,
        "name": device.name,
        "kind": device.kind,
        "health": device.health,
        "reason": device.reason,
    }
    await emit(
        session,
        KIT,
        [
            Event(
                type="device.changed",
                resource_kind="device",
                resource_id=device.id,
                resource_version=device.version,
                at=now,
                data=data,
                site_id=device.site_id,
            )
        ],
    )


_SAVE = text(
    """
    INSERT INTO network.port_observed AS o
        (port_id, device_id, seen, matches, compared_version, observed_at)
    SELECT j.port_id, :device, j.seen, j.matches, j.version, :at
    FROM unnest(CAST(:ids AS text[]), CAST(:seen AS text[]), CAST(:matches AS boolean[]),
                CAST(:versions AS bigint[])) AS j(port_id, seen, matches, version)
    ON CONFLICT (port_id) DO UPDATE
    SET seen = excluded.seen, matches = excluded.matches, device_id = excluded.device_id,
        compared_version = excluded.compared_version, observed_at = excluded.observed_at
    """
)


async def _save_judged(session: AsyncSession, view: DeviceView, done: Pass) -> None:
    known = {p.port_id: (p.seen, p.matches, p.compared_version) for p in view.ports}
    fresh = [j for j in done.judged if known[j.port_id] != (j.seen, j.matches, j.version)]
    if fresh:
        await session.execute(
            _SAVE,
            {
                "device": view.device_id,
                "at": done.read_at,
                "ids": [j.port_id for j in fresh],
                "seen": [j.seen for j in fresh],
                "matches": [j.matches for j in fresh],
                "versions": [j.version for j in fresh],
            },
        )


async def _close_intents(session: AsyncSession, done: Pass, now: datetime) -> None:
    for outcome in set(done.closed.values()):
        ended = [intent for intent, how in done.closed.items() if how == outcome]
        await session.execute(
            update(Intent)
            .where(Intent.id.in_(ended), Intent.closed_at.is_(None))
            .values(closed_at=now, outcome=outcome)
        )
    await _keep_intents(session, done.waiting)


async def _keep_intents(
    session: AsyncSession, waiting: Mapping[str, tuple[tuple[str, ...], bool]]
) -> None:
    if waiting:
        await session.execute(
            update(Intent.__table__)  # pyright: ignore[reportArgumentType] - a mapped table is one
            .where(Intent.__table__.c.id == bindparam("intent"))
            .values(jobs=bindparam("jobs"), certain=bindparam("certain")),
            [
                {"intent": intent, "jobs": list(jobs), "certain": certain}
                for intent, (jobs, certain) in waiting.items()
            ],
        )


_INTENTS_KEPT = timedelta(days=1)


async def forget_intents(session: AsyncSession, now: datetime) -> None:
    """Remove intents that were settled long ago."""
    await session.execute(delete(Intent).where(Intent.closed_at < now - _INTENTS_KEPT))
