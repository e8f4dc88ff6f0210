"""Looks at nodes that nobody acts on: power and health are observed, never changed.

A node that is claimed is skipped, since its operation looks at it. What is found is a condition of
the node; its state changes only by operations and operators.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import or_, select, update

from dflare.drivers.bmc.port import BmcError, Observed
from dflare.kit.telemetry import log
from dflare.services.baremetal.agent_sessions import SCHEMA
from dflare.services.baremetal.contract import NodeState
from dflare.services.baremetal.credentials import open_credentials
from dflare.services.baremetal.steps.base import NodeView, StepParts, node_view
from dflare.services.baremetal.tables import Claim, Node

_AT_ONCE = 32
_LOOKED_AT = tuple(s for s in NodeState if s not in (NodeState.DECLARED, NodeState.ENROLLING))
_HEALTH = {"OK": "ok", "Warning": "warning", "Critical": "critical"}


@dataclass(frozen=True)
class Condition:
    """What one look found."""

    node_id: str
    power: str
    health: str
    reason: str


class NodeReconciler:
    """Sweeps a few nodes at a time, each about once an interval, at a bounded rate."""

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            looked_at = 0
            try:
                looked_at = await self.sweep()
            except Exception as error:
                log.warning("node_sweep_failed", error=str(error)[:300])
            await asyncio.sleep(0.5 if looked_at == _AT_ONCE else 2.0)

    async def sweep(self) -> int:
        """Look at the nodes that are due, at most 32; returns how many."""
        nodes = await self._due()
        if nodes:
            conditions = await asyncio.gather(*(self._look(node) for node in nodes))
            await self._record(conditions)
        return len(nodes)

    async def _due(self) -> list[NodeView]:
        now = self._parts.clock.now()
        before = now - timedelta(seconds=self._parts.settings.sweep_interval_s)
        claimed = select(Claim.claim_id).where(Claim.node_id == Node.id).exists()
        query = (
            select(Node)
            .where(
                Node.retired_at.is_(None),
                Node.acting_operation_id.is_(None),
                Node.state.in_(_LOOKED_AT),
                or_(Node.checked_at.is_(None), Node.checked_at < before),
                ~claimed,
            )
            .order_by(Node.checked_at.nulls_first())
            .limit(_AT_ONCE)
        )
        async with self._parts.database.transaction(SCHEMA) as session:
            rows = list(await session.scalars(query))
            credentials = await open_credentials(session, self._parts.sealer, rows)
        return [node_view(row, credentials) for row in rows]

    async def _look(self, node: NodeView) -> Condition:
        try:
            seen: Observed = await self._parts.bmc.observe(node.bmc)
        except BmcError as error:
            return Condition(node.id, "", "unreachable", str(error)[:500])
        health = _HEALTH.get(seen.health, "unknown")
        reason = "" if health == "ok" else f"the BMC reports {seen.health or 'no health'}"
        return Condition(node.id, seen.power, health, reason)

    async def _record(self, conditions: list[Condition]) -> None:
        """Conditions are no events and raise no version: nothing is decided by them."""
        now = self._parts.clock.now()
        async with self._parts.database.transaction(SCHEMA) as session:
            for found in sorted(conditions, key=lambda condition: condition.node_id):
                await session.execute(
                    update(Node)
                    .where(Node.id == found.node_id)
                    .values(
                        power=found.power,
                        health=found.health,
                        health_reason=found.reason,
                        checked_at=now,
                    )
                )
