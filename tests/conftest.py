"""What every test shares: the stores' fixtures and the check of requirement ids."""

import os
import sys
from pathlib import Path

import pytest

# With import-mode=importlib nothing puts the tests' own directory on the path, and shared starters
# such as `stores` are imported by name from there.
sys.path.insert(0, str(Path(__file__).parent))

# Platforms that tests start would each download Slurm and VictoriaMetrics; tests of those name a
# folder of their own.
os.environ.setdefault("DFLARE_SLURM_PACKAGES", "off")
os.environ.setdefault("DFLARE_VICTORIAMETRICS_PACKAGES", "off")

pytest_plugins = ("stores", "requirement_marker")

_LONGEST = ("test_real_sagas", "test_kills", "test_fleet", "test_slurm_sagas", "test_readme")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; within a file nothing is moved."""

    def rank(item: pytest.Item) -> tuple[int, int]:
        name, folder = item.path.stem, item.path.parent.name
        longest = _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)
        return longest, ("lab", "e2e", "workflow", folder).index(folder)

    items.sort(key=rank)
