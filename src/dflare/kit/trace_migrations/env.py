"""Alembic environment of schema ``trace``."""

from dflare.kit.migrations import run_environment
from dflare.kit.trace_tables import metadata

run_environment(metadata)
