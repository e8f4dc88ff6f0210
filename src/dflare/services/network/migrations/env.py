"""Alembic environment of schema ``network``."""

from dflare.kit.migrations import run_environment
from dflare.services.network.tables import Base

run_environment(Base.metadata)
