"""Tables of schema ``registry``."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, PrimaryKeyConstraint, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of this schema's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("registry")


KIT = kit_tables(Base.metadata)


class ProjectStorage(Base):
    """What a project may hold: a read model of ``quota.changed``, and the row that pushes of the
    project lock while they count what it holds."""

    __tablename__ = "project_storage"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    limit_gib: Mapped[int] = mapped_column(server_default="0")
    version: Mapped[int] = mapped_column(server_default="0")


class Repository(Base):
    """A repository of a project; ``name`` is the part behind organization and project."""

    __tablename__ = "repository"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_repository_organization", "organization_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    name: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    pushed_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(server_default="1")


class Blob(Base):
    """An object in the store with content of a digest. Two projects that push the same content have
    two of them until the reconciler makes one; none is made for content of no bytes.

    ``unreferenced_since`` is when the last repository let go of it.
    """

    __tablename__ = "blob"
    __table_args__ = (
        Index("ix_blob_digest", "digest"),
        Index(
            "ix_blob_unreferenced",
            "unreferenced_since",
            postgresql_where=text("unreferenced_since IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    object_key: Mapped[str]
    created_at: Mapped[datetime]
    unreferenced_since: Mapped[datetime | None]


class RepositoryBlob(Base):
    """That a repository has a blob, which alone lets anybody read it. ``unreferenced_since`` is
    when it was last pushed, found by a pusher or referred to, and none while a manifest of the
    repository refers to it."""

    __tablename__ = "repository_blob"
    __table_args__ = (
        PrimaryKeyConstraint("repository_id", "digest"),
        Index("ix_repository_blob_project", "project_id", "digest"),
        Index("ix_repository_blob_blob", "blob_id"),
        Index(
            "ix_repository_blob_unreferenced",
            "unreferenced_since",
            postgresql_where=text("unreferenced_since IS NOT NULL"),
        ),
    )

    repository_id: Mapped[str]
    digest: Mapped[str]
    project_id: Mapped[str]
    blob_id: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    unreferenced_since: Mapped[datetime | None]


class Manifest(Base):
    """A manifest of a repository, with what others find it by. ``subject`` is the digest of the
    manifest that it is about, and empty where it is about none."""

    __tablename__ = "manifest"
    __table_args__ = (
        PrimaryKeyConstraint("repository_id", "digest"),
        Index("ix_manifest_project", "project_id"),
        Index(
            "ix_manifest_subject",
            "repository_id",
            "subject",
            postgresql_where=text("subject <> ''"),
        ),
    )

    repository_id: Mapped[str]
    digest: Mapped[str]
    project_id: Mapped[str]
    media_type: Mapped[str]
    artifact_type: Mapped[str]
    subject: Mapped[str]
    annotations: Mapped[dict[str, Any]]
    content: Mapped[bytes]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    pushed_by: Mapped[str]
    pushed_at: Mapped[datetime]


class Reference(Base):
    """That a manifest refers to a blob (``kind`` is ``blob``) or to another manifest
    (``manifest``) of its repository."""

    __tablename__ = "reference"
    __table_args__ = (
        PrimaryKeyConstraint("repository_id", "manifest_digest", "digest"),
        Index("ix_reference_target", "repository_id", "digest"),
    )

    repository_id: Mapped[str]
    manifest_digest: Mapped[str]
    digest: Mapped[str]
    kind: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class Tag(Base):
    """A name for a manifest of a repository."""

    __tablename__ = "tag"
    __table_args__ = (
        PrimaryKeyConstraint("repository_id", "name"),
        Index("ix_tag_digest", "repository_id", "digest"),
    )

    repository_id: Mapped[str]
    name: Mapped[str]
    digest: Mapped[str]
    updated_by: Mapped[str]
    updated_at: Mapped[datetime]


class Upload(Base):
    """A blob that is being sent to the repository ``name`` of a project. ``offset_bytes`` of it are
    in the store: in parts of the upload ``store_upload_id``, and ``tail_bytes`` behind them, too
    few for a part, in the object ``tail_key``.

    ``epoch`` is raised by each request that goes on with it, and what an older one did is not
    recorded; ``next_part`` is a number that no request has yet used, so that an older one cannot
    overwrite a part either.
    """

    __tablename__ = "upload"
    __table_args__ = (
        Index("ix_upload_project", "project_id"),
        Index("ix_upload_touched", "touched_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    name: Mapped[str]
    object_key: Mapped[str]
    algorithm: Mapped[str]
    store_upload_id: Mapped[str] = mapped_column(server_default="")
    tail_key: Mapped[str] = mapped_column(server_default="")
    tail_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    offset_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    next_part: Mapped[int] = mapped_column(server_default="1")
    epoch: Mapped[int] = mapped_column(server_default="0")
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime]


class UploadPart(Base):
    """A part of an upload that the store has."""

    __tablename__ = "upload_part"
    __table_args__ = (PrimaryKeyConstraint("upload_id", "number"),)

    upload_id: Mapped[str]
    number: Mapped[int]
    etag: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class Garbage(Base):
    """Objects that nothing needs, to be removed from the store from ``due_at`` on; with
    ``store_upload_id`` an upload of that key is aborted first. What is written before it is
    recorded stands here until it is."""

    __tablename__ = "garbage"

    object_key: Mapped[str] = mapped_column(primary_key=True)
    store_upload_id: Mapped[str] = mapped_column(server_default="")
    due_at: Mapped[datetime] = mapped_column(index=True)


class UsageInterval(Base):
    """So many bytes of a project from one moment to another, UTC wall time; the ledger projects
    these. At most one of a project is open."""

    __tablename__ = "usage_interval"
    __table_args__ = (
        Index(
            "uq_usage_interval_open",
            "project_id",
            unique=True,
            postgresql_where=text("usage_to IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    project_id: Mapped[str]
    stored_bytes: Mapped[int] = mapped_column(BigInteger)
    usage_from: Mapped[datetime]
    usage_to: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default="1")
