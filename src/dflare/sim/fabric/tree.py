"""Immutable JSON trees: the form in which an NVUE switch keeps its configurations.

A tree is never changed after it was made; every function returns a new one that shares what did
not change. So a revision costs the branches it touches, not a copy of the whole configuration.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Tree: TypeAlias = "dict[str, Json]"
Path: TypeAlias = tuple[str, ...]

_ABSENT = object()


def branch(tree: Json, *path: str) -> Tree:
    """The object at ``path``; an empty one where there is none."""
    found = find(tree, path)
    return found if isinstance(found, dict) else {}


def find(tree: Json, path: Sequence[str]) -> Json:
    """What stands at ``path``, or ``None``."""
    at: Json = tree
    for key in path:
        if not isinstance(at, dict) or key not in at:
            return None
        at = at[key]
    return at


def has(tree: Json, path: Sequence[str]) -> bool:
    """Whether ``path`` leads somewhere."""
    at: Json = tree
    for key in path:
        if not isinstance(at, dict) or key not in at:
            return False
        at = at[key]
    return True


def nest(path: Sequence[str], value: Json) -> Json:
    """``value`` below the objects of ``path``: the root patch that is equal to a targeted one."""
    for key in reversed(path):
        value = {key: value}
    return value


def merge(base: Tree, patch: Tree) -> Tree:
    """``base`` changed by the JSON merge patch ``patch`` (RFC 7396): ``null`` removes a key.

    One rule is the device's: ``link.state`` holds one of ``up`` and ``down``, so setting one
    removes the other.
    """
    return _merged(base, patch, ())


def remove(tree: Tree, path: Sequence[str]) -> Tree:
    """``tree`` without what stands at ``path``; the empty path removes everything."""
    if not path:
        return {}
    return merge(tree, cast("Tree", nest(path, None))) if has(tree, path) else tree


def diff(old: Tree, new: Tree) -> Tree:
    """The merge patch that turns ``old`` into ``new``; empty when they are equal."""
    patch: Tree = {}
    for key in old.keys() | new.keys():
        if key not in new:
            patch[key] = None
            continue
        after = new[key]
        before = old.get(key, _ABSENT)
        if before is after or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            patch[key] = diff(cast("Tree", before), after)
        else:
            patch[key] = after
    return patch


def clash(one: Tree, other: Tree) -> Path | None:
    """The first path at which two merge patches disagree, or ``None``."""
    for key in sorted(one.keys() & other.keys()):
        left, right = one[key], other[key]
        if isinstance(left, dict) and isinstance(right, dict):
            deeper = clash(left, right)
            if deeper is not None:
                return (key, *deeper)
        elif left != right:
            return (key,)
    return None


def removal(tree: Json) -> Json:
    """The merge patch that removes the leaves of ``tree`` (an ``unset`` payload)."""
    if not isinstance(tree, dict) or not tree:
        return None
    return {key: removal(value) for key, value in tree.items()}


def _merged(base: Mapping[str, Json], patch: Mapping[str, Json], path: Path) -> Tree:
    result: Tree = dict(base)
    if path[-2:] == ("link", "state") and any(value is not None for value in patch.values()):
        result = {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = _merged(below if isinstance(below, dict) else {}, value, (*path, key))
        else:
            result[key] = value
    return result
