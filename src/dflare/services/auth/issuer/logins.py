"""Logins by name and password: checked, counted, locked."""

import contextlib
import os
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.outbox import AuditRecord
from dflare.services.auth import domain
from dflare.services.auth.errors import LoginRefusedError
from dflare.services.auth.repository import logs_in_as
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import KIT, User


class Logins:
    """The one place where a password is compared."""

    def __init__(self, database: Database, clock: Clock, settings: AuthSettings) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings

    async def login(self, name: str, password: str) -> User:
        """The user of a login name (``ada@acme``, or ``ada`` of the platform) and a password.
        Failures are counted and lock the account for a time; the answer does not tell which of both
        was wrong.

        Raises:
            LoginRefusedError: also where the account is locked or disabled.
        """
        now = self._clock.now()
        async with self._database.transaction("auth") as session:
            user = await session.scalar(select(User).where(logs_in_as(name)))
        right = await domain.verify_password(user.password_hash if user else None, password)
        locked = user is not None and user.locked_until is not None and user.locked_until > now
        if user is not None and right and not locked and not user.disabled:
            await self._count(user, "allow", now, failed_logins=0, locked_until=None)
            return user
        if user is not None and not locked:
            lock = user.failed_logins + 1 >= self._settings.login_attempts
            until = now + timedelta(seconds=self._settings.lockout_s) if lock else None
            failures: Any = 0 if lock else User.failed_logins + 1
            await self._count(user, "deny", now, failed_logins=failures, locked_until=until)
        raise LoginRefusedError(
            "name and password do not belong together, or the account is locked",
            next_step="Check both, or wait some minutes and try again. "
            "People of an organization log in as NAME@ORGANIZATION.",
        )

    async def _count(self, user: User, decision: str, now: datetime, **values: Any) -> None:
        record = AuditRecord(
            at=now,
            principal=user.id,
            action="user:login",
            resource_kind="user",
            resource_id=user.id,
            decision=decision,
            organization_id=user.organization_id,
        )
        async with self._database.transaction("auth") as session:
            await session.execute(update(User).where(User.id == user.id).values(**values))
            await outbox.record_audit(session, KIT, record)


def kept_password(path: Path) -> str:
    """The password kept in ``path``, made at the first call. The file is written before the user,
    so that a password whose file was lost is never the one in use."""
    if path.exists():
        return path.read_text().strip()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(domain.new_secret() + "\n")
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(staged, path)
    staged.unlink()
    return path.read_text().strip()
