"""A site as a tree, and the fewest groups of it that hold an order.

From the top: blocks (halls), rail blocks (nodes whose InfiniBand rails share their leaf switches),
racks (one Ethernet leaf each) and NVLink domains. At each level the candidates are narrowed to the
fewest groups that hold the order together; the level below chooses among the nodes of all of them.
Levels need not be nested, so a rack that stands in two rail blocks is no special case.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

Key = tuple[str, ...]
Groups = dict[Key, list["Candidate"]]
# How many groups have which number of nodes, for each of some levels.
_Sizes = tuple[Counter[int], ...]


@dataclass(frozen=True)
class Candidate:
    """A free node and where it stands.

    Racks are named within their block. ``rail_block`` is the set of nodes whose InfiniBand rails
    share their leaf switches, named by ``rail_block_named``; ``None`` where the node has no rails,
    or where they are not known.
    """

    node_id: str
    name: str
    rack: str
    block: str
    nvlink_domain: str | None
    rail_block: str | None = None


def rail_block_named(switch_of_rail: Mapping[int, str]) -> str | None:
    """The rail block of a node by the leaf switch of each of its rails; ``None`` without rails.

    Two nodes get the same name exactly where each of their rails is on the same switch.
    """
    return ",".join(switch_of_rail[rail] for rail in sorted(switch_of_rail)) or None


def block_of(node: Candidate) -> Key:
    """The block that a node stands in."""
    return (node.block,)


def rail_block_of(node: Candidate) -> Key:
    """The rail block; nodes of a block whose rails are not known are in one together."""
    return ("1", node.rail_block) if node.rail_block is not None else ("0", node.block)


def rack_of(node: Candidate) -> Key:
    """The rack, which has one Ethernet leaf."""
    return (node.block, node.rack)


def domain_of(node: Candidate) -> Key:
    """The NVLink domain; a node outside any is a domain of its own, so that others stay whole."""
    return ("1", node.nvlink_domain) if node.nvlink_domain is not None else ("0", node.name)


LEVELS: Final[tuple[Callable[[Candidate], Key], ...]] = (
    block_of,
    rail_block_of,
    rack_of,
    domain_of,
)

# A swap weighs every chosen group against every other: enough for the fragmented sites where it
# matters, and bounded so that an order of hundreds of nodes stays within its time.
_SWAPS_WEIGHED_AT_MOST: Final = 400


def pack(candidates: Sequence[Candidate], count: int, near: Sequence[Candidate]) -> list[Candidate]:
    """``count`` of the candidates in the fewest groups; there must be as many."""
    narrowed = list(candidates)
    for level in range(len(LEVELS) - 1):
        groups = grouped(narrowed, LEVELS[level])
        chosen = _fewest(groups, count, level, {LEVELS[level](node) for node in near})
        narrowed = [node for key in chosen for node in groups[key]]
    groups = grouped(narrowed, domain_of)
    *whole, last = _fewest(groups, count, len(LEVELS) - 1, {domain_of(node) for node in near})
    nodes = [node for key in whole for node in groups[key]]
    return nodes + sorted(groups[last], key=_by_name)[: count - len(nodes)]


def grouped(candidates: Iterable[Candidate], key: Callable[[Candidate], Key]) -> Groups:
    """Candidates by group, in their order."""
    groups: Groups = defaultdict(list)
    for node in candidates:
        groups[key(node)].append(node)
    return dict(groups)


def groups_below(nodes: Sequence[Candidate], count: int, level: int) -> tuple[int, ...]:
    """How many groups of each level below ``level`` hold ``count`` of the nodes at the least."""
    return _needed(_sizes_below(nodes, level), count)


def _sizes_below(nodes: Sequence[Candidate], level: int) -> _Sizes:
    return tuple(Counter(Counter(map(below, nodes)).values()) for below in LEVELS[level + 1 :])


def _needed(levels: _Sizes, count: int) -> tuple[int, ...]:
    return tuple(_fewest_of(sizes, count) for sizes in levels)


def _fewest_of(sizes: Counter[int], count: int) -> int:
    needed = 0
    for size in sorted(sizes, reverse=True):
        number = sizes[size]
        if size * number >= count:
            return needed + -(-count // size)
        count -= size * number
        needed += number
    return needed


def _fewest(groups: Groups, count: int, level: int, near: set[Key]) -> list[Key]:
    """The fullest groups until one holds the rest, then the one that suits best of those which do.

    The fullest first need the fewest. The last is one where the order has nodes already, then one
    with the fewest groups below, then the smallest, so that larger ones stay whole. All but the
    last are needed whole where no level below prefers otherwise.
    """
    ordered = sorted(groups, key=lambda key: (-len(groups[key]), key not in near, key))
    rest, first = count, 0
    while len(groups[ordered[first]]) < rest:
        rest -= len(groups[ordered[first]])
        first += 1
    holding = list(takewhile(lambda key: len(groups[key]) >= rest, ordered[first:]))
    last = min(
        holding,
        key=lambda key: (
            key not in near,
            groups_below(groups[key], rest, level),
            len(groups[key]),
            key,
        ),
    )
    chosen = [*ordered[:first], last]
    below = level + 1 < len(LEVELS)
    return _swapped(groups, chosen, count, level) if first and below else chosen


def _swapped(groups: Groups, chosen: list[Key], count: int, level: int) -> list[Key]:
    """As many groups as ``chosen``, other ones where that needs fewer groups at the levels below.

    Groups are exchanged one against one while that helps.
    """
    sizes = {key: _sizes_below(nodes, level) for key, nodes in groups.items()}
    least = _needed(_sum(sizes.values()), count)
    cost = _needed(_sum(sizes[key] for key in chosen), count)
    left = _SWAPS_WEIGHED_AT_MOST
    while cost > least:
        total = sum(len(groups[key]) for key in chosen)
        others = _one_of_each_kind(groups, sizes, groups.keys() - set(chosen))
        found = None
        for out in _one_of_each_kind(groups, sizes, chosen):
            kept = _sum(sizes[key] for key in chosen if key != out)
            for other in others:
                if total - len(groups[out]) + len(groups[other]) < count or not left:
                    continue
                left -= 1
                tried = _needed(_sum((kept, sizes[other])), count)
                if tried < cost:
                    cost, found = tried, (out, other)
        if found is None:
            break
        exchanged = [found[1] if key == found[0] else key for key in chosen]
        # The smallest last: it is the one that is not needed whole.
        chosen = sorted(exchanged, key=lambda key: (-len(groups[key]), key))
    return chosen


def _one_of_each_kind(groups: Groups, sizes: dict[Key, _Sizes], keys: Iterable[Key]) -> list[Key]:
    """Groups that are alike all the way down are interchangeable: the first by name of each."""
    kinds: dict[tuple[object, ...], Key] = {}
    for key in sorted(keys):
        kind = (
            len(groups[key]),
            *(tuple(sorted(level.items())) for level in sizes[key]),
        )
        kinds.setdefault(kind, key)
    return list(kinds.values())


def _sum(several: Iterable[_Sizes]) -> _Sizes:
    totals: list[Counter[int]] = []
    for levels in several:
        totals = totals or [Counter() for _ in levels]
        for total, sizes in zip(totals, levels, strict=True):
            for size, number in sizes.items():
                total[size] += number
    return tuple(totals)


def _by_name(node: Candidate) -> str:
    return node.name
