"""The check of `@pytest.mark.requirement("CNP06")`: only ids of docs/requirements-ids.md count."""

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parent.parent / "docs" / "requirements-ids.md"
ID = re.compile(r"\b(?P<area>[A-Z][A-Z0-9]*?)(?P<number>\d{2})\b")


def requirement_ids(text: str) -> frozenset[str]:
    """The ids in the first column of the tables; `STG03-STG06` stands for all four."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    ids: set[str] = set()
    for cell in cells:
        for part in cell.split(","):
            found = list(ID.finditer(part))
            if len(found) == 2 and found[0]["area"] == found[1]["area"]:
                first, last = int(found[0]["number"]), int(found[1]["number"])
                ids |= {f"{found[0]['area']}{number:02}" for number in range(first, last + 1)}
            else:
                ids |= {match.group() for match in found}
    return frozenset(ids)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a `requirement` marker whose id is not in docs/requirements-ids.md."""
    known = requirement_ids(REQUIREMENTS.read_text())
    for item in items:
        for marker in item.iter_markers("requirement"):
            unknown = sorted(set(map(str, marker.args)) - known)
            if unknown or not marker.args:
                raise pytest.UsageError(
                    f"{item.nodeid}: requirement ids {unknown or '(none given)'} are not in "
                    f"{REQUIREMENTS.name}."
                )
