"""The issuer's few pages, rendered on the server, without scripts, safe to show in any browser."""

import base64
import secrets
from html import escape
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse

from dflare.kit.seal import Sealer, SealError

COOKIE = "dflare_login"
_COOKIE_AGE_S = 3600

_STYLE = """
:root { color-scheme: light dark; --ink: #14181f; --soft: #5b6472; --line: #d5dae1; --paper: #fff;
  --ground: #f3f5f8; --accent: #1f5eff; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9edf3; --soft: #9aa5b5; --line: #333b47;
  --paper: #171b21; --ground: #0f1216; --accent: #6d95ff; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { width: min(24rem, calc(100vw - 2rem)); padding: 2rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: 12px; }
h1 { margin: 0 0 .25rem; font-size: 1.25rem; }
p { margin: 0 0 1.25rem; color: var(--soft); }
label { display: block; margin-bottom: 1rem; font-size: .875rem; font-weight: 600; }
input { display: block; width: 100%; margin-top: .25rem; padding: .625rem .75rem; font: inherit;
  color: inherit; background: transparent; border: 1px solid var(--line); border-radius: 8px; }
input::placeholder { color: var(--soft); opacity: .7; }
input:focus-visible, button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.code { font-family: ui-monospace, monospace; letter-spacing: .15em; text-transform: uppercase; }
.choice { display: flex; flex-direction: row-reverse; gap: .75rem; }
button { flex: 1; padding: .625rem; font: inherit; font-weight: 600; border-radius: 8px;
  border: 1px solid var(--line); background: transparent; color: inherit; cursor: pointer; }
button.main { background: var(--accent); border-color: var(--accent); color: var(--paper); }
[role=alert] { padding: .625rem .75rem; color: var(--bad); border: 1px solid currentColor;
  border-radius: 8px; }
"""


class Pages:
    """Renders pages and guards their forms.

    The button that agrees comes first in each form, whatever the style shows: Enter in a field
    presses the first one (HTML standard, implicit submission).

    A form's token opens only with the cookie of the browser that it was made for, so that another
    site can neither read one nor make one (CSRF). It is sealed under the platform's key, so that
    any gateway takes the form that another one rendered.
    """

    def __init__(self, sealer: Sealer, *, secure: bool) -> None:
        self._sealer = sealer
        self._secure = secure

    def login(
        self,
        request: Request,
        *,
        client_name: str,
        error: str = "",
        redirect_uri: str = "",
        status: int = 200,
    ) -> HTMLResponse:
        """The login page of an authorization request; its form posts to the same address."""
        action = f"{request.url.path}?{request.url.query}"
        target = urlsplit(redirect_uri)
        origin = f"{target.scheme}://{target.netloc}" if target.netloc else ""
        body = f"""
<h1>Log in to Dflare</h1>
<p>{escape(client_name)} asks to act for you.</p>
{_alert(error)}
<form method="post" action="{escape(action)}">
{self._credentials()}
<div class="choice"><button class="main" name="answer" value="allow">Log in</button>
<button name="answer" value="deny" formnovalidate>Cancel</button></div>
</form>"""
        return self._page(request, "Log in", body, status, form_target=origin)

    def device(
        self, request: Request, *, user_code: str = "", error: str = "", status: int = 200
    ) -> HTMLResponse:
        """The page where a user lets in a device that shows a code."""
        body = f"""
<h1>Connect a device</h1>
<p>Enter the code that your terminal or device shows. Go on only if you started this yourself.</p>
{_alert(error)}
<form method="post" action="{escape(request.url.path)}">
<label>Code<input class="code" name="user_code" value="{escape(user_code)}" required
 autocomplete="off" autocapitalize="characters" spellcheck="false"></label>
{self._credentials()}
<div class="choice"><button class="main" name="answer" value="allow">Connect</button>
<button name="answer" value="deny">Refuse</button></div>
</form>"""
        return self._page(request, "Connect a device", body, status)

    def message(self, request: Request, title: str, text: str, status: int = 200) -> HTMLResponse:
        """A page that only says something."""
        body = f"<h1>{escape(title)}</h1>\n<p>{escape(text)}</p>"
        return self._page(request, title, body, status)

    def genuine(self, request: Request, token: str) -> bool:
        """Whether a posted form is one that this browser was given."""
        try:
            self._sealer.open(_name(request.cookies.get(COOKIE, "")), base64.b64decode(token))
        except (SealError, ValueError):
            return False
        return COOKIE in request.cookies

    def _credentials(self) -> str:
        return """<input type="hidden" name="csrf" value="{csrf}">
<label>User name<input name="username" autocomplete="username" required autofocus
 autocapitalize="none" spellcheck="false" placeholder="name or name@organization"></label>
<label>Password<input name="password" type="password" autocomplete="current-password"
 required></label>"""

    def _page(
        self, request: Request, title: str, body: str, status: int, *, form_target: str = ""
    ) -> HTMLResponse:
        cookie = request.cookies.get(COOKIE) or secrets.token_urlsafe(24)
        sealed = base64.b64encode(self._sealer.seal(_name(cookie), b"form")).decode()
        html = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · Dflare</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head>
<body><main>{body.replace("{csrf}", sealed)}</main></body></html>"""
        response = HTMLResponse(html, status)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        # The style is fixed text of this module. Browsers hold a form's redirect to form-action
        # too, so the client's own address must stand there.
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
            f"frame-ancestors 'none'; form-action 'self' {form_target}".strip()
        )
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=_COOKIE_AGE_S,
            httponly=True,
            secure=self._secure,
            samesite="lax",
        )
        return response


def _name(cookie: str) -> str:
    return f"auth/form/{cookie}"


def _alert(error: str) -> str:
    return f'<p role="alert">{escape(error)}</p>' if error else ""
