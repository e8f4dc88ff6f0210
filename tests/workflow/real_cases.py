"""What is done to the two real sagas, and what one looks at afterwards.

An order that is undisturbed by a cut, a repeat or an error must end like any other, so one order
goes through a whole round of them, another one at every step; in five rounds every step has met
every one of them. Failures end an order or change it: each has an order of its own.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from real_platform import ORDERED, Lane, RealPlatform
from sagakit import FAILED, Disturbance, Final, Saboteur, check_final, rounds
from sqlalchemy import select

from baremetal_site import KEYS
from dflare.kit import operation_control
from dflare.kit.clock import SystemClock
from dflare.kit.plan import OperationState, Plan
from dflare.services.baremetal.tables import Node
from dflare.services.clusters.domain import cluster_id_of
from dflare.services.clusters.tables import KIT as CLUSTERS
from dflare.services.clusters.tables import Cluster
from dflare.services.metering.tables import LedgerEntry
from dflare.services.network.tables import Network, PoolValue, PortDesired
from dflare.services.orchestrator.sagas import CREATE_CLUSTER, DELETE_CLUSTER, SAGAS
from dflare.services.orchestrator.tables import Allocation, Claim, QuotaUsage
from judgement import peers

PLANS = {"create": CREATE_CLUSTER, "delete": DELETE_CLUSTER}
SLURM_PLANS = {f"{verb} slurm": SAGAS[f"{verb}_slurm_cluster"] for verb in PLANS}
_EVERY_PLAN = {**PLANS, **SLURM_PLANS}
CLEAN = ("available", "Off", None, "blank", "nobody")
"""A node that can be ordered: its state, and the simulator's truth of it."""

Snapshot = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """One order or release with everything that is done to it."""

    saga: str
    name: str
    disturbances: tuple[Disturbance, ...] = ()

    @property
    def plan(self) -> Plan:
        return _EVERY_PLAN[self.saga]

    def __str__(self) -> str:
        return f"{self.saga} {self.name}"


def in_rounds(saga: str) -> Iterator[Scenario]:
    """Every cut, repeat and error at every step, and at every undo of an order that fails where it
    would be handed over."""
    plan = _EVERY_PLAN[saga]
    for name, disturbances in rounds(plan, _undos(saga), plan.commit_index):
        yield Scenario(saga, name, disturbances)


def failures(saga: str) -> Iterator[Scenario]:
    """Every step failed for one target, and for all; every undo failed for one."""
    yield from _undo_failures(saga)
    for index, step in enumerate(_EVERY_PLAN[saga].steps):
        for kind in ("fail_one", "fail_all"):
            if kind == "fail_one" and step.on == "resource":
                continue
            disturbance = Disturbance(kind, index, step.name)
            yield Scenario(saga, str(disturbance), (disturbance,))


def taken(saga: str) -> Iterator[Scenario]:
    """A node taken into quarantine by an operator while each of the steps acts on it."""
    for index, step in enumerate(_EVERY_PLAN[saga].steps):
        if step.replaceable:
            disturbance = Disturbance("taken", index, step.name)
            yield Scenario(saga, str(disturbance), (disturbance,))


def _undo_failures(saga: str) -> Iterator[Scenario]:
    for index, undo in _undos(saga):
        disturbance = Disturbance(
            "fail_one", index, undo, undoing=True, fail_at=_EVERY_PLAN[saga].commit_index
        )
        yield Scenario(saga, str(disturbance), (disturbance,))


def _undos(saga: str) -> list[tuple[int, str]]:
    """The undos of an order that fails at its commit step."""
    plan = _EVERY_PLAN[saga]
    steps = plan.steps[: (plan.commit_index or 0) + 1]
    return [(index, step.undo) for index, step in enumerate(steps) if step.undo is not None]


def singly(saga: str) -> Iterator[Scenario]:
    """What the rounds do to one order, each to an order of its own."""
    for round_ in in_rounds(saga):
        for disturbance in round_.disturbances:
            yield Scenario(saga, str(disturbance), (disturbance,))


