"""``python -m bench [NAME ...]``: run the benchmarks named, or all of them. ``replay --platform``
replays through the whole platform."""

import importlib
import sys
from pathlib import Path

# The starter of a whole platform is the tests' own.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

NAMES = (
    "relay",
    "fleet",
    "metrics",
    "orders",
    "placement",
    "registry",
    "replay",
    "slurm",
    "stores",
)


def main() -> None:
    """Run and print."""
    names = [name for name in sys.argv[1:] if not name.startswith("--")] or NAMES
    if unknown := set(names) - set(NAMES):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in names:
        importlib.import_module(f"bench.{name}").run()


if __name__ == "__main__":
    main()
