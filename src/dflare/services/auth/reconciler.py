"""Keeps a gateway's identity data as it should be: the snapshot current, denials and token use
written, the signing key fresh, old rows gone."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import islice

from sqlalchemy import delete, update

from dflare.kit import outbox
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.errors import GoneError
from dflare.kit.feed import FeedSignal, head_position, read_feed
from dflare.kit.telemetry import log
from dflare.services.auth.domain import SnapshotAuthorizer
from dflare.services.auth.issuer.keys import SigningKeys
from dflare.services.auth.policy.snapshot import EVENT_TYPES
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import (
    KIT,
    ApiToken,
    AuditEntry,
    AuthorizationCode,
    DeviceCode,
    LoginSession,
    RefreshToken,
)

_FLUSH_EVERY_S = 1.0
_MAINTAIN_EVERY_S = 60.0
_BATCH = 500
_KEPT_AFTER_EXPIRY = timedelta(days=1)


class AuthReconciler:
    """Run ``start`` before the first request and ``run`` beside the requests."""

    def __init__(
        self,
        database: Database,
        signal: FeedSignal,
        authorizer: SnapshotAuthorizer,
        keys: SigningKeys,
        settings: AuthSettings,
        clock: Clock,
    ) -> None:
        self._database = database
        self._signal = signal
        self._authorizer = authorizer
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._position = 0

    async def start(self) -> None:
        """Load the snapshot; changes from here on reach it by ``follow``."""
        self._position = await head_position(self._database)
        await self._authorizer.refresh()

    async def run(self) -> None:
        """Everything, until cancelled. A store that is down delays it, nothing else."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._follow_and_wait, 0))
            tasks.create_task(self._repeat(self.flush, _FLUSH_EVERY_S))
            tasks.create_task(self._repeat(self.maintain, _MAINTAIN_EVERY_S))

    async def _repeat(self, work: Callable[[], Awaitable[object]], every_s: float) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                log.warning("auth_reconciler_failed", work=work.__name__, error=str(error))
                await asyncio.sleep(1)
            await asyncio.sleep(every_s)

    async def _follow_and_wait(self) -> None:
        mark = self._signal.mark()
        if await self.follow() == 0:
            await self._signal.wait(1.0, mark)

    async def follow(self) -> int:
        """Refresh what the events since the last call name; returns how many there were."""
        try:
            entries, position = await read_feed(self._database, self._position, types=EVENT_TYPES)
        except GoneError:
            await self.start()
            return 0
        ids: dict[str, list[str]] = {}
        for entry in entries:
            ids.setdefault(entry.resource_kind, []).append(entry.resource_id)
        if ids:
            await self._authorizer.refresh(ids)
        self._position = position
        return len(entries)

    async def flush(self) -> None:
        """Write the denials and the use of tokens since the last call."""
        denials, used = self._authorizer.denials, self._authorizer.used_tokens
        while denials or used:
            records = list(islice(denials, _BATCH))
            tokens = list(islice(used, _BATCH))
            async with self._database.transaction("auth") as session:
                await outbox.record_audit(session, KIT, *records)
                if tokens:
                    await session.execute(
                        update(ApiToken)
                        .where(ApiToken.id.in_(tokens))
                        .values(last_used_at=self._clock.now())
                    )
            for _ in records:
                denials.popleft()
            used.difference_update(tokens)

    async def maintain(self) -> None:
        """Rotate the signing key when it is due; remove what nobody can use any more."""
        if (kid := await self._keys.ensure()) is not None:
            log.info("signing_key_rotated", kid=kid)
        # Revoked logins that no live token names any more leave the snapshot.
        await self._authorizer.refresh({"login_session": None})
        now = self._clock.now()
        before = now - _KEPT_AFTER_EXPIRY
        audit_before = now - timedelta(days=self._settings.audit_days)
        async with self._database.transaction("auth") as session:
            for table in (AuthorizationCode, RefreshToken, DeviceCode, LoginSession):
                await session.execute(delete(table).where(table.expires_at < before))
            await session.execute(delete(AuditEntry).where(AuditEntry.at < audit_before))
            await session.execute(delete(KIT.audit).where(KIT.audit.c.at < audit_before))
