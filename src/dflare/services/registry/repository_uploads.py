"""Queries of schema ``registry``: blobs that are being sent."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dflare.services.registry.repository import discard
from dflare.services.registry.tables import Garbage, Upload, UploadPart


@dataclass(frozen=True)
class Claim:
    """The right of one request to go on with an upload, and what the store had of it when the
    request came. It may use the part number ``part``, and the next one when that was recorded;
    bytes that make no part go into the object ``next_tail_key``."""

    upload_id: str
    epoch: int
    algorithm: str
    object_key: str
    store_upload_id: str
    parts: tuple[tuple[int, str], ...]
    tail_key: str
    tail_bytes: int
    next_tail_key: str
    offset_bytes: int
    part: int


async def lock_upload(
    session: AsyncSession, project_id: str, name: str, upload_id: str
) -> Upload | None:
    """An upload to a repository, locked until the transaction ends."""
    query = select(Upload).where(
        Upload.id == upload_id, Upload.project_id == project_id, Upload.name == name
    )
    return (await session.scalars(query.with_for_update())).first()


async def upload(
    session: AsyncSession, project_id: str, name: str, upload_id: str
) -> Upload | None:
    """An upload to a repository."""
    query = select(Upload).where(
        Upload.id == upload_id, Upload.project_id == project_id, Upload.name == name
    )
    return (await session.scalars(query)).first()


async def claim(
    session: AsyncSession, found: Upload, now: datetime, garbage_at: datetime | None
) -> Claim:
    """Go on with a locked upload: older requests can no longer record anything. A request that
    brings bytes says from when on the object that they may go into is garbage, unless recorded."""
    found.epoch += 1
    part = found.next_part
    found.next_part += 1
    found.touched_at = now
    next_tail_key = f"{found.object_key}.{found.epoch}"
    if garbage_at is not None:
        await discard(session, next_tail_key, garbage_at)
    query = select(UploadPart.number, UploadPart.etag).where(UploadPart.upload_id == found.id)
    parts = await session.execute(query.order_by(UploadPart.number))
    return Claim(
        upload_id=found.id,
        epoch=found.epoch,
        algorithm=found.algorithm,
        object_key=found.object_key,
        store_upload_id=found.store_upload_id,
        parts=tuple((row.number, row.etag) for row in parts),
        tail_key=found.tail_key,
        tail_bytes=found.tail_bytes,
        next_tail_key=next_tail_key,
        offset_bytes=found.offset_bytes,
        part=part,
    )


async def record_store_upload(session: AsyncSession, claimed: Claim, store_upload_id: str) -> bool:
    """Note the store's id of the upload; false where another request has taken it over."""
    statement = update(Upload).where(*_still(claimed)).values(store_upload_id=store_upload_id)
    return (await session.scalars(statement.returning(Upload.id))).first() is not None


async def record_part(
    session: AsyncSession,
    claimed: Claim,
    part: tuple[int, str],
    size_bytes: int,
    offset_bytes: int,
    now: datetime,
) -> bool:
    """Note a part that the store has, with which it has ``offset_bytes`` in all; the tail that was
    there is in it. False where another request has taken the upload over."""
    number, etag = part
    statement = (
        update(Upload)
        .where(*_still(claimed))
        .values(
            offset_bytes=offset_bytes,
            tail_key="",
            tail_bytes=0,
            next_part=number + 2,
            touched_at=now,
        )
        .returning(Upload.id)
    )
    if (await session.scalars(statement)).first() is None:
        return False
    session.add(
        UploadPart(upload_id=claimed.upload_id, number=number, etag=etag, size_bytes=size_bytes)
    )
    if claimed.tail_key:
        await discard(session, claimed.tail_key, now)
    await session.flush()
    return True


async def record_tail(
    session: AsyncSession, claimed: Claim, tail_bytes: int, offset_bytes: int, now: datetime
) -> bool:
    """Note that the bytes behind the parts are in ``claimed.next_tail_key``. False where another
    request has taken the upload over."""
    statement = (
        update(Upload)
        .where(*_still(claimed))
        .values(
            offset_bytes=offset_bytes,
            tail_key=claimed.next_tail_key,
            tail_bytes=tail_bytes,
            touched_at=now,
        )
        .returning(Upload.id)
    )
    if (await session.scalars(statement)).first() is None:
        return False
    await session.execute(delete(Garbage).where(Garbage.object_key == claimed.next_tail_key))
    if claimed.tail_key:
        await discard(session, claimed.tail_key, now)
    return True


async def end_upload(session: AsyncSession, found: Upload) -> None:
    """Forget a locked upload; what the store has of it stays."""
    await session.execute(delete(UploadPart).where(UploadPart.upload_id == found.id))
    await session.delete(found)
    await session.flush()


async def drop_upload(session: AsyncSession, found: Upload, now: datetime) -> None:
    """Forget a locked upload and have what the store has of it removed."""
    await end_upload(session, found)
    await discard(session, found.object_key, now, found.store_upload_id)
    if found.tail_key:
        await discard(session, found.tail_key, now)


def _still(claimed: Claim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (Upload.id == claimed.upload_id, Upload.epoch == claimed.epoch)
