"""A small server that speaks the documented shapes, and the program run against it."""

import asyncio
import base64
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from typer.testing import CliRunner, Result

from dflare.cli.config import Config, ConfigFile, Context
from dflare.cli.main import app as program

DEADLINE_S = 30.0


def problem(status: int, detail: str, next_step: str = "") -> JSONResponse:
    """A problem document as the gateway renders it."""
    document = {
        "type": "https://dflare.dev/problems/x",
        "title": "Title",
        "status": status,
        "detail": detail,
        "next_step": next_step,
        "retryable": status == 503,
    }
    return JSONResponse(document, status, media_type="application/problem+json")


def step(name: str, state: str = "planned", done: int = 0, total: int = 16, **more: Any) -> Any:
    """A step of an operation's document."""
    began = None if state == "planned" else "2026-01-01T00:00:00+00:00"
    ended = "2026-01-01T00:00:02.500000+00:00" if state in ("done", "failed") else None
    return {
        "index": 0,
        "name": name,
        "state": state,
        "total": total,
        "done": done,
        "failed": 0,
        "message": "",
        "started_at": began,
        "finished_at": ended,
        **more,
    }


def operation(state: str = "running", version: int = 1, **more: Any) -> dict[str, Any]:
    """An operation's document."""
    ended = state in ("succeeded", "failed", "cancelled")
    return {
        "id": "op_1",
        "service": "clusters",
        "kind": "create_cluster",
        "organization_id": "org_1",
        "project_id": "prj_1",
        "site_id": "site_1",
        "resource_kind": "cluster",
        "resource_id": "clu_1",
        "state": state,
        "reason": "",
        "since": "2026-01-01T00:00:00+00:00",
        "attempt": 1,
        "cancel_requested": False,
        "targets": 16,
        "created_by": "usr_1",
        "created_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:01:05+00:00" if ended else None,
        "version": version,
        "steps": [],
        **more,
    }


@dataclass
class Stub:
    """What the server answers and what it was asked. Positions of events count from 1."""

    url: str = ""
    tokens: set[str] = field(default_factory=lambda: {"good"})
    refresh_tokens: set[str] = field(default_factory=set)
    refreshed: int = 0
    lifetime_s: float = 900
    pending_device_polls: int = 1
    answers: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str], dict[str, str], bytes]] = field(
        default_factory=list
    )
    events: list[dict[str, Any]] = field(default_factory=list)
    events_lost_up_to: int = 0
    close_codes: list[int] = field(default_factory=list)
    drop_after: list[int] = field(default_factory=list)
    connections: list[dict[str, str]] = field(default_factory=list)
    connected: threading.Event = field(default_factory=threading.Event)
    websocket: bool = True

    def answer(self, method: str, path: str, *answers: Any) -> None:
        """Answer so, in turn; the last answer stays. A function is given the request."""
        self.answers[method, path] = list(answers)

    def emit(self, document: dict[str, Any], kind: str = "operation.changed") -> None:
        """Append an event."""
        self.events.append(
            {
                "cursor": str(len(self.events) + 1),
                "type": kind,
                "resource_kind": kind.partition(".")[0],
                "resource_id": document["id"],
                "resource_version": document.get("version", 1),
                "operation_id": document["id"] if kind.startswith("operation") else None,
                "project_id": None,
                "at": "2026-01-01T00:00:00+00:00",
                "data": document,
            }
        )

    def asked(self, method: str, path: str) -> list[tuple[dict[str, str], dict[str, str], bytes]]:
        """Query, headers and body of every request to a route."""
        return [(q, h, b) for m, p, q, h, b in self.requests if (m, p) == (method, path)]


def build(stub: Stub) -> FastAPI:
    """The server's application."""
    app = FastAPI(openapi_url=None)
    _add_issuer(app, stub)

    @app.get("/v1/events")
    async def events(request: Request, cursor: str = "0", limit: int = 100) -> Response:
        if (refused := _refusal(stub, request)) is not None:
            return refused
        items = stub.events[int(cursor) : int(cursor) + limit]
        return JSONResponse(
            {"items": items, "next_cursor": items[-1]["cursor"] if items else cursor}
        )

    @app.websocket("/v1/events")
    async def live(socket: WebSocket) -> None:
        if not stub.websocket:
            await socket.send_denial_response(JSONResponse({}, 426))
            return
        await socket.accept()
        stub.connections.append(dict(socket.query_params))
        token = socket.headers.get("authorization", "").removeprefix("Bearer ")
        code = stub.close_codes.pop(0) if stub.close_codes else 0
        if code or token not in stub.tokens:
            await socket.close(code or 4401, "no")
            return
        await _send_events(socket, stub)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    async def rest(request: Request, path: str) -> Response:
        stub.requests.append(
            (
                request.method,
                f"/{path}",
                dict(request.query_params),
                dict(request.headers),
                await request.body(),
            )
        )
        if (refused := _refusal(stub, request)) is not None:
            return refused
        answers = stub.answers.get((request.method, f"/{path}"))
        if answers is None:
            return problem(404, f"there is no /{path}", "Look elsewhere.")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(found) and not isinstance(found, Response):
            found = found(request)
        return found if isinstance(found, Response) else JSONResponse(found)

    return app


async def _send_events(socket: WebSocket, stub: Stub) -> None:
    position = int(socket.query_params.get("cursor", len(stub.events)))
    room = stub.drop_after.pop(0) if stub.drop_after else None
    gone = asyncio.create_task(socket.receive())
    await socket.send_json({"type": "hello", "cursor": str(position)})
    stub.connected.set()
    while (room is None or room > 0) and not gone.done():
        if position < len(stub.events):
            await socket.send_json(stub.events[position])
            position += 1
            room = None if room is None else room - 1
        else:
            await asyncio.sleep(0.01)
    if not gone.done():
        await socket.close(1012)
    await gone


