"""The API as the commands call it: tokens that renew themselves, retries, pages, problems."""

import os
import ssl
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import quote, urlencode, urlsplit

import httpx
from websockets.sync.client import ClientConnection, connect

import dflare
from dflare.cli import oauth
from dflare.cli.config import Config, ConfigFile, Connection, Context, resolve
from dflare.cli.errors import (
    ApiProblem,
    CliError,
    Json,
    NotLoggedInError,
    UnreachableError,
    UsageError,
)

PAGE_SIZE = 500
RETRIES = 3
RETRY_PAUSES_S = (0.2, 0.6, 1.5)
RENEW_BEFORE_S = 30.0
TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=120.0, write=120.0)
USER_AGENT = f"dflare-cli/{dflare.__version__}"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

Query = Mapping[str, Any]


def segment(name: str) -> str:
    """A name or id as one segment of a path."""
    return quote(name, safe="")


class Api:
    """Calls of one command. Use it as a context manager.

    Every method raises ``ApiProblem`` for a problem document, ``NotLoggedInError`` without a
    valid token, and ``UnreachableError`` where nothing answers.
    """

    def __init__(
        self,
        file: ConfigFile,
        connection: Connection,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._file = file
        self._name = connection.name
        self._sleep = sleep
        self.context = connection.context
        self.http = new_http(connection.context)

    @classmethod
    def of_environment(cls, project: str | None = None) -> "Api":
        """What the configuration and the environment say."""
        file = ConfigFile.of(os.environ)
        return cls(file, resolve(file, os.environ, project))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, **query: Any) -> Json:
        """One document."""
        return self._json(self._send("GET", path, query=query, repeatable=True))

    def pages(self, path: str, **query: Any) -> Iterator[Json]:
        """Every item of a list, page by page; lists without pages are one."""
        cursor: str | None = None
        while True:
            page = self.get(path, **{"limit": PAGE_SIZE, **query, "cursor": cursor})
            yield from page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def items(self, path: str, **query: Any) -> list[Json]:
        """Every item of a list at once."""
        return list(self.pages(path, **query))

    def order(
        self, method: str, path: str, body: Any = None, *, etag: str | None = None, **query: Any
    ) -> Json:
        """A POST or DELETE that starts an operation; repeating it is safe by its key. With the
        ``etag`` of what was read before, it is refused where that has changed."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        if etag is not None:
            headers["If-Match"] = etag
        return self._json(self._send(method, path, body, query, headers, repeatable=True))

    def change(
        self, method: str, path: str, body: Any = None, *, etag: str | None = None, **query: Any
    ) -> Json:
        """Any other change. A POST is repeated only where it surely did not arrive."""
        headers = {"Idempotency-Key": str(uuid.uuid4())} if method in ("POST", "DELETE") else {}
        if etag is not None:
            headers["If-Match"] = etag
        response = self._send(
            method, path, body, query, headers, repeatable=method in ("PUT", "DELETE")
        )
        return self._json(response)

    def project(self) -> str:
        """The chosen project as a path's segment; who may see only one need not choose.

        Raises:
            UsageError: none is chosen, or there is none of that name.
        """
        reference = self.context.project
        if not reference:
            projects = self.projects()
            if len(projects) == 1:
                return segment(str(projects[0]["id"]))
            names = [f"{item['organization']}/{item['name']}" for item in projects[:10]]
            way = f"one of {', '.join(names)}" if names else "a project that somebody gives you"
            raise UsageError(
                "no project is chosen",
                next_step=f"Run `dflare project use NAME` or add --project, with {way}.",
            )
        if "/" in reference:
            reference = str(self.find_project(reference)["id"])
        return segment(reference)

    def projects(self) -> list[Json]:
        """The projects that the caller may see, each with its organization's name."""
        names = {item["id"]: item["name"] for item in self.items("/organizations")}
        return [
            {**item, "organization": names.get(item["organization_id"], item["organization_id"])}
            for item in self.items("/projects")
        ]

    def find_project(self, reference: str) -> Json:
        """A project by id, name, or ``organization/name``.

        Raises:
            UsageError: none fits, or more than one does.
        """
        projects = self.projects()
        fitting = [
            item
            for item in projects
            if reference in (item["id"], item["name"], f"{item['organization']}/{item['name']}")
        ]
        if len(fitting) == 1:
            return fitting[0]
        organization, slash, name = reference.partition("/")
        if slash and not fitting:
            # Members may not see their organization, but the API knows its name.
            found = self.get(f"/projects/{segment(organization)}/{segment(name)}")
            return {**found, "organization": organization}
        if fitting:
            names = ", ".join(f"{item['organization']}/{item['name']}" for item in fitting)
            raise UsageError(
                f"more than one project is called {reference!r}: {names}",
                next_step="Write ORGANIZATION/NAME.",
            )
        raise UsageError(
            f"there is no project {reference!r} that you may see",
            next_step="See `dflare project list`.",
        )

    @contextmanager
    def events(self, query: Mapping[str, str]) -> Generator[ClientConnection]:
        """The WebSocket of events, connected.

        Raises:
            OSError, websockets.InvalidHandshake: it cannot be reached this way.
        """
        parts = urlsplit(self.context.url)
        scheme = "wss" if parts.scheme == "https" else "ws"
        url = f"{scheme}://{parts.netloc}{parts.path}/v1/events?{urlencode(query)}"
        context = None
        if scheme == "wss":
            context = ssl.create_default_context(cafile=self.context.ca_file or None)
        with connect(
            url,
            ssl=context,
            additional_headers={"Authorization": f"Bearer {self._token()}"},
            user_agent_header=USER_AGENT,
            proxy=None if parts.hostname in LOOPBACK_HOSTS else True,
            open_timeout=10,
            close_timeout=1,
            max_size=16 * 2**20,
        ) as socket:
            yield socket

    def renew(self) -> bool:
        """Get a new access token; False where there is nothing to get it with."""
        if not self._name or not self.context.refresh_token:
            return False
        with self._file.locked():
            config = self._file.load()
            stored = config.contexts.get(self._name, Context())
            if stored.access_token != self.context.access_token and stored.access_token:
                # Another command was faster; its token is as good.
                fresh = stored
            else:
                fresh = self._refreshed(config, stored)
        self.context = replace(
            self.context,
            access_token=fresh.access_token,
            refresh_token=fresh.refresh_token,
            expires_at=fresh.expires_at,
        )
        return True

    def _refreshed(self, config: Config, stored: Context) -> Context:
        endpoint = stored.token_endpoint or f"{self.context.url}/oauth/token"
        try:
            tokens = oauth.refresh(self.http, endpoint, stored.refresh_token)
        except httpx.TransportError as error:
            raise unreachable(self.context, error) from error
        fresh = replace(
            stored,
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token or stored.refresh_token,
            expires_at=tokens.expires_at,
        )
        self._file.save(config.with_context(self._name, fresh))
        return fresh

    def _token(self) -> str:
        context = self.context
        if context.expires_at is not None and context.expires_at - time.time() < RENEW_BEFORE_S:
            self.renew()
        if not self.context.access_token:
            way = "dflare login --local" if self.context.data_dir else "dflare login"
            raise NotLoggedInError("you are not logged in", next_step=f"Run `{way}`.")
        return self.context.access_token

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        repeatable: bool,
    ) -> httpx.Response:
        params = {key: _text(value) for key, value in (query or {}).items() if value is not None}
        renewed = False
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES
            try:
                response = self.http.request(
                    method,
                    f"{self.context.url}/v1{path}",
                    params=params,
                    json=body,
                    headers={"Authorization": f"Bearer {self._token()}", **(headers or {})},
                )
            except httpx.TransportError as error:
                # A connection that was never made carried nothing, so any call may be repeated.
                if last or not (repeatable or isinstance(error, httpx.ConnectError)):
                    raise unreachable(self.context, error) from error
                self._sleep(RETRY_PAUSES_S[attempt])
                continue
            if response.status_code == 401 and not renewed and self.renew():
                renewed = True
                continue
            # What came too often was not begun, so that any call may be repeated.
            again = response.status_code == 429 or (response.status_code == 503 and repeatable)
            if again and not last:
                self._sleep(_retry_after(response, RETRY_PAUSES_S[attempt]))
                continue
            return response
        raise AssertionError("the last attempt returns or raises")

    def _json(self, response: httpx.Response) -> Json:
        if response.status_code == 204 or (not response.content and response.is_success):
            return {}
        try:
            document: Any = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            way = "Check the URL: it is the one that `dflare up` prints as api."
            if response.status_code >= 500:
                way = "Repeat it later; an operator looks with `dflare doctor` and `dflare logs`."
            raise CliError(
                f"{response.request.method} {response.url} answered {response.status_code} "
                "and no JSON",
                next_step=way,
            )
        found = cast("Json", document)
        if response.is_success:
            if response.headers.get("etag"):
                found.setdefault("etag", response.headers["etag"])
            return found
        if response.status_code == 401:
            raise NotLoggedInError(
                str(found.get("detail") or "the token is not valid"),
                next_step=str(found.get("next_step") or "Run `dflare login`."),
            )
        raise ApiProblem(response.status_code, found)


