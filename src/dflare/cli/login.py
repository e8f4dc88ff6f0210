"""`dflare login`, `dflare logout`, `dflare whoami`."""

import http.server
import os
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import typer

from dflare.cli import oauth
from dflare.cli.client import Api, new_http, unreachable
from dflare.cli.config import (
    LOCAL_CONTEXT,
    URL_VARIABLE,
    Config,
    ConfigFile,
    Context,
    local_data_dir,
    local_url,
)
from dflare.cli.errors import Json, NotLoggedInError, UsageError
from dflare.cli.output import Column, Output, OutputOption, columns, is_terminal, note, print_one

LOCAL_OPERATOR = "operator"


def _roles_cell(bindings: list[Json] | None) -> str:
    roles = [
        f"{item['role']} of {item['project_id'] or item['organization_id'] or 'the platform'}"
        for item in bindings or []
    ]
    return ", ".join(roles) or "none; somebody gives you one by `dflare role bind`"


WHOAMI = (*columns("name", "subject", "kind"), Column("ROLES", "bindings", _roles_cell))


def register(root: typer.Typer) -> None:
    """Add the three commands."""
    for command in (login, logout, whoami):
        root.command()(command)


def login(
    url: Annotated[str | None, typer.Option(envvar=URL_VARIABLE, help="The API's URL.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="As the operator of the platform on this machine.")
    ] = False,
    device: Annotated[
        bool, typer.Option("--device", help="By a code that you enter on any device.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser", help="By the browser here.")] = False,
    username: Annotated[
        str | None, typer.Option(help="By name and password; see --password-stdin.")
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read a token from standard input.")
    ] = False,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates to trust, in PEM form.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Name to keep it under; the host's unless told.")
    ] = None,
) -> None:
    """Log in and make that the current context."""
    ways = [bool(local), device, browser, username is not None, token_stdin]
    if sum(ways) > 1:
        raise UsageError("say only one way to log in", next_step="See `dflare login --help`.")
    if password_stdin and username is None:
        raise UsageError("--password-stdin needs a name", next_step="Add --username NAME.")
    file = ConfigFile.of(os.environ)
    config = file.load()
    target = _target(config, url, ca_file, local=local)
    name = context or _name_of(config, target, local=local)
    before = config.contexts.get(name, Context())
    if before.url == target.url:
        target = replace(target, project=before.project, project_name=before.project_name)
    if token_stdin:
        target = replace(target, access_token=_secret("Token"))
    else:
        target = _with_login(
            target,
            device=device or (not browser and not _has_browser()),
            username=LOCAL_OPERATOR if local else username,
            password=_local_password(Path(target.data_dir)) if local else None,
            password_stdin=password_stdin,
        )
    with file.locked():
        file.save(file.load().with_context(name, target, use=True))
    with Api.of_environment() as api:
        caller = api.get("/whoami")
    note(f"Logged in at {target.url} as {caller.get('name', 'somebody')}; context {name}.")


def logout() -> None:
    """End the login of the current context, here and at the server."""
    file = ConfigFile.of(os.environ)
    name = file.load().current
    if not name:
        note("You are not logged in.")
        return
    context = file.load().contexts[name]
    if context.refresh_token:
        try:
            with new_http(context) as http:
                oauth.revoke(http, oauth.discover(http, context.url), context.refresh_token)
        except httpx.TransportError as error:
            note(f"The server was not told: {error}.")
    file.change_context(name, access_token="", refresh_token="", expires_at=None)
    note(f"Logged out of {context.url}.")


def whoami(output: OutputOption = Output.TABLE) -> None:
    """Show who you are and what roles you have."""
    with Api.of_environment() as api:
        print_one(api.get("/whoami"), WHOAMI, output)


