"""What the issuer keeps: codes, refresh tokens and device codes, each consumed by one statement.

Two requests with the same code or token cannot both win, in one process or in several; the loser
revokes what the winner got (RFC 6749 section 4.1.2, RFC 9700 section 4.14.2).
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.outbox import AuditRecord
from dflare.services.auth import repository as rows
from dflare.services.auth.domain import SnapshotAuthorizer, digest
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import (
    KIT,
    AuthorizationCode,
    DeviceCode,
    LoginSession,
    OAuthClient,
    RefreshToken,
    User,
)


@dataclass(frozen=True)
class Grant:
    """A user's consent to a client: a code or a refresh token that was just consumed, or an
    approved device. ``session_id`` is the login that its tokens belong to."""

    session_id: str
    client_id: str
    user_id: str
    scope: str
    auth_time: int
    redirect_uri: str = ""
    nonce: str | None = None
    code_challenge: str = ""


@dataclass(frozen=True)
class CodeRequest:
    """What an authorization request asked for, to be remembered with its code."""

    client_id: str
    user_id: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str


@dataclass(frozen=True)
class Device:
    """A device code as polled."""

    client_id: str
    scope: str
    user_code: str
    state: str
    expired: bool
    too_soon: bool


class IssuerStore:
    """The issuer's tables. Every method is one short transaction."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        settings: AuthSettings,
        authorizer: SnapshotAuthorizer,
    ) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self._authorizer = authorizer

    async def client(self, client_id: str) -> OAuthClient | None:
        """A registered client."""
        async with self._database.transaction("auth") as session:
            return await session.get(OAuthClient, client_id)

    async def user(self, user_id: str) -> User | None:
        """A user that may still log in."""
        async with self._database.transaction("auth") as session:
            return await session.scalar(select(User).where(User.id == user_id, ~User.disabled))

    async def nonce_was_used(self, client_id: str, nonce: str) -> bool:
        """Whether a code of the client carried the nonce before."""
        query = select(AuthorizationCode.code_sha256).where(
            AuthorizationCode.client_id == client_id, AuthorizationCode.nonce == nonce
        )
        async with self._database.transaction("auth") as session:
            return await session.scalar(query.limit(1)) is not None

    async def save_code(self, code: str, request: CodeRequest) -> None:
        """Remember an authorization code."""
        now = self._clock.now()
        lifetime = timedelta(seconds=self._settings.authorization_code_s)
        async with self._database.transaction("auth") as session:
            session.add(
                AuthorizationCode(
                    code_sha256=digest(code),
                    session_id=new_id("login"),
                    **vars(request),
                    auth_time=now,
                    expires_at=now + lifetime,
                    used_at=None,
                )
            )

    async def use_code(self, code: str, client_id: str) -> Grant | None:
        """Consume a code; a second use revokes the login of the first."""
        now = self._clock.now()
        async with self._database.transaction("auth") as session:
            row = await session.scalar(
                update(AuthorizationCode)
                .where(
                    AuthorizationCode.code_sha256 == digest(code),
                    AuthorizationCode.client_id == client_id,
                    AuthorizationCode.used_at.is_(None),
                    AuthorizationCode.expires_at > now,
                )
                .values(used_at=now)
                .returning(AuthorizationCode)
            )
            used = row or await session.get(AuthorizationCode, digest(code))
        if row is not None:
            return Grant(
                row.session_id,
                row.client_id,
                row.user_id,
                row.scope,
                int(row.auth_time.timestamp()),
                row.redirect_uri,
                row.nonce,
                row.code_challenge,
            )
        if used is not None and used.used_at is not None:
            await self.revoke_session(used.session_id)
        return None

    async def save_refresh(self, secret: str, grant: Grant, scope: str) -> None:
        """Add a refresh token to its login, which begins with its first one."""
        now = self._clock.now()
        expires_at = now + timedelta(seconds=self._settings.refresh_token_s)
        begun = upsert(LoginSession).values(
            id=grant.session_id,
            user_id=grant.user_id,
            client_id=grant.client_id,
            created_at=now,
            expires_at=expires_at,
            version=1,
        )
        async with self._database.transaction("auth") as session:
            await session.execute(
                begun.on_conflict_do_update(index_elements=["id"], set_={"expires_at": expires_at})
            )
            session.add(
                RefreshToken(
                    secret_sha256=digest(secret),
                    session_id=grant.session_id,
                    client_id=grant.client_id,
                    user_id=grant.user_id,
                    scope=scope,
                    expires_at=expires_at,
                    used_at=None,
                )
            )

    async def use_refresh(self, secret: str, client_id: str) -> Grant | None:
        """Consume a refresh token of a client; a second use revokes its login."""
        now = self._clock.now()
        live = select(LoginSession.id).where(LoginSession.revoked_at.is_(None))
        async with self._database.transaction("auth") as session:
            row = await session.scalar(
                update(RefreshToken)
                .where(
                    RefreshToken.secret_sha256 == digest(secret),
                    RefreshToken.client_id == client_id,
                    RefreshToken.used_at.is_(None),
                    RefreshToken.expires_at > now,
                    RefreshToken.session_id.in_(live),
                )
                .values(used_at=now)
                .returning(RefreshToken)
            )
            begun = await session.get(LoginSession, row.session_id) if row else None
            known = row or await session.get(RefreshToken, digest(secret))
        if row is not None and begun is not None:
            auth_time = int(begun.created_at.timestamp())
            return Grant(row.session_id, row.client_id, row.user_id, row.scope, auth_time)
        if known is not None and known.used_at is not None:
            await self.revoke_session(known.session_id)
        return None

    async def session_of(self, refresh_secret: str) -> tuple[str, str] | None:
        """The login and the client of a refresh token."""
        async with self._database.transaction("auth") as session:
            row = await session.get(RefreshToken, digest(refresh_secret))
        return (row.session_id, row.client_id) if row else None

    async def client_of_session(self, session_id: str) -> str | None:
        """The client that a login belongs to."""
        async with self._database.transaction("auth") as session:
            row = await session.get(LoginSession, session_id)
        return row.client_id if row else None

    async def revoke_session(self, session_id: str) -> None:
        """End a login: its refresh tokens and its access tokens."""
        async with self._database.transaction("auth") as session:
            revoked = await rows.revoke_logins(
                session, self._clock.now(), LoginSession.id == session_id
            )
        await self._authorizer.refresh({"login_session": revoked})

    async def save_device(
        self, device_code: str, user_code: str, client_id: str, scope: str
    ) -> None:
        """Remember a device authorization that waits for its user."""
        lifetime = timedelta(seconds=self._settings.device_code_s)
        async with self._database.transaction("auth") as session:
            session.add(
                DeviceCode(
                    code_sha256=digest(device_code),
                    user_code=user_code,
                    client_id=client_id,
                    scope=scope,
                    state="pending",
                    user_id=None,
                    expires_at=self._clock.now() + lifetime,
                    last_poll_at=None,
                )
            )

    async def poll_device(self, device_code: str) -> Device | None:
        """A device code, with the time of this poll noted."""
        now = self._clock.now()
        # A poll a little early is the network's doing, not the client's.
        interval = timedelta(seconds=self._settings.device_interval_s * 0.8)
        async with self._database.transaction("auth") as session:
            row = await session.scalar(
                select(DeviceCode)
                .where(DeviceCode.code_sha256 == digest(device_code))
                .with_for_update()
            )
            if row is None:
                return None
            too_soon = row.last_poll_at is not None and now - row.last_poll_at < interval
            row.last_poll_at = now
            expired = row.expires_at <= now
            return Device(row.client_id, row.scope, row.user_code, row.state, expired, too_soon)

    async def use_device(self, user_code: str) -> Grant | None:
        """Consume an approved device authorization; it begins a login."""
        async with self._database.transaction("auth") as session:
            row = await session.scalar(
                update(DeviceCode)
                .where(DeviceCode.user_code == user_code, DeviceCode.state == "approved")
                .values(state="used")
                .returning(DeviceCode)
            )
        if row is None or row.user_id is None:
            return None
        now = int(self._clock.now().timestamp())
        return Grant(new_id("login"), row.client_id, row.user_id, row.scope, now)

    async def decide_device(self, user_code: str, user: User, approved: bool) -> bool:
        """A user's answer to a device; ``False`` where none waits under that code."""
        async with self._database.transaction("auth") as session:
            row = await session.scalar(_pending(user_code, self._clock).with_for_update())
            if row is None:
                return False
            row.state = "approved" if approved else "denied"
            row.user_id = user.id
            await self._audit(session, user, row.client_id, approved)
        return True

    async def _audit(
        self, session: AsyncSession, user: User, client_id: str, approved: bool
    ) -> None:
        record = AuditRecord(
            at=self._clock.now(),
            principal=user.id,
            action="user:approve_device",
            resource_kind="oauth_client",
            resource_id=client_id,
            decision="allow" if approved else "deny",
            organization_id=user.organization_id,
        )
        await outbox.record_audit(session, KIT, record)


def _pending(user_code: str, clock: Clock) -> Select[DeviceCode]:
    return select(DeviceCode).where(
        DeviceCode.user_code == user_code,
        DeviceCode.state == "pending",
        DeviceCode.expires_at > clock.now(),
    )
