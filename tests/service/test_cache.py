"""Promises of the cache, over a real Valkey."""

import asyncio
import socket

import pytest

from dflare.embedded.ports import LOOPBACK, free_port
from dflare.embedded.valkey import answers
from dflare.kit.cache import UNREACHABLE, Cache


async def test_what_was_set_is_read_back(valkey_url: str) -> None:
    cache = Cache(valkey_url)
    await cache.client.set("test-cache:a", b"1", ex=60)
    assert await cache.client.get("test-cache:a") == b"1"
    await cache.close()
    assert await cache.client.get("test-cache:a") == b"1", "a closed cache connects anew"
    await cache.close()


async def test_a_cache_that_is_away_or_absent_raises_what_callers_handle() -> None:
    for url in ("", f"valkey://{LOOPBACK}:{free_port()}/0"):
        cache = Cache(url)
        with pytest.raises(UNREACHABLE):
            await cache.client.get("x")
        await cache.close()


async def test_a_cache_that_hangs_costs_its_deadline_and_no_more() -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        cache = Cache(f"valkey://{LOOPBACK}:{silent.getsockname()[1]}/0")
        async with asyncio.timeout(10):
            with pytest.raises(UNREACHABLE):
                await cache.client.get("x")
        await cache.close()


async def test_nothing_is_read_without_the_password(valkey_url: str) -> None:
    assert await answers(valkey_url)
    address = valkey_url.rpartition("@")[2]
    for url in (f"valkey://{address}", f"valkey://:wrong@{address}"):
        assert not await answers(url)
        cache = Cache(url)
        with pytest.raises(UNREACHABLE):
            await cache.client.get("x")
        await cache.close()
