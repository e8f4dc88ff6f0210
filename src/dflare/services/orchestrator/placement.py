"""Which of the free nodes an order gets: a pure function of candidates and wishes.

An order is packed unless it wishes otherwise: it touches as few blocks, rail blocks, racks and
NVLink domains as it can, seen from the top (``placement_tree``). The answer is deterministic: ties
go to the name. docs/adr/0011-placement.md has the rules and why.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

from dflare.services.orchestrator.contract import Same, Shape
from dflare.services.orchestrator.placement_tree import (
    Candidate,
    Groups,
    Key,
    block_of,
    domain_of,
    grouped,
    groups_below,
    pack,
    rack_of,
    rail_block_named,
    rail_block_of,
)

__all__ = ["Alternative", "Candidate", "Choice", "Refusal", "Same", "Shape", "Wish"]
__all__ += ["choose", "in_groups_that_hold", "place", "rail_block_named"]


@dataclass(frozen=True)
class Wish:
    """What an order wishes of its nodes. ``exclude`` has ids or names of nodes it must not get.

    Raises:
        ValueError: a spread over racks is wished within one rack.
    """

    shape: Shape = Shape.PACK
    same: Same | None = None
    exclude: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.shape is Shape.SPREAD and self.same in (Same.NVLINK_DOMAIN, Same.LEAF):
            raise ValueError(f"spread goes over racks; the same {self.same} stands in one")


NO_WISH: Final = Wish()


@dataclass(frozen=True)
class Choice:
    """The nodes chosen, in the order of their names, and why these."""

    nodes: tuple[Candidate, ...]
    explanation: str


@dataclass(frozen=True)
class Alternative:
    """What would be possible without some wishes (``same``, ``exclude``)."""

    without: tuple[str, ...]
    choice: Choice


@dataclass(frozen=True)
class Refusal:
    """An order that cannot be placed now.

    ``unmet``: the wishes (``same``, ``exclude``) that stand in its way; empty where too few nodes
    are free whatever it wishes. ``most``: nodes that an order with the same wishes could have.
    ``alternatives``: one for each wish without which it could be placed; where none suffices
    alone, one without all.
    """

    wanted: int
    free: int
    most: int
    unmet: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    explanation: str


_WORDS: Final = {
    Same.NVLINK_DOMAIN: "NVLink domain",
    Same.LEAF: "leaf",
    Same.RAIL_BLOCK: "rail block",
    Same.BLOCK: "block",
}
_KEYS: Final[dict[Same, tuple[int, Callable[[Candidate], Key]]]] = {
    Same.BLOCK: (0, block_of),
    Same.RAIL_BLOCK: (1, rail_block_of),
    Same.LEAF: (2, rack_of),
    Same.NVLINK_DOMAIN: (3, domain_of),
}


def place(
    candidates: Sequence[Candidate],
    count: int,
    near: Sequence[Candidate] = (),
    wish: Wish = NO_WISH,
) -> Choice | None:
    """Choose ``count`` of ``candidates``, close to ``near``; ``None`` where ``choose`` refuses."""
    answer = choose(candidates, count, near, wish)
    return answer if isinstance(answer, Choice) else None


def choose(
    candidates: Sequence[Candidate],
    count: int,
    near: Sequence[Candidate] = (),
    wish: Wish = NO_WISH,
) -> Choice | Refusal:
    """Choose ``count`` of ``candidates`` as wished, or say which wish cannot be met.

    ``near`` are nodes that the order has already. A wish for one group includes them; a spread
    counts them, so that a stand-in goes where the order has the fewest.

    Raises:
        ValueError: ``count`` is less than one.
    """
    if count < 1:
        raise ValueError(f"an order has at least one node, not {count}")
    return _try(candidates, count, near, wish) or _refuse(candidates, count, near, wish)


def in_groups_that_hold(
    several: Sequence[tuple[Sequence[Candidate], int]],
    near: Sequence[Candidate],
    wish: Wish,
) -> list[Sequence[Candidate]]:
    """Candidates of each part of an order (with its count) in those groups that hold every part;
    all of them where nothing has to lie in one group, or where no group holds all."""
    everything = [candidates for candidates, _ in several]
    if wish.same is None:
        return everything
    _, key = _KEYS[wish.same]
    common: set[Key] | None = None
    for candidates, count in several:
        groups = _eligible(_allowed(candidates, wish), near, wish.same)
        holding = {name for name, nodes in groups.items() if len(nodes) >= count}
        common = holding if common is None else common & holding
    if not common:
        return everything
    return [[node for node in part if key(node) in common] for part in everything]


def _try(
    candidates: Sequence[Candidate], count: int, near: Sequence[Candidate], wish: Wish
) -> Choice | None:
    allowed = _allowed(candidates, wish)
    if len(allowed) < count:
        return None
    within = allowed
    if wish.same is not None:
        groups = _eligible(allowed, near, wish.same)
        holding = {key: nodes for key, nodes in groups.items() if len(nodes) >= count}
        if not holding:
            return None
        within = _best_group(holding, count, wish)
    nodes = (
        _spread(within, count, near) if wish.shape is Shape.SPREAD else pack(within, count, near)
    )
    nodes.sort(key=lambda node: (node.block, node.rack, node.name))
    return Choice(tuple(nodes), _explain(candidates, allowed, nodes, near, wish))


def _allowed(candidates: Sequence[Candidate], wish: Wish) -> Sequence[Candidate]:
    if not wish.exclude:
        return candidates
    return [
        node
        for node in candidates
        if node.node_id not in wish.exclude and node.name not in wish.exclude
    ]


def _eligible(candidates: Sequence[Candidate], near: Sequence[Candidate], same: Same) -> Groups:
    """The groups that may hold the whole order: only the one where it has nodes, if it has any."""
    _, key = _KEYS[same]
    known = candidates
    if same is Same.RAIL_BLOCK:
        known = [node for node in candidates if node.rail_block is not None]
    groups = grouped(known, key)
    held = {key(node) for node in near}
    if not held:
        return groups
    return {name: groups[name] for name in held if name in groups and len(held) == 1}


def _best_group(holding: Groups, count: int, wish: Wish) -> list[Candidate]:
    assert wish.same is not None, "called for orders that wish one group"
    level, _ = _KEYS[wish.same]

    def rank(key: Key) -> tuple[tuple[int, ...], int, Key]:
        nodes = holding[key]
        if wish.shape is Shape.SPREAD:
            racks = len({rack_of(node) for node in nodes})
            return ((-min(racks, count),), len(nodes), key)
        return (groups_below(nodes, count, level), len(nodes), key)

    return holding[min(holding, key=rank)]


def _spread(
    candidates: Sequence[Candidate], count: int, near: Sequence[Candidate]
) -> list[Candidate]:
    """Node after node to the rack with the fewest of the order, of those to the one most free."""
    racks = {
        key: sorted(nodes, key=lambda node: node.name, reverse=True)
        for key, nodes in grouped(candidates, rack_of).items()
    }
    held = Counter(rack_of(node) for node in near)
    queue = [(held[key], -len(nodes), key) for key, nodes in racks.items()]
    heapify(queue)
    chosen: list[Candidate] = []
    while len(chosen) < count:
        taken, free, key = heappop(queue)
        chosen.append(racks[key].pop())
        if racks[key]:
            heappush(queue, (taken + 1, free + 1, key))
    return chosen


def _refuse(
    candidates: Sequence[Candidate], count: int, near: Sequence[Candidate], wish: Wish
) -> Refusal:
    allowed = _allowed(candidates, wish)
    most = len(allowed)
    if wish.same is not None:
        most = max(map(len, _eligible(allowed, near, wish.same).values()), default=0)
    alternatives = _alternatives(candidates, count, near, wish)
    unmet = tuple(sorted({name for one in alternatives for name in one.without}))
    parts = [f"{count} nodes wanted, {len(candidates)} are free"]
    if not alternatives:
        parts[0] += f", {count - len(candidates)} are missing"
    if len(allowed) < len(candidates):
        excluded = len(candidates) - len(allowed)
        parts.append(f"{excluded} of the free nodes are excluded, {len(allowed)} are left")
    if wish.same is not None:
        parts.append(_why_not_same(allowed, near, wish.same, most))
    parts += [
        f"without {' and '.join(_named_wish(name, wish) for name in one.without)}: "
        f"{one.choice.explanation}"
        for one in alternatives
    ]
    return Refusal(count, len(candidates), most, unmet, alternatives, "; ".join(parts))


def _alternatives(
    candidates: Sequence[Candidate], count: int, near: Sequence[Candidate], wish: Wish
) -> tuple[Alternative, ...]:
    fewer: list[tuple[tuple[str, ...], Wish]] = []
    if wish.same is not None:
        fewer.append((("same",), Wish(wish.shape, None, wish.exclude)))
    if len(_allowed(candidates, wish)) < len(candidates):
        fewer.append((("exclude",), Wish(wish.shape, wish.same)))
    # Without both is worth saying only where neither suffices alone.
    both = [(("same", "exclude"), Wish(wish.shape))] if len(fewer) > 1 else []
    for tries in (fewer, both):
        found = tuple(
            Alternative(without, choice)
            for without, less in tries
            if (choice := _try(candidates, count, near, less))
        )
        if found:
            return found
    return ()


def _why_not_same(
    allowed: Sequence[Candidate], near: Sequence[Candidate], same: Same, most: int
) -> str:
    word = _WORDS[same]
    if same is Same.RAIL_BLOCK and all(node.rail_block is None for node in allowed):
        return "no free node is known to stand in a rail block"
    if near:
        _, key = _KEYS[same]
        held = len({key(node) for node in near})
        if held > 1:
            return f"the order has nodes in {held} {word}s already"
        return f"the {word} that the order has nodes in has {most} more free"
    return f"the {word} with the most free nodes has {most}"


def _named_wish(name: str, wish: Wish) -> str:
    return f"the wish for one {_WORDS[wish.same]}" if name == "same" and wish.same else "exclusion"


def _explain(
    candidates: Sequence[Candidate],
    allowed: Sequence[Candidate],
    chosen: Sequence[Candidate],
    near: Sequence[Candidate],
    wish: Wish,
) -> str:
    racks = sorted({rack_of(node) for node in chosen})
    rails = sorted({node.rail_block for node in chosen if node.rail_block is not None})
    blocks = sorted({node.block for node in chosen})
    where = [_named("rack", [rack for _, rack in racks])]
    if rails:
        where.append(_named("rail block", [_first_to_last(name) for name in rails]))
    where.append(_named("block", blocks))
    parts = [f"{len(chosen)} of {len(candidates)} free nodes in {' of '.join(where)}"]
    sizes = Counter(node.nvlink_domain for node in candidates if node.nvlink_domain)
    taken = Counter(node.nvlink_domain for node in chosen if node.nvlink_domain)
    split = sum(1 for domain, number in taken.items() if number < sizes[domain])
    if taken:
        parts.append(f"{len(taken) - split} NVLink domains taken whole, {split} in part")
    if near:
        close = sum(1 for node in chosen if any(node.block == other.block for other in near))
        parts.append(f"{close} in a block that the order has nodes in already")
    if wish.shape is Shape.SPREAD:
        per_rack = Counter(map(rack_of, [*chosen, *near]))
        most = max(per_rack[rack] for rack in racks)
        parts.append(f"spread, at most {most} of the order in a rack")
    if wish.same is not None:
        parts.append(f"all in the same {_WORDS[wish.same]}, as wished")
    if wish.exclude:
        parts.append(f"{len(candidates) - len(allowed)} free nodes excluded")
    return "; ".join(parts)


def _first_to_last(rail_block: str) -> str:
    """A rail block in words: its switches are as many as rails, and named alike."""
    first, *others = rail_block.split(",")
    return f"{first} to {others[-1]}" if others else first


def _named(kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{len(names)} {kind}{'s' if len(names) != 1 else ''} ({shown})"
