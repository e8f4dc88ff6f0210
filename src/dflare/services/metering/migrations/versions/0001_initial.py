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
    create_kit_tables("metering")
    op.create_table(
        "ledger_entry",
        sa.Column("allocation_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("node_name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("usage_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("usage_to", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("allocation_id", name=op.f("pk_ledger_entry")),
        schema="metering",
    )
    op.create_index(
        "ix_ledger_entry_project",
        "ledger_entry",
        ["project_id", "usage_from"],
        unique=False,
        schema="metering",
    )
    op.create_index(
        "ix_ledger_entry_node",
        "ledger_entry",
        ["node_id", "usage_from"],
        unique=False,
        schema="metering",
    )
    _create_volume_and_job_entries()
    op.create_table(
        "price",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("price_per_node_hour", sa.Numeric(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("site_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", "node_type", "valid_from", name=op.f("pk_price")),
        schema="metering",
    )
    op.create_table(
        "volume_price",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("price_per_gib_hour", sa.Numeric(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("site_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", "valid_from", name=op.f("pk_volume_price")),
        schema="metering",
    )
    op.create_table(
        "quota",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("project_id", "node_type", name=op.f("pk_quota")),
        schema="metering",
    )
    op.create_table(
        "usage_audit",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=True),
        sa.Column("usage_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("allocations", sa.Integer(), server_default="0", nullable=False),
        sa.Column("entries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("findings", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_audit")),
        schema="metering",
    )
    op.create_index(
        "uq_usage_audit_day",
        "usage_audit",
        ["day"],
        unique=True,
        schema="metering",
        postgresql_where=sa.text("day IS NOT NULL"),
    )
    op.create_index(
        "ix_usage_audit_open",
        "usage_audit",
        ["requested_at"],
        unique=False,
        schema="metering",
        postgresql_where=sa.text("state IN ('requested', 'running')"),
    )
    op.create_table(
        "usage_finding",
        sa.Column("audit_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("allocation_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("audit_id", "number", name=op.f("pk_usage_finding")),
        schema="metering",
    )


def _create_volume_and_job_entries() -> None:
    op.create_table(
        "volume_entry",
        sa.Column("interval_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("size_gib", sa.Integer(), nullable=False),
        sa.Column("usage_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("usage_to", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("interval_id", name=op.f("pk_volume_entry")),
        schema="metering",
    )
    op.create_index(
        "ix_volume_entry_project",
        "volume_entry",
        ["project_id", "usage_from"],
        unique=False,
        schema="metering",
    )
    op.create_table(
        "registry_entry",
        sa.Column("interval_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("usage_to", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("interval_id", name=op.f("pk_registry_entry")),
        schema="metering",
    )
    op.create_index(
        "ix_registry_entry_project",
        "registry_entry",
        ["project_id", "usage_from"],
        unique=False,
        schema="metering",
    )
    op.create_table(
        "job_entry",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("scheduler_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("gpu_milli", sa.BigInteger(), nullable=False),
        sa.Column("usage_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("usage_to", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "run", name=op.f("pk_job_entry")),
        schema="metering",
    )
    op.create_index(
        "ix_job_entry_project",
        "job_entry",
        ["project_id", "usage_from"],
        unique=False,
        schema="metering",
    )


def downgrade() -> None:
    op.drop_table("usage_finding", schema="metering")
    op.drop_table("usage_audit", schema="metering")
    op.drop_table("quota", schema="metering")
    op.drop_table("volume_price", schema="metering")
    op.drop_table("price", schema="metering")
    op.drop_index("ix_job_entry_project", table_name="job_entry", schema="metering")
    op.drop_table("job_entry", schema="metering")
    op.drop_index("ix_registry_entry_project", table_name="registry_entry", schema="metering")
    op.drop_table("registry_entry", schema="metering")
    op.drop_index("ix_volume_entry_project", table_name="volume_entry", schema="metering")
    op.drop_table("volume_entry", schema="metering")
    op.drop_index("ix_ledger_entry_node", table_name="ledger_entry", schema="metering")
    op.drop_index("ix_ledger_entry_project", table_name="ledger_entry", schema="metering")
    op.drop_table("ledger_entry", schema="metering")
    drop_kit_tables("metering")