UNDISTURBED = {saga: Scenario(saga, "undisturbed") for saga in _EVERY_PLAN}


@dataclass(frozen=True)
class Ended(Final):
    """How a scenario ended. ``later`` is the snapshot after a person let it go on."""

    hits_each: tuple[int, ...] = ()
    later_state: OperationState | None = None
    later: Snapshot | None = None


async def look(platform: RealPlatform, lane: Lane, cluster_id: str) -> Snapshot:
    """Everything that an order could leave behind on its lane; no names, ids or times."""
    database = platform.database
    node_ids = [platform.node_ids[name] for name in lane.node_names]
    async with database.transaction("clusters") as session:
        cluster = await session.scalar(select(Cluster.state).where(Cluster.id == cluster_id))
    async with database.transaction("orchestrator") as session:
        allocations = list(
            await session.scalars(select(Allocation).where(Allocation.cluster_id == cluster_id))
        )
        claims = list(
            await session.scalars(
                select(Claim.id).where(Claim.node_id.in_(node_ids), Claim.ended_at.is_(None))
            )
        )
        quota = await session.scalar(
            select(QuotaUsage.nodes).where(QuotaUsage.project_id == lane.project.id)
        )
    async with database.transaction("network") as session:
        values = await session.execute(
            select(PoolValue.kind, PoolValue.state)
            .join(Network, Network.id == PoolValue.network_id)
            .where(Network.cluster_id == cluster_id, PoolValue.state != "cooldown")
        )
        values = Counter((row.kind, row.state) for row in values)
        opened = list(
            await session.scalars(
                select(PortDesired.port_id).where(
                    PortDesired.node_id.in_(node_ids), PortDesired.network_id.is_not(None)
                )
            )
        )
    async with database.transaction("metering") as session:
        ledger = list(
            await session.scalars(select(LedgerEntry).where(LedgerEntry.cluster_id == cluster_id))
        )
    live = [one for one in allocations if one.state != "ended"]
    own = {one.node_name for one in live}
    nodes = await look_at_nodes(platform, lane.node_names, own)
    return {
        "cluster": cluster,
        "allocations": sorted(one.state for one in live),
        "usage": _billed(allocations),
        "ledger": _billed(ledger),
        "claims": len(claims),
        "quota": quota or 0,
        "pool_values": dict(sorted(values.items())),
        "ports_desired_open": len(opened),
        "own_nodes": sorted((nodes[name] for name in own), key=str),
        "other_nodes": sorted((nodes[n] for n in nodes if n not in own), key=str),
        "scheduler": platform.scheduler_of(cluster_id),
    }


def _billed(intervals: Iterable[Allocation | LedgerEntry]) -> list[str]:
    """Intervals by whether they have an end; those of no length are not billed."""
    return sorted(
        "closed" if one.usage_to else "open"
        for one in intervals
        if one.usage_from and one.usage_from != one.usage_to
    )


async def look_at_nodes(
    platform: RealPlatform, names: Sequence[str], own: set[str]
) -> dict[str, tuple[str | None, ...]]:
    """Each node as in ``CLEAN``; ``own`` are those of one order."""
    async with platform.database.transaction("baremetal") as session:
        query = select(Node.name, Node.state).where(Node.name.in_(names))
        states = {row.name: row.state for row in await session.execute(query)}
    truth = {
        host["name"]: host
        for host in (await platform.sim.control.get("/truth/hosts")).json()["hosts"]
    }
    reachability = (await platform.sim.control.get("/truth/reachability")).json()
    found: dict[str, tuple[str | None, ...]] = {}
    for name in names:
        host = truth[name]
        reached = {peers(reachability, kind, name) for kind in ("ethernet", "infiniband")}
        found[name] = (
            states[name],
            host["power"],
            host["system"],
            _content(host),
            _company(reached, name, own),
        )
    return found


def _content(host: dict[str, Any]) -> str:
    if all(disk["blank"] for disk in host["disks"]):
        return "blank"
    return "its tenant's" if host["ssh_keys_on_disk"] == list(KEYS) else "written"


