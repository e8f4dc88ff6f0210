"""Alembic environment of schema ``clusters``."""

from dflare.kit.migrations import run_environment
from dflare.services.clusters.tables_jobs import Job

run_environment(Job.metadata)
