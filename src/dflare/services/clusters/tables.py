"""Tables of schema ``clusters``."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("clusters")


KIT = kit_tables(Base.metadata)


class Cluster(Base):
    """An ordered cluster. A name is unique in its project among those not deleted.

    A ``protected`` one is released neither by an order nor at ``expires_at``. ``scheduler_id``
    names the secrets of its scheduler, ``mounts`` are those of ``ClusterDeclared``, ``conditions``
    those of ``domain_life``.
    """

    __tablename__ = "cluster"
    __table_args__ = (
        Index(
            "uq_cluster_live_name",
            "project_id",
            "name",
            unique=True,
            postgresql_where=text("state <> 'deleted'"),
        ),
        Index("ix_cluster_organization", "organization_id"),
        Index(
            "ix_cluster_expiry",
            "expires_at",
            postgresql_where=text("expires_at IS NOT NULL AND state <> 'deleted'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    site_id: Mapped[str]
    name: Mapped[str]
    kind: Mapped[str]
    image: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    deadline: Mapped[datetime | None]
    ssh_keys: Mapped[list[Any]]
    user_data_id: Mapped[str | None]
    operation_id: Mapped[str]
    explanation: Mapped[str] = mapped_column(server_default="")
    expires_at: Mapped[datetime | None]
    protected: Mapped[bool] = mapped_column(server_default="false")
    scheduler_id: Mapped[str | None]
    mounts: Mapped[list[Any]] = mapped_column(server_default="[]")
    conditions: Mapped[list[Any]] = mapped_column(server_default="[]")
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class NodePool(Base):
    """So many nodes of one type in a cluster, of at most ``max_nodes`` (0: no such limit)."""

    __tablename__ = "node_pool"

    id: Mapped[str] = mapped_column(primary_key=True)
    cluster_id: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    node_type: Mapped[str]
    count: Mapped[int]
    max_nodes: Mapped[int] = mapped_column(server_default="0")


class SshKey(Base):
    """A public key that a project's nodes can be entered with."""

    __tablename__ = "ssh_key"
    __table_args__ = (Index("uq_ssh_key_name", "project_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    name: Mapped[str]
    public_key: Mapped[str]
    fingerprint: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class UserData(Base):
    """Cloud-init user data; its text is a sealed secret named ``user_data/<id>``."""

    __tablename__ = "user_data"
    __table_args__ = (Index("uq_user_data_name", "project_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    name: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class KnownSite(Base):
    """Read model of ``site.declared``: what can be ordered where, at what price."""

    __tablename__ = "known_site"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    currency: Mapped[str]
    node_types: Mapped[dict[str, Any]]
    images: Mapped[list[str]] = mapped_column(server_default="[]")
    scheduler: Mapped[bool] = mapped_column(server_default="false")
    version: Mapped[int]


class KnownVolume(Base):
    """Read model of ``volume.changed``: what clusters of a project can mount, and from where."""

    __tablename__ = "known_volume"
    __table_args__ = (Index("ix_known_volume_project", "project_id", "name"),)

    volume_id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    site_id: Mapped[str]
    name: Mapped[str]
    source: Mapped[str] = mapped_column(server_default="")
    state: Mapped[str]
    version: Mapped[int]


class KnownNode(Base):
    """Read model of ``node.state_changed``: whether the nodes of clusters are well."""

    __tablename__ = "known_node"

    node_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    since: Mapped[datetime]
    version: Mapped[int]


class Drain(Base):
    """A node of a cluster that takes no new work, by whom and why; only ``owner`` ends it."""

    __tablename__ = "drain"

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    node_id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    reason: Mapped[str]
    since: Mapped[datetime]


class Member(Base):
    """Read model of ``allocation.changed``: the nodes of a cluster."""

    __tablename__ = "member"

    allocation_id: Mapped[str] = mapped_column(primary_key=True)
    cluster_id: Mapped[str] = mapped_column(index=True)
    node_id: Mapped[str]
    node_name: Mapped[str]
    node_type: Mapped[str]
    pool: Mapped[str]
    slot: Mapped[int] = mapped_column(server_default="0")
    state: Mapped[str]
    version: Mapped[int]


class SchedulerHost(Base):
    """A host of a site that runs tenants' schedulers: declared by ``site.declared``, and seen by
    the site's worker. ``secret`` is its sealed account (``device/<site>/<name>``); ``state`` is a
    ``SchedulerState``, or empty until somebody asked it."""

    __tablename__ = "scheduler_host"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    ordinal: Mapped[int]
    address: Mapped[str]
    secret: Mapped[str]
    declared: Mapped[bool] = mapped_column(server_default="true")
    state: Mapped[str] = mapped_column(server_default="")
    release: Mapped[str | None]
    reason: Mapped[str] = mapped_column(server_default="")
    checked_at: Mapped[datetime | None]
    frozen: Mapped[bool] = mapped_column(server_default="false")
    frozen_version: Mapped[int] = mapped_column(server_default="0")
    version: Mapped[int]


class Scheduler(Base):
    """The scheduler of a cluster of kind ``slurm`` on its host. ``state``, ``reason`` and ``nodes``
    (slots by name) are what was last observed; ``state`` is empty until then, and ``gone`` once
    nothing was left of it. ``told`` is a digest of what the host was last told to make of it. Its
    munge key is the secret ``scheduler/<cluster_id>``."""

    __tablename__ = "scheduler"
    __table_args__ = (Index("ix_scheduler_site", "site_id"),)

    cluster_id: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    host: Mapped[str]
    account: Mapped[str]
    told: Mapped[str] = mapped_column(server_default="")
    state: Mapped[str] = mapped_column(server_default="")
    reason: Mapped[str] = mapped_column(server_default="")
    nodes: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    checked_at: Mapped[datetime | None]


class NodeShape(Base):
    """Read model of ``site.declared``: what a node of a type has, as a scheduler counts it."""

    __tablename__ = "node_shape"

    site_id: Mapped[str] = mapped_column(primary_key=True)
    node_type: Mapped[str] = mapped_column(primary_key=True)
    cpus: Mapped[int]
    memory_mib: Mapped[int]
    gpus: Mapped[int]
    gpu_type: Mapped[str]
    version: Mapped[int]


class NodePlace(Base):
    """Read model of ``node.declared``: the leaf switch that a node hangs on, if on any."""

    __tablename__ = "node_place"

    node_id: Mapped[str] = mapped_column(primary_key=True)
    leaf: Mapped[str | None]
    version: Mapped[int]
