"""Alembic environment of schema ``feed``."""

from dflare.kit.feed_tables import metadata
from dflare.kit.migrations import run_environment

run_environment(metadata)
