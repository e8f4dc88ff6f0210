"""A person's browser and a program at the development issuer, by HTTP alone."""

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import unescape
from urllib.parse import parse_qs, urlsplit

import httpx

REDIRECT = "http://127.0.0.1:39801/callback"
CLIENT = "dflare-cli"


@dataclass
class Pkce:
    """A verifier and its S256 challenge (RFC 7636)."""

    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    @property
    def challenge(self) -> str:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def authorization(pkce: Pkce, **changes: str | None) -> dict[str, str]:
    """The parameters of a good authorization request; `None` leaves one out."""
    parameters: dict[str, str | None] = {
        "response_type": "code",
        "client_id": CLIENT,
        "redirect_uri": REDIRECT,
        "scope": "openid profile email",
        "state": "st-1",
        "code_challenge": pkce.challenge,
        "code_challenge_method": "S256",
        **changes,
    }
    return {name: value for name, value in parameters.items() if value is not None}


def form_token(page: httpx.Response) -> str:
    """The hidden CSRF field of a page."""
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return unescape(found[1])


async def log_in(
    client: httpx.AsyncClient,
    parameters: Mapping[str, str],
    username: str,
    password: str,
    answer: str = "allow",
) -> httpx.Response:
    """Open the login page of an authorization request and send its form."""
    page = await client.get("/oauth/authorize", params=parameters)
    assert page.status_code == 200, page.text
    form = {
        "csrf": form_token(page),
        "username": username,
        "password": password,
        "answer": answer,
    }
    return await client.post("/oauth/authorize", params=parameters, data=form)


def redirected(response: httpx.Response) -> dict[str, str]:
    """The parameters that a redirect carries to the client."""
    assert response.status_code == 302, response.text
    return {k: v[0] for k, v in parse_qs(urlsplit(response.headers["location"]).query).items()}


async def exchange(
    client: httpx.AsyncClient, code: str, pkce: Pkce, **changes: str
) -> httpx.Response:
    """Exchange a code for tokens."""
    form = {
        "grant_type": "authorization_code",
        "client_id": CLIENT,
        "code": code,
        "redirect_uri": REDIRECT,
        "code_verifier": pkce.verifier,
        **changes,
    }
    return await client.post("/oauth/token", data=form)


async def refresh(client: httpx.AsyncClient, token: str, client_id: str = CLIENT) -> httpx.Response:
    """Exchange a refresh token for new tokens."""
    form = {"grant_type": "refresh_token", "client_id": client_id, "refresh_token": token}
    return await client.post("/oauth/token", data=form)
