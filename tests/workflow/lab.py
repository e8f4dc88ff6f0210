"""A small world for the saga kit's own tests: machines in memory, orders in PostgreSQL.

Service `lab` is a stand-in for every other service: its schema holds the ordered things, its
steps switch machines that live outside any database. Nodes and allocations are the real ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import dflare.apps.migrate as migrate
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database, assert_no_transaction, role_of
from dflare.kit.ids import new_id
from dflare.kit.migrations import upgrade_all
from dflare.kit.operations import NewOperation, create_operation
from dflare.kit.plan import Plan, PlannedStep, SideStep, StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.kit.tables import KitTables, ServiceBase, kit_tables, service_metadata
from dflare.services.orchestrator import activities
from dflare.services.orchestrator.contract import PoolWish, Wishes
from dflare.services.orchestrator.service import OrchestratorService
from dflare.services.orchestrator.tables import (
    KIT,
    Allocation,
    Claim,
    Node,
    QuotaLimit,
    QuotaUsage,
    Site,
)


class LabBase(ServiceBase):
    __abstract__ = True
    metadata = service_metadata("lab")


LAB_KIT = kit_tables(LabBase.metadata)


async def prepare_lab(url: str) -> None:
    """The orchestrator's schema by its migrations, the lab's by its tables."""
    locations = migrate.locations()
    await upgrade_all(url, {name: locations[name] for name in ("feed", "trace", "orchestrator")})
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1))
    role = role_of("lab")
    async with engine.begin() as connection:
        await connection.execute(
            text(
                f"DO $$ BEGIN CREATE ROLE {role}; "
                "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            )
        )
        await connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
        await connection.execute(text(f"CREATE SCHEMA lab AUTHORIZATION {role}"))
        await connection.execute(text(f"SET LOCAL ROLE {role}"))
        await connection.run_sync(LabBase.metadata.create_all)
    await engine.dispose()


PLAN = Plan(
    saga="lab_order",
    steps=(
        PlannedStep(name="lab.begin@1", on="resource", per_site=False, undo="lab.fail@1"),
        PlannedStep(name="orchestrator.confirm@1", per_site=False, undo="orchestrator.end@1"),
        PlannedStep(name="lab.connect@1", undo="lab.disconnect@1", replaceable=True),
        PlannedStep(name="lab.hear@1", replaceable=True),
        PlannedStep(name="lab.power_on@1", undo="lab.power_off@1", replaceable=True),
        PlannedStep(name="lab.write@1", undo="lab.erase@1", replaceable=True),
        PlannedStep(name="lab.look@1", replaceable=True),
        PlannedStep(name="orchestrator.hand_over@1", per_site=False, commit=True),
        PlannedStep(name="lab.ready@1", on="resource", per_site=False),
    ),
    undo_from=1,
    replace=SideStep(name="orchestrator.replace@1", per_site=False),
    park=(SideStep(name="lab.quarantine@1"),),
)

RELEASE = Plan(
    saga="lab_release",
    steps=(
        PlannedStep(name="lab.begin_delete@1", on="resource", per_site=False, commit=True),
        PlannedStep(name="orchestrator.release@1", per_site=False),
        PlannedStep(name="lab.power_off@1", quarantine="lab.quarantine@1"),
        PlannedStep(name="lab.erase@1", quarantine="lab.quarantine@1"),
        PlannedStep(name="lab.disconnect@1"),
        PlannedStep(name="orchestrator.end@1", per_site=False),
        PlannedStep(name="lab.deleted@1", on="resource", per_site=False),
    ),
)


@dataclass
class Machine:
    """A machine outside any database."""

    powered: bool = False
    connected: bool = False
    content: str = ""
    quarantined: bool = False


Verb = Callable[[StepCall, str], Outcome]


@dataclass
class MachineStep:
    """A step of the lab: acts on machines, records nothing but the outcome."""

    name: str
    verb: Verb

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> None:
        """Machines have no rows."""

    async def act(self, call: StepCall, loaded: None, targets: list[str]) -> dict[str, Outcome]:
        assert_no_transaction(self.name)
        return {target: self.verb(call, target) for target in targets}

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: None, outcomes: dict[str, Outcome]
    ) -> None:
        """Nothing."""


@dataclass
class LabWorld:
    """The lab, its machines and what was ordered of it."""

    database: Database
    plan: Plan = PLAN
    site_id: str = field(default_factory=lambda: new_id("site"))
    ordering_service: str = "lab"
    kits: Mapping[str, KitTables] = field(
        default_factory=lambda: {"lab": LAB_KIT, "orchestrator": KIT}
    )
    machines: dict[str, Machine] = field(default_factory=dict[str, Machine])
    things: dict[str, str] = field(default_factory=dict[str, str])
    faults: dict[str, Verb] = field(default_factory=dict[str, Verb])
    count: int = 3
    project_id: str = "prj_lab"

    @property
    def service(self) -> OrchestratorService:
        return OrchestratorService(self.database, SystemClock())

    async def declare(self, nodes: int, quota: int = 10_000) -> None:
        """Declare the site with its nodes, all available."""
        self.machines = {f"node_{self.site_id[-6:]}_{i:04}": Machine() for i in range(nodes)}
        async with self.database.transaction("orchestrator") as session:
            session.add(Site(site_id=self.site_id, name="lab", node_types=["gpu"], version=1))
            await session.execute(
                insert(Node),
                [
                    {
                        "node_id": node_id,
                        "site_id": self.site_id,
                        "name": f"n{i:04}",
                        "node_type": "gpu",
                        "gpus": 8,
                        "row": "a",
                        "rack": f"r{i // 8:03}",
                        "block": f"b{i // 64:02}",
                        "state": "available",
                        "version": 1,
                    }
                    for i, node_id in enumerate(self.machines)
                ],
            )
            await session.execute(
                insert(QuotaLimit)
                .values(project_id=self.project_id, node_type="gpu", nodes=quota, version=1)
                .on_conflict_do_nothing()
            )

    def wishes(self, count: int | None = None, **values: Any) -> Wishes:
        return Wishes(
            organization_id="org_lab",
            project_id=self.project_id,
            site_id=self.site_id,
            cluster_id=values.pop("cluster_id", new_id("clu")),
            pools=(PoolWish(pool="main", node_type="gpu", count=count or self.count),),
            **values,
        )

    async def order(self) -> str:
        """Reserve nodes and store the operation, as an ordering service does."""
        operation_id, thing = new_id("op"), new_id("clu")
        reservation = await self.service.reserve(operation_id, self.wishes(cluster_id=thing))
        self.things[thing] = "pending"
        targets = [placed.node_id for placed in reservation.placed]
        await self.store(operation_id, thing, self.plan, targets)
        return operation_id

    async def store(
        self, operation_id: str, thing: str, plan: Plan, targets: Sequence[str]
    ) -> None:
        async with self.database.transaction("lab") as session:
            await create_operation(
                session,
                LAB_KIT,
                NewOperation(
                    id=operation_id,
                    kind=plan.saga,
                    organization_id="org_lab",
                    project_id=self.project_id,
                    site_id=self.site_id,
                    resource_kind="thing",
                    resource_id=thing,
                    plan=plan,
                    targets=targets,
                    created_by="usr_lab",
                    trace={},
                ),
                datetime.now(UTC),
            )

    async def targets(self, operation_id: str) -> list[str]:
        async with self.database.transaction("lab") as session:
            query = select(LAB_KIT.operation.c.targets).where(
                LAB_KIT.operation.c.id == operation_id
            )
            return list(await session.scalar(query) or [])

    async def thing_of(self, operation_id: str) -> str:
        async with self.database.transaction("lab") as session:
            query = select(LAB_KIT.operation.c.resource_id).where(
                LAB_KIT.operation.c.id == operation_id
            )
            return str(await session.scalar(query))

    async def allocations(self, operation_id: str) -> list[Allocation]:
        async with self.database.transaction("orchestrator") as session:
            query = select(Allocation).where(Allocation.reserved_by == operation_id)
            return list(await session.scalars(query.order_by(Allocation.id)))

    async def snapshot(self, operation_id: str) -> Any:
        """Machines by what they look like, allocations by state, counters, claims; no names."""
        thing = await self.thing_of(operation_id)
        live = [a for a in await self.allocations(operation_id) if a.state != "ended"]
        async with self.database.transaction("orchestrator") as session:
            claims = await session.scalars(
                select(Claim.node_id).where(
                    Claim.ended_at.is_(None), Claim.operation_id == operation_id
                )
            )
            used = await session.scalar(
                select(QuotaUsage.nodes).where(QuotaUsage.project_id == self.project_id)
            )
            claimed = len(list(claims))
        machines = sorted(
            (m.powered, m.connected, m.content.replace(thing, "own"), m.quarantined)
            for m in self.machines.values()
        )
        return {
            "thing": self.things[thing],
            "machines": machines,
            "allocations": sorted((a.state, a.usage_from is not None) for a in live),
            "own_nodes": sorted(
                (self.machines[a.node_id].content == thing, self.machines[a.node_id].powered)
                for a in live
            ),
            "claims": claimed,
            "quota_used": used or 0,
        }

    async def untouched(self) -> Any:
        machine = Machine()
        row = (machine.powered, machine.connected, machine.content, machine.quarantined)
        return {
            "thing": "failed",
            "machines": [row] * len(self.machines),
            "allocations": [],
            "own_nodes": [],
            "claims": 0,
            "quota_used": 0,
        }

    async def clean(self, operation_id: str) -> None:
        """Nobody holds anything, every machine is as new."""
        for node_id in self.machines:
            self.machines[node_id] = Machine()
        self.faults.clear()
        async with self.database.transaction("orchestrator") as session:
            await session.execute(update(Allocation).values(state="ended"))
            await session.execute(update(Claim).values(ended_at=datetime.now(UTC)))
            await session.execute(delete(QuotaUsage))

    def steps(self) -> Sequence[Step[Any]]:
        return [
            *activities.steps(SystemClock()),
            *(self._thing(f"lab.{verb}@1", state) for verb, state in _THINGS.items()),
            *(self._machine(f"lab.{verb}@1", change) for verb, change in _MACHINES.items()),
        ]

    def _thing(self, name: str, state: str) -> MachineStep:
        def set_state(call: StepCall, target: str) -> Outcome:
            if name in self.faults:
                return self.faults[name](call, target)
            self.things[target] = state
            return DONE

        return MachineStep(name, set_state)

    def _machine(self, name: str, change: Callable[[Machine, StepCall], None]) -> MachineStep:
        def apply(call: StepCall, target: str) -> Outcome:
            if name in self.faults:
                outcome = self.faults[name](call, target)
                if outcome is not DONE:
                    return outcome
            change(self.machines[target], call)
            return DONE

        return MachineStep(name, apply)


_THINGS = {
    "begin": "creating",
    "fail": "failed",
    "ready": "ready",
    "begin_delete": "deleting",
    "deleted": "deleted",
}


def _connect(machine: Machine, call: StepCall) -> None:
    machine.connected = True


def _disconnect(machine: Machine, call: StepCall) -> None:
    machine.connected = False


def _hear(machine: Machine, call: StepCall) -> None:
    assert machine.connected


def _power_on(machine: Machine, call: StepCall) -> None:
    assert machine.connected, "a machine is connected before it starts"
    machine.powered = True


def _power_off(machine: Machine, call: StepCall) -> None:
    machine.powered = False


def _write(machine: Machine, call: StepCall) -> None:
    assert machine.powered, "a machine is written to while it runs"
    machine.content = call.resource_id


def _erase(machine: Machine, call: StepCall) -> None:
    machine.content = ""


def _look(machine: Machine, call: StepCall) -> None:
    assert machine.content == call.resource_id


def _quarantine(machine: Machine, call: StepCall) -> None:
    machine.quarantined = True
    machine.powered = machine.connected = False


_MACHINES: dict[str, Callable[[Machine, StepCall], None]] = {
    "connect": _connect,
    "hear": _hear,
    "disconnect": _disconnect,
    "power_on": _power_on,
    "power_off": _power_off,
    "write": _write,
    "erase": _erase,
    "look": _look,
    "quarantine": _quarantine,
}
