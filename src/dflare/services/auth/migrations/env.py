"""Alembic environment of schema ``auth``."""

from dflare.kit.migrations import run_environment
from dflare.services.auth.tables import Base

run_environment(Base.metadata)
