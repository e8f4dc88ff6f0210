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
    create_kit_tables("network")
    op.create_table(
        "device",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("driver", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("retired", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("health", sa.Text(), server_default="unknown", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("repaired", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("desired_version", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("observed_version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        schema="network",
    )
    op.create_index("ix_device_site", "device", ["site_id"], unique=False, schema="network")
    op.create_table(
        "device_lease",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), server_default="", nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_lease")),
        schema="network",
    )
    op.create_table(
        "intent",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("network_id", sa.Text(), nullable=True),
        sa.Column("allocation_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("leave_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "jobs", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column("certain", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("outcome", sa.Text(), server_default="", nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_intent")),
        schema="network",
    )
    op.create_index("ix_intent_closed", "intent", ["closed_at"], unique=False, schema="network")
    op.create_index(
        "ix_intent_open_device",
        "intent",
        ["device_id"],
        unique=False,
        schema="network",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "ix_intent_open_node",
        "intent",
        ["node_id"],
        unique=False,
        schema="network",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "network",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("vrf", sa.Text(), server_default="", nullable=False),
        sa.Column("vlan", sa.Integer(), nullable=True),
        sa.Column("vni", sa.Integer(), nullable=True),
        sa.Column("l3_vni", sa.Integer(), nullable=True),
        sa.Column("pkey", sa.Integer(), nullable=True),
        sa.Column("subnet", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_network")),
        sa.UniqueConstraint("cluster_id", name=op.f("uq_network_cluster_id")),
        schema="network",
    )
    op.create_index("ix_network_project", "network", ["project_id"], unique=False, schema="network")
    op.create_table(
        "network_device",
        sa.Column("network_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("network_id", "device_id", name=op.f("pk_network_device")),
        schema="network",
    )
    op.create_index(
        "ix_network_device_device", "network_device", ["device_id"], unique=False, schema="network"
    )
    op.create_table(
        "node_allocation",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("allocation_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("allocation_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_allocation")),
        schema="network",
    )
    op.create_table(
        "pool_value",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("network_id", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cooldown_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("site_id", "kind", "value", name=op.f("pk_pool_value")),
        schema="network",
    )
    op.create_index(
        "ix_pool_value_network", "pool_value", ["network_id"], unique=False, schema="network"
    )
    op.create_table(
        "port",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("declared_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_port")),
        sa.UniqueConstraint("device_id", "address", name=op.f("uq_port_device_id_address")),
        schema="network",
    )
    op.create_index("ix_port_node", "port", ["node_id"], unique=False, schema="network")
    op.create_table(
        "port_desired",
        sa.Column("port_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("network_id", sa.Text(), nullable=True),
        sa.Column("allocation_id", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("port_id", name=op.f("pk_port_desired")),
        schema="network",
    )
    op.create_index(
        "ix_port_desired_device", "port_desired", ["device_id"], unique=False, schema="network"
    )
    op.create_index(
        "ix_port_desired_network",
        "port_desired",
        ["network_id"],
        unique=False,
        schema="network",
        postgresql_where=sa.text("network_id IS NOT NULL"),
    )
    op.create_index(
        "ix_port_desired_node", "port_desired", ["node_id"], unique=False, schema="network"
    )
    op.create_table(
        "port_observed",
        sa.Column("port_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("seen", sa.Text(), nullable=False),
        sa.Column("matches", sa.Boolean(), nullable=False),
        sa.Column("compared_version", sa.BigInteger(), nullable=False),
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("port_id", name=op.f("pk_port_observed")),
        schema="network",
    )
    op.create_index(
        "ix_port_observed_device", "port_observed", ["device_id"], unique=False, schema="network"
    )
    op.create_table(
        "site",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pools", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("declared_version", sa.BigInteger(), nullable=False),
        sa.Column("frozen", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("frozen_by", sa.Text(), server_default="", nullable=False),
        sa.Column("frozen_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("frozen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site")),
        schema="network",
    )


def downgrade() -> None:
    op.drop_table("site", schema="network")
    op.drop_index("ix_port_observed_device", table_name="port_observed", schema="network")
    op.drop_table("port_observed", schema="network")
    op.drop_index("ix_port_desired_node", table_name="port_desired", schema="network")
    op.drop_index(
        "ix_port_desired_network",
        table_name="port_desired",
        schema="network",
        postgresql_where=sa.text("network_id IS NOT NULL"),
    )
    op.drop_index("ix_port_desired_device", table_name="port_desired", schema="network")
    op.drop_table("port_desired", schema="network")
    op.drop_index("ix_port_node", table_name="port", schema="network")
    op.drop_table("port", schema="network")
    op.drop_index("ix_pool_value_network", table_name="pool_value", schema="network")
    op.drop_table("pool_value", schema="network")
    op.drop_table("node_allocation", schema="network")
    op.drop_index("ix_network_device_device", table_name="network_device", schema="network")
    op.drop_table("network_device", schema="network")
    op.drop_index("ix_network_project", table_name="network", schema="network")
    op.drop_table("network", schema="network")
    op.drop_index(
        "ix_intent_open_node",
        table_name="intent",
        schema="network",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.drop_index(
        "ix_intent_open_device",
        table_name="intent",
        schema="network",
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.drop_index("ix_intent_closed", table_name="intent", schema="network")
    op.drop_table("intent", schema="network")
    op.drop_table("device_lease", schema="network")
    op.drop_index("ix_device_site", table_name="device", schema="network")
    op.drop_table("device", schema="network")
    drop_kit_tables("network")
