"""The ground-truth log: what really happened to the hardware, in the order in which it happened.

Expected bills and isolation are computed from it, never from the product's database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, cast

import orjson

from dflare.sim.clock import SimClock


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact. ``seq`` starts at 1 and has no gaps; ``at_wall`` is real UTC, ``at_sim`` simulated
    seconds since the start; ``facts`` holds JSON values.
    """

    seq: int
    at_wall: datetime
    at_sim: float
    kind: str
    subject: str
    facts: dict[str, object]

    def document(self) -> dict[str, object]:
        """The flat JSON object that stands in the file and in ``GET /truth/log``."""
        return {
            "seq": self.seq,
            "at_wall": self.at_wall.isoformat(),
            "at_sim": round(self.at_sim, 6),
            "kind": self.kind,
            "subject": self.subject,
            **self.facts,
        }


class TruthLog:
    """An append-only log in memory, copied line by line (JSON) to ``path`` where one is given."""

    def __init__(self, path: Path | None, clock: SimClock) -> None:
        self._clock = clock
        self._entries: list[Entry] = []
        self._file: IO[bytes] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def append(self, kind: str, subject: str, **facts: object) -> Entry:
        """Record that ``kind`` happened to ``subject`` now.

        Sets, frozensets and tuples among the facts become lists (sets sorted), so that the log in
        memory equals what a reader of the file gets.

        Raises:
            TypeError: a fact is not a JSON value.
            OSError: the file cannot be written.
        """
        entry = Entry(
            seq=len(self._entries) + 1,
            at_wall=datetime.now(UTC),
            at_sim=self._clock.now_s(),
            kind=kind,
            subject=subject,
            facts={name: _plain(value) for name, value in facts.items()},
        )
        line = orjson.dumps(entry.document(), option=orjson.OPT_APPEND_NEWLINE)
        self._entries.append(entry)
        if self._file is not None:
            self._file.write(line)
        return entry

    def entries(
        self, kind: str | None = None, subject: str | None = None, after: int = 0
    ) -> list[Entry]:
        """The entries with a ``seq`` above ``after``, in order, filtered by kind and subject."""
        return [
            entry
            for entry in self._entries[max(after, 0) :]
            if (kind is None or entry.kind == kind)
            and (subject is None or entry.subject == subject)
        ]

    def close(self) -> None:
        """Close the file; later entries stay in memory only."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in cast("set[object]", value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    return value
