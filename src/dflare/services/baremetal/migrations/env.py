"""Alembic environment of schema ``baremetal``."""

from dflare.kit.migrations import run_environment
from dflare.services.baremetal.tables import Base

run_environment(Base.metadata)
