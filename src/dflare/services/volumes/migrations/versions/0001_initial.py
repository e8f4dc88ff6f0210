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
    create_kit_tables("volumes")
    op.create_table(
        "access",
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("observed", sa.Text(), server_default="none", nullable=False),
        sa.Column("mounted", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("volume_id", "cluster_id", name=op.f("pk_access")),
        schema="volumes",
    )
    op.create_index("ix_access_cluster", "access", ["cluster_id"], unique=False, schema="volumes")
    op.create_table(
        "declared_cluster",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("mounts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_declared_cluster")),
        schema="volumes",
    )
    op.create_table(
        "known_cluster",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_known_cluster")),
        schema="volumes",
    )
    op.create_index(
        "ix_known_cluster_project", "known_cluster", ["project_id"], unique=False, schema="volumes"
    )
    op.create_table(
        "known_site",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("price_per_gib_hour", sa.Numeric(), nullable=True),
        sa.Column("currency", sa.Text(), server_default="", nullable=False),
        sa.Column("frozen", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("frozen_version", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_known_site")),
        schema="volumes",
    )
    op.create_index(
        op.f("ix_known_site_name"), "known_site", ["name"], unique=False, schema="volumes"
    )
    op.create_table(
        "quota_limit",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("limit_gib", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_quota_limit")),
        schema="volumes",
    )
    op.create_table(
        "snapshot",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshot")),
        sa.UniqueConstraint("volume_id", "name", name=op.f("uq_snapshot_volume_id_name")),
        schema="volumes",
    )
    op.create_table(
        "usage_interval",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("size_gib", sa.Integer(), nullable=False),
        sa.Column("usage_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("usage_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_interval")),
        schema="volumes",
    )
    op.create_index(
        op.f("ix_usage_interval_volume_id"),
        "usage_interval",
        ["volume_id"],
        unique=False,
        schema="volumes",
    )
    op.create_index(
        "uq_usage_interval_open",
        "usage_interval",
        ["volume_id"],
        unique=True,
        schema="volumes",
        postgresql_where=sa.text("usage_to IS NULL"),
    )
    op.create_table(
        "volume",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size_gib", sa.Integer(), nullable=False),
        sa.Column("wanted_gib", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("present", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("desired_gib", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("observed_present", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("observed_gib", sa.Integer(), nullable=True),
        sa.Column("observed_revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("no_snapshots", sa.Text(), server_default="", nullable=False),
        sa.Column("quota", sa.Text(), server_default="", nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=True),
        sa.Column("used_complete", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("scanned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("trouble", sa.Text(), server_default="", nullable=False),
        sa.Column("trouble_revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("refused", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("intent_revision", sa.Integer(), nullable=True),
        sa.Column("intent_holder", sa.Text(), server_default="", nullable=False),
        sa.Column("intent_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume")),
        schema="volumes",
    )
    op.create_index(
        "ix_volume_behind",
        "volume",
        ["site_id"],
        unique=False,
        schema="volumes",
        postgresql_where=sa.text("observed_revision < revision"),
    )
    op.create_index(
        "ix_volume_organization", "volume", ["organization_id"], unique=False, schema="volumes"
    )
    op.create_index(
        "uq_volume_live_name",
        "volume",
        ["project_id", "name"],
        unique=True,
        schema="volumes",
        postgresql_where=sa.text("state <> 'deleted'"),
    )


def downgrade() -> None:
    op.drop_index(
        "uq_volume_live_name",
        table_name="volume",
        schema="volumes",
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.drop_index("ix_volume_organization", table_name="volume", schema="volumes")
    op.drop_index(
        "ix_volume_behind",
        table_name="volume",
        schema="volumes",
        postgresql_where=sa.text("observed_revision < revision"),
    )
    op.drop_table("volume", schema="volumes")
    op.drop_index(
        "uq_usage_interval_open",
        table_name="usage_interval",
        schema="volumes",
        postgresql_where=sa.text("usage_to IS NULL"),
    )
    op.drop_index(
        op.f("ix_usage_interval_volume_id"), table_name="usage_interval", schema="volumes"
    )
    op.drop_table("usage_interval", schema="volumes")
    op.drop_table("snapshot", schema="volumes")
    op.drop_table("quota_limit", schema="volumes")
    op.drop_index(op.f("ix_known_site_name"), table_name="known_site", schema="volumes")
    op.drop_table("known_site", schema="volumes")
    op.drop_index("ix_known_cluster_project", table_name="known_cluster", schema="volumes")
    op.drop_table("known_cluster", schema="volumes")
    op.drop_table("declared_cluster", schema="volumes")
    op.drop_index("ix_access_cluster", table_name="access", schema="volumes")
    op.drop_table("access", schema="volumes")
    drop_kit_tables("volumes")
