"""Tables of schema ``network``."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, PrimaryKeyConstraint, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("network")


KIT = kit_tables(Base.metadata)


class Site(Base):
    """A declared site with its identifier ranges (``PoolFacts``). A frozen one is not written to;
    its row's lock also orders allocations from its pools."""

    __tablename__ = "site"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    pools: Mapped[dict[str, Any]]
    declared_version: Mapped[int] = mapped_column(BigInteger)
    frozen: Mapped[bool] = mapped_column(server_default="false")
    frozen_by: Mapped[str] = mapped_column(server_default="")
    frozen_reason: Mapped[str] = mapped_column(server_default="")
    frozen_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")


class Device(Base):
    """A switch or a fabric manager. ``sealed`` holds its credentials.

    ``desired_version`` rises when something is wanted of it, a read-back included;
    ``observed_version`` is the one that the last read-back answered.
    """

    __tablename__ = "device"
    __table_args__ = (Index("ix_device_site", "site_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    name: Mapped[str]
    kind: Mapped[str]
    driver: Mapped[str]
    address: Mapped[str]
    sealed: Mapped[bytes]
    retired: Mapped[bool] = mapped_column(server_default="false")
    health: Mapped[str] = mapped_column(server_default="unknown")
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    read_at: Mapped[datetime | None]
    repaired: Mapped[int] = mapped_column(BigInteger, server_default="0")
    desired_version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    observed_version: Mapped[int] = mapped_column(BigInteger, server_default="0")
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")


class DeviceLease(Base):
    """Which process reconciles a device; a row of its own, so that renewing it disturbs nobody."""

    __tablename__ = "device_lease"

    device_id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    holder: Mapped[str] = mapped_column(server_default="")
    held_until: Mapped[datetime]


class Port(Base):
    """A declared port of a node: ``address`` names it on its device (front port or GUID)."""

    __tablename__ = "port"
    __table_args__ = (
        UniqueConstraint("device_id", "address"),
        Index("ix_port_node", "node_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    device_id: Mapped[str]
    node_id: Mapped[str]
    kind: Mapped[str]
    name: Mapped[str]
    address: Mapped[str]
    declared_version: Mapped[int] = mapped_column(BigInteger)


class PortDesired(Base):
    """What is desired of a port: a network, or closed (``network_id`` is null). A closed row keeps
    the allocation that it closed, which can never be opened again."""

    __tablename__ = "port_desired"
    __table_args__ = (
        Index("ix_port_desired_device", "device_id"),
        Index("ix_port_desired_node", "node_id"),
        Index(
            "ix_port_desired_network",
            "network_id",
            postgresql_where=text("network_id IS NOT NULL"),
        ),
    )

    port_id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str]
    node_id: Mapped[str]
    network_id: Mapped[str | None]
    allocation_id: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    operation_id: Mapped[str | None]
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    changed_at: Mapped[datetime]


class PortObserved(Base):
    """What the last read-back that changed anything found, and whether that is what was desired
    as of ``compared_version`` of the desired row."""

    __tablename__ = "port_observed"
    __table_args__ = (Index("ix_port_observed_device", "device_id"),)

    port_id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str]
    seen: Mapped[str]
    matches: Mapped[bool]
    compared_version: Mapped[int] = mapped_column(BigInteger)
    observed_at: Mapped[datetime]


class Network(Base):
    """A cluster's isolated network and its identifiers. That of a node which is cleaned belongs to
    no tenant; its ``cluster_id`` is the node's id."""

    __tablename__ = "network"
    __table_args__ = (UniqueConstraint("cluster_id"), Index("ix_network_project", "project_id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    cluster_id: Mapped[str]
    site_id: Mapped[str]
    organization_id: Mapped[str | None]
    project_id: Mapped[str | None]
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    vrf: Mapped[str] = mapped_column(server_default="")
    vlan: Mapped[int | None]
    vni: Mapped[int | None]
    l3_vni: Mapped[int | None]
    pkey: Mapped[int | None]
    subnet: Mapped[str | None]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")


class NetworkDevice(Base):
    """A device that may hold a network's configuration; the row goes when a read-back shows that
    it holds none."""

    __tablename__ = "network_device"
    __table_args__ = (
        PrimaryKeyConstraint("network_id", "device_id"),
        Index("ix_network_device_device", "device_id"),
    )

    network_id: Mapped[str]
    device_id: Mapped[str]


class PoolValue(Base):
    """An identifier that is not free; a free one has no row. The primary key is what makes two
    networks with one identifier impossible."""

    __tablename__ = "pool_value"
    __table_args__ = (
        PrimaryKeyConstraint("site_id", "kind", "value"),
        Index("ix_pool_value_network", "network_id"),
    )

    site_id: Mapped[str]
    kind: Mapped[str]
    value: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str]
    network_id: Mapped[str]
    since: Mapped[datetime]
    cooldown_until: Mapped[datetime | None]


class Intent(Base):
    """A write that was going to leave for a device. It is open until it is known that nothing of it
    can take effect any more: it landed, the device ended its job, or ``deadline`` (which includes
    the device's own job time-out) passed; and a read-back was made after that."""

    __tablename__ = "intent"
    __table_args__ = (
        Index("ix_intent_open_device", "device_id", postgresql_where=text("closed_at IS NULL")),
        Index("ix_intent_open_node", "node_id", postgresql_where=text("closed_at IS NULL")),
        Index("ix_intent_closed", "closed_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str]
    node_id: Mapped[str | None]
    network_id: Mapped[str | None]
    allocation_id: Mapped[str | None]
    kind: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str]
    opened_at: Mapped[datetime]
    leave_by: Mapped[datetime]
    deadline: Mapped[datetime]
    jobs: Mapped[list[str]] = mapped_column(server_default="[]")
    certain: Mapped[bool] = mapped_column(server_default="false")
    outcome: Mapped[str] = mapped_column(server_default="")
    closed_at: Mapped[datetime | None]


class NodeAllocation(Base):
    """Read model of ``allocation.changed``: who holds a node, and its epoch."""

    __tablename__ = "node_allocation"

    node_id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    cluster_id: Mapped[str]
    allocation_id: Mapped[str]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    state: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    allocation_version: Mapped[int] = mapped_column(BigInteger)
