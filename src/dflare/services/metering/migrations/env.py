"""Alembic environment of schema ``metering``."""

from dflare.kit.migrations import run_environment
from dflare.services.metering.tables import Base

run_environment(Base.metadata)
