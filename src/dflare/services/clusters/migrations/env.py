"""Alembic environment of schema ``clusters``."""

from dflare.kit.migrations import run_environment
from dflare.services.clusters.tables import Base

run_environment(Base.metadata)
