"""Alembic environment of schema ``volumes``."""

from dflare.kit.migrations import run_environment
from dflare.services.volumes.tables import Base

run_environment(Base.metadata)
