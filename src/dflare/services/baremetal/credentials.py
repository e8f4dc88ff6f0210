"""Passwords of devices: sealed in the schema, opened for the length of one step."""

import base64
from collections.abc import Iterable

import orjson
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.kit.seal import Sealer, SealError, put_secret
from dflare.services.baremetal.tables import KIT, Node


def secret_name(site_id: str, reference: str) -> str:
    """Where a credential of a site's document is kept."""
    return f"credential/{site_id}/{reference}"


async def store_credential(
    session: AsyncSession,
    sealer: Sealer,
    site_id: str,
    reference: str,
    username: str,
    password: str,
) -> None:
    """Keep a credential, sealed."""
    plain = orjson.dumps({"username": username, "password": password})
    await put_secret(session, KIT, sealer, secret_name(site_id, reference), plain)


async def open_credentials(
    session: AsyncSession, sealer: Sealer, nodes: Iterable[Node]
) -> dict[tuple[str, str], tuple[str, str]]:
    """User name and password by (site id, reference) for the BMCs of ``nodes``.

    Raises:
        SealError: one is missing or was sealed under another key.
    """
    wanted = {(node.site_id, node.credential) for node in nodes}
    return await open_named(session, sealer, wanted)


async def open_named(
    session: AsyncSession, sealer: Sealer, wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[str, str]]:
    """User name and password by (site id, reference).

    Raises:
        SealError: one is missing or was sealed under another key.
    """
    names = {secret_name(*key): key for key in wanted}
    if not names:
        return {}
    table = KIT.secret
    rows = await session.execute(
        select(table.c.name, table.c.sealed).where(table.c.name.in_(names))
    )
    opened: dict[tuple[str, str], tuple[str, str]] = {}
    for name, sealed in rows.all():
        plain = orjson.loads(sealer.open(f"{KIT.schema}/{name}", sealed))
        opened[names[name]] = (plain["username"], plain["password"])
    if missing := [name for name, key in names.items() if key not in opened]:
        raise SealError(f"there is no secret {missing[0]}")
    return opened


def device_secret(sealer: Sealer, site_id: str, device: str, username: str, password: str) -> str:
    """A device's credential for the service that drives it: see ``contract.SwitchFacts``."""
    plain = orjson.dumps({"username": username, "password": password})
    return base64.b64encode(sealer.seal(f"device/{site_id}/{device}", plain)).decode()
