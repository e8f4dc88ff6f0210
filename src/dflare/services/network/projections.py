"""Read models of network: sites and devices, ports, and who holds which node.

A port that is declared is desired closed in the same transaction: fabrics fail open.
"""

import base64
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.feed import FeedEntry, Projection
from dflare.services.baremetal.contract import (
    NodeDeclared,
    NodeState,
    NodeStateChanged,
    SiteDeclared,
    SwitchFacts,
    UfmFacts,
)
from dflare.services.network.domain import PortKind
from dflare.services.network.repository import shut_out
from dflare.services.network.tables import (
    KIT,
    Device,
    DeviceLease,
    Port,
    PortDesired,
    Site,
)
from dflare.services.orchestrator.contract import AllocationFacts

_STATE, _SHUT = "node.state_changed", NodeState.QUARANTINE


def device_id_of(site_id: str, name: str) -> str:
    """The id of a device: its name is unique in its site."""
    return f"{site_id}/{name}"


def projections(clock: Clock) -> list[Projection]:
    """What the network worker keeps current."""
    return [InventoryProjection(clock), AllocationProjection(clock)]


class InventoryProjection:
    """Sites, pools, devices and ports, from ``site.declared`` and ``node.declared``.

    One projection for both, since a port needs its site's devices.
    """

    name = "network.inventory"
    kit = KIT
    types = frozenset({"site.declared", "node.declared"})

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Fold declarations; runs of nodes between two sites are one batch."""
        for is_site, run in groupby(entries, key=lambda entry: entry.type == "site.declared"):
            if not is_site:
                await self._nodes(session, list(run))
                continue
            for entry in run:
                await self._site(session, entry)

    async def _site(self, session: AsyncSession, entry: FeedEntry) -> None:
        site = SiteDeclared.model_validate(entry.data)
        statement = insert(Site).values(
            id=site.site_id,
            name=site.name,
            pools=site.pools.model_dump(mode="json"),
            declared_version=entry.resource_version,
        )
        changing = ("name", "pools", "declared_version")
        newer = await session.execute(
            statement.on_conflict_do_update(
                index_elements=["id"],
                set_={name: statement.excluded[name] for name in changing},
                where=Site.declared_version < statement.excluded.declared_version,
            ).returning(Site.id)
        )
        if newer.first() is not None:
            await self._devices(session, site)

    async def _devices(self, session: AsyncSession, site: SiteDeclared) -> None:
        """A device that is declared no more is retired: nothing is written to it."""
        now = self._clock.now()
        declared: list[tuple[PortKind, SwitchFacts | UfmFacts]] = [
            (PortKind.ETHERNET, switch) for switch in site.switches
        ]
        if site.ufm is not None:
            declared.append((PortKind.INFINIBAND, site.ufm))
        rows: list[dict[str, Any]] = [
            {
                "id": device_id_of(site.site_id, facts.name),
                "site_id": site.site_id,
                "name": facts.name,
                "kind": kind,
                "driver": facts.driver,
                "address": facts.address,
                "sealed": base64.b64decode(facts.secret),
                "since": now,
                "retired": False,
            }
            for kind, facts in declared
        ]
        await session.execute(
            update(Device)
            .where(Device.site_id == site.site_id, Device.id.not_in([r["id"] for r in rows]))
            .values(retired=True)
        )
        if not rows:
            return
        statement = insert(Device).values(rows)
        changing = ("driver", "address", "sealed", "retired")
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=["id"],
                set_={name: statement.excluded[name] for name in changing}
                | {"desired_version": Device.desired_version + 1},
            )
        )
        lease = insert(DeviceLease).values(
            [{"device_id": r["id"], "site_id": site.site_id, "held_until": _LONG_AGO} for r in rows]
        )
        await session.execute(lease.on_conflict_do_nothing())
        if site.ufm is not None:
            manager = device_id_of(site.site_id, site.ufm.name)
            await _move_infiniband(session, site.site_id, manager)

    async def _nodes(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        newest: dict[str, tuple[NodeDeclared, int]] = {}
        for entry in entries:
            node = NodeDeclared.model_validate(entry.data)
            newest[node.node_id] = (node, entry.resource_version)
        managers = await _managers(session, {node.site_id for node, _ in newest.values()})
        rows = {
            row["id"]: row
            for node, version in newest.values()
            for row in _port_rows(node, version, managers.get(node.site_id))
        }
        if not rows:
            return
        statement = insert(Port)
        changing = ("node_id", "device_id", "name", "address", "declared_version")
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=["id"],
                set_={name: statement.excluded[name] for name in changing},
                where=Port.declared_version < statement.excluded.declared_version,
            ),
            list(rows.values()),
        )
        await self._abandon(session, list(newest), list(rows))
        await self._close(session, list(rows))

    async def _abandon(
        self, session: AsyncSession, node_ids: list[str], port_ids: list[str]
    ) -> None:
        """Ports that their node has no cable in any more are nobody's, and closed for good."""
        gone = list(
            await session.scalars(
                select(Port.id).where(Port.node_id.in_(node_ids), Port.id.not_in(port_ids))
            )
        )
        if not gone:
            return
        await session.execute(update(Port).where(Port.id.in_(gone)).values(node_id=""))
        devices = await session.scalars(
            update(PortDesired)
            .where(PortDesired.port_id.in_(gone))
            .values(
                node_id="",
                network_id=None,
                version=PortDesired.version + 1,
                changed_at=self._clock.now(),
            )
            .returning(PortDesired.device_id)
        )
        await _want(session, set(devices))

    async def _close(self, session: AsyncSession, port_ids: list[str]) -> None:
        """Desire new ports closed, and those whose cable moved to another node."""
        now = self._clock.now()
        ports = select(Port.id, Port.device_id, Port.node_id, literal(now)).where(
            Port.id.in_(port_ids)
        )
        statement = insert(PortDesired).from_select(
            ["port_id", "device_id", "node_id", "changed_at"], ports
        )
        devices = await session.scalars(
            statement.on_conflict_do_update(
                index_elements=["port_id"],
                set_={
                    "device_id": statement.excluded.device_id,
                    "node_id": statement.excluded.node_id,
                    "network_id": None,
                    "version": PortDesired.version + 1,
                    "changed_at": now,
                },
                where=or_(
                    PortDesired.node_id != statement.excluded.node_id,
                    PortDesired.device_id != statement.excluded.device_id,
                ),
            ).returning(PortDesired.device_id)
        )
        await _want(session, set(devices))


