"""The store of time series: VictoriaMetrics' HTTP API, one client a process.

Samples go in as lines of the Prometheus text format with their time in milliseconds
(``/api/v1/import/prometheus``); questions are Prometheus' own (``/api/v1/query`` and its kin).
Nothing is retried here. Source: VictoriaMetrics documentation, "How to import time series data" and
"Prometheus querying API enhancements".
"""

import asyncio
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast
from urllib.parse import urlencode

import aiohttp
import orjson

from dflare.kit.db import assert_no_transaction
from dflare.kit.errors import ProblemError, UnavailableError

CONNECTIONS = 32
LONGEST_ANSWER_BYTES = 32 * 1024 * 1024
WRITE_TIMEOUT_S = 20.0
ZIP_FROM_BYTES = 64 * 1024
"""Batches from this size on are compressed, in a thread."""

FRESH = ("nocache", "1")
"""Without it an instant query looks half a minute into the past (``-search.latencyOffset``)."""

Form = Sequence[tuple[str, str]]


class SeriesAbsentError(ProblemError):
    """This installation keeps no series."""

    status: ClassVar[int] = 503
    slug: ClassVar[str] = "metrics-absent"
    title: ClassVar[str] = "No store of metrics"


class SeriesUnreachableError(UnavailableError):
    """The store of series does not answer."""

    slug = "metrics-unreachable"


class AnswerTooLongError(ProblemError):
    """More came back than a caller may be given at once."""

    status: ClassVar[int] = 422
    slug: ClassVar[str] = "metrics-answer-too-long"
    title: ClassVar[str] = "Too much for one answer"


@dataclass(frozen=True)
class Answer:
    """What the store said: its status, and the JSON as it came."""

    status: int
    content: bytes


@dataclass(frozen=True)
class Sample:
    """One value of an instant query, with the labels of its series."""

    labels: Mapping[str, str]
    value: float


class SeriesStore:
    """The store at ``url``, such as ``http://127.0.0.1:8428``; with no ``url`` there is none, and
    ``absent_reason`` says why. Close it with ``close``."""

    def __init__(self, url: str, absent_reason: str = "") -> None:
        self._url = url.rstrip("/")
        self._absent_reason = absent_reason
        self._session: aiohttp.ClientSession | None = None

    @property
    def address(self) -> str:
        """Where it is, with its login; empty where there is none."""
        return self._url

    @property
    def present(self) -> bool:
        """Whether there is one."""
        return bool(self._url)

    def check_present(self) -> None:
        """Raises ``SeriesAbsentError`` where there is none."""
        if not self._url:
            raise SeriesAbsentError(
                self._absent_reason or "this installation keeps no series of measurements",
                next_step="Install Debian's package victoria-metrics (`apt-get install "
                "victoria-metrics`) or name a server (`dflare up --metrics-url URL`), then run "
                "`dflare down` and `dflare up`.",
            )

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def write(self, lines: Sequence[str]) -> None:
        """Keep samples: lines ``name{label="value"} number milliseconds``.

        Raises:
            SeriesAbsentError: there is no store.
            SeriesUnreachableError: it did not take them; they may be in it in part.
        """
        if not lines:
            return
        content = "\n".join((*lines, "")).encode()
        headers = {"Content-Type": "text/plain"}
        if len(content) >= ZIP_FROM_BYTES:
            content = await asyncio.to_thread(gzip.compress, content, 1)
            headers["Content-Encoding"] = "gzip"
        answer = await self._send(
            "/api/v1/import/prometheus", content, headers, timeout_s=WRITE_TIMEOUT_S
        )
        if answer.status >= 300:
            said = answer.content[:300].decode(errors="replace")
            raise SeriesUnreachableError(f"the store of metrics took no samples: {said}")

    async def ask(self, path: str, form: Form, timeout_s: float) -> Answer:
        """The answer to a question, whatever its status; ``path`` begins with ``/api/v1/``.

        Raises:
            SeriesAbsentError: there is no store.
            SeriesUnreachableError: no answer came within ``timeout_s``.
            AnswerTooLongError: it is longer than ``LONGEST_ANSWER_BYTES``.
        """
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._send(path, urlencode(form).encode(), headers, timeout_s)

    async def instant(self, query: str, timeout_s: float = 15.0) -> list[Sample]:
        """The vector that ``query`` has now.

        Raises:
            SeriesAbsentError, SeriesUnreachableError, AnswerTooLongError: see ``ask``.
        """
        answer = await self.ask("/api/v1/query", [("query", query), FRESH], timeout_s)
        if answer.status != 200:
            said = answer.content[:300].decode(errors="replace")
            raise SeriesUnreachableError(f"the store of metrics refuses {query}: {said}")
        document = cast("dict[str, Any]", orjson.loads(answer.content))
        return [
            Sample(cast("dict[str, str]", one["metric"]), float(one["value"][1]))
            for one in document["data"]["result"]
        ]

    async def _send(
        self, path: str, content: bytes, headers: dict[str, str], timeout_s: float
    ) -> Answer:
        self.check_present()
        assert_no_transaction(f"metrics {path}")
        try:
            async with self._opened().post(
                self._url + path,
                data=content,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                return Answer(response.status, await _read(response))
        except TimeoutError as error:
            raise SeriesUnreachableError("the store of metrics did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise SeriesUnreachableError("the store of metrics does not answer") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > LONGEST_ANSWER_BYTES:
            raise AnswerTooLongError(
                f"the answer has more than {LONGEST_ANSWER_BYTES >> 20} MiB",
                next_step="Ask for fewer series, a shorter time, or a longer step.",
            )
    return bytes(content)
