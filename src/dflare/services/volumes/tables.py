"""Tables of schema ``volumes``."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Index, PrimaryKeyConstraint, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("volumes")


KIT = kit_tables(Base.metadata)


class Volume(Base):
    """An ordered volume. A name is unique in its project among those not deleted.

    ``size_gib`` is what the tenant has and pays for, ``wanted_gib`` what it asked for last: the
    larger one counts against the quota. ``present``, ``desired_gib`` and the access rows are what
    the storage is to have; ``revision`` rises with each change of them. ``observed_*`` are what the
    storage was seen to have, ``observed_revision`` the newest revision that was seen fulfilled;
    ``source`` is what hosts mount, empty until the storage has it; ``no_snapshots`` says why it
    takes none, and is empty where it does.
    ``trouble`` says why revision ``trouble_revision`` is not; it is ``refused`` where trying again
    does not help. ``intent_*`` is the write that may be under way.
    """

    __tablename__ = "volume"
    __table_args__ = (
        Index(
            "uq_volume_live_name",
            "project_id",
            "name",
            unique=True,
            postgresql_where=text("state <> 'deleted'"),
        ),
        Index("ix_volume_organization", "organization_id"),
        Index(
            "ix_volume_behind",
            "site_id",
            postgresql_where=text("observed_revision < revision"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    name: Mapped[str]
    size_gib: Mapped[int]
    wanted_gib: Mapped[int]
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    deadline: Mapped[datetime | None]
    operation_id: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")

    present: Mapped[bool] = mapped_column(server_default="false")
    desired_gib: Mapped[int]
    revision: Mapped[int] = mapped_column(server_default="0")

    observed_present: Mapped[bool] = mapped_column(server_default="false")
    observed_gib: Mapped[int | None]
    observed_revision: Mapped[int] = mapped_column(server_default="0")
    observed_at: Mapped[datetime | None]
    source: Mapped[str] = mapped_column(server_default="")
    no_snapshots: Mapped[str] = mapped_column(server_default="")
    quota: Mapped[str] = mapped_column(server_default="")
    used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    used_complete: Mapped[bool] = mapped_column(server_default="true")
    scanned_at: Mapped[datetime | None]
    trouble: Mapped[str] = mapped_column(server_default="")
    trouble_revision: Mapped[int] = mapped_column(server_default="0")
    refused: Mapped[bool] = mapped_column(server_default="false")

    intent_revision: Mapped[int | None]
    intent_holder: Mapped[str] = mapped_column(server_default="")
    intent_until: Mapped[datetime | None]


class Access(Base):
    """What a cluster is to have of a volume (``mode``) and was seen to have (``observed``); gone
    when both are ``none``. ``mounted`` where the cluster's order asked for it: its hosts mount it
    from their start to their end."""

    __tablename__ = "access"
    __table_args__ = (
        PrimaryKeyConstraint("volume_id", "cluster_id"),
        Index("ix_access_cluster", "cluster_id"),
    )

    volume_id: Mapped[str]
    cluster_id: Mapped[str]
    mode: Mapped[str]
    observed: Mapped[str] = mapped_column(server_default="none")
    mounted: Mapped[bool] = mapped_column(server_default="false")
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class Snapshot(Base):
    """What a volume held at ``taken_at``. Names are unique in a volume; gone when the storage was
    seen to have dropped it."""

    __tablename__ = "snapshot"
    __table_args__ = (UniqueConstraint("volume_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    volume_id: Mapped[str]
    name: Mapped[str]
    state: Mapped[str]
    taken_at: Mapped[datetime | None]
    created_by: Mapped[str]
    created_at: Mapped[datetime]


class UsageInterval(Base):
    """So many GiB from one moment to another, UTC wall time; the ledger projects these. At most
    one of a volume is open."""

    __tablename__ = "usage_interval"
    __table_args__ = (
        Index(
            "uq_usage_interval_open",
            "volume_id",
            unique=True,
            postgresql_where=text("usage_to IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    volume_id: Mapped[str] = mapped_column(index=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    size_gib: Mapped[int]
    usage_from: Mapped[datetime]
    usage_to: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default="1")


class QuotaLimit(Base):
    """Read model of ``quota.changed``: GiB that the volumes of a project may have together."""

    __tablename__ = "quota_limit"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    limit_gib: Mapped[int]
    version: Mapped[int]


class KnownSite(Base):
    """Read model of ``site.declared`` and ``site.frozen``; without a price volumes are free."""

    __tablename__ = "known_site"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True, server_default="")
    version: Mapped[int] = mapped_column(server_default="0")
    price_per_gib_hour: Mapped[Decimal | None]
    currency: Mapped[str] = mapped_column(server_default="")
    frozen: Mapped[bool] = mapped_column(server_default="false")
    frozen_version: Mapped[int] = mapped_column(server_default="0")


class KnownCluster(Base):
    """Read model of ``cluster.changed``."""

    __tablename__ = "known_cluster"
    __table_args__ = (Index("ix_known_cluster_project", "project_id"),)

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    site_id: Mapped[str]
    name: Mapped[str]
    state: Mapped[str]
    version: Mapped[int]


class DeclaredCluster(Base):
    """Read model of ``cluster.declared``: the volumes that a cluster's order names, as the order's
    list of ``volume_id``, ``target`` and ``read_only``."""

    __tablename__ = "declared_cluster"

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    site_id: Mapped[str]
    mounts: Mapped[list[Any]]
    version: Mapped[int]
