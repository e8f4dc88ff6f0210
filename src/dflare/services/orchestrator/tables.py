"""Tables of schema ``orchestrator``."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("orchestrator")


KIT = kit_tables(Base.metadata)


class Site(Base):
    """Read model of ``site.declared``."""

    __tablename__ = "site"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    node_types: Mapped[list[str]]
    version: Mapped[int]


class Node(Base):
    """Read model of ``node.declared`` and ``node.state_changed``, and the node's epoch.

    ``epoch`` is this service's own: it rises at reserve, release and preemption.
    """

    __tablename__ = "node"
    __table_args__ = (Index("ix_node_site_type", "site_id", "node_type"),)

    node_id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    name: Mapped[str]
    node_type: Mapped[str] = mapped_column(server_default="")
    gpus: Mapped[int] = mapped_column(server_default="0")
    row: Mapped[str] = mapped_column(server_default="")
    rack: Mapped[str] = mapped_column(server_default="")
    block: Mapped[str] = mapped_column(server_default="")
    nvlink_domain: Mapped[str | None]
    rail_block: Mapped[str | None]
    retired: Mapped[bool] = mapped_column(server_default="false")
    state: Mapped[str] = mapped_column(server_default="declared")
    cordoned: Mapped[bool] = mapped_column(server_default="false")
    version: Mapped[int] = mapped_column(server_default="0")
    epoch: Mapped[int] = mapped_column(server_default="0")


class Allocation(Base):
    """A node's membership in an order; at most one that has not ended a node.

    ``reserved_by`` is the operation that placed it, ``operation_id`` the one that acts on it now
    or did last. ``replaces`` is the node that this one stands in for. ``slot`` is the node's number
    in its pool, free again when its release begins. ``usage_from`` and ``usage_to`` bound what is
    billed.
    """

    __tablename__ = "allocation"
    __table_args__ = (
        Index(
            "uq_allocation_live_node",
            "node_id",
            unique=True,
            postgresql_where=text("state <> 'ended'"),
        ),
        Index(
            "uq_allocation_slot",
            "cluster_id",
            "pool",
            "slot",
            unique=True,
            postgresql_where=text("state IN ('held', 'confirmed')"),
        ),
        Index("ix_allocation_cluster", "cluster_id"),
        Index("ix_allocation_reserved_by", "reserved_by"),
        Index("ix_allocation_held", "expires_at", postgresql_where=text("state = 'held'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    state: Mapped[str]
    node_id: Mapped[str]
    node_name: Mapped[str]
    node_type: Mapped[str]
    gpus: Mapped[int]
    site_id: Mapped[str]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    cluster_id: Mapped[str]
    pool: Mapped[str]
    slot: Mapped[int]
    reserved_by: Mapped[str]
    operation_id: Mapped[str]
    epoch: Mapped[int]
    replaces: Mapped[str | None]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    usage_from: Mapped[datetime | None]
    usage_to: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Claim(Base):
    """An operation's exclusive right to act on a node; at most one that has not ended a node."""

    __tablename__ = "claim"
    __table_args__ = (
        Index(
            "uq_claim_live_node",
            "node_id",
            unique=True,
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_claim_operation", "operation_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    node_id: Mapped[str]
    site_id: Mapped[str]
    operation_id: Mapped[str]
    since: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default="1")


class Reservation(Base):
    """What an operation wished for, to answer repeats and to reserve again at a retry."""

    __tablename__ = "reservation"

    operation_id: Mapped[str] = mapped_column(primary_key=True)
    wishes: Mapped[dict[str, Any]]
    explanation: Mapped[str]
    expires_at: Mapped[datetime]


class WaitingOrder(Base):
    """An order that waits for capacity: its wishes, and what it was told of its position.

    ``state`` is ``placed`` from when nodes are held for it until its operation knows them. Its
    operation stands in its own schema at attempt 0, which nobody starts.
    """

    __tablename__ = "waiting_order"

    operation_id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str] = mapped_column(index=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    wishes: Mapped[dict[str, Any]]
    state: Mapped[str]
    told: Mapped[str] = mapped_column(server_default="")
    arrived_at: Mapped[datetime]


class KnownEnd(Base):
    """Read model of ``cluster.changed``: when a cluster gives its nodes back at the latest."""

    __tablename__ = "known_end"

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    ends_at: Mapped[datetime | None]
    version: Mapped[int]


class BlockReservation(Base):
    """Whole groups of nodes that are for one project's orders alone from a time to a time."""

    __tablename__ = "block_reservation"
    __table_args__ = (
        Index(
            "uq_block_reservation_name",
            "project_id",
            "name",
            unique=True,
            postgresql_where=text("state = 'scheduled'"),
        ),
        Index("ix_block_reservation_site", "site_id", "ends_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    name: Mapped[str]
    node_type: Mapped[str]
    level: Mapped[str]
    block_names: Mapped[list[str]]
    node_ids: Mapped[list[str]]
    node_names: Mapped[list[str]]
    state: Mapped[str]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int]


class QuotaLimit(Base):
    """Read model of ``quota.changed``: nodes of a type that a project may hold at once."""

    __tablename__ = "quota_limit"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    node_type: Mapped[str] = mapped_column(primary_key=True)
    nodes: Mapped[int]
    version: Mapped[int]


class QuotaUsage(Base):
    """Nodes of a type that a project holds now; changed with its allocations."""

    __tablename__ = "quota_usage"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    node_type: Mapped[str] = mapped_column(primary_key=True)
    nodes: Mapped[int]


class OperationIndex(Base):
    """Projection of ``operation.changed`` over all services, for lists."""

    __tablename__ = "operation_index"
    __table_args__ = (
        Index("ix_operation_index_project", "project_id", "id"),
        Index("ix_operation_index_resource", "resource_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    service: Mapped[str]
    kind: Mapped[str]
    organization_id: Mapped[str | None]
    project_id: Mapped[str | None]
    site_id: Mapped[str | None]
    resource_kind: Mapped[str]
    resource_id: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    document: Mapped[dict[str, Any]]
    version: Mapped[int]
