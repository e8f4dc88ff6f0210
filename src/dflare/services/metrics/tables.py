"""Tables of schema ``metrics``."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("metrics")


KIT = kit_tables(Base.metadata)


class Alert(Base):
    """Something that a person should look at, from when it was seen to when it was not any more.

    ``fingerprint`` names the condition: at most one of it is raised at a time. An alert belongs to
    the project that had the node, or ordered the operation, when it was raised.
    """

    __tablename__ = "alert"
    __table_args__ = (
        Index(
            "uq_alert_raised",
            "fingerprint",
            unique=True,
            postgresql_where=text("state = 'raised'"),
        ),
        Index("ix_alert_project", "project_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    rule: Mapped[str]
    state: Mapped[str]
    severity: Mapped[str]
    summary: Mapped[str]
    site_id: Mapped[str | None]
    organization_id: Mapped[str | None]
    project_id: Mapped[str | None]
    cluster_id: Mapped[str | None]
    subject_kind: Mapped[str]
    subject_id: Mapped[str]
    subject_name: Mapped[str]
    part: Mapped[str] = mapped_column(server_default="")
    raised_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default="1")


class KnownSite(Base):
    """Read model of ``site.declared``: names of sites, and makers of the GPUs of node types."""

    __tablename__ = "known_site"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    vendors: Mapped[dict[str, Any]]
    version: Mapped[int]


class KnownNode(Base):
    """Read model of ``node.declared``. ``ports`` are the names of its ports."""

    __tablename__ = "known_node"

    node_id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    name: Mapped[str]
    node_type: Mapped[str]
    gpus: Mapped[int]
    ports: Mapped[list[str]]
    retired: Mapped[bool]
    version: Mapped[int]


class Tenancy(Base):
    """Read model of ``allocation.changed``: who has a node, from hand-over to the request of its
    release. In between, and at no other time, what is measured on it is that project's."""

    __tablename__ = "tenancy"
    __table_args__ = (Index("ix_tenancy_node", "node_id", "had_from"),)

    allocation_id: Mapped[str] = mapped_column(primary_key=True)
    node_id: Mapped[str]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    cluster_id: Mapped[str]
    had_from: Mapped[datetime]
    had_to: Mapped[datetime | None]
    version: Mapped[int]


class KnownCluster(Base):
    """Read model of ``cluster.declared``: names of clusters."""

    __tablename__ = "known_cluster"

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    version: Mapped[int]


class KnownOperation(Base):
    """Read model of ``operation.changed``. ``begun_at`` is when its present attempt was first seen;
    steps that finished up to ``timed_until`` are counted in ``step_time``."""

    __tablename__ = "known_operation"
    __table_args__ = (
        Index("ix_known_operation_live", "state", postgresql_where=text("finished_at IS NULL")),
    )

    operation_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str]
    organization_id: Mapped[str | None]
    project_id: Mapped[str | None]
    site_id: Mapped[str | None]
    attempt: Mapped[int]
    begun_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    timed_until: Mapped[datetime | None]
    version: Mapped[int]


class StepTime(Base):
    """How long steps of sagas took, since the beginning. ``buckets`` counts those that took at most
    as long as each bound of ``domain_times.BOUNDS_S``, and at its end all of them."""

    __tablename__ = "step_time"
    __table_args__ = (PrimaryKeyConstraint("saga", "step", "outcome"),)

    saga: Mapped[str]
    step: Mapped[str]
    outcome: Mapped[str]
    buckets: Mapped[list[Any]]
    seconds: Mapped[float]
