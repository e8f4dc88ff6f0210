"""Alembic environment of schema ``metrics``."""

from dflare.kit.migrations import run_environment
from dflare.services.metrics.tables import Base

run_environment(Base.metadata)
