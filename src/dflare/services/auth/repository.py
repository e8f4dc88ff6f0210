"""Queries of auth. What a caller sees starts from its scope; what the snapshot and the issuer need
is keyed by a secret or an id that they already hold."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from joserfc.jwk import RSAKey
from pydantic import JsonValue
from sqlalchemy import ColumnElement, Select, false, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import ConflictError, NameTakenError, NotFoundError
from dflare.kit.feed import FeedEntry, Projection
from dflare.kit.outbox import AuditRecord, Event
from dflare.services.auth.contract import Principal, Role, RoleBinding, Scope
from dflare.services.auth.domain import split_login
from dflare.services.auth.errors import NotEmptyError
from dflare.services.auth.policy.snapshot import (
    BindingRow,
    KeyRow,
    OrganizationRow,
    ProjectRow,
    RevokedRow,
    Row,
    SubjectRow,
    TokenRow,
)
from dflare.services.auth.tables import (
    KIT,
    ApiToken,
    AuditEntry,
    Base,
    Identified,
    LoginSession,
    Organization,
    Project,
    ProjectUse,
    RoleGrant,
    ServiceAccount,
    SigningKey,
    User,
)

Row_T = TypeVar("Row_T", bound=Identified)
T = TypeVar("T", bound=Base)

KIND_OF: dict[type[Identified], str] = {
    Organization: "organization",
    Project: "project",
    User: "user",
    ServiceAccount: "service_account",
    RoleGrant: "role_binding",
    ApiToken: "token",
}
"""The resource kind of each mapped class that the API shows."""

_UNIQUE_VIOLATION = "23505"
_SECRET_COLUMNS = frozenset({"password_hash", "secret_sha256", "failed_logins", "locked_until"})


def within(scope: Scope, model: type[Base], own: str | None = None) -> ColumnElement[bool]:
    """The condition that keeps a query on ``model`` within ``scope``; the subject ``own`` sees
    itself and its tokens too."""
    columns = {column.key: column for column in model.__table__.columns}
    organization, project = columns.get("organization_id"), columns.get("project_id")
    mine: ColumnElement[bool] = false()
    if model is Organization:
        organization = columns["id"]
    elif model is Project:
        project = columns["id"]
    elif model in {User, ServiceAccount} and own:
        mine = columns["id"] == own
    elif model is ApiToken and own:
        mine = columns["subject_id"] == own
    return or_(scope.where(organization, project), mine)


async def get(
    session: AsyncSession,
    scope: Scope,
    model: type[Row_T],
    row_id: str,
    *,
    own: str | None = None,
    lock: bool = False,
) -> Row_T:
    """One row by id within the scope.

    Raises:
        NotFoundError: there is none that the scope covers.
    """
    query = select(model).where(model.id == row_id, within(scope, model, own))
    row = await session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise not_found(model, row_id)
    return row


async def find(
    session: AsyncSession,
    scope: Scope,
    model: type[Row_T],
    *conditions: ColumnElement[bool],
    own: str | None = None,
    after: str | None = None,
    limit: int = 500,
) -> Sequence[Row_T]:
    """Rows in order of their ids, behind ``after``."""
    query: Select[Row_T] = select(model).where(within(scope, model, own), *conditions)
    if after is not None:
        query = query.where(model.id > after)
    return (await session.scalars(query.order_by(model.id).limit(limit))).all()


def logs_in_as(login: str) -> ColumnElement[bool]:
    """The condition for the one user of a login name."""
    name, organization = split_login(login)
    if organization is None:
        return (User.name == name) & User.organization_id.is_(None)
    home = select(Organization.id).where(Organization.name == organization).scalar_subquery()
    return (User.name == name) & (User.organization_id == home)


async def audit_page(
    session: AsyncSession,
    scope: Scope,
    *conditions: ColumnElement[bool],
    before: str | None = None,
    limit: int = 500,
) -> Sequence[AuditEntry]:
    """Audit entries, the newest first, older than ``before``."""
    query = select(AuditEntry).where(within(scope, AuditEntry), *conditions)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return (await session.scalars(query.order_by(AuditEntry.id.desc()).limit(limit))).all()


def not_found(model: type[Identified], reference: str) -> NotFoundError:
    """The one answer for what does not exist and what the caller may not know of."""
    kind = KIND_OF.get(model, "row").replace("_", " ")
    return NotFoundError(
        f"there is no {kind} {reference}", next_step=f"List what you can see of kind {kind}."
    )


def public(row: Identified) -> dict[str, Any]:
    """A row as events show it: without secrets."""
    columns = [c.key for c in row.__table__.columns if c.key not in _SECRET_COLUMNS]
    values = {name: getattr(row, name) for name in columns}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def owners(row: Identified) -> tuple[str | None, str | None]:
    """The organization and project that a row lies in."""
    if isinstance(row, Organization):
        return row.id, None
    if isinstance(row, Project):
        return row.organization_id, row.id
    if isinstance(row, User):
        return row.organization_id, None
    assert isinstance(row, ServiceAccount | RoleGrant | ApiToken)
    return row.organization_id, row.project_id


async def announce(
    session: AsyncSession,
    row: Identified,
    by: Principal,
    verb: str,
    now: datetime,
    *,
    detail: dict[str, Any] | None = None,
) -> None:
    """The event and the audit row of a change; ``verb`` is that of the action."""
    kind = KIND_OF[type(row)]
    organization_id, project_id = owners(row)
    # Who reads an area's events is not thereby allowed to read who works there: such events name
    # no owner outside their data, so that they reach callers of the whole platform alone.
    open_to_area = isinstance(row, Organization | Project)
    event = Event(
        type=f"{kind}.{'deleted' if verb == 'delete' else 'changed'}",
        resource_kind=kind,
        resource_id=row.id,
        resource_version=row.version,
        at=now,
        data=public(row),
        organization_id=organization_id if open_to_area else None,
        project_id=project_id if open_to_area else None,
    )
    await outbox.emit(session, KIT, [event])
    record = AuditRecord(
        at=now,
        principal=by.subject,
        action=f"{kind}:{verb}",
        resource_kind=kind,
        resource_id=row.id,
        organization_id=organization_id,
        project_id=project_id,
        detail=detail or {},
    )
    await outbox.record_audit(session, KIT, record)


class SnapshotRows:
    """Implements ``SnapshotSource``. A login's revocation is kept for ``access_token_s``, after
    which no token of it is valid any more."""

    def __init__(self, database: Database, clock: Clock, access_token_s: int) -> None:
        self._database = database
        self._clock = clock
        self._revoked_for = timedelta(seconds=access_token_s + 60)

    async def load(self, ids: Mapping[str, Sequence[str] | None]) -> dict[str, list[Row]]:
        """See ``SnapshotSource``."""
        async with self._database.transaction("auth") as session:
            return {kind: await self._rows(session, kind, ids[kind]) for kind in ids}

    async def _rows(self, session: AsyncSession, kind: str, ids: Sequence[str] | None) -> list[Row]:
        match kind:
            case "organization":
                found = await _named(session, select(Organization), Organization.id, ids)
                return [OrganizationRow(row.id, row.name) for row in found]
            case "project":
                projects = await _named(session, select(Project), Project.id, ids)
                return [ProjectRow(row.id, row.name, row.organization_id) for row in projects]
            case "user":
                users = await _named(session, select(User).where(~User.disabled), User.id, ids)
                return [SubjectRow(row.id, kind, row.name, row.organization_id) for row in users]
            case "service_account":
                live = select(ServiceAccount).where(~ServiceAccount.disabled)
                accounts = await _named(session, live, ServiceAccount.id, ids)
                return [SubjectRow(row.id, kind, row.name) for row in accounts]
            case "role_binding":
                grants = await _named(session, select(RoleGrant), RoleGrant.id, ids)
                return [BindingRow(row.id, row.subject_id, binding_of(row)) for row in grants]
            case "token":
                live_tokens = select(ApiToken).where(ApiToken.revoked_at.is_(None))
                tokens = await _named(session, live_tokens, ApiToken.id, ids)
                return [
                    TokenRow(row.id, row.subject_id, row.secret_sha256, row.expires_at)
                    for row in tokens
                ]
            case "signing_key":
                keys = await _named(session, select(SigningKey), SigningKey.kid, ids)
                return [KeyRow(row.kid, RSAKey.import_key(row.public_jwk)) for row in keys]
            case "login_session":
                since = self._clock.now() - self._revoked_for
                revoked = select(LoginSession).where(LoginSession.revoked_at > since)
                sessions = await _named(session, revoked, LoginSession.id, ids)
                return [RevokedRow(row.id) for row in sessions]
            case _:
                raise AssertionError(f"the snapshot has no rows of kind {kind}")


async def _named(
    session: AsyncSession,
    query: Select[T],
    column: InstrumentedAttribute[str],
    ids: Sequence[str] | None,
) -> Sequence[T]:
    if ids is not None:
        query = query.where(column.in_(ids))
    return (await session.scalars(query)).all()


def binding_of(row: RoleGrant) -> RoleBinding:
    """The binding as other services know it."""
    return RoleBinding(Role(row.role), row.organization_id, row.project_id)


class AuditProjection:
    """Folds the audit records of all services into ``audit_entry``, idempotent by id."""

    name = "audit"
    kit = KIT
    types = frozenset({"audit.recorded"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """See ``kit.feed.Projection``."""
        rows = [
            {**entry.data, "id": entry.resource_id, "service": entry.source, "at": entry.at}
            for entry in entries
        ]
        if rows:
            await session.execute(upsert(AuditEntry).on_conflict_do_nothing(), rows)


class ProjectUseProjection:
    """Folds ``cluster.changed``, ``volume.changed`` and ``repository.changed`` into
    ``project_use``, idempotent by version."""

    name = "project_use"
    kit = KIT
    types = frozenset({"cluster.changed", "volume.changed", "repository.changed"})

    async def apply(self, session: AsyncSession, entries: Sequence[FeedEntry]) -> None:
        """See ``kit.feed.Projection``."""
        for entry in entries:
            statement = upsert(ProjectUse).values(
                resource_id=entry.resource_id,
                kind=entry.resource_kind,
                project_id=entry.project_id or "",
                state=str(entry.data.get("state", "")),
                version=entry.resource_version,
            )
            new = statement.excluded
            await session.execute(
                statement.on_conflict_do_update(
                    index_elements=["resource_id"],
                    set_={"state": new.state, "version": new.version},
                    where=ProjectUse.version < new.version,
                )
            )


async def dependents(session: AsyncSession, row: Identified) -> list[Identified]:
    """What is removed together with ``row``: bindings within it or of it, and its tokens.

    Raises:
        NotEmptyError: an organization or project that still holds something.
    """
    if isinstance(row, Organization):
        await _assert_empty(
            session,
            row.name,
            projects=(Project, Project.organization_id == row.id),
            users=(User, User.organization_id == row.id),
            service_accounts=(ServiceAccount, ServiceAccount.organization_id == row.id),
        )
        bindings, subject = RoleGrant.organization_id == row.id, None
    elif isinstance(row, Project):
        live = (ProjectUse.project_id == row.id) & (ProjectUse.state != "deleted")
        await _assert_empty(
            session,
            row.name,
            clusters=(ProjectUse, live & (ProjectUse.kind == "cluster")),
            volumes=(ProjectUse, live & (ProjectUse.kind == "volume")),
            repositories=(ProjectUse, live & (ProjectUse.kind == "repository")),
            service_accounts=(ServiceAccount, ServiceAccount.project_id == row.id),
        )
        bindings, subject = RoleGrant.project_id == row.id, None
    elif isinstance(row, User | ServiceAccount):
        bindings, subject = RoleGrant.subject_id == row.id, row.id
    else:
        return []
    gone: list[Identified] = list(await session.scalars(select(RoleGrant).where(bindings)))
    if subject is not None:
        live_tokens = (ApiToken.subject_id == subject) & ApiToken.revoked_at.is_(None)
        gone += await session.scalars(select(ApiToken).where(live_tokens))
    return gone


async def _assert_empty(
    session: AsyncSession, name: str, **holdings: tuple[type[Base], ColumnElement[bool]]
) -> None:
    counts: dict[str, JsonValue] = {}
    for what, (model, condition) in holdings.items():
        count = await session.scalar(select(func.count()).select_from(model).where(condition))
        if count:
            counts[what] = count
    if counts:
        listed = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items())
        raise NotEmptyError(
            f"{name} still holds {listed}", next_step="Remove those first.", holds=counts
        )


async def revoke_logins(
    session: AsyncSession, now: datetime, *conditions: ColumnElement[bool]
) -> list[str]:
    """Revoke the logins that meet ``conditions``; returns their ids."""
    statement = (
        update(LoginSession)
        .where(LoginSession.revoked_at.is_(None), *conditions)
        .values(revoked_at=now, version=LoginSession.version + 1)
        .returning(LoginSession.id, LoginSession.version)
    )
    revoked = (await session.execute(statement)).all()
    events = [
        Event("login_session.changed", "login_session", row.id, row.version, now, {"id": row.id})
        for row in revoked
    ]
    await outbox.emit(session, KIT, events)
    return [row.id for row in revoked]


def projections() -> list[Projection]:
    """The read models of auth, for ``kit.feed.run_projection``."""
    return [AuditProjection(), ProjectUseProjection()]


def refusal(error: IntegrityError) -> ConflictError:
    """What a violated constraint means to the caller."""
    if getattr(error.orig, "sqlstate", "") == _UNIQUE_VIOLATION:
        return NameTakenError(
            "there is one with that name, or the same binding, already",
            next_step="Choose another name, or use the one that exists.",
        )
    return ConflictError(
        "what this belongs to was removed, or something was put into it, at the same moment",
        next_step="Look at it again and repeat.",
    )
