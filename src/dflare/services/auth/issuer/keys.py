"""Signing keys: made, rotated, sealed at rest, published."""

import asyncio
from datetime import timedelta
from typing import Any

from joserfc.jwk import RSAKey
from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit import outbox, seal
from dflare.kit.clock import Clock
from dflare.kit.db import Database
from dflare.kit.ids import new_id
from dflare.kit.outbox import Event
from dflare.kit.seal import Sealer
from dflare.services.auth.domain import ALGORITHM
from dflare.services.auth.settings import AuthSettings
from dflare.services.auth.tables import KIT, SigningKey

PUBLISHED_BEFORE_USE_S = 60
"""A new key signs only when every gateway has had this long to learn of it."""

_RSA_BITS = 2048


class SigningKeys:
    """The keys of the platform's tokens. Private keys are cached for the life of the process."""

    def __init__(
        self, database: Database, sealer: Sealer, clock: Clock, settings: AuthSettings
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._settings = settings
        self._private: dict[str, RSAKey] = {}

    async def ensure(self) -> str | None:
        """Make the first key, or the next one when the newest has signed long enough; retire and
        remove old ones. Returns the kid of a new key."""
        now = self._clock.now()
        async with self._database.transaction("auth") as session:
            newest = await session.scalar(_newest_first().limit(1))
        due = timedelta(seconds=self._settings.signing_key_s)
        if newest is not None and newest.created_at > now - due:
            await self._remove_old()
            return None
        return await self.rotate(after=newest.kid if newest else None)

    async def rotate(self, *, after: str | None) -> str | None:
        """Make a new key that follows ``after``; ``None`` where another process was quicker."""
        kid = new_id("key")
        parameters: Any = {"kid": kid, "use": "sig", "alg": ALGORITHM}
        key = await asyncio.to_thread(RSAKey.generate_key, _RSA_BITS, parameters, True)
        now = self._clock.now()
        async with self._database.transaction("auth") as session:
            rows = (await session.scalars(_newest_first().with_for_update())).all()
            if (rows[0].kid if rows else None) != after:
                return None
            session.add(
                SigningKey(
                    kid=kid,
                    algorithm=ALGORITHM,
                    public_jwk=dict(key.as_dict(private=False)),
                    created_at=now,
                    retired_at=None,
                    version=1,
                )
            )
            await seal.put_secret(
                session, KIT, self._sealer, f"signing_key/{kid}", key.as_pem(private=True)
            )
            await session.flush()
            for row in rows:
                if row.retired_at is None:
                    row.retired_at = now
                    row.version += 1
            await self._announce(session, kid, 1)
        return kid

    async def signer(self) -> RSAKey:
        """The private key to sign with: the newest that every gateway knows, or the newest."""
        known_since = self._clock.now() - timedelta(seconds=PUBLISHED_BEFORE_USE_S)
        async with self._database.transaction("auth") as session:
            rows = (await session.scalars(_newest_first())).all()
            row = next((r for r in rows if r.created_at <= known_since), rows[-1])
            if row.kid not in self._private:
                pem = await seal.get_secret(session, KIT, self._sealer, f"signing_key/{row.kid}")
                self._private[row.kid] = RSAKey.import_key(
                    pem, {"kid": row.kid, "use": "sig", "alg": ALGORITHM}
                )
        return self._private[row.kid]

    async def published(self) -> dict[str, Any]:
        """The JWK set (RFC 7517 section 5) of the keys whose tokens may still be valid."""
        async with self._database.transaction("auth") as session:
            rows = (await session.scalars(_newest_first())).all()
        return {"keys": [row.public_jwk for row in rows]}

    async def _remove_old(self) -> None:
        """Remove keys none of whose tokens can be valid any more."""
        grace = self._settings.access_token_s + 2 * PUBLISHED_BEFORE_USE_S
        before = self._clock.now() - timedelta(seconds=grace)
        async with self._database.transaction("auth") as session:
            old = await session.scalars(
                select(SigningKey).where(SigningKey.retired_at < before).with_for_update()
            )
            for row in old:
                await session.delete(row)
                await session.execute(
                    KIT.secret.delete().where(KIT.secret.c.name == f"signing_key/{row.kid}")
                )
                await self._announce(session, row.kid, row.version + 1, gone=True)

    async def _announce(
        self, session: AsyncSession, kid: str, version: int, *, gone: bool = False
    ) -> None:
        event = Event(
            type="signing_key.deleted" if gone else "signing_key.changed",
            resource_kind="signing_key",
            resource_id=kid,
            resource_version=version,
            at=self._clock.now(),
            data={"kid": kid},
        )
        await outbox.emit(session, KIT, [event])


def _newest_first() -> Select[SigningKey]:
    return select(SigningKey).order_by(SigningKey.created_at.desc(), SigningKey.kid.desc())
