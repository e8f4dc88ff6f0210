"""What is wrong with a document, where, and what to write instead."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

PROBLEMS_AT_MOST: Final = 50

KeyPath = tuple[str | int, ...]


def path_text(path: KeyPath) -> str:
    """Write a path as people do: ``nodes[3].bmc.address``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def did_you_mean(value: str, candidates: Iterable[str]) -> str | None:
    """Return ``did you mean X?`` for the nearest candidate, or None where none is near."""
    near = get_close_matches(value, list(candidates), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None


@dataclass(frozen=True)
class SiteProblem:
    """One finding. ``line`` and ``column`` count from 1; ``path`` is ``nodes[3].bmc.address``.

    In a fleet CSV ``path`` is the column's name, and empty for the file as a whole.
    """

    line: int
    column: int
    path: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        way_out = f" ({self.hint})" if self.hint else ""
        return f"{self.line}:{self.column}: {where}{self.message}{way_out}"


class SiteErrors(ValueError):  # noqa: N818  # It holds many errors, as ExceptionGroup does.
    """A document was refused: all its problems in the order of its lines, at most 50 of them.

    ``source`` names the document, ``left_out`` counts the problems beyond the limit.
    """

    def __init__(self, source: str, problems: Sequence[SiteProblem], left_out: int = 0) -> None:
        ordered = sorted(problems, key=lambda p: (p.line, p.column, p.path, p.message))
        self.source = source
        self.problems = tuple(ordered[:PROBLEMS_AT_MOST])
        self.left_out = left_out + len(ordered) - len(self.problems)
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [f"{self.source}:{problem}" for problem in self.problems]
        if self.left_out:
            lines.append(f"{self.source}: {self.left_out} more problems are not shown")
        return "\n".join(lines)
