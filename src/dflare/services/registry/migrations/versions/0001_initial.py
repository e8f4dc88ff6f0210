"""initial"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from dflare.kit.tables_v1 import create_kit_tables, drop_kit_tables

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    create_kit_tables("registry")
    op.create_table(
        "blob",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("unreferenced_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blob")),
        schema="registry",
    )
    op.create_index("ix_blob_digest", "blob", ["digest"], unique=False, schema="registry")
    op.create_index(
        "ix_blob_unreferenced",
        "blob",
        ["unreferenced_since"],
        unique=False,
        schema="registry",
        postgresql_where=sa.text("unreferenced_since IS NOT NULL"),
    )
    op.create_table(
        "garbage",
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("store_upload_id", sa.Text(), server_default="", nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("object_key", name=op.f("pk_garbage")),
        schema="registry",
    )
    op.create_index(
        op.f("ix_garbage_due_at"), "garbage", ["due_at"], unique=False, schema="registry"
    )
    op.create_table(
        "manifest",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("artifact_type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("annotations", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pushed_by", sa.Text(), nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("repository_id", "digest", name=op.f("pk_manifest")),
        schema="registry",
    )
    op.create_index(
        "ix_manifest_project", "manifest", ["project_id"], unique=False, schema="registry"
    )
    op.create_index(
        "ix_manifest_subject",
        "manifest",
        ["repository_id", "subject"],
        unique=False,
        schema="registry",
        postgresql_where=sa.text("subject <> ''"),
    )
    op.create_table(
        "project_storage",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("limit_gib", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_project_storage")),
        schema="registry",
    )
    op.create_table(
        "reference",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("manifest_digest", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "repository_id", "manifest_digest", "digest", name=op.f("pk_reference")
        ),
        schema="registry",
    )
    op.create_index(
        "ix_reference_target",
        "reference",
        ["repository_id", "digest"],
        unique=False,
        schema="registry",
    )
    op.create_table(
        "repository",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repository")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_repository_project_id_name")),
        schema="registry",
    )
    op.create_index(
        "ix_repository_organization",
        "repository",
        ["organization_id"],
        unique=False,
        schema="registry",
    )
    op.create_table(
        "repository_blob",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("blob_id", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("unreferenced_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("repository_id", "digest", name=op.f("pk_repository_blob")),
        schema="registry",
    )
    op.create_index(
        "ix_repository_blob_blob", "repository_blob", ["blob_id"], unique=False, schema="registry"
    )
    op.create_index(
        "ix_repository_blob_project",
        "repository_blob",
        ["project_id", "digest"],
        unique=False,
        schema="registry",
    )
    op.create_index(
        "ix_repository_blob_unreferenced",
        "repository_blob",
        ["unreferenced_since"],
        unique=False,
        schema="registry",
        postgresql_where=sa.text("unreferenced_since IS NOT NULL"),
    )
    op.create_table(
        "tag",
        sa.Column("repository_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("repository_id", "name", name=op.f("pk_tag")),
        schema="registry",
    )
    op.create_index(
        "ix_tag_digest", "tag", ["repository_id", "digest"], unique=False, schema="registry"
    )
    op.create_table(
        "upload",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("store_upload_id", sa.Text(), server_default="", nullable=False),
        sa.Column("tail_key", sa.Text(), server_default="", nullable=False),
        sa.Column("tail_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("offset_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("next_part", sa.Integer(), server_default="1", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
        schema="registry",
    )
    op.create_index("ix_upload_project", "upload", ["project_id"], unique=False, schema="registry")
    op.create_index("ix_upload_touched", "upload", ["touched_at"], unique=False, schema="registry")
    op.create_table(
        "upload_part",
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("upload_id", "number", name=op.f("pk_upload_part")),
        schema="registry",
    )
    op.create_table(
        "usage_interval",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("usage_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_interval")),
        schema="registry",
    )
    op.create_index(
        "uq_usage_interval_open",
        "usage_interval",
        ["project_id"],
        unique=True,
        schema="registry",
        postgresql_where=sa.text("usage_to IS NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "uq_usage_interval_open",
        table_name="usage_interval",
        schema="registry",
        postgresql_where=sa.text("usage_to IS NULL"),
    )
    op.drop_table("usage_interval", schema="registry")
    op.drop_table("upload_part", schema="registry")
    op.drop_index("ix_upload_project", table_name="upload", schema="registry")
    op.drop_index("ix_upload_touched", table_name="upload", schema="registry")
    op.drop_table("upload", schema="registry")
    op.drop_index("ix_tag_digest", table_name="tag", schema="registry")
    op.drop_table("tag", schema="registry")
    op.drop_index("ix_repository_blob_blob", table_name="repository_blob", schema="registry")
    op.drop_index("ix_repository_blob_project", table_name="repository_blob", schema="registry")
    op.drop_index(
        "ix_repository_blob_unreferenced",
        table_name="repository_blob",
        schema="registry",
        postgresql_where=sa.text("unreferenced_since IS NOT NULL"),
    )
    op.drop_table("repository_blob", schema="registry")
    op.drop_index("ix_repository_organization", table_name="repository", schema="registry")
    op.drop_table("repository", schema="registry")
    op.drop_index("ix_reference_target", table_name="reference", schema="registry")
    op.drop_table("reference", schema="registry")
    op.drop_table("project_storage", schema="registry")
    op.drop_index("ix_manifest_project", table_name="manifest", schema="registry")
    op.drop_index(
        "ix_manifest_subject",
        table_name="manifest",
        schema="registry",
        postgresql_where=sa.text("subject <> ''"),
    )
    op.drop_table("manifest", schema="registry")
    op.drop_index(op.f("ix_garbage_due_at"), table_name="garbage", schema="registry")
    op.drop_table("garbage", schema="registry")
    op.drop_index("ix_blob_digest", table_name="blob", schema="registry")
    op.drop_index(
        "ix_blob_unreferenced",
        table_name="blob",
        schema="registry",
        postgresql_where=sa.text("unreferenced_since IS NOT NULL"),
    )
    op.drop_table("blob", schema="registry")
    drop_kit_tables("registry")
