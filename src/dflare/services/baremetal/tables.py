"""Tables of schema ``baremetal``."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("baremetal")


KIT = kit_tables(Base.metadata)


class Site(Base):
    """A data center as its operator declared it. ``document`` is the whole site document with
    passwords masked; these are secrets named ``credential/<site id>/<name of the credential>``."""

    __tablename__ = "site"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    region: Mapped[str]
    description: Mapped[str]
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class Rack(Base):
    """A rack of a site."""

    __tablename__ = "rack"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    row: Mapped[str]
    block: Mapped[str]


class NodeType(Base):
    """A kind of server that tenants order."""

    __tablename__ = "node_type"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    vendor: Mapped[str]
    model: Mapped[str]
    gpu_model: Mapped[str | None]
    gpus: Mapped[int]
    infiniband_rails: Mapped[int]
    price_per_node_hour: Mapped[Decimal]
    currency: Mapped[str]
    facts: Mapped[dict[str, Any]]


class Image(Base):
    """An operating system image. ``url`` is null for one that the platform makes (``builtin``),
    whose digest is known once a site worker has made it."""

    __tablename__ = "image"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    ordinal: Mapped[int]
    url: Mapped[str | None]
    builtin: Mapped[str | None]
    sha256: Mapped[str | None]


class Node(Base):
    """A server. ``facts`` is its part of the site document, ``inventory`` what its BMC showed.

    ``acting_operation_id`` is the operation that acts on it now; a later one (a release) takes it
    over and the earlier one stops. ``dirty``: its disks may hold a tenant's data and their erasure
    has not been observed. ``fault``: why it must not be placed again. ``health`` and
    ``health_reason`` are conditions that the reconciler observes, never states.
    """

    __tablename__ = "node"
    __table_args__ = (
        Index(
            "uq_node_live_name",
            "site_id",
            "name",
            unique=True,
            postgresql_where=text("retired_at IS NULL"),
        ),
        Index("ix_node_checked", "checked_at", postgresql_where=text("retired_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    name: Mapped[str]
    node_type: Mapped[str]
    rack: Mapped[str]
    vendor: Mapped[str]
    serial: Mapped[str]
    bmc_address: Mapped[str]
    credential: Mapped[str]
    facts: Mapped[dict[str, Any]]
    inventory: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    deadline: Mapped[datetime | None]
    fault: Mapped[str] = mapped_column(server_default="")
    dirty: Mapped[bool] = mapped_column(server_default="false")
    cordoned: Mapped[bool] = mapped_column(server_default="false")
    cordon_reason: Mapped[str] = mapped_column(server_default="")
    acting_operation_id: Mapped[str | None]
    power: Mapped[str] = mapped_column(server_default="")
    health: Mapped[str] = mapped_column(server_default="unknown")
    health_reason: Mapped[str] = mapped_column(server_default="")
    checked_at: Mapped[datetime | None]
    retired_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class AgentSession(Base):
    """What a node's agent was asked and has said, from one boot medium to its end.

    ``id`` is ``<operation>/<purpose>/<generation>/<node>``. Tokens are kept as digests to compare
    and sealed to write them anew after a crash. ``round`` counts the boots that were ordered;
    ``done`` maps a kind of task to its last report with the boot that made it. A closed session
    refuses its tokens; ``version`` rises with every change.
    """

    __tablename__ = "agent_session"
    __table_args__ = (Index("ix_agent_session_node", "node_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    node_id: Mapped[str]
    operation_id: Mapped[str]
    agent_digest: Mapped[str] = mapped_column(unique=True)
    phone_digest: Mapped[str] = mapped_column(unique=True)
    tokens_sealed: Mapped[bytes]
    opened_at: Mapped[datetime]
    round: Mapped[int] = mapped_column(server_default="0")
    booted_at: Mapped[datetime | None]
    boot_id: Mapped[str] = mapped_column(server_default="")
    serial: Mapped[str] = mapped_column(server_default="")
    task_id: Mapped[str | None]
    task_kind: Mapped[str | None]
    task_sealed: Mapped[bytes | None]
    done: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    up: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    closed_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default="1")


class BootConfig(Base):
    """Read model of ``cluster.declared``: what a cluster's nodes boot with."""

    __tablename__ = "boot_config"

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    image: Mapped[str]
    ssh_keys: Mapped[list[str]]
    user_data_sealed: Mapped[str | None]
    kind: Mapped[str]
    scheduler_sealed: Mapped[str | None]
    version: Mapped[int]


class Holder(Base):
    """Read model of ``allocation.changed``: who holds a node, by its newest epoch."""

    __tablename__ = "holder"
    __table_args__ = (Index("ix_holder_project", "project_id"),)

    node_id: Mapped[str] = mapped_column(primary_key=True)
    allocation_id: Mapped[str]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    cluster_id: Mapped[str]
    operation_id: Mapped[str]
    state: Mapped[str]
    epoch: Mapped[int]
    pool: Mapped[str] = mapped_column(server_default="")
    slot: Mapped[int] = mapped_column(server_default="0")
    version: Mapped[int]


class Claim(Base):
    """Read model of ``claim.changed``: which operation may act on a node; ended ones are gone."""

    __tablename__ = "claim"
    __table_args__ = (Index("ix_claim_node", "node_id"),)

    claim_id: Mapped[str] = mapped_column(primary_key=True)
    node_id: Mapped[str]
    operation_id: Mapped[str]
    version: Mapped[int]


class FrozenSite(Base):
    """Read model of ``site.frozen``: whether devices of a site may be written to."""

    __tablename__ = "frozen_site"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    frozen: Mapped[bool]
    reason: Mapped[str]
    version: Mapped[int]
