"""Secrets at rest: AES-256-GCM under a key from a file, bound to the name they are stored by."""

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.tables import KitTables

_NONCE_BYTES = 12


class SealError(Exception):
    """A secret cannot be opened: another key, another name, or damaged."""


class Sealer:
    """Seals and opens bytes under one key."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    @classmethod
    def from_file(cls, path: Path) -> "Sealer":
        """The key file holds 32 bytes in base64.

        Raises:
            SealError: the file holds something else.
            OSError: it cannot be read.
        """
        try:
            key = base64.b64decode(path.read_text().strip(), validate=True)
        except ValueError as error:
            raise SealError(f"{path} does not hold a key in base64") from error
        if len(key) != 32:
            raise SealError(f"{path} holds {len(key)} bytes, 32 are needed")
        return cls(key)

    def seal(self, name: str, plain: bytes) -> bytes:
        """Encrypt ``plain`` for storage under ``name``."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """Decrypt what ``seal`` made for the same ``name``.

        Raises:
            SealError: it was not sealed under this key and name.
        """
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, body, name.encode())
        except (InvalidTag, ValueError) as error:
            raise SealError(f"secret {name} does not open with this key") from error


async def put_secret(
    session: AsyncSession, kit: KitTables, sealer: Sealer, name: str, plain: bytes
) -> None:
    """Store or replace the secret ``name`` in the schema."""
    sealed = sealer.seal(f"{kit.schema}/{name}", plain)
    statement = insert(kit.secret).values(name=name, sealed=sealed, updated_at=func.now())
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={"sealed": sealed, "updated_at": func.now()}
        )
    )


async def drop_secret(session: AsyncSession, kit: KitTables, name: str) -> None:
    """Remove the secret ``name`` from the schema, if it is there."""
    await session.execute(delete(kit.secret).where(kit.secret.c.name == name))


async def get_secret(session: AsyncSession, kit: KitTables, sealer: Sealer, name: str) -> bytes:
    """The secret ``name``.

    Raises:
        SealError: there is none, or it does not open.
    """
    sealed = await session.scalar(select(kit.secret.c.sealed).where(kit.secret.c.name == name))
    if sealed is None:
        raise SealError(f"there is no secret {name}")
    return sealer.open(f"{kit.schema}/{name}", sealed)