def new_http(context: Context, *, timeout: httpx.Timeout = TIMEOUT) -> httpx.Client:
    """An HTTP client for an installation; proxies of the environment are for others than this
    machine."""
    verify: ssl.SSLContext | bool = True
    if context.ca_file:
        if not Path(context.ca_file).is_file():
            raise UsageError(
                f"the CA file {context.ca_file} does not exist",
                next_step="Log in again with --ca-file.",
            )
        verify = ssl.create_default_context(cafile=context.ca_file)
    return httpx.Client(
        timeout=timeout,
        verify=verify,
        headers={"User-Agent": USER_AGENT},
        trust_env=urlsplit(context.url).hostname not in LOOPBACK_HOSTS,
    )


def unreachable(context: Context, error: Exception) -> UnreachableError:
    """What to say where nothing answers: on this machine, whether the platform runs at all."""
    detail = f"the API at {context.url} does not answer: {error or type(error).__name__}"
    host = urlsplit(context.url).hostname
    if host not in LOOPBACK_HOSTS:
        return UnreachableError(detail, next_step="Check the network and `dflare context show`.")
    # Imported late: only this branch needs what starts and stops processes.
    from dflare.cli import local

    layout, running = local.runs(Path(context.data_dir) if context.data_dir else None)
    if not running:
        return UnreachableError(
            f"{detail} (no local platform runs in {layout.root})",
            next_step="Start it by `dflare up`.",
        )
    return UnreachableError(
        f"{detail} (the local platform in {layout.root} runs)",
        next_step="See `dflare status` and `dflare logs gateway`.",
    )


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _retry_after(response: httpx.Response, pause_s: float) -> float:
    given = response.headers.get("retry-after", "")
    return min(float(given), 5.0) if given.isdecimal() else pause_s
