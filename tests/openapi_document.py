"""The API's document without a platform: ``python tests/openapi_document.py`` prints it."""

import json
from contextlib import AsyncExitStack
from typing import Any, cast

from dflare.apps import events
from dflare.apps.gateway import build_app
from dflare.apps.process import Process
from dflare.apps.wiring import Platform
from dflare.kit.clock import SystemClock
from dflare.kit.db import Database
from dflare.kit.feed import FeedSignal
from dflare.kit.seal import Sealer
from dflare.kit.settings import PlatformSettings

NOWHERE = "postgresql://nobody:nothing@127.0.0.1:1/nothing"


async def openapi_document() -> dict[str, Any]:
    """What ``GET /v1/openapi.json`` answers; nothing is connected to."""
    async with AsyncExitStack() as ending:
        database = Database(NOWHERE, application="document")
        ending.push_async_callback(database.dispose)
        process = Process(
            name="document",
            settings=PlatformSettings(
                postgres_url=NOWHERE, temporal_address="127.0.0.1:1", secret_key_file="none"
            ),
            database=database,
            clock=SystemClock(),
            sealer=Sealer(bytes(32)),
            feed=FeedSignal(NOWHERE),
            # No route asks for it while the document is made.
            temporal=cast("Any", None),
        )
        ending.push_async_callback(process.close)
        app = build_app(Platform(process), events.EventHub(database, process.feed))
        return app.openapi()


def written(document: dict[str, Any]) -> str:
    """The document as the file of it that is kept: sorted, so that changes show."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    import asyncio

    print(written(asyncio.run(openapi_document())), end="")