def _company(reached: set[frozenset[str]], name: str, own: set[str]) -> str:
    if reached == {frozenset()}:
        return "nobody"
    if reached == {frozenset(own - {name})} and name in own:
        return "the other nodes of its order"
    return f"strangers: {sorted(map(sorted, reached))}"


HANDED_OVER: Snapshot = {
    "cluster": "ready",
    "allocations": ["confirmed"] * ORDERED,
    "usage": ["open"] * ORDERED,
    "ledger": ["open"] * ORDERED,
    "claims": 0,
    "quota": ORDERED,
    "own_nodes": [("active", "On", "tenant", "its tenant's", "the other nodes of its order")]
    * ORDERED,
}
"""What an order must have come to; identifiers and ports are counted by ``check_handed_over``."""


def check_handed_over(snapshot: Snapshot) -> None:
    assert {key: snapshot[key] for key in HANDED_OVER} == HANDED_OVER
    assert set(snapshot["other_nodes"]) == {CLEAN}
    assert snapshot["ports_desired_open"] > 0
    assert {state for _, state in snapshot["pool_values"]} == {"allocated"}


def nothing_left(lane: Lane, cluster: str, *, billed: int = 0) -> Snapshot:
    """The snapshot of a lane that an order or its release left as new."""
    return {
        "cluster": cluster,
        "allocations": [],
        "usage": ["closed"] * billed,
        "ledger": ["closed"] * billed,
        "claims": 0,
        "quota": 0,
        "pool_values": {},
        "ports_desired_open": 0,
        "own_nodes": [],
        "other_nodes": [CLEAN] * len(lane.node_names),
        "scheduler": "none",
    }


class LaneSpoiledError(AssertionError):
    """What a scenario left cannot be cleaned up; no other may run there."""


