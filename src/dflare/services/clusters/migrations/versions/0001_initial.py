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


_JOB_INDEXES = (
    ("ix_job_cluster", ["cluster_id", "id"], False, None),
    ("ix_job_open", ["cluster_id"], False, "state NOT IN ('ended', 'refused')"),
    ("ix_job_output_open", ["cluster_id"], False, "NOT direct AND output_state = ''"),
    (
        "uq_job_request_key",
        ["cluster_id", "created_by", "request_key"],
        True,
        "request_key IS NOT NULL",
    ),
    ("uq_job_scheduler_id", ["cluster_id", "scheduler_id"], True, "scheduler_id IS NOT NULL"),
)


def upgrade() -> None:
    create_kit_tables("clusters")
    op.create_table(
        "cluster",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ssh_keys", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("user_data_id", sa.Text(), nullable=True),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("explanation", sa.Text(), server_default="", nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("protected", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("scheduler_id", sa.Text(), nullable=True),
        sa.Column(
            "mounts", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column(
            "conditions",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="[]",
            nullable=False,
        ),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cluster")),
        schema="clusters",
    )
    op.create_index(
        "ix_cluster_expiry",
        "cluster",
        ["expires_at"],
        unique=False,
        schema="clusters",
        postgresql_where=sa.text("expires_at IS NOT NULL AND state <> 'deleted'"),
    )
    op.create_index(
        "ix_cluster_organization", "cluster", ["organization_id"], unique=False, schema="clusters"
    )
    op.create_index(
        "uq_cluster_live_name",
        "cluster",
        ["project_id", "name"],
        unique=True,
        schema="clusters",
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.create_table(
        "drain",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "node_id", name=op.f("pk_drain")),
        schema="clusters",
    )
    op.create_table(
        "known_node",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_known_node")),
        schema="clusters",
    )
    op.create_table(
        "known_site",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("node_types", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "images", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column("scheduler", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_known_site")),
        schema="clusters",
    )
    op.create_index(
        op.f("ix_known_site_name"), "known_site", ["name"], unique=False, schema="clusters"
    )
    op.create_table(
        "known_volume",
        sa.Column("volume_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("volume_id", name=op.f("pk_known_volume")),
        schema="clusters",
    )
    op.create_index(
        "ix_known_volume_project",
        "known_volume",
        ["project_id", "name"],
        unique=False,
        schema="clusters",
    )
    op.create_table(
        "member",
        sa.Column("allocation_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("node_name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("allocation_id", name=op.f("pk_member")),
        schema="clusters",
    )
    op.create_index(
        op.f("ix_member_cluster_id"), "member", ["cluster_id"], unique=False, schema="clusters"
    )
    op.create_table(
        "node_pool",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("max_nodes", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_pool")),
        schema="clusters",
    )
    op.create_index(
        op.f("ix_node_pool_cluster_id"),
        "node_pool",
        ["cluster_id"],
        unique=False,
        schema="clusters",
    )
    op.create_table(
        "ssh_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ssh_key")),
        schema="clusters",
    )
    op.create_index(
        "uq_ssh_key_name", "ssh_key", ["project_id", "name"], unique=True, schema="clusters"
    )
    op.create_table(
        "user_data",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_data")),
        schema="clusters",
    )
    op.create_index(
        "uq_user_data_name", "user_data", ["project_id", "name"], unique=True, schema="clusters"
    )
    op.create_table(
        "node_place",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("leaf", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_place")),
        schema="clusters",
    )
    op.create_table(
        "node_shape",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("cpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_type", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", "node_type", name=op.f("pk_node_shape")),
        schema="clusters",
    )
    op.create_table(
        "scheduler",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("told", sa.Text(), server_default="", nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "nodes", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_scheduler")),
        schema="clusters",
    )
    op.create_index("ix_scheduler_site", "scheduler", ["site_id"], unique=False, schema="clusters")
    op.create_table(
        "scheduler_host",
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("declared", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("state", sa.Text(), server_default="", nullable=False),
        sa.Column("release", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("frozen", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("frozen_version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", "name", name=op.f("pk_scheduler_host")),
        schema="clusters",
    )
    _create_jobs()


def _create_jobs() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("site_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("direct", sa.Boolean(), nullable=False),
        sa.Column("script", sa.Text(), nullable=True),
        sa.Column(
            "options", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column(
            "environment",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("scheduler_id", sa.Text(), nullable=True),
        sa.Column("scheduler_state", sa.Text(), server_default="", nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column(
            "runs", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column("output_bytes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("output_state", sa.Text(), server_default="", nullable=False),
        sa.Column("output_checked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("request_key", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        schema="clusters",
    )
    for name, columns, unique, where in _JOB_INDEXES:
        op.create_index(
            name,
            "job",
            columns,
            unique=unique,
            schema="clusters",
            postgresql_where=sa.text(where) if where else None,
        )
    op.create_table(
        "job_output",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "first", name=op.f("pk_job_output")),
        schema="clusters",
    )
    op.create_table(
        "jobs_followed",
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_jobs_followed")),
        schema="clusters",
    )


def downgrade() -> None:
    op.drop_table("jobs_followed", schema="clusters")
    op.drop_table("job_output", schema="clusters")
    for name, *_ in _JOB_INDEXES:
        op.drop_index(name, table_name="job", schema="clusters")
    op.drop_table("job", schema="clusters")
    op.drop_table("scheduler_host", schema="clusters")
    op.drop_index("ix_scheduler_site", table_name="scheduler", schema="clusters")
    op.drop_table("scheduler", schema="clusters")
    op.drop_table("node_shape", schema="clusters")
    op.drop_table("node_place", schema="clusters")
    op.drop_index("uq_user_data_name", table_name="user_data", schema="clusters")
    op.drop_table("user_data", schema="clusters")
    op.drop_index("uq_ssh_key_name", table_name="ssh_key", schema="clusters")
    op.drop_table("ssh_key", schema="clusters")
    op.drop_index(op.f("ix_node_pool_cluster_id"), table_name="node_pool", schema="clusters")
    op.drop_table("node_pool", schema="clusters")
    op.drop_index(op.f("ix_member_cluster_id"), table_name="member", schema="clusters")
    op.drop_table("member", schema="clusters")
    op.drop_index("ix_known_volume_project", table_name="known_volume", schema="clusters")
    op.drop_table("known_volume", schema="clusters")
    op.drop_index(op.f("ix_known_site_name"), table_name="known_site", schema="clusters")
    op.drop_table("known_site", schema="clusters")
    op.drop_table("known_node", schema="clusters")
    op.drop_table("drain", schema="clusters")
    op.drop_index(
        "uq_cluster_live_name",
        table_name="cluster",
        schema="clusters",
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.drop_index("ix_cluster_organization", table_name="cluster", schema="clusters")
    op.drop_index(
        "ix_cluster_expiry",
        table_name="cluster",
        schema="clusters",
        postgresql_where=sa.text("expires_at IS NOT NULL AND state <> 'deleted'"),
    )
    op.drop_table("cluster", schema="clusters")
    drop_kit_tables("clusters")
