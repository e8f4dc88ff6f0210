"""Alembic environment of schema ``registry``."""

from dflare.kit.migrations import run_environment
from dflare.services.registry.tables import Base

run_environment(Base.metadata)
