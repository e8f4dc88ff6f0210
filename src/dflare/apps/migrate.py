"""``python -m dflare.apps.migrate``: make schemas and roles, bring every schema up to date.

``--revision SCHEMA MESSAGE`` writes a new migration from the difference between a service's tables
and the database, for its author to read and commit.
"""

import argparse
import asyncio
import os
from pathlib import Path

import dflare
from dflare.apps.deployables import SERVICES
from dflare.kit.migrations import new_revision, run_upgrade

_ROOT = Path(dflare.__file__).parent


def locations() -> dict[str, Path]:
    """The migrations folder of every schema."""
    own = {name: _ROOT / "services" / name / "migrations" for name in SERVICES}
    kit = {name: _ROOT / "kit" / f"{name}_migrations" for name in ("feed", "trace")}
    return {name: path for name, path in {**kit, **own}.items() if path.is_dir()}


def main() -> None:
    """Run the migrations on ``DFLARE_POSTGRES_URL``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revision", nargs=2, metavar=("SCHEMA", "MESSAGE"))
    arguments = parser.parse_args()
    url = os.environ["DFLARE_POSTGRES_URL"]
    if arguments.revision:
        schema, message = arguments.revision
        asyncio.run(new_revision(url, schema, locations()[schema], message))
    else:
        run_upgrade(url, locations())


if __name__ == "__main__":
    main()
