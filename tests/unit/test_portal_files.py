"""The gateway serves the portal's built files, and says how to build them where there are none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from dflare.apps.portal import PAGES, Portal, callbacks, router
from dflare.services.auth.issuer.clients import PublicClient
from dflare.services.auth.tables import OAuthClient

HTML = {"Accept": "text/html"}


@pytest.fixture
def built(tmp_path: Path) -> Portal:
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>the portal</title>")
    (folder / "secret.txt").write_text("not an asset")
    for suffix, text in (("", "plain"), (".gz", "gzipped"), (".br", "brotli")):
        (folder / "assets" / f"app-1a2b.js{suffix}").write_text(text)
    return Portal((tmp_path / "nothing", folder))


@asynccontextmanager
async def asking(portal: Portal) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI(openapi_url=None)
    app.include_router(router(portal))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://portal") as client:
        yield client


@pytest.mark.parametrize("path", ["/", *(f"/{page}" for page in PAGES), "/clusters/acme/train/a"])
async def test_every_address_of_the_portal_gives_its_document(built: Portal, path: str) -> None:
    async with asking(built) as client:
        answer = await client.get(path, headers=HTML)
    assert answer.status_code == 200
    assert "the portal" in answer.text
    assert answer.headers["cache-control"] == "no-cache"


async def test_nothing_runs_in_the_portal_but_its_own_files(built: Portal) -> None:
    async with asking(built) as client:
        answer = await client.get("/", headers=HTML)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


async def test_programs_are_told_where_the_api_is(built: Portal) -> None:
    async with asking(built) as client:
        answer = await client.get("/", headers={"Accept": "application/json"})
    assert answer.json()["api"] == "/v1"


@pytest.mark.parametrize(
    ("accepted", "encoding", "text"),
    [("", None, "plain"), ("gzip", "gzip", None), ("gzip, br;q=1.0", "br", None)],
)
async def test_files_are_kept_for_ever_and_sent_packed(
    built: Portal, accepted: str, encoding: str | None, text: str | None
) -> None:
    async with (
        asking(built) as client,
        client.stream("GET", "/assets/app-1a2b.js", headers={"Accept-Encoding": accepted}) as got,
    ):
        body = b"".join([part async for part in got.aiter_raw()])
    assert got.status_code == 200
    assert "immutable" in got.headers["cache-control"]
    assert got.headers.get("content-encoding") == encoding
    assert got.headers["content-type"].startswith("text/javascript")
    assert body == (text or {"gzip": "gzipped", "br": "brotli"}[str(encoding)]).encode()


@pytest.mark.parametrize(
    "name", ["none.js", "..%2Fsecret.txt", "%2e%2e/secret.txt", "..%5csecret.txt", "a%00.js", ".x"]
)
async def test_no_path_leads_out_of_the_assets(built: Portal, name: str) -> None:
    async with asking(built) as client:
        answer = await client.get(f"/assets/{name}")
    assert answer.status_code == 404
    assert "not an asset" not in answer.text


async def test_a_gateway_without_a_portal_says_how_to_build_it(tmp_path: Path) -> None:
    async with asking(Portal((tmp_path,))) as client:
        page = await client.get("/", headers=HTML)
        asset = await client.get("/assets/app.js")
    assert page.status_code == 200
    assert "make portal" in page.text
    assert asset.status_code == 404


@pytest.mark.parametrize(
    ("public_url", "given", "taken"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/login/callback", True),
        ("http://127.0.0.1:8080", "http://127.0.0.1:9999/login/callback", True),
        ("http://127.0.0.1:8080", "http://127.0.0.1:9999/other", False),
        ("http://127.0.0.1:8080", "http://evil.example/login/callback", False),
        ("https://cloud.example", "https://cloud.example/login/callback", True),
        ("https://cloud.example", "http://127.0.0.1:9999/login/callback", False),
    ],
)
def test_logins_lead_back_to_the_portal_alone(public_url: str, given: str, taken: bool) -> None:
    client = PublicClient(OAuthClient(id="p", redirect_uris=callbacks(public_url)))
    assert client.check_redirect_uri(given) is taken
