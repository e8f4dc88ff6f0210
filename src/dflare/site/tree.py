"""YAML text as plain data, with the line and column of every key.

Scalars follow the core schema of YAML 1.2.2 (section 10.3.2), with decimal integers only, and not
the 1.1 rules of PyYAML's own constructor: a MAC address of digits stays text (1.1 reads it as a
number to base 60), ``no`` is no boolean, and digits with a leading zero stay text, as in a GUID.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, cast

import yaml

from dflare.site.problems import KeyPath, SiteProblem, path_text

_PLAIN: Final = "plain"
_QUOTED: Final = "quoted"
_COLLECTION: Final = "collection"
_DEPTH_AT_MOST: Final = 32
_VALUES_AT_MOST: Final = 4_000_000
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, bool | None]] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


class _Composer(yaml.CSafeLoader):
    """libyaml's composer; a tag tells only whether a scalar was quoted, which is all we need.

    The composer calls itself for every level and would end the process on a text of brackets alone,
    so the hooks that it calls around each node count the levels.
    """

    _depth = 0

    def resolve(self, kind: type, value: object, implicit: object) -> str:
        del value
        if kind is not yaml.ScalarNode:
            return _COLLECTION
        return _PLAIN if isinstance(implicit, tuple) and implicit[0] else _QUOTED

    def descend_resolver(self, current_node: object, current_index: object) -> None:
        self._depth += 1
        if self._depth > _DEPTH_AT_MOST:
            mark = current_node.start_mark if isinstance(current_node, yaml.Node) else None
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {_DEPTH_AT_MOST} levels",
                problem_mark=cast("yaml.Mark | None", mark),
            )

    def ascend_resolver(self) -> None:
        self._depth -= 1


@dataclass(frozen=True)
class Tree:
    """A parsed document: ``data`` of dicts, lists and scalars, and the problems met on the way."""

    data: object
    problems: tuple[SiteProblem, ...]
    _root: yaml.Node

    def locate(self, path: KeyPath, *, key: bool = False) -> tuple[int, int]:
        """Line and column of the value at ``path``, or of its key; else of the nearest parent."""
        mark: yaml.Node = self._root
        node: yaml.Node = self._root
        for part in path:
            step = _child(node, part)
            if step is None:
                return _place(mark)
            mark, node = step
        return _place(mark if key else node)


def parse_tree(text: bytes) -> Tree:
    """Parse one YAML (or JSON) document.

    Raises:
        yaml.YAMLError: the text is no YAML; ``syntax_problem`` turns it into a problem.
    """
    root = yaml.compose(text, Loader=_Composer)
    if root is None:
        problem = SiteProblem(1, 1, "", "the document is empty", "start from docs/how-to/site.md")
        return Tree(None, (problem,), yaml.ScalarNode(_PLAIN, "", _start(), _start()))
    reader = _Reader()
    data = reader.read(root, ())
    return Tree(data, tuple(reader.problems), root)


def syntax_problem(error: yaml.YAMLError) -> SiteProblem:
    """Say where libyaml stopped, and why."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}: " if error.context else ""
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return SiteProblem(
            line,
            column,
            "",
            f"YAML syntax: {context}{error.problem}",
            "look for a missing quote, bracket, colon or space at this line or the one above",
        )
    return SiteProblem(1, 1, "", f"YAML syntax: {error}", "save the file as UTF-8 text")


class _Reader:
    def __init__(self) -> None:
        self.problems: list[SiteProblem] = []
        self._done: dict[int, tuple[object, int]] = {}
        self._count = 0
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: KeyPath) -> object:
        self._count += 1
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        marker = id(node)
        if marker in self._done:
            value, size = self._done[marker]
            self._count += size
            if self._count > _VALUES_AT_MOST:
                raise yaml.MarkedYAMLError(
                    problem=f"aliases stand for more than {_VALUES_AT_MOST:,} values",
                    problem_mark=cast("yaml.Mark", node.start_mark),
                )
            return value
        if marker in self._open:
            self._report(node, path, "an alias stands inside its own anchor", "write it out")
            return None
        if node.tag != _COLLECTION:
            self._report(node, path, f"tag {node.tag} is not known here", "leave the tag out")
        self._open.add(marker)
        before = self._count
        if isinstance(node, yaml.MappingNode):
            value = self._mapping(node, path)
        else:
            items = cast("list[yaml.Node]", node.value)
            value = [self.read(item, (*path, i)) for i, item in enumerate(items)]
        self._open.discard(marker)
        self._done[marker] = value, self._count - before
        return value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(
                    key_node, path, "a key must be a plain word", "quote text with brackets"
                )
                continue
            key = cast("str", key_node.value)
            if key in result:
                first = _child(node, key)
                line = _place(first[0])[0] if first else 0
                self._report(
                    key_node,
                    (*path, key),
                    f"the key stands twice, first in line {line}",
                    "keep one",
                )
                continue
            result[key] = self.read(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> object:
        text = cast("str", node.value)
        if node.tag == _QUOTED:
            return text
        if node.tag != _PLAIN:
            self._report(node, path, f"tag {node.tag} is not known here", "leave the tag out")
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _report(self, node: yaml.Node, path: KeyPath, message: str, hint: str) -> None:
        self.problems.append(SiteProblem(*_place(node), path_text(path), message, hint))


def _child(node: yaml.Node, part: Hashable) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the key's node (an item's own in a list) and the value's node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            if key.value == part:
                return key, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
        items = cast("list[yaml.Node]", node.value)
        if part < len(items):
            return items[part], items[part]
    return None


def _place(node: yaml.Node) -> tuple[int, int]:
    mark = cast("yaml.Mark", node.start_mark)
    return mark.line + 1, mark.column + 1


def _start() -> yaml.Mark:
    return yaml.Mark("", 0, 0, 0, None, 0)