def _target(config: Config, url: str | None, ca_file: Path | None, *, local: bool) -> Context:
    if ca_file is not None and not ca_file.is_file():
        raise UsageError(f"{ca_file} does not exist", next_step="Name a PEM file.")
    ca = str(ca_file.resolve()) if ca_file else ""
    if url and not local:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not a URL", next_step="Write https://HOST[:PORT].")
        return Context(url=url.rstrip("/"), ca_file=ca)
    if not local and config.current:
        known = config.contexts[config.current]
        found = (local_url(Path(known.data_dir)) if known.data_dir else None) or known.url
        return Context(url=found, ca_file=ca or known.ca_file, data_dir=known.data_dir)
    data_dir = local_data_dir(os.environ)
    here = local_url(data_dir)
    if here is None:
        raise UsageError(
            f"no platform was ever started in {data_dir}",
            next_step="Start it by `dflare up`, or name another by --url or DFLARE_DATA_DIR.",
        )
    return Context(url=here, ca_file=ca, data_dir=str(data_dir))


def _name_of(config: Config, target: Context, *, local: bool) -> str:
    for name, known in config.contexts.items():
        if (known.url, known.data_dir) == (target.url, target.data_dir):
            return name
    if local or target.data_dir:
        taken = config.contexts.get(LOCAL_CONTEXT)
        if taken is None or taken.data_dir == target.data_dir:
            return LOCAL_CONTEXT
        return f"{LOCAL_CONTEXT}-{Path(target.data_dir).parent.name}"
    return urlsplit(target.url).netloc


def _with_login(
    target: Context,
    *,
    device: bool,
    username: str | None,
    password: str | None,
    password_stdin: bool,
) -> Context:
    try:
        with new_http(target) as http:
            endpoints = oauth.discover(http, target.url)
            if username is not None:
                if password is None:
                    password = _secret("Password", prompt=not password_stdin)
                tokens = oauth.login_by_password(http, endpoints, username, password)
            elif device:
                tokens = oauth.login_by_device(http, endpoints, _show_device_code)
            else:
                tokens = _login_by_browser(http, endpoints)
    except httpx.TransportError as error:
        raise unreachable(target, error) from error
    return replace(
        target,
        access_token=tokens.access_token,
        refresh_token=tokens.refresh_token,
        expires_at=tokens.expires_at,
        token_endpoint=endpoints.token,
    )


def _show_device_code(started: Json) -> None:
    note(f"Open {started['verification_uri']} and enter the code {started['user_code']}.")
    if started.get("verification_uri_complete"):
        note(f"Or open {started['verification_uri_complete']}.")


def _login_by_browser(client: httpx.Client, endpoints: oauth.Endpoints) -> oauth.Tokens:
    """RFC 8252 section 7.3: the answer comes to a port of this machine that is open for it only."""
    answers: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith(f"{oauth.CALLBACK_PATH}?"):
                answers.append(self.path)
            self.send_response(200 if answers else 404)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"You may close this page and go back to the terminal.\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """The terminal is for the person; requests of a browser are no news."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        request = oauth.CodeRequest(
            endpoints, f"http://127.0.0.1:{server.server_port}{oauth.CALLBACK_PATH}"
        )
        note(f"Log in on the page that opens, or open it yourself:\n{request.url}")
        webbrowser.open(request.url)
        while not answers:
            server.handle_request()
    return request.exchange(client, answers[0])


def _has_browser() -> bool:
    if not is_terminal(sys.stdout):
        return False
    return sys.platform == "darwin" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _secret(title: str, *, prompt: bool = False) -> str:
    if prompt and is_terminal(sys.stdin):
        return str(typer.prompt(title, hide_input=True, err=True))
    text = sys.stdin.readline().strip()
    if not text:
        raise UsageError(
            f"no {title.lower()} came from standard input",
            next_step="Pipe it in, as in `dflare login … < FILE`.",
        )
    return text


def _local_password(data_dir: Path) -> str:
    file = data_dir / "secrets" / "operator-password"
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NotLoggedInError(
            f"{file} cannot be read: {error.strerror}",
            next_step="Run it as the user who ran `dflare up`, once that has ended.",
        ) from error
