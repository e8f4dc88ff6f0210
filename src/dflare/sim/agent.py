"""The program that speaks for a server while no tenant's system runs.

Written from ``docs/how-to/agent-protocol.md``; it shares nothing with the golden image's agent.
Waits between calls are wall time, since the platform answers in wall time; work on the hardware
takes simulated time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import orjson

from dflare.sim.disk import ConfigDrive
from dflare.sim.http_client import HttpConnection, HttpError, Response
from dflare.sim.media import AgentMedium

_CALL_TIMEOUT_S = 30.0
_FIRST_BACKOFF_S = 0.25
_LAST_BACKOFF_S = 10.0

Progress = Callable[[int, str], Awaitable[None]]
TaskState = Literal["running", "succeeded", "failed"]


class TaskFailedError(Exception):
    """A task ended badly; the message goes into its report."""


class TokenRefusedError(Exception):
    """The platform answered 401: the agent stops."""


class _NotWantedError(Exception):
    """The platform answered 409 to a report: the task is dropped."""


class Machine(Protocol):
    """The hardware under the agent."""

    def has_path(self) -> bool:
        """Whether any Ethernet port has a link and a VLAN."""
        ...

    def hello(self) -> dict[str, object]:
        """The body of the agent's first call."""
        ...

    async def perform(
        self, kind: str, params: Mapping[str, object], progress: Progress
    ) -> dict[str, object]:
        """Do a task and return what was observed.

        Raises:
            TaskFailedError: it could not be done.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Report:
    state: TaskState
    percent: int
    message: str
    observed: dict[str, object]

    def body(self) -> dict[str, object]:
        return {
            "state": self.state,
            "percent": self.percent,
            "message": self.message,
            "observed": self.observed,
        }


class PlatformCalls:
    """Calls with a bearer token through the host's network, repeated until answered."""

    def __init__(self, token: str, has_path: Callable[[], bool], seed: str) -> None:
        self._headers = {"Authorization": f"Bearer {token}"}
        self._has_path = has_path
        self._connection = HttpConnection()
        self._jitter = random.Random(seed)  # noqa: S311 - spreads repeats, guards nothing

    async def call(self, method: str, url: str, body: object = None) -> Response:
        """The first answer below 500 (429 is repeated too).

        Raises:
            TokenRefusedError: the answer is 401.
        """
        data = None if body is None else orjson.dumps(body)
        wait_s = _FIRST_BACKOFF_S
        while True:
            answer = await self._try(method, url, data)
            if answer is not None:
                if answer.status == 401:
                    raise TokenRefusedError(url)
                if answer.status < 500 and answer.status != 429:
                    return answer
            await asyncio.sleep(wait_s * self._jitter.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _LAST_BACKOFF_S)

    async def once(self, method: str, url: str, data: bytes, content_type: str) -> bool:
        """One try; whether it was taken. What is late is not worth a repetition.

        Raises:
            TokenRefusedError: the answer is 401.
        """
        answer = await self._try(method, url, data, content_type)
        if answer is not None and answer.status == 401:
            raise TokenRefusedError(url)
        return answer is not None and answer.status < 300

    async def _try(
        self, method: str, url: str, data: bytes | None, content_type: str = "application/json"
    ) -> Response | None:
        if not self._has_path():
            self._connection.close()
            return None
        try:
            answer = await self._connection.request(
                method,
                url,
                headers={**self._headers, "Content-Type": content_type},
                body=data,
                timeout_s=_CALL_TIMEOUT_S,
            )
        except HttpError:
            return None
        # A port that lost its VLAN while the call was under way never got the answer.
        return answer if self._has_path() else None

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()


class Agent:
    """Says hello, then takes one task at a time until its token is refused or it is cancelled."""

    def __init__(self, medium: AgentMedium, machine: Machine, seed: str) -> None:
        self._medium = medium
        self._machine = machine
        self._calls = PlatformCalls(medium.token, machine.has_path, seed)
        self._last_reports: dict[str, _Report] = {}
        self._poll_s = medium.poll_s

    async def run(self) -> None:
        """Work until the token is refused."""
        try:
            await self._hello()
            while True:
                await self._poll()
        except TokenRefusedError:
            return
        finally:
            self._calls.close()

    async def _hello(self) -> None:
        answer = await self._repeat_until_ok("POST", "hello", self._machine.hello())
        said = cast("dict[str, object]", orjson.loads(answer.body or b"{}")).get("poll_s")
        if isinstance(said, int | float):
            self._poll_s = float(said)

    async def _poll(self) -> None:
        asked_at = asyncio.get_running_loop().time()
        answer = await self._calls.call("GET", f"{self._medium.agent_url}/v1/agent/task")
        if answer.status == 200:
            task = cast("dict[str, object]", orjson.loads(answer.body))
            params = cast("dict[str, object]", task.get("params") or {})
            try:
                await self._do(str(task["id"]), str(task["kind"]), params)
            except _NotWantedError:
                return
            return
        # A long poll has waited already; an answer that came at once must not become a busy loop.
        waited_s = asyncio.get_running_loop().time() - asked_at
        if waited_s < self._poll_s:
            await asyncio.sleep(self._poll_s - waited_s)

    async def _do(self, task_id: str, kind: str, params: Mapping[str, object]) -> None:
        if (done := self._last_reports.get(task_id)) is not None:
            await self._report(task_id, done)
            return

        async def progress(percent: int, message: str) -> None:
            await self._report(task_id, _Report("running", percent, message, {}))

        try:
            observed = await self._machine.perform(kind, params, progress)
            last = _Report("succeeded", 100, f"{kind} done", observed)
        except TaskFailedError as error:
            last = _Report("failed", 100, str(error), {})
        self._last_reports[task_id] = last
        await self._report(task_id, last)

    async def _report(self, task_id: str, report: _Report) -> None:
        url = f"{self._medium.agent_url}/v1/agent/task/{task_id}/report"
        if (await self._calls.call("POST", url, report.body())).status == 409:
            raise _NotWantedError(task_id)

    async def _repeat_until_ok(self, method: str, path: str, body: object) -> Response:
        wait_s = _FIRST_BACKOFF_S
        while True:
            answer = await self._calls.call(
                method, f"{self._medium.agent_url}/v1/agent/{path}", body
            )
            if 200 <= answer.status < 300:
                return answer
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_BACKOFF_S)


async def phone_home(
    drive: ConfigDrive, has_path: Callable[[], bool], body: dict[str, object], seed: str
) -> bool:
    """What cloud-init does after the first boot: call home until heard; false: nobody to call."""
    if drive.phone_home_url is None:
        return False
    calls = PlatformCalls(drive.phone_home_token or "", has_path, seed)
    wait_s = _FIRST_BACKOFF_S
    try:
        while True:
            answer = await calls.call("POST", drive.phone_home_url, body)
            if 200 <= answer.status < 300:
                return True
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_BACKOFF_S)
    except TokenRefusedError:
        return False
    finally:
        calls.close()
