"""What people do with identities: organizations, projects, users, roles, tokens, logins.

Methods that read take the caller's scope and answer 404 outside it; the decision is the API's.
Methods that change take the caller as ``by``, write event and audit in the same transaction, and
refresh this process's snapshot behind it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import InvalidError, NameTakenError
from dflare.kit.etag import check_if_match
from dflare.kit.ids import new_id
from dflare.kit.seal import Sealer
from dflare.services.auth import domain
from dflare.services.auth import repository as rows
from dflare.services.auth.contract import Principal, Role, Scope
from dflare.services.auth.domain import SnapshotAuthorizer
from dflare.services.auth.errors import AmbiguousNameError
from dflare.services.auth.issuer.keys import SigningKeys
from dflare.services.auth.issuer.logins import kept_password
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import (
    ApiToken,
    AuditEntry,
    Identified,
    LoginSession,
    OAuthClient,
    Organization,
    Project,
    RoleGrant,
    ServiceAccount,
    User,
)

SYSTEM = Principal("system", "system", "the platform itself")
OPERATOR = "operator"
CLI_CLIENT = "dflare-cli"
PORTAL_CLIENT = "dflare-portal"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"

Row_T = TypeVar("Row_T", bound=Identified)
Subject = User | ServiceAccount


@dataclass(frozen=True)
class NewUser:
    """A user to make. Without a password the user cannot log in until one is set."""

    name: str
    email: str = ""
    display_name: str = ""
    organization_id: str | None = None
    password: str | None = None


class AuthService:
    """Implements what the module's docstring says."""

    def __init__(
        self,
        database: Database,
        settings: AuthSettings,
        clock: Clock,
        authorizer: SnapshotAuthorizer,
        keys: SigningKeys,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.authorizer = authorizer
        self.keys = keys
        self._database = database

    @classmethod
    def assemble(
        cls,
        database: Database,
        sealer: Sealer,
        clock: Clock,
        settings: AuthSettings,
        *,
        issuer: str,
    ) -> "AuthService":
        """The service with its authorizer and keys; ``issuer`` is the platform's public URL."""
        source = rows.SnapshotRows(database, clock, settings.access_token_s)
        authorizer = SnapshotAuthorizer(source, clock, issuer=issuer, audience=settings.audience)
        keys = SigningKeys(database, sealer, clock, settings)
        return cls(database, settings, clock, authorizer, keys)

    async def get(
        self, scope: Scope, model: type[Row_T], row_id: str, *, own: str | None = None
    ) -> Row_T:
        """One row within the scope, or that is the subject ``own`` or its token.

        Raises:
            NotFoundError: there is none.
        """
        async with self._database.reading("auth") as session:
            return await rows.get(session, scope, model, row_id, own=own)

    async def find(
        self,
        scope: Scope,
        model: type[Row_T],
        *conditions: ColumnElement[bool],
        own: str | None = None,
        after: str | None = None,
        limit: int = 500,
    ) -> Sequence[Row_T]:
        """Rows within the scope, in order of their ids."""
        async with self._database.reading("auth") as session:
            return await rows.find(
                session, scope, model, *conditions, own=own, after=after, limit=limit
            )

    async def audit(
        self,
        scope: Scope,
        *conditions: ColumnElement[bool],
        before: str | None = None,
        limit: int = 500,
    ) -> Sequence[AuditEntry]:
        """The audit log of all services within the scope, the newest entries first."""
        async with self._database.reading("auth") as session:
            return await rows.audit_page(session, scope, *conditions, before=before, limit=limit)

    async def organization(self, scope: Scope, reference: str) -> Organization:
        """An organization by id or name.

        Raises:
            NotFoundError: none that the scope covers.
        """
        named = (Organization.id == reference) | (Organization.name == reference)
        found = await self.find(scope, Organization, named)
        if not found:
            raise rows.not_found(Organization, reference)
        return found[0]

    async def subject(self, scope: Scope, reference: str, *, own: str | None = None) -> Subject:
        """A user by id, by login name, or by a name that only one user has within the scope, or a
        service account by id.

        Raises:
            NotFoundError: none that the scope covers, and not the subject ``own``.
            AmbiguousNameError: several users of that name; they are listed.
        """
        async with self._database.reading("auth") as session:
            if reference.startswith("sa_"):
                return await rows.get(session, scope, ServiceAccount, reference, own=own)
            named = (User.id == reference) | (User.name == reference)
            if "@" in reference:
                named = rows.logs_in_as(reference)
            users = await rows.find(session, scope, User, named, own=own)
        if not users:
            raise rows.not_found(User, reference)
        if len(users) > 1:
            logins = [self.authorizer.login_name(u.name, u.organization_id) for u in users]
            raise AmbiguousNameError(
                f"{len(users)} users are named {reference}: {', '.join(sorted(logins)[:10])}",
                next_step="Name the one with its organization, or one of the platform by its id.",
            )
        return users[0]

    async def create_organization(
        self, by: Principal, name: str, display_name: str = ""
    ) -> Organization:
        """A new organization.

        Raises:
            NameTakenError, InvalidError: the name.
        """
        organization = Organization(
            id=new_id("org"),
            name=domain.check_name(name),
            display_name=display_name or name,
            **self._first_version(),
        )
        await self._create(by, organization)
        return organization

    async def create_project(
        self, by: Principal, organization_id: str, name: str, display_name: str = ""
    ) -> Project:
        """A new project of an organization.

        Raises:
            NameTakenError, InvalidError: the name.
        """
        project = Project(
            id=new_id("prj"),
            organization_id=organization_id,
            name=domain.check_name(name),
            display_name=display_name or name,
            **self._first_version(),
        )
        await self._create(by, project)
        return project

    async def create_user(self, by: Principal, new: NewUser) -> User:
        """A new user.

        Raises:
            NameTakenError, InvalidError, WeakPasswordError.
        """
        password_hash = await domain.hash_password(new.password) if new.password else None
        user = self._user(new, password_hash)
        await self._create(by, user)
        return user

    async def create_service_account(
        self, by: Principal, organization_id: str, project_id: str | None, name: str
    ) -> ServiceAccount:
        """A new identity for a program.

        Raises:
            NameTakenError, InvalidError: the name.
        """
        account = ServiceAccount(
            id=new_id("sa"),
            organization_id=organization_id,
            project_id=project_id,
            name=domain.check_name(name),
            disabled=False,
            **self._first_version(),
        )
        await self._create(by, account)
        return account

    async def bind_role(
        self,
        by: Principal,
        subject: str,
        role: Role,
        organization_id: str | None = None,
        project_id: str | None = None,
    ) -> RoleGrant:
        """Give a user (by id or name) or a service account (by id) a role.

        Raises:
            InvalidError: the role has no meaning there, or would give who administers the subject
                more than that administrator has.
            NotFoundError: no such subject, or not one of the organization's, unless the caller
                acts for the whole platform.
            NameTakenError: it has that role already.
        """
        domain.check_role(role, organization_id, project_id)
        scope = Scope.system("a binding names its subject")
        if by != SYSTEM and not domain.scope_of(by).everything:
            scope = Scope(organization_ids=frozenset({organization_id} if organization_id else ()))
        found = await self.subject(scope, subject)
        home = found.project_id if isinstance(found, ServiceAccount) else None
        domain.check_binding(role, found.organization_id, home, project_id)
        grant = self._grant(found.id, role, organization_id, project_id)
        await self._create(by, grant)
        return grant

    async def create_token(
        self, by: Principal, subject: Subject, name: str, lifetime_s: int
    ) -> tuple[ApiToken, str]:
        """A new API token of a subject, and its secret, which is shown this once.

        Raises:
            InvalidError: it would live longer than the platform allows.
        """
        if not 0 < lifetime_s <= self.settings.api_token_max_s:
            raise InvalidError(
                f"a token may live at most {self.settings.api_token_max_s} seconds",
                next_step="Ask for a shorter life.",
            )
        secret = domain.new_secret(domain.TOKEN_PREFIX)
        first = self._first_version()
        token = ApiToken(
            id=new_id("tok"),
            subject_id=subject.id,
            organization_id=subject.organization_id,
            project_id=subject.project_id if isinstance(subject, ServiceAccount) else None,
            name=name,
            hint=secret[: len(domain.TOKEN_PREFIX) + 4],
            secret_sha256=domain.digest(secret),
            expires_at=first["created_at"] + timedelta(seconds=lifetime_s),
            last_used_at=None,
            revoked_at=None,
            **first,
        )
        await self._create(by, token)
        return token, secret

    async def update(
        self,
        scope: Scope,
        by: Principal,
        model: type[Row_T],
        row_id: str,
        if_match: str | None,
        **changes: Any,
    ) -> Row_T:
        """Change columns of a row; an unchanged value is no change.

        Raises:
            NotFoundError, PreconditionError, NameTakenError.
        """
        if "name" in changes:
            domain.check_name(changes["name"])
        async with self._changing() as session:
            row = await rows.get(session, scope, model, row_id, lock=True)
            check_if_match(if_match, row.version)
            changes = {k: v for k, v in changes.items() if getattr(row, k) != v}
            if not changes:
                return row
            for name, value in changes.items():
                setattr(row, name, value)
            detail = {"changed": sorted(changes)}
            await self._announce(session, row, by, "update", detail=detail)
        await self._refresh([row])
        return row

    async def set_password(self, user_id: str, by: Principal, password: str) -> None:
        """Set a user's password and end its logins. The caller was authorized for this user.

        Raises:
            NotFoundError, WeakPasswordError.
        """
        password_hash = await domain.hash_password(password)
        scope = Scope.system("the caller was authorized for this user")
        async with self._changing() as session:
            row = await rows.get(session, scope, User, user_id, lock=True)
            row.password_hash = password_hash
            row.failed_logins, row.locked_until = 0, None
            await self._announce(session, row, by, "set_password")
            revoked = await rows.revoke_logins(
                session, self.clock.now(), LoginSession.user_id == row.id
            )
        await self.authorizer.refresh({"login_session": revoked})

    async def delete(
        self,
        scope: Scope,
        by: Principal,
        model: type[Identified],
        row_id: str,
        if_match: str | None = None,
        *,
        own: str | None = None,
    ) -> None:
        """Remove a row with its role bindings, tokens and logins. A token's row stays, revoked.

        Raises:
            NotFoundError, PreconditionError.
            NotEmptyError: an organization or project that still holds something.
        """
        async with self._changing() as session:
            row = await rows.get(session, scope, model, row_id, own=own, lock=True)
            check_if_match(if_match, row.version)
            gone = await rows.dependents(session, row)
            revoked: Sequence[str] = ()
            if isinstance(row, User):
                revoked = await rows.revoke_logins(
                    session, self.clock.now(), LoginSession.user_id == row.id
                )
            for each in (*gone, row):
                await self._remove(session, each, by)
        await self._refresh([*gone, row])
        await self.authorizer.refresh({"login_session": revoked})

    async def ensure_bootstrap(
        self, operator_password_file: Path, portal_callbacks: Sequence[str] = ()
    ) -> None:
        """Make what the first start needs: a signing key, the clients of the CLI and of the portal
        (which is sent back to ``portal_callbacks``), and the user ``operator``, whose random
        password is written into the file (mode 0600). Safe to repeat, and to run in several
        processes at once."""
        await self.keys.ensure()
        await self.ensure_client(
            CLI_CLIENT,
            "Dflare command line",
            ["http://127.0.0.1/callback", "http://[::1]/callback"],
        )
        if portal_callbacks:
            await self.ensure_client(PORTAL_CLIENT, "The Dflare portal", portal_callbacks)
        async with self._database.transaction("auth") as session:
            operator = await session.scalar(select(User).where(rows.logs_in_as(OPERATOR)))
        if operator is None:
            password = await asyncio.to_thread(kept_password, operator_password_file)
            user = self._user(NewUser(OPERATOR), await domain.hash_password(password))
            grant = self._grant(user.id, Role.OPERATOR, None, None)
            # Where another process was quicker, its user is the one that counts.
            with contextlib.suppress(NameTakenError):
                await self._create(SYSTEM, user, grant)
        await self.authorizer.refresh()

    async def ensure_client(self, client_id: str, name: str, redirect_uris: Sequence[str]) -> None:
        """Register or update a public OAuth client for code with PKCE, refresh and device flow."""
        values = {
            "name": name,
            "redirect_uris": list(redirect_uris),
            "grant_types": ["authorization_code", "refresh_token", DEVICE_GRANT],
        }
        statement = upsert(OAuthClient).values(id=client_id, created_at=self.clock.now(), **values)
        async with self._database.transaction("auth") as session:
            await session.execute(
                statement.on_conflict_do_update(index_elements=["id"], set_=values)
            )

    def _user(self, new: NewUser, password_hash: str | None) -> User:
        return User(
            id=new_id("usr"),
            organization_id=new.organization_id,
            name=domain.check_name(new.name),
            email=new.email,
            display_name=new.display_name or new.name,
            password_hash=password_hash,
            disabled=False,
            failed_logins=0,
            locked_until=None,
            **self._first_version(),
        )

    def _grant(
        self, subject_id: str, role: Role, organization_id: str | None, project_id: str | None
    ) -> RoleGrant:
        return RoleGrant(
            id=new_id("rb"),
            subject_id=subject_id,
            role=role.value,
            organization_id=organization_id,
            project_id=project_id,
            **self._first_version(),
        )

    def _first_version(self) -> dict[str, Any]:
        return {"version": 1, "created_at": self.clock.now()}

    @asynccontextmanager
    async def _changing(self) -> AsyncGenerator[AsyncSession]:
        """A transaction whose violated constraints become answers."""
        try:
            async with self._database.transaction("auth") as session:
                yield session
        except IntegrityError as error:
            raise rows.refusal(error) from error

    async def _create(self, by: Principal, *created: Identified) -> None:
        async with self._changing() as session:
            for row in created:
                session.add(row)
                await session.flush()
                await rows.announce(session, row, by, "create", self.clock.now())
        await self._refresh(created)

    async def _announce(
        self,
        session: AsyncSession,
        row: Identified,
        by: Principal,
        verb: str,
        *,
        detail: dict[str, Any] | None = None,
    ) -> None:
        row.version += 1
        await session.flush()
        await rows.announce(session, row, by, verb, self.clock.now(), detail=detail)

    async def _remove(self, session: AsyncSession, row: Identified, by: Principal) -> None:
        if isinstance(row, ApiToken):
            row.revoked_at = row.revoked_at or self.clock.now()
        else:
            await session.delete(row)
            await session.flush()
        row.version += 1
        await rows.announce(session, row, by, "delete", self.clock.now())

    async def _refresh(self, changed: Sequence[Identified]) -> None:
        """This process knows at once what it wrote; the others learn it from the events."""
        ids: dict[str, list[str]] = {}
        for row in changed:
            ids.setdefault(rows.KIND_OF[type(row)], []).append(row.id)
        await self.authorizer.refresh(ids)
