"""The wire of scheduler hosts: JSON over HTTPS, ``docs/how-to/scheduler-host.md``."""

import base64
import ssl
from typing import Any, cast

import aiohttp
import orjson

from dflare.drivers.scheduler.port import (
    HostAccess,
    NoSuchClusterError,
    SchedulerNotReadyError,
    SchedulerRefusedError,
    SchedulerUnavailableError,
    SchedulerUnreachableError,
)
from dflare.kit.db import assert_no_transaction
from dflare.kit.telemetry import span

_CONNECTIONS = 64
_CONNECTIONS_A_HOST = 16
_SAID_CHARS = 1000


class HostRest:
    """Shared by the drivers of one process; ``ca_file`` names the authority that hosts'
    certificates are checked against (empty: the machine's own)."""

    def __init__(self, *, ca_file: str = "", timeout_s: float = 10.0) -> None:
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        access: HostAccess,
        method: str,
        path: str,
        body: object = None,
        *,
        longer_s: float = 0.0,
    ) -> Any:
        """Ask ``access`` once and return its JSON; nothing is retried here. ``longer_s`` is what
        the call itself may take beside the way.

        Raises:
            SchedulerUnreachableError: no answer in time, or a fault of the host's.
            SchedulerUnavailableError, NoSuchClusterError, SchedulerNotReadyError,
            SchedulerRefusedError, TimeoutError: what 503, 404, 409, other 4xx and 504 say.
        """
        what = f"scheduler host {access.name}: {method} {path}"
        assert_no_transaction(what)
        with span(f"scheduler {method}", device=access.name):
            try:
                async with self._client().request(
                    method,
                    f"{access.address}{path}",
                    data=None if body is None else orjson.dumps(body),
                    headers={
                        "Content-Type": "application/json",
                        "Authorization": _basic(access),
                    },
                    timeout=aiohttp.ClientTimeout(total=self._timeout_s + longer_s),
                ) as response:
                    status, content = response.status, await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                reason = str(error) or type(error).__name__
                raise SchedulerUnreachableError(f"{what}: {reason}") from error
        if status >= 400:
            raise _refusal(status, what, _said(content))
        if not content.strip():
            return None
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise SchedulerUnreachableError(f"{what}: the answer is not JSON") from error

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=_CONNECTIONS,
                limit_per_host=_CONNECTIONS_A_HOST,
                ssl=ssl.create_default_context(cafile=self._ca_file or None),
            )
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session


def _refusal(status: int, what: str, said: str) -> Exception:
    if status == 503:
        # What a person has to do stands in the text; the way it came by would only hide it.
        return SchedulerUnavailableError(said or f"{what}: 503")
    if status == 504:
        return TimeoutError(f"{what}: {said}")
    kinds = {404: NoSuchClusterError, 409: SchedulerNotReadyError}
    default = SchedulerRefusedError if 400 <= status < 500 else SchedulerUnreachableError
    return kinds.get(status, default)(f"{what}: {status} {said}".strip())


def _said(content: bytes) -> str:
    """The detail of a problem document (RFC 9457), or what else the body holds."""
    try:
        document: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content[:_SAID_CHARS].decode(errors="replace")
    if not isinstance(document, dict):
        return str(document)[:_SAID_CHARS]
    # The check says nothing of what a JSON object maps, which is anything, by strings.
    problem = cast("dict[str, object]", document)
    return str(problem.get("detail") or problem.get("title") or "")[:_SAID_CHARS]


def _basic(access: HostAccess) -> str:
    """The header of RFC 7617."""
    login = f"{access.username}:{access.password}".encode()
    return f"Basic {base64.b64encode(login).decode()}"
