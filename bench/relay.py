"""Events a second through the relay: rows in a service's outbox to positions in the log."""

import asyncio
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.report import seconds, table
from dflare.apps.migrate import locations
from dflare.embedded.stores import running_postgres
from dflare.kit import outbox
from dflare.kit.db import Database
from dflare.kit.feed import copy_events
from dflare.kit.migrations import upgrade_all
from dflare.services.metering.tables import KIT
from stores import fresh_database

EVENTS, BATCH = 30_000, 1_000


def run() -> None:
    """Print the table."""
    directory = Path(tempfile.mkdtemp(prefix="dflare-bench-"))
    directory.chmod(0o755)
    try:
        with running_postgres(directory) as server:
            copied, took_s = asyncio.run(_copy(fresh_database(server)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(
        table(
            "Events through the relay (fsync on)",
            ["events", "time", "events/s"],
            [[copied, seconds(took_s), f"{copied / took_s:,.0f}"]],
        )
    )


async def _copy(url: str) -> tuple[int, float]:
    await upgrade_all(url, locations())
    database = Database(url, application="bench")
    for first in range(0, EVENTS, BATCH):
        async with database.transaction(KIT.schema) as session:
            await outbox.emit(session, KIT, [_event(n) for n in range(first, first + BATCH)])
    began = time.perf_counter()
    copied = 0
    while count := await copy_events(database, KIT):
        copied += count
    took_s = time.perf_counter() - began
    await database.dispose()
    return copied, took_s


def _event(number: int) -> outbox.Event:
    return outbox.Event(
        type="quota.changed",
        resource_kind="quota",
        resource_id=f"quota_{number}",
        resource_version=1,
        at=datetime.now(UTC),
        data={"project_id": "prj_x", "node_type": "h100-8", "nodes": number},
    )