async def _want(session: AsyncSession, device_ids: set[str]) -> None:
    locked = await session.scalars(
        select(Device.id).where(Device.id.in_(device_ids)).order_by(Device.id).with_for_update()
    )
    await session.execute(
        update(Device)
        .where(Device.id.in_(list(locked)))
        .values(desired_version=Device.desired_version + 1)
        .execution_options(synchronize_session=False)
    )


async def _managers(session: AsyncSession, site_ids: set[str]) -> dict[str, str]:
    rows = await session.execute(
        select(Device.site_id, Device.id).where(
            Device.site_id.in_(site_ids), Device.kind == PortKind.INFINIBAND, ~Device.retired
        )
    )
    return {row.site_id: row.id for row in rows}


async def _move_infiniband(session: AsyncSession, site_id: str, manager: str) -> None:
    """Give the site's InfiniBand ports to its present manager."""
    ports = (
        select(Port.id)
        .where(Port.site_id == site_id, Port.kind == PortKind.INFINIBAND)
        .scalar_subquery()
    )
    await session.execute(
        update(PortDesired)
        .where(PortDesired.port_id.in_(ports), PortDesired.device_id != manager)
        .values(device_id=manager)
        .execution_options(synchronize_session=False)
    )
    await session.execute(
        update(Port)
        .where(Port.site_id == site_id, Port.kind == PortKind.INFINIBAND)
        .where(Port.device_id != manager)
        .values(device_id=manager)
        .execution_options(synchronize_session=False)
    )


