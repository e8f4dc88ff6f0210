"""docs/ARCHITECTURE.md stays true: its paths exist and it names every step of every saga."""

import re
from pathlib import Path

import pytest

from dflare.services.orchestrator.sagas import SAGAS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ARCHITECTURE.md").read_text()


def step_names() -> list[str]:
    """Every step that an order can run, with undo and side steps."""
    names: set[str | None] = set()
    for plan in SAGAS.values():
        names |= {plan.replace.name if plan.replace else None}
        names |= {side.name for side in plan.park}
        for step in plan.steps:
            names |= {step.name, step.undo, step.quarantine}
    return sorted(name for name in names if name)


@pytest.mark.parametrize("name", step_names())
def test_each_step_stands_on_the_page_beside_a_file_that_implements_it(name: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line]
    own = [row for row in rows if f"`{name}`" in row.split("|")[1]]
    assert own, f"{name} has no row of its own"
    path = re.findall(r"`(src/[^`]+)`", own[0])[0]
    assert f'"{name}"' in (ROOT / path).read_text()


def test_each_path_on_the_page_exists() -> None:
    paths = re.findall(r"`((?:src|tests|docs)/[^`]+)`", PAGE)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []
