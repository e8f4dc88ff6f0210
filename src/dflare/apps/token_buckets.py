"""Token buckets in Valkey, which all gateways share.

A call of Valkey costs a gateway a third of what a small answer costs it. So a gateway takes tokens
by the lot and spends them without asking: what it has taken is gone from the bucket, so that no
limit is ever exceeded, and what it does not spend within a second is lost, which is at most a
hundredth of a bucket.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from dflare.kit.cache import UNREACHABLE, Cache
from dflare.kit.telemetry import log

LOT_LIVES_S = 1.0
LARGEST_LOT = 32
LOTS = 10_000
AWAY_S = 1.0
"""How long nothing is asked of a Valkey that did not answer, which would hold up each request."""

TOLD_EVERY_S = 60.0
KEY_PREFIX = "limit:"

# All buckets give or none does. Times are the server's, unless a test brings its own.
_TAKE = """
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local given, tokens = tonumber(ARGV[2]), {}
for i, key in ipairs(KEYS) do
  local rate, burst = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local kept = redis.call('HMGET', key, 'tokens', 'at')
  local at = tonumber(kept[2]) or now
  tokens[i] = math.min(burst, (tonumber(kept[1]) or burst) + math.max(0, now - at) * rate)
  given = math.min(given, math.floor(tokens[i]))
end
local least, wait, refill = nil, 0, 0
for i, key in ipairs(KEYS) do
  local rate, burst = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local left = tokens[i] - given
  redis.call('HSET', key, 'tokens', string.format('%.6f', left), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', key, math.ceil(burst / rate) + 1)
  if given == 0 then wait = math.max(wait, (1 - left) / rate) end
  refill = math.max(refill, (burst - left) / rate)
  if least == nil or left < least then least = left end
end
return {given, math.floor(least), tostring(wait), tostring(refill)}
"""


class _Script(Protocol):
    """What is used of the client's untyped script."""

    def __call__(
        self, keys: Sequence[str], args: Sequence[float]
    ) -> Awaitable[tuple[int, int, bytes, bytes]]: ...


@dataclass(frozen=True)
class Bucket:
    """A bucket that holds at most ``burst`` tokens and gains ``per_s`` a second."""

    key: str
    per_s: float
    burst: int


@dataclass(frozen=True)
class Answer:
    """Whether a request may go on. ``remaining`` more may at once, ``refill_s`` until all may
    again; one that was refused may try after ``wait_s``."""

    allowed: bool
    remaining: int
    refill_s: float
    wait_s: float = 0.0


@dataclass
class _Lot:
    tokens: int
    until: float
    remaining: int
    refill_s: float


class Buckets:
    """The buckets of one gateway. ``steady`` is seconds of a clock that only this process reads,
    ``now`` those of the buckets: 0 stands for Valkey's own clock."""

    def __init__(
        self,
        cache: Cache,
        *,
        steady: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._cache = cache
        self._steady = steady
        self._now = now
        self._lots: dict[tuple[str, ...], _Lot] = {}
        self._script: _Script | None = None
        self._away_until = self._told_at = float("-inf")

    async def take(self, buckets: Sequence[Bucket]) -> Answer | None:
        """A token of each bucket, or of none; no answer where Valkey is away."""
        keys = tuple(bucket.key for bucket in buckets)
        lot, now = self._lots.get(keys), self._steady()
        if lot is None or lot.tokens == 0 or lot.until <= now:
            if now < self._away_until:
                return None
            size = max(1, min(LARGEST_LOT, min(bucket.burst for bucket in buckets) // 100))
            try:
                given, remaining, wait, refill = await self._ask(buckets, size)
            except UNREACHABLE as error:
                self._is_away(now, error)
                return None
            if given == 0:
                return Answer(False, 0, float(refill), float(wait))
            if len(self._lots) >= LOTS:
                self._lots.clear()
            # A request beside this one may have taken a lot too; the newer one counts.
            lot = _Lot(given, now + LOT_LIVES_S, remaining, float(refill))
            self._lots[keys] = lot
        lot.tokens -= 1
        return Answer(True, lot.remaining + lot.tokens, lot.refill_s)

    async def _ask(self, buckets: Sequence[Bucket], size: int) -> tuple[int, int, bytes, bytes]:
        if self._script is None:
            self._script = cast("_Script", self._cache.client.register_script(_TAKE))
        arguments = [self._now(), size]
        for bucket in buckets:
            arguments += [bucket.per_s, bucket.burst]
        return await self._script([KEY_PREFIX + bucket.key for bucket in buckets], arguments)

    def _is_away(self, now: float, error: BaseException) -> None:
        self._away_until = now + AWAY_S
        if now >= self._told_at + TOLD_EVERY_S:
            self._told_at = now
            log.warning("rate_limits_off", error=str(error) or type(error).__name__)