def _refusal(stub: Stub, request: Request) -> Response | None:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    return None if token in stub.tokens else problem(401, "the token is not valid", "Log in.")


def _grant(stub: Stub) -> dict[str, Any]:
    access, renewal = f"access-{secrets.token_hex(4)}", f"refresh-{secrets.token_hex(4)}"
    stub.tokens.add(access)
    stub.refresh_tokens.add(renewal)
    return {"access_token": access, "refresh_token": renewal, "expires_in": stub.lifetime_s}


def _add_issuer(app: FastAPI, stub: Stub) -> None:
    challenges: dict[str, str] = {}

    @app.get("/.well-known/openid-configuration")
    async def metadata() -> dict[str, str]:
        return {
            "authorization_endpoint": f"{stub.url}/oauth/authorize",
            "token_endpoint": f"{stub.url}/oauth/token",
            "device_authorization_endpoint": f"{stub.url}/oauth/device",
            "revocation_endpoint": f"{stub.url}/oauth/revoke",
        }

    @app.get("/oauth/authorize")
    async def page() -> Response:
        response = HTMLResponse(
            """<form method="post"><input type="hidden" name="csrf" value="c1">
            <input name="username"><input type="password" name="password">
            <button name="answer" value="deny">No</button>
            <button name="answer" value="allow">Yes</button></form>"""
        )
        response.set_cookie("seat", "s1")
        return response

    @app.post("/oauth/authorize")
    async def authorize(request: Request) -> Response:
        form = await request.form()
        assert form["csrf"] == "c1"
        assert request.cookies["seat"] == "s1"
        assert form["answer"] == "allow"
        if form["password"] != "right":
            return await page()
        query = request.query_params
        code = secrets.token_hex(4)
        challenges[code] = query["code_challenge"]
        return RedirectResponse(f"{query['redirect_uri']}?code={code}&state={query['state']}", 303)

    @app.post("/oauth/device")
    async def device() -> dict[str, Any]:
        return {
            "device_code": "d1",
            "user_code": "ABCD-EFGH",
            "verification_uri": f"{stub.url}/device",
            "interval": 0,
            "expires_in": 60,
        }

    @app.post("/oauth/revoke")
    async def revoke(request: Request) -> Response:
        stub.refresh_tokens.discard(str((await request.form())["token"]))
        return Response(status_code=200)

    _add_token(app, stub, challenges)


def _add_token(app: FastAPI, stub: Stub, challenges: dict[str, str]) -> None:
    @app.post("/oauth/token")
    async def token(request: Request) -> Response:
        form = await request.form()
        match form["grant_type"]:
            case "authorization_code":
                digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
                challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
                if challenges.pop(str(form["code"]), None) != challenge:
                    return JSONResponse({"error": "invalid_grant"}, 400)
            case "refresh_token":
                if str(form["refresh_token"]) not in stub.refresh_tokens:
                    return JSONResponse({"error": "invalid_grant"}, 400)
                stub.refresh_tokens.discard(str(form["refresh_token"]))
                stub.refreshed += 1
            case _:
                if stub.pending_device_polls:
                    stub.pending_device_polls -= 1
                    return JSONResponse({"error": "authorization_pending"}, 400)
        return JSONResponse(_grant(stub))


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve in a thread; yields the URL."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, lifespan="off", ws="websockets-sansio"
    )
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition with a generous deadline."""
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.01)


def store(path: Path, **members: Any) -> ConfigFile:
    """A configuration whose current context is ``here`` with these members."""
    file = ConfigFile(path)
    with file.locked():
        file.save(Config().with_context("here", Context(**members), use=True))
    return file


class Cli:
    """The program with a home of its own."""

    def __init__(self, home: Path, url: str = "", token: str = "good") -> None:
        self.home = home
        self.config = home / "config" / "config.json"
        self.environment: dict[str, str | None] = {
            "HOME": str(home),
            "DFLARE_CLI_CONFIG": str(self.config),
            "DFLARE_CLI_URL": url or None,
            "DFLARE_CLI_TOKEN": token or None,
            "DFLARE_CLI_PROJECT": "prj_1",
            "DFLARE_DATA_DIR": str(home / "data"),
            "NO_COLOR": "1",
        }

    def __call__(self, *arguments: str, text: str | None = None, **environment: Any) -> Result:
        """Run a command in this process."""
        return CliRunner().invoke(
            program,
            list(arguments),
            input=text,
            env={**self.environment, **environment},
            catch_exceptions=False,
        )

    @contextmanager
    def process(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command in a process of its own."""
        given = {key: value for key, value in self.environment.items() if value is not None}
        process = subprocess.Popen(
            [sys.executable, "-m", "dflare.cli.main", *arguments],
            env={**os.environ, **given},
            # A suite started in the background has SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            except BaseException:
                # Leaving the block waits for its end, and nobody would bring it about.
                process.kill()
                raise


def _whole_request(peer: socket.socket) -> bytes:
    """Head and body of an HTTP request, which may come in pieces."""
    data = b""
    while True:
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ),
            0,
        )
        if b"\r\n\r\n" in data and len(body) >= length:
            return data
        chunk = peer.recv(65536)
        assert chunk, "the client went away"
        data += chunk


class Flaky:
    """Forwards TCP to the server, but closes the first connections after their request came."""

    def __init__(self, target: str, drops: int) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._drops = drops
        self.seen: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                request = _whole_request(peer)
                self.seen.append(request)
                if self._drops:
                    self._drops -= 1
                    continue
                with socket.create_connection(self._target) as server:
                    server.sendall(request.replace(b"keep-alive", b"close"))
                    while chunk := server.recv(65536):
                        peer.sendall(chunk)
