"""Steps of the orchestrator: an allocation's way from hold to end.

They change only rows of this schema, so each does its work in the loading transaction; what a
repeat finds done already is done.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.ids import new_id
from dflare.kit.plan import StepCall
from dflare.kit.steps import DONE, Outcome, Step
from dflare.services.auth.contract import Scope
from dflare.services.orchestrator import (
    domain,
    repository,
    repository_reservations,
    repository_waiting,
)
from dflare.services.orchestrator.contract import AllocationState, Wishes
from dflare.services.orchestrator.placement import Wish, place
from dflare.services.orchestrator.placement_pools import why_not_free, wish_of
from dflare.services.orchestrator.service_waiting import placement_of
from dflare.services.orchestrator.tables import Allocation

_SCOPE = Scope.system("steps on the ledger of allocations")

CAPACITY_LOST = "capacity_lost"

Outcomes = dict[str, Outcome]


class Ledger(Protocol):
    """One verb on the ledger, within one transaction."""

    async def __call__(
        self, session: AsyncSession, call: StepCall, targets: list[str], now: datetime
    ) -> Outcomes: ...


@dataclass(frozen=True)
class LedgerStep:
    """A step whose whole work is one transaction of this schema."""

    name: str
    verb: Ledger
    clock: Clock

    async def load(self, session: AsyncSession, call: StepCall, targets: list[str]) -> Outcomes:
        """Do the work."""
        return await self.verb(session, call, targets, self.clock.now())

    async def act(self, call: StepCall, loaded: Outcomes, targets: list[str]) -> Outcomes:
        """Nothing of the outside world is touched."""
        return loaded

    async def record(
        self, session: AsyncSession, call: StepCall, loaded: Outcomes, outcomes: Outcomes
    ) -> None:
        """All is recorded already."""


def steps(clock: Clock) -> list[Step[Any]]:
    """All steps of this service."""
    verbs: dict[str, Ledger] = {
        "orchestrator.confirm@1": confirm,
        "orchestrator.hand_over@1": hand_over,
        "orchestrator.release@1": release,
        "orchestrator.end@1": end,
        "orchestrator.replace@1": replace,
        "orchestrator.claim@1": claim,
        "orchestrator.unclaim@1": unclaim,
    }
    return [LedgerStep(name, verb, clock) for name, verb in verbs.items()]


async def confirm(
    session: AsyncSession, call: StepCall, targets: list[str], now: datetime
) -> Outcomes:
    """Turn holds into confirmed allocations; holds that expired are taken again if they can be."""
    present = await repository.held_nodes(session, call.operation_id, targets)
    lost = [node for node in targets if node not in present]
    outcomes = await _take_again(session, call, lost, now) if lost else {}
    held = await repository.lock_allocations(
        session,
        [node for node in targets if node in present],
        reserved_by=call.operation_id,
    )
    fresh = [one for one in held.values() if one.state == AllocationState.HELD]
    for one in fresh:
        domain.move(one, AllocationState.CONFIRMED, now)
    await repository.save_allocations(session, fresh, now)
    gone = Outcome("failed", CAPACITY_LOST)
    return {node: outcomes.get(node, DONE if node in held else gone) for node in targets}


async def _take_again(
    session: AsyncSession, call: StepCall, node_ids: Sequence[str], now: datetime
) -> Outcomes:
    """Allocate the same nodes anew, as long as nobody else has them."""
    earlier = {
        one.node_id: one
        for one in await repository.reserved(session, call.operation_id, live=False)
        if one.node_id in set(node_ids)
    }
    if not earlier:
        return dict.fromkeys(node_ids, Outcome("failed", CAPACITY_LOST))
    sample = next(iter(earlier.values()))
    await repository.lock_site(session, sample.site_id)
    nodes = await repository.free_for(
        session,
        sample.site_id,
        {one.node_type for one in earlier.values()},
        await _barred(session, sample, now),
    )
    free = {node.node_id for node in nodes if node.free} & set(earlier)
    limits = await repository.quota_limits(session, sample.project_id)
    room = {
        node_type: limits.get(node_type, 0) - used
        for node_type, used in (
            await repository.quota_used(
                session, sample.project_id, {one.node_type for one in earlier.values()}, lock=True
            )
        ).items()
    }
    taken: list[str] = []
    for node_id in sorted(free):
        if room[earlier[node_id].node_type] > 0:
            room[earlier[node_id].node_type] -= 1
            taken.append(node_id)
    if taken:
        epochs = await repository.raise_epochs(session, taken)
        pools = Counter(earlier[node_id].pool for node_id in taken)
        slots = {
            pool: iter(await repository.free_slots(session, sample.cluster_id, pool, count))
            for pool, count in pools.items()
        }
        again = [
            _successor(old, old.node_id, epochs[old.node_id], next(slots[old.pool]), now)
            for old in sorted((earlier[node_id] for node_id in taken), key=lambda one: one.slot)
        ]
        await repository.add_allocations(session, again, now)
    return {
        node_id: DONE if node_id in set(taken) else Outcome("failed", CAPACITY_LOST)
        for node_id in node_ids
    }


def _successor(old: Allocation, node_id: str, epoch: int, slot: int, now: datetime) -> Allocation:
    return Allocation(
        id=new_id("alloc"),
        version=1,
        state=AllocationState.CONFIRMED,
        node_id=node_id,
        node_name=old.node_name,
        node_type=old.node_type,
        gpus=old.gpus,
        site_id=old.site_id,
        organization_id=old.organization_id,
        project_id=old.project_id,
        cluster_id=old.cluster_id,
        pool=old.pool,
        slot=slot,
        reserved_by=old.reserved_by,
        operation_id=old.reserved_by,
        epoch=epoch,
        reason="",
        since=now,
        created_at=now,
    )


async def hand_over(
    session: AsyncSession, call: StepCall, targets: list[str], now: datetime
) -> Outcomes:
    """The tenant has the nodes: usage begins in the transaction that says so; claims end."""
    held = await repository.lock_allocations(session, targets, cluster_id=call.resource_id)
    confirmed = {node: one for node, one in held.items() if one.state == AllocationState.CONFIRMED}
    fresh = [one for one in confirmed.values() if one.usage_from is None]
    useless = await repository.in_quarantine(session, [one.node_id for one in fresh])
    for one in fresh:
        one.usage_from = now
        if one.node_id in useless:
            one.usage_to = now
        one.version += 1
    await repository.save_allocations(session, fresh, now)
    await _end_own_claims(session, call, list(confirmed), now)
    lost = Outcome("failed", CAPACITY_LOST)
    return {node: DONE if node in confirmed else lost for node in targets}


async def _end_own_claims(
    session: AsyncSession, call: StepCall, node_ids: Sequence[str], now: datetime
) -> None:
    claims = await repository.live_claims(session, node_ids)
    own = [one for one in claims if one.operation_id == call.operation_id]
    await repository.end_claims(session, own, now)


async def release(
    session: AsyncSession, call: StepCall, targets: list[str], now: datetime
) -> Outcomes:
    """Begin a release: usage ended when it was requested, and the claim goes to this operation.

    A release beats every other claim; the raised epoch fences off whoever acted before.
    """
    # Nodes are locked before allocations everywhere, so the rows are looked at twice.
    held = await repository.live_nodes(session, call.resource_id, targets)
    if held:
        epochs = await repository.raise_epochs(session, held)
        rows = await repository.lock_allocations(session, held, cluster_id=call.resource_id)
        requested_at = datetime.fromisoformat(call.params.get("requested_at", now.isoformat()))
        fresh = [one for one in rows.values() if one.state != AllocationState.RELEASING]
        for one in fresh:
            domain.move(one, AllocationState.RELEASING, now)
            one.epoch, one.operation_id = epochs[one.node_id], call.operation_id
            if one.usage_from is not None and one.usage_to is None:
                one.usage_to = max(one.usage_from, requested_at)
        await repository.save_allocations(session, fresh, now)
        await _seize(session, call, fresh, now)
    return dict.fromkeys(targets, DONE)


async def _seize(
    session: AsyncSession, call: StepCall, allocations: Sequence[Allocation], now: datetime
) -> None:
    claims = await repository.live_claims(session, [one.node_id for one in allocations])
    others = [one for one in claims if one.operation_id != call.operation_id]
    await repository.end_claims(session, others, now)
    own = {one.node_id for one in claims} - {one.node_id for one in others}
    await repository.add_claims(
        session,
        [(one.node_id, one.site_id) for one in allocations if one.node_id not in own],
        call.operation_id,
        now,
    )


async def end(session: AsyncSession, call: StepCall, targets: list[str], now: datetime) -> Outcomes:
    """The nodes belong to nobody: allocation, claim and quota end together."""
    held = await repository.lock_allocations(session, targets, cluster_id=call.resource_id)
    reason = "the order was undone" if call.undoing else ""
    await repository.end_allocations(session, list(held.values()), now, reason)
    return dict.fromkeys(targets, DONE)


async def replace(
    session: AsyncSession, call: StepCall, targets: list[str], now: datetime
) -> Outcomes:
    """Find a stand-in for each node that an order gives up, near its other nodes.

    A stand-in is confirmed at once; the node given up is releasing, and never billed. A node that
    this order gave up before is not taken again.
    """
    known = await repository.reserved(session, call.operation_id, live=False)
    if not known:
        return dict.fromkeys(targets, Outcome("failed", "the order has no nodes"))
    await repository.lock_site(session, known[0].site_id)
    known = await repository.reserved(session, call.operation_id, live=False)
    stand_ins = {
        one.replaces: one.node_id
        for one in known
        if one.replaces and one.state != AllocationState.ENDED
    }
    outcomes: Outcomes = {}
    for target in targets:
        stand_in = stand_ins.get(target) or await _stand_in(session, call, known, target, now)
        outcomes[target] = (
            Outcome("done", result=stand_in)
            if stand_in
            else Outcome("failed", await _none_left(session, known, target, now))
        )
    return outcomes


async def _stand_in(
    session: AsyncSession,
    call: StepCall,
    known: list[Allocation],
    target: str,
    now: datetime,
) -> str | None:
    old = next(
        (one for one in known if one.node_id == target and one.state != AllocationState.ENDED),
        None,
    )
    if old is None:
        return None
    tried = {one.node_id for one in known}
    nodes = await repository.free_for(
        session, old.site_id, [old.node_type], await _barred(session, old, now)
    )
    wish = await _wish(session, call)
    cluster = await repository.of_cluster(session, _SCOPE, call.resource_id)
    going = {one.node_id for one in cluster if one.state != AllocationState.RELEASING} - {target}
    near = [node.candidate for node in nodes if node.node_id in going]
    free = [node for node in nodes if node.free and node.node_id not in tried]
    choice = place([node.candidate for node in free], 1, near, wish)
    if choice is None:
        return None
    chosen = next(node for node in free if node.node_id == choice.nodes[0].node_id)
    epochs = await repository.raise_epochs(session, [chosen.node_id, target])
    held = await repository.lock_allocations(session, [target], reserved_by=call.operation_id)
    domain.move(held[target], AllocationState.RELEASING, now, reason="given up by its order")
    held[target].epoch = epochs[target]
    await repository.save_allocations(session, [held[target]], now)
    # The slot of the node given up is free as of the transition above.
    new = _successor(old, chosen.node_id, epochs[chosen.node_id], old.slot, now)
    new.node_name, new.gpus, new.replaces = chosen.name, chosen.gpus, target
    await repository.add_allocations(session, [new], now)
    known.append(new)
    return chosen.node_id


async def _barred(session: AsyncSession, allocation: Allocation, now: datetime) -> frozenset[str]:
    """Nodes that are reserved for others in the time that the order has left."""
    ends_at = await repository_waiting.end_of(session, allocation.cluster_id)
    return await repository_reservations.barred(
        session, allocation.site_id, allocation.project_id, now, ends_at
    )


async def _wish(session: AsyncSession, call: StepCall) -> Wish:
    row = await repository.reservation(session, call.operation_id)
    if row is None:
        return Wish()
    return wish_of(await placement_of(session, Wishes.model_validate(row.wishes)))


async def _none_left(
    session: AsyncSession, known: Sequence[Allocation], target: str, now: datetime
) -> str:
    old = next((one for one in known if one.node_id == target), None)
    if old is None:
        return "the order does not have this node"
    nodes = await repository.free_for(
        session, old.site_id, [old.node_type], await _barred(session, old, now)
    )
    tried = {one.node_id for one in known}
    if free := sum(node.free and node.node_id not in tried for node in nodes):
        return f"none of the {free} free nodes of type {old.node_type} meets the order's wishes"
    reasons = why_not_free(old.node_type, nodes)
    counted = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    return f"no free node of type {old.node_type} is left ({counted})"


async def claim(
    session: AsyncSession, call: StepCall, targets: list[str], now: datetime
) -> Outcomes:
    """Take the right to act on nodes outside an order; waits while another operation has it."""
    claims = {one.node_id: one for one in await repository.live_claims(session, targets)}
    vacant = [node for node in targets if node not in claims]
    sites = await repository.sites_of(session, vacant)
    await repository.add_claims(session, sorted(sites.items()), call.operation_id, now)
    own = {node for node, one in claims.items() if one.operation_id == call.operation_id}
    return {
        node: DONE if node in own or node in sites else Outcome("pending", "claimed by another")
        for node in targets
    }


async def unclaim(
    session: AsyncSession, call: StepCall, targets: list[str], now: datetime
) -> Outcomes:
    """Give the right to act back."""
    await _end_own_claims(session, call, targets, now)
    return dict.fromkeys(targets, DONE)
