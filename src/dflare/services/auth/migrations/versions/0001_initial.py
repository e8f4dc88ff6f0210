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
    create_kit_tables("auth")
    op.create_table(
        "api_token",
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_token_secret_sha256")),
        schema="auth",
    )
    op.create_index(
        op.f("ix_api_token_subject_id"), "api_token", ["subject_id"], unique=False, schema="auth"
    )
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("resource_kind", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entry")),
        schema="auth",
    )
    op.create_index(
        "ix_audit_entry_organization",
        "audit_entry",
        ["organization_id", "id"],
        unique=False,
        schema="auth",
    )
    op.create_index(
        "ix_audit_entry_project", "audit_entry", ["project_id", "id"], unique=False, schema="auth"
    )
    op.create_table(
        "authorization_code",
        sa.Column("code_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("redirect_uri", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=True),
        sa.Column("code_challenge", sa.Text(), nullable=False),
        sa.Column("auth_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("code_sha256", name=op.f("pk_authorization_code")),
        schema="auth",
    )
    op.create_table(
        "project_use",
        sa.Column("resource_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("resource_id", name=op.f("pk_project_use")),
        schema="auth",
    )
    op.create_index(
        op.f("ix_project_use_project_id"),
        "project_use",
        ["project_id"],
        unique=False,
        schema="auth",
    )
    op.create_table(
        "device_code",
        sa.Column("code_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("user_code", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_poll_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("code_sha256", name=op.f("pk_device_code")),
        sa.UniqueConstraint("user_code", name=op.f("uq_device_code_user_code")),
        schema="auth",
    )
    op.create_table(
        "login_session",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_session")),
        schema="auth",
    )
    op.create_index(
        op.f("ix_login_session_revoked_at"),
        "login_session",
        ["revoked_at"],
        unique=False,
        schema="auth",
    )
    op.create_index(
        op.f("ix_login_session_user_id"), "login_session", ["user_id"], unique=False, schema="auth"
    )
    op.create_table(
        "oauth_client",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("redirect_uris", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("grant_types", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_oauth_client")),
        schema="auth",
    )
    op.create_table(
        "organization",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organization")),
        sa.UniqueConstraint("name", name=op.f("uq_organization_name")),
        schema="auth",
    )
    op.create_table(
        "refresh_token",
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_refresh_token")),
        schema="auth",
    )
    op.create_index(
        op.f("ix_refresh_token_session_id"),
        "refresh_token",
        ["session_id"],
        unique=False,
        schema="auth",
    )
    op.create_table(
        "signing_key",
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("public_jwk", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_signing_key")),
        schema="auth",
    )
    op.create_table(
        "project",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["auth.organization.id"],
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
        sa.UniqueConstraint(
            "organization_id", "name", name=op.f("uq_project_organization_id_name")
        ),
        schema="auth",
    )
    op.create_table(
        "user",
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("failed_logins", sa.Integer(), nullable=False),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["auth.organization.id"],
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user")),
        sa.UniqueConstraint(
            "organization_id",
            "name",
            name=op.f("uq_user_organization_id_name"),
            postgresql_nulls_not_distinct=True,
        ),
        schema="auth",
    )
    op.create_index(
        op.f("ix_user_organization_id"), "user", ["organization_id"], unique=False, schema="auth"
    )
    op.create_table(
        "role_binding",
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["auth.organization.id"],
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["auth.project.id"],
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role_binding")),
        sa.UniqueConstraint(
            "subject_id",
            "role",
            "organization_id",
            "project_id",
            name=op.f("uq_role_binding_subject_id_role_organization_id_project_id"),
            postgresql_nulls_not_distinct=True,
        ),
        schema="auth",
    )
    op.create_index(
        op.f("ix_role_binding_organization_id"),
        "role_binding",
        ["organization_id"],
        unique=False,
        schema="auth",
    )
    op.create_index(
        op.f("ix_role_binding_project_id"),
        "role_binding",
        ["project_id"],
        unique=False,
        schema="auth",
    )
    op.create_table(
        "service_account",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["auth.organization.id"],
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["auth.project.id"],
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_account")),
        sa.UniqueConstraint(
            "organization_id",
            "project_id",
            "name",
            name=op.f("uq_service_account_organization_id_project_id_name"),
            postgresql_nulls_not_distinct=True,
        ),
        schema="auth",
    )


def downgrade() -> None:
    op.drop_table("service_account", schema="auth")
    op.drop_index(op.f("ix_role_binding_project_id"), table_name="role_binding", schema="auth")
    op.drop_index(op.f("ix_role_binding_organization_id"), table_name="role_binding", schema="auth")
    op.drop_table("role_binding", schema="auth")
    op.drop_index(op.f("ix_user_organization_id"), table_name="user", schema="auth")
    op.drop_table("user", schema="auth")
    op.drop_table("project", schema="auth")
    op.drop_table("signing_key", schema="auth")
    op.drop_index(op.f("ix_refresh_token_session_id"), table_name="refresh_token", schema="auth")
    op.drop_table("refresh_token", schema="auth")
    op.drop_table("organization", schema="auth")
    op.drop_table("oauth_client", schema="auth")
    op.drop_index(op.f("ix_login_session_user_id"), table_name="login_session", schema="auth")
    op.drop_index(op.f("ix_login_session_revoked_at"), table_name="login_session", schema="auth")
    op.drop_table("login_session", schema="auth")
    op.drop_table("device_code", schema="auth")
    op.drop_index(op.f("ix_project_use_project_id"), table_name="project_use", schema="auth")
    op.drop_table("project_use", schema="auth")
    op.drop_table("authorization_code", schema="auth")
    op.drop_index("ix_audit_entry_project", table_name="audit_entry", schema="auth")
    op.drop_index("ix_audit_entry_organization", table_name="audit_entry", schema="auth")
    op.drop_table("audit_entry", schema="auth")
    op.drop_index(op.f("ix_api_token_subject_id"), table_name="api_token", schema="auth")
    op.drop_table("api_token", schema="auth")
    drop_kit_tables("auth")