@dataclass
class Cases:
    """Runs scenarios on all lanes side by side; the result of each is awaited by its test."""

    platform: RealPlatform
    scenarios: Sequence[Scenario]
    sagas: tuple[str, str] = ("create", "delete")
    results: dict[Scenario, asyncio.Future[None]] = field(default_factory=dict)
    spoiled: list[str] = field(default_factory=list)
    _waiting: dict[str, deque[Scenario]] = field(default_factory=dict)
    _undisturbed: dict[str, asyncio.Future[Ended]] = field(default_factory=dict)
    _running: asyncio.Task[None] = field(init=False)

    def start(self) -> asyncio.Task[None]:
        """Begin to carry all scenarios out."""
        loop = asyncio.get_running_loop()
        self._undisturbed = {saga: loop.create_future() for saga in self.sagas}
        everything = [*(UNDISTURBED[saga] for saga in self.sagas), *self.scenarios]
        self.results = {one: loop.create_future() for one in everything}
        self._waiting = {
            saga: deque(one for one in self.results if one.saga == saga) for saga in self.sagas
        }
        self._running = asyncio.create_task(self._run())
        return self._running

    async def result(self, scenario: Scenario) -> None:
        """Wait for a scenario; raises what was wrong with it."""
        await asyncio.shield(self.results[scenario])

    async def undisturbed(self, saga: str) -> Ended:
        """How the undisturbed run of a saga ended."""
        return await asyncio.shield(self._undisturbed[saga])

    async def ended(self) -> None:
        """Wait until nothing more runs."""
        await asyncio.shield(self._running)

    async def _run(self) -> None:
        try:
            await asyncio.gather(*(self._lane(lane) for lane in self.platform.lanes))
        finally:
            for future in (*self.results.values(), *self._undisturbed.values()):
                if not future.done():
                    future.set_exception(LaneSpoiledError(f"not run: {self.spoiled}"))
                # Tests that were not selected never ask.
                future.exception()

    async def _lane(self, lane: Lane) -> None:
        creating, deleting = self.sagas
        creates, deletes = self._waiting[creating], self._waiting[deleting]
        while creates or deletes:
            create = creates.popleft() if creates else Scenario(creating, "for a release")
            last = create
            try:
                cluster_id, ready = await self._create(lane, create)
                if ready:
                    # A node that the order gave up must not be taken for one of its release.
                    await self._clean_nodes(lane)
                    last = deletes.popleft() if deletes else Scenario(deleting, "to clean up")
                    await self._delete(lane, last, cluster_id)
                await self._clean(lane, cluster_id)
            except Exception as error:
                self.spoiled.append(f"{lane.node_type} after {last}: {error!r}")
                self._answer(last, error)
                return

    def _answer(self, scenario: Scenario, error: BaseException | None = None) -> None:
        future = self.results.get(scenario)
        if future is None or future.done():
            if error is None:
                return
        elif error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    async def _create(self, lane: Lane, scenario: Scenario) -> tuple[str, bool]:
        saboteurs = self.platform.saboteurs.begin(lane.project.id, scenario.disturbances)
        operation_id = await self.platform.order(lane)
        cluster_id = cluster_id_of(operation_id)
        ended = await self._end(lane, scenario, operation_id, cluster_id, saboteurs)
        await self._judge(scenario, ended, nothing_left(lane, "failed"))
        return cluster_id, (ended.later or ended.snapshot)["cluster"] == "ready"

    async def _delete(self, lane: Lane, scenario: Scenario, cluster_id: str) -> None:
        saboteurs = self.platform.saboteurs.begin(lane.project.id, scenario.disturbances)
        operation_id = await self.platform.release(lane, cluster_id)
        ended = await self._end(lane, scenario, operation_id, cluster_id, saboteurs)
        handed_over = (await self._undisturbed[self.sagas[0]]).snapshot
        await self._judge(scenario, ended, {**handed_over, "cluster": "deleting"})

    async def _end(
        self,
        lane: Lane,
        scenario: Scenario,
        operation_id: str,
        cluster_id: str,
        saboteurs: Iterable[Saboteur],
    ) -> Ended:
        row = await self.platform.rest(operation_id)
        hits = tuple(saboteur.hits for saboteur in saboteurs)
        self.platform.saboteurs.begin(lane.project.id, ())
        ended = Ended(
            operation_id=operation_id,
            state=OperationState(row["state"]),
            reason=row["reason"],
            snapshot=await self._settled(lane, cluster_id),
            hits=min(hits, default=0),
            hits_each=hits,
        )
        if ended.state is OperationState.NEEDS_OPERATOR:
            began = row["position"] > 0 or scenario.saga == self.sagas[0]
            way = operation_control.resume if began else operation_control.retry
            await way(self.platform.database, CLUSTERS, operation_id, SystemClock())
            row = await self.platform.rest(operation_id)
            later = await self._settled(lane, cluster_id)
            ended = replace(ended, later_state=OperationState(row["state"]), later=later)
        return ended

    async def _settled(self, lane: Lane, cluster_id: str) -> Snapshot:
        """What there is once nothing moves by itself any more: read models, and draining."""
        await self.platform.until_told()
        await self.platform.until_drained(cluster_id)
        return await look(self.platform, lane, cluster_id)

    async def _judge(self, scenario: Scenario, ended: Ended, untouched: Snapshot) -> None:
        undisturbed = self._undisturbed[scenario.saga]
        try:
            if scenario == UNDISTURBED[scenario.saga]:
                undisturbed.set_result(ended)
            check(scenario, await undisturbed, untouched, ended)
        except AssertionError as error:
            self._answer(scenario, error)
        else:
            self._answer(scenario)

    async def _clean(self, lane: Lane, cluster_id: str) -> None:
        """Let nodes be cleaned; then all must be as new."""
        await self._clean_nodes(lane)
        snapshot = await self._settled(lane, cluster_id)
        billed = len(snapshot["usage"])
        expected = nothing_left(lane, snapshot["cluster"], billed=billed)
        if snapshot != expected:
            raise LaneSpoiledError(f"{snapshot}")

    async def _clean_nodes(self, lane: Lane) -> None:
        """Nodes in quarantine are cleaned as an operator lets them be."""
        async with self.platform.database.transaction("baremetal") as session:
            query = select(Node.name, Node.state).where(Node.name.in_(lane.node_names))
            states = {row.name: row.state for row in await session.execute(query)}
        verbs = {"quarantine": "release-quarantine", "failed": "enrol"}
        orders = [
            await self.platform.order_on_node(name, verbs[state])
            for name, state in states.items()
            if state in verbs
        ]
        for operation_id in orders:
            row = await self.platform.rest(operation_id, "baremetal")
            assert row["state"] == OperationState.SUCCEEDED, row["reason"]


