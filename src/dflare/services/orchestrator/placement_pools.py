"""The free nodes of a site, and those that each pool of an order gets. Pure, as placement is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from dflare.services.orchestrator.contract import PlacementWish, PoolWish
from dflare.services.orchestrator.errors import CapacityError
from dflare.services.orchestrator.placement import (
    Candidate,
    Refusal,
    Wish,
    choose,
    in_groups_that_hold,
)

_STATES_IN_WORDS = {
    "declared": "not enrolled yet",
    "enrolling": "being enrolled",
    "preparing": "being cleaned or prepared",
    "provisioning": "being cleaned or prepared",
    "cleaning": "being cleaned or prepared",
    "active": "held by other orders",
    "rescue": "held by other orders",
}
_WISHES_IN_WORDS = {"same": "the wish for one group", "exclude": "the exclusions"}


@dataclass(frozen=True)
class SiteNode:
    """A node as placement sees it; ``busy`` where an order or another operation has it, and
    ``reserved`` where it is kept for another project than the one that asks."""

    node_id: str
    name: str
    node_type: str
    gpus: int
    rack: str
    block: str
    nvlink_domain: str | None
    rail_block: str | None
    state: str
    cordoned: bool
    busy: bool
    reserved: bool = False

    @property
    def free(self) -> bool:
        """Whether an order may have it."""
        usable = self.state == "available" and not self.cordoned
        return usable and not self.busy and not self.reserved

    @property
    def candidate(self) -> Candidate:
        """The node as the choice of nodes takes it."""
        return Candidate(
            self.node_id, self.name, self.rack, self.block, self.nvlink_domain, self.rail_block
        )


@dataclass(frozen=True)
class Chosen:
    """A node for a pool of an order."""

    pool: str
    node: SiteNode


@dataclass(frozen=True)
class Placement:
    """The nodes of all pools, in the order of the pools, and why these."""

    chosen: tuple[Chosen, ...]
    explanation: str


@dataclass(frozen=True)
class PoolRefusal:
    """The pool that cannot be placed, and why."""

    pool: PoolWish
    refusal: Refusal


def wanted_by_type(pools: Sequence[PoolWish]) -> Counter[str]:
    """How many nodes of each type some pools want together."""
    wanted: Counter[str] = Counter()
    for pool in pools:
        wanted[pool.node_type] += pool.count
    return wanted


def wish_of(placement: PlacementWish | None) -> Wish:
    """A wish as the choice of nodes takes it."""
    if placement is None:
        return Wish()
    return Wish(placement.shape, placement.same, frozenset(placement.exclude))


def place_pools(
    pools: Sequence[PoolWish],
    free: Sequence[SiteNode],
    near: Sequence[SiteNode],
    wish: Wish,
) -> Placement | PoolRefusal:
    """Choose nodes for every pool: the largest first, each next one near those before.

    ``near`` are nodes that the cluster has already. Where all must lie in one group, only groups
    that hold every pool are looked at, as long as there is one.
    """
    by_id = {node.node_id: node for node in free}
    left = _candidates(pools, free, near, wish)
    taken = [node.candidate for node in near]
    chosen: dict[str, list[Chosen]] = {}
    explanations: dict[str, str] = {}
    for pool in sorted(pools, key=lambda one: -one.count):
        answer = choose(left[pool.node_type], pool.count, taken, wish)
        if isinstance(answer, Refusal):
            return PoolRefusal(pool, answer)
        taken.extend(answer.nodes)
        used = {node.node_id for node in answer.nodes}
        left[pool.node_type] = [n for n in left[pool.node_type] if n.node_id not in used]
        chosen[pool.pool] = [Chosen(pool.pool, by_id[node.node_id]) for node in answer.nodes]
        explanations[pool.pool] = f"{pool.pool}: {answer.explanation}"
    return Placement(
        tuple(one for pool in pools for one in chosen[pool.pool]),
        ". ".join(explanations[pool.pool] for pool in pools),
    )


def _candidates(
    pools: Sequence[PoolWish],
    free: Sequence[SiteNode],
    near: Sequence[SiteNode],
    wish: Wish,
) -> dict[str, Sequence[Candidate]]:
    wanted = wanted_by_type(pools)
    by_type: dict[str, list[Candidate]] = {node_type: [] for node_type in wanted}
    for node in free:
        if node.node_type in by_type:
            by_type[node.node_type].append(node.candidate)
    if len(pools) == 1:
        return dict(by_type)
    narrowed = in_groups_that_hold(
        [(by_type[node_type], count) for node_type, count in wanted.items()],
        [node.candidate for node in near],
        wish,
    )
    return dict(zip(wanted, narrowed, strict=True))


def why_not_free(node_type: str, nodes: Sequence[SiteNode]) -> dict[str, int]:
    """Counts of a type's nodes that are not free, by reason; other tenants are not named."""
    reasons: Counter[str] = Counter()
    for node in nodes:
        if node.node_type != node_type or node.free:
            continue
        if node.state in ("quarantine", "failed", "maintenance"):
            reasons[f"in {node.state}" if node.state != "failed" else "failed"] += 1
        elif node.busy:
            reasons["held by other orders"] += 1
        elif node.reserved:
            reasons["reserved for other projects"] += 1
        elif node.state != "available":
            reasons[_STATES_IN_WORDS.get(node.state, node.state)] += 1
        else:
            reasons["cordoned"] += 1
    return dict(reasons.most_common())


def capacity_error(
    pools: Sequence[PoolWish], nodes: Sequence[SiteNode], free: Sequence[SiteNode], of: PoolRefusal
) -> CapacityError:
    """The refusal of an order: too few free nodes, or a wish that they cannot meet."""
    counts = Counter(node.node_type for node in free)
    for node_type, wanted in sorted(wanted_by_type(pools).items()):
        if counts[node_type] < wanted:
            return _too_few(node_type, wanted, counts[node_type], nodes)
    return _unmet(of)


def _too_few(node_type: str, wanted: int, free: int, nodes: Sequence[SiteNode]) -> CapacityError:
    reasons = why_not_free(node_type, nodes)
    others = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    return CapacityError(
        f"{wanted} nodes of type {node_type} wanted, {free} are free, {wanted - free} are missing"
        + (f"; the others: {others}" if others else "; the site has no others"),
        next_step="Order fewer nodes or another type, or try again when others were released.",
        node_type=node_type,
        wanted=wanted,
        free=free,
        missing=wanted - free,
        not_free=dict[str, JsonValue](reasons),
    )


def _unmet(of: PoolRefusal) -> CapacityError:
    refusal = of.refusal
    alternatives: list[JsonValue] = [
        {"without": list[JsonValue](one.without), "placement": one.choice.explanation}
        for one in refusal.alternatives
    ]
    in_words = " and ".join(_WISHES_IN_WORDS[name] for name in refusal.unmet)
    return CapacityError(
        f"the wishes for pool {of.pool.pool} cannot be met: {refusal.explanation}",
        next_step=f"Order without {in_words}, order fewer nodes, or try again later."
        if in_words
        else "Order fewer nodes, or try again later.",
        node_type=of.pool.node_type,
        wanted=refusal.wanted,
        free=refusal.free,
        most=refusal.most,
        unmet=list[JsonValue](refusal.unmet),
        alternatives=alternatives,
    )
