"""Tables of jobs in schema ``clusters``."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.services.clusters.tables import Base


class Job(Base):
    """A job of a cluster with a scheduler: submitted here, or ``direct`` with the scheduler's own
    programs and heard of by its accounting.

    ``member`` is the scheduler's wckey; ``submitted_by`` the name of who asked here. ``runs`` are
    those of ``JobFacts``, each with the ``record_id`` of the accounting. ``claimed_until`` is how
    long whoever submits it may take. ``request_key`` is what its caller chose to repeat safely.
    ``output_bytes`` of what it wrote are kept; ``output_state`` is ``complete`` or ``truncated``
    once there will be no more.
    """

    __tablename__ = "job"
    __table_args__ = (
        Index(
            "uq_job_scheduler_id",
            "cluster_id",
            "scheduler_id",
            unique=True,
            postgresql_where=text("scheduler_id IS NOT NULL"),
        ),
        Index(
            "uq_job_request_key",
            "cluster_id",
            "created_by",
            "request_key",
            unique=True,
            postgresql_where=text("request_key IS NOT NULL"),
        ),
        Index(
            "ix_job_open",
            "cluster_id",
            postgresql_where=text("state NOT IN ('ended', 'refused')"),
        ),
        Index(
            "ix_job_output_open",
            "cluster_id",
            postgresql_where=text("NOT direct AND output_state = ''"),
        ),
        Index("ix_job_cluster", "cluster_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    cluster_id: Mapped[str]
    name: Mapped[str]
    account: Mapped[str]
    member: Mapped[str]
    direct: Mapped[bool]
    script: Mapped[str | None]
    options: Mapped[list[Any]] = mapped_column(server_default="[]")
    environment: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    claimed_until: Mapped[datetime | None]
    scheduler_id: Mapped[str | None]
    scheduler_state: Mapped[str] = mapped_column(server_default="")
    exit_code: Mapped[int | None]
    runs: Mapped[list[Any]] = mapped_column(server_default="[]")
    output_bytes: Mapped[int] = mapped_column(server_default="0")
    output_state: Mapped[str] = mapped_column(server_default="")
    output_checked_at: Mapped[datetime | None]
    request_key: Mapped[str | None]
    created_by: Mapped[str]
    submitted_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class JobOutput(Base):
    """A piece of what a job wrote, from byte ``first`` of its output on."""

    __tablename__ = "job_output"
    __table_args__ = (PrimaryKeyConstraint("job_id", "first"),)

    job_id: Mapped[str]
    first: Mapped[int]
    content: Mapped[bytes]


class JobsFollowed(Base):
    """Until when the accounting of a cluster's scheduler was read, by the platform's clock."""

    __tablename__ = "jobs_followed"

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[datetime]
