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

_JSON = postgresql.JSONB(astext_type=sa.Text())
_WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    create_kit_tables("metrics")
    op.create_table(
        "alert",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=True),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("cluster_id", sa.Text(), nullable=True),
        sa.Column("subject_kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("subject_name", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), server_default="", nullable=False),
        sa.Column("raised_at", _WHEN, nullable=False),
        sa.Column("resolved_at", _WHEN, nullable=True),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert")),
        schema="metrics",
    )
    op.create_index("ix_alert_project", "alert", ["project_id"], unique=False, schema="metrics")
    op.create_index(
        "uq_alert_raised",
        "alert",
        ["fingerprint"],
        unique=True,
        schema="metrics",
        postgresql_where=sa.text("state = 'raised'"),
    )
    op.create_table(
        "known_cluster",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_known_cluster")),
        schema="metrics",
    )
    op.create_table(
        "known_node",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("ports", _JSON, nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_known_node")),
        schema="metrics",
    )
    op.create_table(
        "known_operation",
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("site_id", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("begun_at", _WHEN, nullable=False),
        sa.Column("finished_at", _WHEN, nullable=True),
        sa.Column("timed_until", _WHEN, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("operation_id", name=op.f("pk_known_operation")),
        schema="metrics",
    )
    op.create_index(
        "ix_known_operation_live",
        "known_operation",
        ["state"],
        unique=False,
        schema="metrics",
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "known_site",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("vendors", _JSON, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_known_site")),
        schema="metrics",
    )
    op.create_table(
        "step_time",
        sa.Column("saga", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("buckets", _JSON, nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("saga", "step", "outcome", name=op.f("pk_step_time")),
        schema="metrics",
    )
    op.create_table(
        "tenancy",
        sa.Column("allocation_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("had_from", _WHEN, nullable=False),
        sa.Column("had_to", _WHEN, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("allocation_id", name=op.f("pk_tenancy")),
        schema="metrics",
    )
    op.create_index(
        "ix_tenancy_node", "tenancy", ["node_id", "had_from"], unique=False, schema="metrics"
    )


def downgrade() -> None:
    op.drop_index("ix_tenancy_node", table_name="tenancy", schema="metrics")
    op.drop_table("tenancy", schema="metrics")
    op.drop_table("step_time", schema="metrics")
    op.drop_table("known_site", schema="metrics")
    op.drop_index(
        "ix_known_operation_live",
        table_name="known_operation",
        schema="metrics",
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.drop_table("known_operation", schema="metrics")
    op.drop_table("known_node", schema="metrics")
    op.drop_table("known_cluster", schema="metrics")
    op.drop_index(
        "uq_alert_raised",
        table_name="alert",
        schema="metrics",
        postgresql_where=sa.text("state = 'raised'"),
    )
    op.drop_index("ix_alert_project", table_name="alert", schema="metrics")
    op.drop_table("alert", schema="metrics")
    drop_kit_tables("metrics")
