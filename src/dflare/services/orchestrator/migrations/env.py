"""Alembic environment of schema ``orchestrator``."""

from dflare.kit.migrations import run_environment
from dflare.services.orchestrator.tables import Base

run_environment(Base.metadata)
