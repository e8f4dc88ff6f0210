"""Tables of schema ``metering``."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Index, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("metering")


KIT = kit_tables(Base.metadata)


class LedgerEntry(Base):
    """The usage of one allocation, projected from ``allocation.changed`` and idempotent by its
    version. Times are UTC wall time; an interval without an end is still running."""

    __tablename__ = "ledger_entry"
    __table_args__ = (
        Index("ix_ledger_entry_project", "project_id", "usage_from"),
        Index("ix_ledger_entry_node", "node_id", "usage_from"),
    )

    allocation_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    cluster_id: Mapped[str]
    site_id: Mapped[str]
    node_id: Mapped[str]
    node_name: Mapped[str]
    node_type: Mapped[str]
    gpus: Mapped[int]
    usage_from: Mapped[datetime]
    usage_to: Mapped[datetime | None]


class VolumeEntry(Base):
    """So many GiB that a volume had for a while, projected from ``volume.usage_changed`` and
    idempotent by the interval's version. Times are UTC wall time."""

    __tablename__ = "volume_entry"
    __table_args__ = (Index("ix_volume_entry_project", "project_id", "usage_from"),)

    interval_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    volume_id: Mapped[str]
    size_gib: Mapped[int]
    usage_from: Mapped[datetime]
    usage_to: Mapped[datetime | None]


class RegistryEntry(Base):
    """So many bytes that the repositories of a project held for a while, projected from
    ``registry.usage`` and idempotent by the interval's version. Times are UTC wall time. It is
    told, not billed: no site names a price for it."""

    __tablename__ = "registry_entry"
    __table_args__ = (Index("ix_registry_entry_project", "project_id", "usage_from"),)

    interval_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    usage_from: Mapped[datetime]
    usage_to: Mapped[datetime | None]


class JobEntry(Base):
    """One run of a job, projected from ``job.changed`` and idempotent by the job's version.

    ``gpu_milli`` are the thousandths of a GPU that it had from ``usage_from`` to ``usage_to``, UTC
    wall time as the scheduler's accounting says. What a job had is told, not billed: its nodes are.
    """

    __tablename__ = "job_entry"
    __table_args__ = (
        PrimaryKeyConstraint("job_id", "run"),
        Index("ix_job_entry_project", "project_id", "usage_from"),
    )

    job_id: Mapped[str]
    run: Mapped[int]
    version: Mapped[int]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    cluster_id: Mapped[str]
    scheduler_id: Mapped[str]
    name: Mapped[str]
    account: Mapped[str]
    member: Mapped[str]
    nodes: Mapped[int]
    gpu_milli: Mapped[int] = mapped_column(BigInteger)
    usage_from: Mapped[datetime]
    usage_to: Mapped[datetime | None]


class Price(Base):
    """The price of a node type at a site from ``valid_from`` until a later row.

    ``site_version`` is that of the declaration which brought it.
    """

    __tablename__ = "price"
    __table_args__ = (PrimaryKeyConstraint("site_id", "node_type", "valid_from"),)

    site_id: Mapped[str]
    node_type: Mapped[str]
    valid_from: Mapped[datetime]
    price_per_node_hour: Mapped[Decimal]
    currency: Mapped[str]
    site_version: Mapped[int]


class VolumePrice(Base):
    """The price of volumes at a site from ``valid_from`` until a later row. A declaration that no
    longer names one brings a row without a price.
    """

    __tablename__ = "volume_price"
    __table_args__ = (PrimaryKeyConstraint("site_id", "valid_from"),)

    site_id: Mapped[str]
    valid_from: Mapped[datetime]
    price_per_gib_hour: Mapped[Decimal | None]
    currency: Mapped[str]
    site_version: Mapped[int]


class Quota(Base):
    """How many nodes of a type a project may hold at once."""

    __tablename__ = "quota"
    __table_args__ = (PrimaryKeyConstraint("project_id", "node_type"),)

    project_id: Mapped[str]
    organization_id: Mapped[str]
    node_type: Mapped[str]
    nodes: Mapped[int]
    updated_by: Mapped[str]
    updated_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class UsageAudit(Base):
    """One comparison of the ledger with the allocations, from ``usage_since`` on.

    ``day`` is that of the daily audit, and null for one that somebody asked for. ``state`` is an
    ``AuditState`` since ``since``; one that is still running at its ``deadline`` lost its worker.
    ``entries`` and ``allocations`` count what was compared, ``findings`` all that was found.
    """

    __tablename__ = "usage_audit"
    __table_args__ = (
        Index("uq_usage_audit_day", "day", unique=True, postgresql_where=text("day IS NOT NULL")),
        Index(
            "ix_usage_audit_open",
            "requested_at",
            postgresql_where=text("state IN ('requested', 'running')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date | None]
    usage_since: Mapped[datetime]
    requested_by: Mapped[str]
    requested_at: Mapped[datetime]
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    deadline: Mapped[datetime | None]
    allocations: Mapped[int] = mapped_column(server_default="0")
    entries: Mapped[int] = mapped_column(server_default="0")
    findings: Mapped[int] = mapped_column(server_default="0")
    version: Mapped[int] = mapped_column(server_default="1")


class UsageFinding(Base):
    """Something that an audit found, numbered from 1; ``detail`` holds both sides of it."""

    __tablename__ = "usage_finding"
    __table_args__ = (PrimaryKeyConstraint("audit_id", "number"),)

    audit_id: Mapped[str]
    number: Mapped[int]
    kind: Mapped[str]
    allocation_id: Mapped[str]
    node_id: Mapped[str]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    detail: Mapped[dict[str, Any]]
