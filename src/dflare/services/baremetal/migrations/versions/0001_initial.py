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
    create_kit_tables("baremetal")
    op.create_table(
        "agent_session",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("agent_digest", sa.Text(), nullable=False),
        sa.Column("phone_digest", sa.Text(), nullable=False),
        sa.Column("tokens_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("round", sa.Integer(), server_default="0", nullable=False),
        sa.Column("booted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("boot_id", sa.Text(), server_default="", nullable=False),
        sa.Column("serial", sa.Text(), server_default="", nullable=False),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("task_kind", sa.Text(), nullable=True),
        sa.Column("task_sealed", sa.LargeBinary(), nullable=True),
        sa.Column(
            "done", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("up", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_session")),
        sa.UniqueConstraint("agent_digest", name=op.f("uq_agent_session_agent_digest")),
        sa.UniqueConstraint("phone_digest", name=op.f("uq_agent_session_phone_digest")),
        schema="baremetal",
    )
    op.create_index(
        "ix_agent_session_node", "agent_session", ["node_id"], unique=False, schema="baremetal"
    )
    op.create_table(
        "boot_config",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("ssh_keys", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("user_data_sealed", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("scheduler_sealed", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_boot_config")),
        schema="baremetal",
    )
    op.create_table(
        "claim",
        sa.Column("claim_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("claim_id", name=op.f("pk_claim")),
        schema="baremetal",
    )
    op.create_index("ix_claim_node", "claim", ["node_id"], unique=False, schema="baremetal")
    op.create_table(
        "frozen_site",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("frozen", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_frozen_site")),
        schema="baremetal",
    )
    op.create_table(
        "holder",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("allocation_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("pool", sa.Text(), server_default="", nullable=False),
        sa.Column("slot", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_holder")),
        schema="baremetal",
    )
    op.create_index("ix_holder_project", "holder", ["project_id"], unique=False, schema="baremetal")
    op.create_table(
        "image",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("builtin", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("site_id", "name", name=op.f("pk_image")),
        schema="baremetal",
    )
    op.create_table(
        "node",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("rack", sa.Text(), nullable=False),
        sa.Column("vendor", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("bmc_address", sa.Text(), nullable=False),
        sa.Column("credential", sa.Text(), nullable=False),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "inventory",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fault", sa.Text(), server_default="", nullable=False),
        sa.Column("dirty", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("cordoned", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("cordon_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("acting_operation_id", sa.Text(), nullable=True),
        sa.Column("power", sa.Text(), server_default="", nullable=False),
        sa.Column("health", sa.Text(), server_default="unknown", nullable=False),
        sa.Column("health_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
        schema="baremetal",
    )
    op.create_index(
        "ix_node_checked",
        "node",
        ["checked_at"],
        unique=False,
        schema="baremetal",
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_index(
        "uq_node_live_name",
        "node",
        ["site_id", "name"],
        unique=True,
        schema="baremetal",
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_table(
        "node_type",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("vendor", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("gpu_model", sa.Text(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("infiniband_rails", sa.Integer(), nullable=False),
        sa.Column("price_per_node_hour", sa.Numeric(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("site_id", "name", name=op.f("pk_node_type")),
        schema="baremetal",
    )
    op.create_table(
        "rack",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("row", sa.Text(), nullable=False),
        sa.Column("block", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", "name", name=op.f("pk_rack")),
        schema="baremetal",
    )
    op.create_table(
        "site",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("document", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site")),
        sa.UniqueConstraint("name", name=op.f("uq_site_name")),
        schema="baremetal",
    )


def downgrade() -> None:
    op.drop_table("site", schema="baremetal")
    op.drop_table("rack", schema="baremetal")
    op.drop_table("node_type", schema="baremetal")
    op.drop_index(
        "uq_node_live_name",
        table_name="node",
        schema="baremetal",
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.drop_index(
        "ix_node_checked",
        table_name="node",
        schema="baremetal",
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.drop_table("node", schema="baremetal")
    op.drop_table("image", schema="baremetal")
    op.drop_index("ix_holder_project", table_name="holder", schema="baremetal")
    op.drop_table("holder", schema="baremetal")
    op.drop_table("frozen_site", schema="baremetal")
    op.drop_index("ix_claim_node", table_name="claim", schema="baremetal")
    op.drop_table("claim", schema="baremetal")
    op.drop_table("boot_config", schema="baremetal")
    op.drop_index("ix_agent_session_node", table_name="agent_session", schema="baremetal")
    op.drop_table("agent_session", schema="baremetal")
    drop_kit_tables("baremetal")