class AllocationProjection:
    """Who holds a node and its epoch, from ``allocation.changed``; and who is shut out, from
    ``node.state_changed``.

    An event of an older epoch, or of an older version of the same allocation, changes nothing. One
    projection for both: an order that comes after a quarantine is never closed by it.
    """

    name = "network.allocation"
    kit = KIT
    types = frozenset({"allocation.changed", _STATE})

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Fold runs of events of one kind, in their order."""
        told = [one for one in entries if one.type != _STATE or one.data["state"] == _SHUT]
        for is_state, run in groupby(told, key=lambda entry: entry.type == _STATE):
            if is_state:
                shut = {NodeStateChanged.model_validate(entry.data).node_id for entry in run}
                await shut_out(session, sorted(shut), self._clock.now())
            else:
                await self._allocations(session, list(run))

    async def _allocations(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """Only the newest event of a node matters."""
        newest: dict[str, AllocationFacts] = {}
        for entry in entries:
            facts = AllocationFacts.model_validate(entry.data)
            known = newest.get(facts.node_id)
            if known is None or _order(facts) > _order(known):
                newest[facts.node_id] = facts
        if not newest:
            return
        await session.execute(
            _ALLOCATIONS,
            {
                name: [_plain(getattr(facts, name)) for facts in newest.values()]
                for name in _ALLOCATION_COLUMNS
            },
        )


_LONG_AGO = datetime.fromtimestamp(0).astimezone()

_ALLOCATION_COLUMNS = (
    "node_id",
    "site_id",
    "cluster_id",
    "allocation_id",
    "organization_id",
    "project_id",
    "state",
    "epoch",
    "version",
)

_ALLOCATIONS = text(
    """
    INSERT INTO network.node_allocation AS n
        (node_id, site_id, cluster_id, allocation_id, organization_id, project_id, state, epoch,
         allocation_version)
    SELECT * FROM unnest(
        CAST(:node_id AS text[]), CAST(:site_id AS text[]), CAST(:cluster_id AS text[]),
        CAST(:allocation_id AS text[]), CAST(:organization_id AS text[]),
        CAST(:project_id AS text[]), CAST(:state AS text[]), CAST(:epoch AS bigint[]),
        CAST(:version AS bigint[])) AS e(node_id)
    ORDER BY e.node_id
    ON CONFLICT (node_id) DO UPDATE
    SET cluster_id = excluded.cluster_id, allocation_id = excluded.allocation_id,
        organization_id = excluded.organization_id, project_id = excluded.project_id,
        state = excluded.state, epoch = excluded.epoch,
        allocation_version = excluded.allocation_version
    WHERE excluded.epoch > n.epoch
       OR (excluded.epoch = n.epoch AND (excluded.allocation_id <> n.allocation_id
           OR excluded.allocation_version > n.allocation_version))
    """
)


def _order(facts: AllocationFacts) -> tuple[int, int]:
    return facts.epoch, facts.version


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _port_rows(node: NodeDeclared, version: int, manager: str | None) -> list[dict[str, Any]]:
    shared = {"site_id": node.site_id, "node_id": node.node_id, "declared_version": version}
    ethernet: list[dict[str, Any]] = [
        {
            "id": f"{node.site_id}/{cable.switch}/{cable.port}",
            "device_id": device_id_of(node.site_id, cable.switch),
            "kind": PortKind.ETHERNET,
            "name": cable.name,
            "address": cable.port,
            **shared,
        }
        for cable in node.ethernet
    ]
    infiniband: list[dict[str, Any]] = [
        {
            "id": f"{node.site_id}/{cable.guid.lower()}",
            "device_id": manager,
            "kind": PortKind.INFINIBAND,
            "name": cable.name,
            "address": cable.guid.lower(),
            **shared,
        }
        for cable in node.infiniband
        if manager is not None
    ]
    return ethernet + infiniband
