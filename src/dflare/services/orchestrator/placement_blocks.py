"""Whole groups of nodes for a reservation, all or nothing: pure, as all of placement."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dflare.services.orchestrator.contract import Same
from dflare.services.orchestrator.placement_pools import SiteNode


@dataclass(frozen=True)
class Blocks:
    """The groups chosen, with their nodes by name."""

    names: tuple[str, ...]
    nodes: tuple[SiteNode, ...]


@dataclass(frozen=True)
class NoBlocks:
    """Fewer groups can be had than wanted. ``reasons`` count the nodes that keep the others."""

    wanted: int
    able: int
    known: int
    reasons: dict[str, int]


def choose_blocks(
    nodes: Sequence[SiteNode],
    level: Same,
    count: int,
    in_the_way: Callable[[SiteNode], str | None],
) -> Blocks | NoBlocks:
    """Choose ``count`` whole groups of ``nodes``, which are all nodes of one type at a site.

    ``in_the_way`` says why a node cannot be had for the whole time. A group with one such node is
    not taken. The largest groups are, of equal ones the first by name.
    """
    groups: dict[str, list[SiteNode]] = defaultdict(list)
    for node in nodes:
        if (name := group_of(node, level)) is not None:
            groups[name].append(node)
    reasons: Counter[str] = Counter()
    able: list[str] = []
    for name, members in groups.items():
        found = [reason for node in members if (reason := in_the_way(node))]
        reasons.update(found)
        if not found:
            able.append(name)
    if len(able) < count:
        return NoBlocks(count, len(able), len(groups), dict(reasons.most_common()))
    chosen = sorted(able, key=lambda name: (-len(groups[name]), name))[:count]
    members = [node for name in chosen for node in groups[name]]
    return Blocks(tuple(sorted(chosen)), tuple(sorted(members, key=lambda node: node.name)))


def group_of(node: SiteNode, level: Same) -> str | None:
    """The name of a node's group; ``None`` where it is in none, or in none that is known."""
    match level:
        case Same.BLOCK:
            return node.block
        case Same.LEAF:
            return f"{node.block}/{node.rack}"
        case Same.RAIL_BLOCK:
            return node.rail_block
        case Same.NVLINK_DOMAIN:
            return node.nvlink_domain
