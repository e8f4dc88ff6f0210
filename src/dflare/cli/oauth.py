"""OAuth 2 as a public client speaks it: code with PKCE, device flow, refresh, revocation.

Sources: RFC 6749, RFC 7636 (PKCE), RFC 8252 (native apps), RFC 8628 (device flow), RFC 7009.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import httpx

from dflare.cli.errors import CliError, ExitCode, Json, NotLoggedInError

CLIENT_ID = "dflare-cli"
SCOPE = "openid offline_access"
CALLBACK_PATH = "/callback"
# A loopback redirect (RFC 8252 section 7.3) that is read from the answer and never followed.
NEVER_VISITED = f"http://127.0.0.1:8250{CALLBACK_PATH}"
FORM_STEPS_AT_MOST = 8


@dataclass(frozen=True)
class Endpoints:
    """What the issuer says of itself (OpenID Connect Discovery 1.0)."""

    authorization: str
    token: str
    device: str
    revocation: str


@dataclass(frozen=True)
class Tokens:
    """What a login gives; ``expires_at`` is seconds of the epoch."""

    access_token: str
    refresh_token: str
    expires_at: float | None


def discover(http: httpx.Client, url: str) -> Endpoints:
    """Read the issuer's metadata below ``url``.

    Raises:
        CliError: there is no issuer, or it does not say where its endpoints are.
    """
    document = _json(http.get(f"{url}/.well-known/openid-configuration"))
    token = document.get("token_endpoint")
    if not isinstance(token, str):
        raise CliError(
            f"{url} does not look like a Dflare API: it names no token endpoint",
            next_step="Check the URL: it is the one that `dflare up` prints as api.",
        )
    return Endpoints(
        authorization=str(document.get("authorization_endpoint", "")),
        token=token,
        device=str(document.get("device_authorization_endpoint", "")),
        revocation=str(document.get("revocation_endpoint", "")),
    )


class CodeRequest:
    """One authorization request with its verifier and state."""

    def __init__(self, endpoints: Endpoints, redirect_uri: str) -> None:
        self._endpoints = endpoints
        self.redirect_uri = redirect_uri
        self._verifier = secrets.token_urlsafe(48)
        self._state = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """Where the person's browser goes."""
        digest = hashlib.sha256(self._verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": self.redirect_uri,
            "scope": SCOPE,
            "state": self._state,
            "nonce": secrets.token_urlsafe(16),
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        return f"{self._endpoints.authorization}?{urlencode(query)}"

    def exchange(self, http: httpx.Client, location: str) -> Tokens:
        """Turn the redirect that came back into tokens.

        Raises:
            CliError: the issuer refused, or the answer belongs to another request.
        """
        answer = {key: values[0] for key, values in parse_qs(urlsplit(location).query).items()}
        if not secrets.compare_digest(answer.get("state", ""), self._state):
            raise CliError(
                "the answer belongs to another login",
                next_step="Run `dflare login` again and use the page that it opens.",
            )
        if "code" not in answer:
            reason = answer.get("error_description") or answer.get("error") or "no code came"
            raise NotLoggedInError(f"the login was refused: {reason}")
        return _tokens(
            http.post(
                self._endpoints.token,
                data={
                    "grant_type": "authorization_code",
                    "code": answer["code"],
                    "redirect_uri": self.redirect_uri,
                    "client_id": CLIENT_ID,
                    "code_verifier": self._verifier,
                },
            )
        )


def login_by_password(
    http: httpx.Client, endpoints: Endpoints, username: str, password: str
) -> Tokens:
    """Log in by filling the issuer's own login form; there is no shortcut past it.

    Raises:
        NotLoggedInError: name or password are wrong.
        CliError: the page is not one that can be filled in.
    """
    request = CodeRequest(endpoints, NEVER_VISITED)
    response = http.get(request.url)
    sent = False
    for _ in range(FORM_STEPS_AT_MOST):
        if response.is_redirect:
            location = urljoin(str(response.url), response.headers["location"])
            if location.startswith(request.redirect_uri):
                return request.exchange(http, location)
            response = http.get(location)
            continue
        form = _form(response)
        if form.password_field and sent:
            raise NotLoggedInError(
                f"{username} cannot log in with that password",
                next_step="Correct name or password and run `dflare login` again.",
            )
        values = dict(form.values)
        if form.password_field:
            values |= {form.user_field or "username": username, form.password_field: password}
            sent = True
        action = urljoin(str(response.url), form.action or str(response.url))
        response = http.post(action, data=values)
    raise CliError(
        "the login page did not lead back here",
        next_step="Log in by `dflare login --browser`.",
    )


def login_by_device(
    http: httpx.Client,
    endpoints: Endpoints,
    show: Callable[[Json], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Tokens:
    """RFC 8628: ``show`` tells the person where to go and what to enter; then wait for them.

    Raises:
        NotLoggedInError: they refused, or the code expired.
    """
    started = _json(http.post(endpoints.device, data={"client_id": CLIENT_ID, "scope": SCOPE}))
    show(started)
    interval = float(started.get("interval", 5))
    deadline = time.monotonic() + float(started.get("expires_in", 600))
    while time.monotonic() < deadline:
        sleep(interval)
        response = http.post(
            endpoints.token,
            data={
                "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
                "device_code": started["device_code"],
                "client_id": CLIENT_ID,
            },
        )
        if response.is_success:
            return _tokens(response)
        match _error_of(response):
            case "authorization_pending":
                continue
            case "slow_down":
                # RFC 8628 section 3.5: five seconds more for this and all following requests.
                interval += 5
            case "access_denied":
                raise NotLoggedInError("the login was refused on the page")
            case "expired_token":
                break
            case reason:
                raise NotLoggedInError(f"the login failed: {reason}")
    raise NotLoggedInError("nobody entered the code in time")


def refresh(http: httpx.Client, token_endpoint: str, refresh_token: str) -> Tokens:
    """New tokens for a refresh token, which is used up by this.

    Raises:
        NotLoggedInError: it does not serve any more.
    """
    response = http.post(
        token_endpoint,
        data={
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_id": CLIENT_ID,
        },
    )
    if response.status_code in (400, 401):
        raise NotLoggedInError("the login has ended")
    return _tokens(response)


def revoke(http: httpx.Client, endpoints: Endpoints, refresh_token: str) -> None:
    """End the login at the issuer (RFC 7009)."""
    if endpoints.revocation:
        http.post(
            endpoints.revocation,
            data={
                "token": refresh_token,
                "token_type_hint": "refresh_token",
                "client_id": CLIENT_ID,
            },
        )


class _FormReader(HTMLParser):
    """Reads the first form of a page: where it goes, its fields, which of them ask for what."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.values: dict[str, str] = {}
        self.user_field = ""
        self.password_field = ""
        self._inside = False
        self.found = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if tag == "form" and not self.found:
            self._inside = self.found = True
            self.action = given.get("action")
        if not self._inside or not given.get("name"):
            return
        name, kind = given["name"], given.get("type", "text").lower()
        if tag == "button" and given.get("value") not in (None, "deny", "cancel"):
            # A browser sends the button that was pressed: the one that means yes.
            self.values[name] = given["value"]
        if tag != "input":
            return
        if kind == "password":
            self.password_field = name
        elif kind in ("text", "email"):
            self.user_field = self.user_field or name
        elif kind != "checkbox":
            self.values.setdefault(name, given.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False


def _form(response: httpx.Response) -> _FormReader:
    form = _FormReader()
    form.feed(response.text)
    if form.found:
        return form
    raise CliError(
        f"the login page answered with status {response.status_code} and no form",
        next_step="Log in by `dflare login --browser`, or look at `dflare logs gateway`.",
    )


def _tokens(response: httpx.Response) -> Tokens:
    document = _json(response)
    lifetime = document.get("expires_in")
    return Tokens(
        access_token=str(document["access_token"]),
        refresh_token=str(document.get("refresh_token") or ""),
        expires_at=time.time() + float(lifetime) if lifetime is not None else None,
    )


def _error_of(response: httpx.Response) -> str:
    try:
        document: Any = response.json()
        return str(document["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {response.status_code}"


def _json(response: httpx.Response) -> Json:
    try:
        document: Any = response.json()
    except ValueError:
        document = None
    if response.is_success and isinstance(document, dict):
        return document  # pyright: ignore[reportUnknownVariableType] - JSON objects have text keys
    raise CliError(
        f"{response.url} answered {_error_of(response)}",
        next_step="Check the URL, and on the server `dflare status`.",
        exit_code=ExitCode.UNAVAILABLE if response.is_server_error else ExitCode.FAILURE,
    )
