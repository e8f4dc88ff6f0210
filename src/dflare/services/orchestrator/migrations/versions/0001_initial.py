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
    create_kit_tables("orchestrator")
    op.create_table(
        "allocation",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("node_name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("reserved_by", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("replaces", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("usage_from", sa.DateTime(timezone=True), nullable=True),
        sa.Column("usage_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allocation")),
        schema="orchestrator",
    )
    op.create_index(
        "ix_allocation_cluster", "allocation", ["cluster_id"], unique=False, schema="orchestrator"
    )
    op.create_index(
        "ix_allocation_held",
        "allocation",
        ["expires_at"],
        unique=False,
        schema="orchestrator",
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_index(
        "ix_allocation_reserved_by",
        "allocation",
        ["reserved_by"],
        unique=False,
        schema="orchestrator",
    )
    op.create_index(
        "uq_allocation_live_node",
        "allocation",
        ["node_id"],
        unique=True,
        schema="orchestrator",
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.create_index(
        "uq_allocation_slot",
        "allocation",
        ["cluster_id", "pool", "slot"],
        unique=True,
        schema="orchestrator",
        postgresql_where=sa.text("state IN ('held', 'confirmed')"),
    )
    op.create_table(
        "block_reservation",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("block_names", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("node_ids", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("node_names", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_block_reservation")),
        schema="orchestrator",
    )
    op.create_index(
        "ix_block_reservation_site",
        "block_reservation",
        ["site_id", "ends_at"],
        unique=False,
        schema="orchestrator",
    )
    op.create_index(
        "uq_block_reservation_name",
        "block_reservation",
        ["project_id", "name"],
        unique=True,
        schema="orchestrator",
        postgresql_where=sa.text("state = 'scheduled'"),
    )
    op.create_table(
        "claim",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_claim")),
        schema="orchestrator",
    )
    op.create_index(
        "ix_claim_operation", "claim", ["operation_id"], unique=False, schema="orchestrator"
    )
    op.create_index(
        "uq_claim_live_node",
        "claim",
        ["node_id"],
        unique=True,
        schema="orchestrator",
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "known_end",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_known_end")),
        schema="orchestrator",
    )
    op.create_table(
        "node",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), server_default="", nullable=False),
        sa.Column("gpus", sa.Integer(), server_default="0", nullable=False),
        sa.Column("row", sa.Text(), server_default="", nullable=False),
        sa.Column("rack", sa.Text(), server_default="", nullable=False),
        sa.Column("block", sa.Text(), server_default="", nullable=False),
        sa.Column("nvlink_domain", sa.Text(), nullable=True),
        sa.Column("rail_block", sa.Text(), nullable=True),
        sa.Column("retired", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("state", sa.Text(), server_default="declared", nullable=False),
        sa.Column("cordoned", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node")),
        schema="orchestrator",
    )
    op.create_index(
        "ix_node_site_type", "node", ["site_id", "node_type"], unique=False, schema="orchestrator"
    )
    op.create_table(
        "operation_index",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("site_id", sa.Text(), nullable=True),
        sa.Column("resource_kind", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("document", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation_index")),
        schema="orchestrator",
    )
    op.create_index(
        "ix_operation_index_project",
        "operation_index",
        ["project_id", "id"],
        unique=False,
        schema="orchestrator",
    )
    op.create_index(
        "ix_operation_index_resource",
        "operation_index",
        ["resource_id"],
        unique=False,
        schema="orchestrator",
    )
    op.create_index(
        op.f("ix_operation_index_state"),
        "operation_index",
        ["state"],
        unique=False,
        schema="orchestrator",
    )
    op.create_table(
        "quota_limit",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "node_type", name=op.f("pk_quota_limit")),
        schema="orchestrator",
    )
    op.create_table(
        "quota_usage",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "node_type", name=op.f("pk_quota_usage")),
        schema="orchestrator",
    )
    op.create_table(
        "reservation",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("wishes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("explanation", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_reservation")),
        schema="orchestrator",
    )
    op.create_table(
        "site",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_types", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_site")),
        schema="orchestrator",
    )
    op.create_table(
        "waiting_order",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("wishes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("told", sa.Text(), server_default="", nullable=False),
        sa.Column("arrived_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_waiting_order")),
        schema="orchestrator",
    )
    op.create_index(
        op.f("ix_waiting_order_site_id"),
        "waiting_order",
        ["site_id"],
        unique=False,
        schema="orchestrator",
    )


def downgrade() -> None:
    op.drop_index(
        op.f("ix_waiting_order_site_id"), table_name="waiting_order", schema="orchestrator"
    )
    op.drop_table("waiting_order", schema="orchestrator")
    op.drop_table("site", schema="orchestrator")
    op.drop_table("reservation", schema="orchestrator")
    op.drop_table("quota_usage", schema="orchestrator")
    op.drop_table("quota_limit", schema="orchestrator")
    op.drop_index(
        op.f("ix_operation_index_state"), table_name="operation_index", schema="orchestrator"
    )
    op.drop_index(
        "ix_operation_index_resource", table_name="operation_index", schema="orchestrator"
    )
    op.drop_index("ix_operation_index_project", table_name="operation_index", schema="orchestrator")
    op.drop_table("operation_index", schema="orchestrator")
    op.drop_index("ix_node_site_type", table_name="node", schema="orchestrator")
    op.drop_table("node", schema="orchestrator")
    op.drop_table("known_end", schema="orchestrator")
    op.drop_index(
        "uq_claim_live_node",
        table_name="claim",
        schema="orchestrator",
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.drop_index("ix_claim_operation", table_name="claim", schema="orchestrator")
    op.drop_table("claim", schema="orchestrator")
    op.drop_index(
        "uq_block_reservation_name",
        table_name="block_reservation",
        schema="orchestrator",
        postgresql_where=sa.text("state = 'scheduled'"),
    )
    op.drop_index(
        "ix_block_reservation_site", table_name="block_reservation", schema="orchestrator"
    )
    op.drop_table("block_reservation", schema="orchestrator")
    op.drop_index(
        "uq_allocation_slot",
        table_name="allocation",
        schema="orchestrator",
        postgresql_where=sa.text("state IN ('held', 'confirmed')"),
    )
    op.drop_index(
        "uq_allocation_live_node",
        table_name="allocation",
        schema="orchestrator",
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.drop_index("ix_allocation_reserved_by", table_name="allocation", schema="orchestrator")
    op.drop_index(
        "ix_allocation_held",
        table_name="allocation",
        schema="orchestrator",
        postgresql_where=sa.text("state = 'held'"),
    )
    op.drop_index("ix_allocation_cluster", table_name="allocation", schema="orchestrator")
    op.drop_table("allocation", schema="orchestrator")
    drop_kit_tables("orchestrator")
