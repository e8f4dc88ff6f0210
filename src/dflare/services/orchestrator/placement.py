"""Which of the free nodes an order gets: a pure function of candidates and wishes.

The site is a tree of blocks (scalable units whose rails share their leaf switches), racks and
NVLink domains. An order should touch as few of each as it can, seen from the top: at every level
the fullest groups are taken whole until one group can hold the rest, and that is the smallest
which can. The answer is deterministic: ties go to the name.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A free node and where it stands."""

    node_id: str
    name: str
    rack: str
    block: str
    nvlink_domain: str | None


@dataclass(frozen=True)
class Choice:
    """The nodes chosen, in the order of their names, and why these."""

    nodes: tuple[Candidate, ...]
    explanation: str


@dataclass(frozen=True)
class _Near:
    """Blocks and racks that the order has nodes in already."""

    blocks: frozenset[str]
    racks: frozenset[tuple[str, str]]


_Groups = dict[str, list[Candidate]]


def place(
    candidates: Sequence[Candidate], count: int, near: Sequence[Candidate] = ()
) -> Choice | None:
    """Choose ``count`` of ``candidates``, close to ``near``; ``None`` where there are too few."""
    if len(candidates) < count:
        return None
    close = _Near(
        frozenset(node.block for node in near),
        frozenset((node.block, node.rack) for node in near),
    )
    chosen = _from_blocks(candidates, count, close)
    chosen.sort(key=lambda node: (node.block, node.rack, node.name))
    return Choice(tuple(chosen), _explain(candidates, chosen, near))


def _from_blocks(candidates: Sequence[Candidate], count: int, near: _Near) -> list[Candidate]:
    groups = _grouped(candidates, lambda node: node.block)

    def descend(block: str, wanted: int) -> list[Candidate]:
        return _from_racks(groups[block], wanted, near)

    return _take(
        groups,
        count,
        prefer=lambda block: block in near.blocks,
        parts=lambda block, wanted: _racks_needed(groups[block], wanted),
        descend=descend,
    )


def _from_racks(candidates: Sequence[Candidate], count: int, near: _Near) -> list[Candidate]:
    groups = _grouped(candidates, lambda node: node.rack)
    block = candidates[0].block
    return _take(
        groups,
        count,
        prefer=lambda rack: (block, rack) in near.racks,
        parts=lambda rack, wanted: _domains_touched(groups[rack], wanted),
        descend=lambda rack, wanted: _from_domains(groups[rack], wanted),
    )


def _from_domains(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    # A node outside any NVLink domain is a domain of its own, so that whole ones stay whole.
    groups = _grouped(candidates, lambda node: node.nvlink_domain or f"~{node.name}")
    return _take(
        groups,
        count,
        prefer=lambda _: False,
        parts=lambda _, __: 0,
        descend=lambda domain, wanted: sorted(groups[domain], key=_by_name)[:wanted],
    )


def _take(
    groups: _Groups,
    count: int,
    *,
    prefer: Callable[[str], bool],
    parts: Callable[[str, int], int],
    descend: Callable[[str, int], list[Candidate]],
) -> list[Candidate]:
    """Whole groups from the fullest on, then the rest from the smallest group that holds it.

    Taking the fullest first needs the fewest groups. ``parts`` is how many groups of the level
    below a group would give ``wanted`` nodes from.
    """
    chosen: list[Candidate] = []
    left = dict(groups)
    while count:
        holding = [name for name, nodes in left.items() if len(nodes) >= count]
        if holding:
            best = min(
                holding,
                key=lambda name: (
                    not prefer(name),
                    parts(name, count),
                    len(left[name]),
                    name,
                ),
            )
            return chosen + descend(best, count)
        fullest = min(left, key=lambda name: (-len(left[name]), not prefer(name), name))
        nodes = left.pop(fullest)
        chosen.extend(nodes)
        count -= len(nodes)
    return chosen


def _racks_needed(candidates: Sequence[Candidate], wanted: int) -> int:
    return _groups_needed(Counter(node.rack for node in candidates), wanted)


def _domains_touched(candidates: Sequence[Candidate], wanted: int) -> int:
    return _groups_needed(
        Counter(node.nvlink_domain or f"~{node.name}" for node in candidates), wanted
    )


def _groups_needed(sizes: Counter[str], wanted: int) -> int:
    needed = 0
    for size in sorted(sizes.values(), reverse=True):
        if wanted <= 0:
            break
        wanted -= size
        needed += 1
    return needed


def _grouped(candidates: Sequence[Candidate], key: Callable[[Candidate], str]) -> _Groups:
    groups: _Groups = defaultdict(list)
    for node in candidates:
        groups[key(node)].append(node)
    return dict(groups)


def _by_name(node: Candidate) -> str:
    return node.name


def _explain(
    candidates: Sequence[Candidate], chosen: Sequence[Candidate], near: Sequence[Candidate]
) -> str:
    racks = sorted({(node.block, node.rack) for node in chosen})
    blocks = sorted({node.block for node in chosen})
    sizes = Counter(node.nvlink_domain for node in candidates if node.nvlink_domain)
    taken = Counter(node.nvlink_domain for node in chosen if node.nvlink_domain)
    split = sum(1 for domain, number in taken.items() if number < sizes[domain])
    where = f"{_named('rack', [r for _, r in racks])} of {_named('block', blocks)}"
    parts = [f"{len(chosen)} of {len(candidates)} free nodes in {where}"]
    if taken:
        parts.append(f"{len(taken) - split} NVLink domains taken whole, {split} in part")
    if near:
        close = sum(1 for node in chosen if any(node.block == other.block for other in near))
        parts.append(f"{close} in a block that the order has nodes in already")
    return "; ".join(parts)


def _named(kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{len(names)} {kind}{'s' if len(names) != 1 else ''} ({shown})"