def check(scenario: Scenario, undisturbed: Ended, untouched: Snapshot, ended: Ended) -> None:
    """Assert what must have become of a scenario."""
    said = f"{ended.state}: {ended.reason}"
    if any(one.undoing and one.kind in FAILED for one in scenario.disturbances):
        _check_parked(scenario, untouched, ended)
        return
    if not scenario.disturbances:
        assert ended.state is OperationState.SUCCEEDED, said
        assert ended.snapshot == undisturbed.snapshot
    for disturbance, hits in zip(scenario.disturbances, ended.hits_each, strict=True):
        if disturbance.undoing:
            assert ended.state is OperationState.FAILED, said
        if ended.state is OperationState.SUCCEEDED and disturbance.kind in (*FAILED, "taken"):
            ended = replace(ended, snapshot=_without_failed(scenario, disturbance, ended.snapshot))
        check_final(scenario.plan, undisturbed, untouched, disturbance, replace(ended, hits=hits))
    if ended.later is not None:
        assert ended.later_state is OperationState.SUCCEEDED, said
        assert ended.later == undisturbed.snapshot, said


def _check_parked(scenario: Scenario, untouched: Snapshot, ended: Ended) -> None:
    """What could not be undone waits for a person, in quarantine; the rest is as new. Resumed,
    the order ends as any that was undone, and the node is for an operator to clean."""
    (disturbance,) = scenario.disturbances
    assert ended.state is OperationState.NEEDS_OPERATOR, ended.reason
    assert f"{disturbance.step}: sabotage" in ended.reason
    assert ended.later is not None
    assert ended.later_state is OperationState.FAILED, ended.reason
    parked = 0 if scenario.plan.steps[disturbance.index].on == "resource" else 1
    for snapshot in (ended.snapshot, ended.later):
        nodes = [*snapshot["own_nodes"], *snapshot["other_nodes"]]
        aside = [node for node in nodes if node[0] == "quarantine"]
        assert [(node[1], node[4]) for node in aside] == [("Off", "nobody")] * parked, nodes
        assert {node for node in nodes if node not in aside} == {CLEAN}, nodes
        # Quarantine ended what the hand-over had begun; the end of the order takes it back.
        assert "open" not in {*snapshot["usage"], *snapshot["ledger"]}, snapshot
    others = [CLEAN] * len(untouched["other_nodes"])
    assert {**ended.later, "other_nodes": others} == untouched, ended.later


def _without_failed(scenario: Scenario, disturbance: Disturbance, snapshot: Snapshot) -> Snapshot:
    """The snapshot with the nodes that an order gave up, or a release set aside, taken for clean
    ones; they must be in quarantine, off, and reach nobody."""
    aside = [node for node in snapshot["other_nodes"] if node[0] == "quarantine"]
    for _, power, system, _, company in aside:
        assert (power, system, company) == ("Off", None, "nobody"), f"{disturbance}: {aside}"
    if scenario.plan.steps[disturbance.index].quarantine:
        assert len(aside) == (1 if disturbance.kind == "fail_one" else ORDERED)
    if disturbance.kind == "taken":
        assert len(aside) == 1
    others = [CLEAN if node in aside else node for node in snapshot["other_nodes"]]
    return {**snapshot, "other_nodes": sorted(others, key=str)}
