"""The connection to Valkey, which holds only what may be lost."""

from valkey import asyncio as valkey
from valkey.exceptions import ValkeyError

ANSWER_WITHIN_S = 0.25
CONNECTIONS = 32

UNREACHABLE = (ValkeyError, OSError, TimeoutError)
"""What a call of the client raises when Valkey is away, hangs, or cannot serve."""


class CacheAbsentError(ValkeyError):
    """No Valkey is configured; who handles ``UNREACHABLE`` handles this too."""


class Cache:
    """One process's connections to the Valkey at ``url`` (``valkey://:password@host:port/0``; empty
    where there is none). Nothing is connected before the first call, and no call waits longer than
    a quarter of a second for an answer: callers go on without."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: valkey.Valkey | None = None

    @property
    def client(self) -> valkey.Valkey:
        """The asyncio client, answers as bytes. Its calls raise ``UNREACHABLE``.

        Raises:
            CacheAbsentError: no Valkey is configured.
        """
        if self._client is None:
            if not self._url:
                raise CacheAbsentError("no Valkey is configured (DFLARE_VALKEY_URL)")
            # A pool that waits for a connection: a burst of requests must not open hundreds.
            pool = valkey.BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType] - its keywords have no types
                self._url,
                max_connections=CONNECTIONS,
                timeout=ANSWER_WITHIN_S,
                socket_connect_timeout=ANSWER_WITHIN_S,
                socket_timeout=ANSWER_WITHIN_S,
            )
            self._client = valkey.Valkey.from_pool(pool)
        return self._client

    async def close(self) -> None:
        """Close what is open; a later call connects anew."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()
