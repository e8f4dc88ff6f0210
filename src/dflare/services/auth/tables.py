"""Tables of schema ``auth``.

Secrets are never stored: passwords as argon2id hashes, opaque tokens and codes as SHA-256 (they
are 256 random bits, so a slow hash would add nothing), private keys sealed in the kit's
``secret`` table under ``signing_key/<kid>``.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from dflare.kit.tables import ServiceBase, kit_tables, service_metadata


class Base(ServiceBase):
    """Base of auth's mapped classes."""

    __abstract__ = True
    metadata = service_metadata("auth")


KIT = kit_tables(Base.metadata)


class Identified(Base):
    """Base of what the API shows: an id, and a version that rises with every change."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    created_at: Mapped[datetime]


class Organization(Identified):
    """A customer. Its name is unique on the platform."""

    __tablename__ = "organization"

    name: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]


class Project(Identified):
    """Where an organization's resources live. Its name is unique in the organization."""

    __tablename__ = "project"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)

    organization_id: Mapped[str] = mapped_column(ForeignKey("auth.organization.id"))
    name: Mapped[str]
    display_name: Mapped[str]


class User(Identified):
    """A person. ``organization_id`` is its home, null for people of the platform itself. Its name
    is unique there, not on the platform: a refusal must not tell one customer who works for
    another. People log in as ``name@organization``, those of the platform as ``name``."""

    __tablename__ = "user"
    __table_args__ = (
        UniqueConstraint("organization_id", "name", postgresql_nulls_not_distinct=True),
    )

    organization_id: Mapped[str | None] = mapped_column(
        ForeignKey("auth.organization.id"), index=True
    )
    name: Mapped[str]
    email: Mapped[str]
    display_name: Mapped[str]
    password_hash: Mapped[str | None]
    disabled: Mapped[bool]
    failed_logins: Mapped[int]
    locked_until: Mapped[datetime | None]


class ServiceAccount(Identified):
    """A program's identity, of an organization or of one of its projects."""

    __tablename__ = "service_account"
    __table_args__ = (
        UniqueConstraint(
            "organization_id", "project_id", "name", postgresql_nulls_not_distinct=True
        ),
    )

    organization_id: Mapped[str] = mapped_column(ForeignKey("auth.organization.id"))
    project_id: Mapped[str | None] = mapped_column(ForeignKey("auth.project.id"))
    name: Mapped[str]
    disabled: Mapped[bool]


class RoleGrant(Identified):
    """A role binding: ``subject_id`` (user or service account) has ``role`` within the platform
    (no ids), an organization, or a project (both ids)."""

    __tablename__ = "role_binding"
    __table_args__ = (
        UniqueConstraint(
            "subject_id",
            "role",
            "organization_id",
            "project_id",
            postgresql_nulls_not_distinct=True,
        ),
    )

    subject_id: Mapped[str]
    role: Mapped[str]
    organization_id: Mapped[str | None] = mapped_column(
        ForeignKey("auth.organization.id"), index=True
    )
    project_id: Mapped[str | None] = mapped_column(ForeignKey("auth.project.id"), index=True)


class ApiToken(Identified):
    """An opaque bearer token of a subject; ``hint`` is the part of it that lists may show. The
    owner columns are those of the subject, for scoped queries."""

    __tablename__ = "api_token"

    subject_id: Mapped[str] = mapped_column(index=True)
    organization_id: Mapped[str | None]
    project_id: Mapped[str | None]
    name: Mapped[str]
    hint: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(unique=True)
    expires_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class OAuthClient(Base):
    """A program that users log in with. Every one is public: it has no secret and must use PKCE.
    Programs that act for themselves are service accounts."""

    __tablename__ = "oauth_client"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    redirect_uris: Mapped[list[str]]
    grant_types: Mapped[list[str]]
    created_at: Mapped[datetime]


class LoginSession(Base):
    """One login: the family of refresh tokens that descend from it. Revoking it ends them all and
    the access tokens that name it."""

    __tablename__ = "login_session"

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(index=True)
    client_id: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None] = mapped_column(index=True)
    version: Mapped[int]


class AuthorizationCode(Base):
    """A code of RFC 6749 section 4.1, used once. ``session_id`` is the login it begins, so that a
    second use can revoke what the first use got (section 4.1.2)."""

    __tablename__ = "authorization_code"

    code_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    session_id: Mapped[str]
    client_id: Mapped[str]
    user_id: Mapped[str]
    redirect_uri: Mapped[str]
    scope: Mapped[str]
    nonce: Mapped[str | None]
    code_challenge: Mapped[str]
    auth_time: Mapped[datetime]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class RefreshToken(Base):
    """A refresh token, used once; a second use revokes its session (RFC 9700 section 4.14.2)."""

    __tablename__ = "refresh_token"

    secret_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(index=True)
    client_id: Mapped[str]
    user_id: Mapped[str]
    scope: Mapped[str]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class DeviceCode(Base):
    """A device authorization of RFC 8628: ``state`` is pending, approved, denied or used."""

    __tablename__ = "device_code"

    code_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    user_code: Mapped[str] = mapped_column(unique=True)
    client_id: Mapped[str]
    scope: Mapped[str]
    state: Mapped[str]
    user_id: Mapped[str | None]
    expires_at: Mapped[datetime]
    last_poll_at: Mapped[datetime | None]


class SigningKey(Base):
    """A key that signs tokens. The newest one that is not retired signs; all that are listed
    verify."""

    __tablename__ = "signing_key"

    kid: Mapped[str] = mapped_column(primary_key=True)
    algorithm: Mapped[str]
    public_jwk: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
    version: Mapped[int]


class AuditEntry(Base):
    """The audit log of all services, projected from the feed."""

    __tablename__ = "audit_entry"
    __table_args__ = (
        Index("ix_audit_entry_organization", "organization_id", "id"),
        Index("ix_audit_entry_project", "project_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    service: Mapped[str]
    at: Mapped[datetime]
    principal: Mapped[str]
    action: Mapped[str]
    decision: Mapped[str]
    organization_id: Mapped[str | None]
    project_id: Mapped[str | None]
    resource_kind: Mapped[str]
    resource_id: Mapped[str]
    operation_id: Mapped[str | None]
    detail: Mapped[dict[str, Any]]


class ProjectUse(Base):
    """Which clusters and volumes stand in which project: a read model fed by ``cluster.changed``
    and ``volume.changed``, so that a project in use is not removed."""

    __tablename__ = "project_use"

    resource_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    project_id: Mapped[str] = mapped_column(index=True)
    state: Mapped[str]
    version: Mapped[int]
