"""Logging in by a real browser: `dflare login --browser`, and the issuer's pages by keyboard."""

import asyncio
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from api_stub import DEADLINE_S, Cli, until
from websockets.sync.client import ClientConnection, connect

import auth_platform
from dflare.embedded.ports import free_port
from dflare.services.auth.service import SYSTEM, NewUser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PASSWORD = "correct horse battery"
AWAITS_A_NAME = "document.activeElement.name === 'username'"
REFUSED = "document.querySelector('[role=alert]') !== null"


class Browser:
    """One page of a headless Chromium, driven by the DevTools protocol as by a keyboard."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    def call(self, method: str, **params: Any) -> Any:
        """One command; its result."""
        wanted = next(self._ids)
        self._socket.send(json.dumps({"id": wanted, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=DEADLINE_S))
            if answer.get("id") == wanted:
                return answer["result"]

    def ask(self, expression: str) -> Any:
        """What a script in the page answers."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def open(self, url: str) -> None:
        """Go to a page and wait until it stands."""
        self.call("Page.navigate", url=url)
        until(
            lambda: self.ask(
                "document.readyState === 'complete' && location.href !== 'about:blank'"
            )
        )

    def type(self, text: str) -> None:
        """Write where the cursor is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        """One key down and up."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **facts, **down)
        self.call("Input.dispatchKeyEvent", **facts, type="keyUp")

    def log_in(self, name: str, password: str) -> None:
        """Name, Tab, password, Enter."""
        self.type(name)
        self.press("Tab", 9)
        self.type(password)
        self.press("Enter", 13, "\r")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    profile = tmp_path / "profile"
    process = subprocess.Popen(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            file = profile / "DevToolsActivePort"
            until(lambda: file.exists() and len(file.read_text().splitlines()) == 2)
            port = file.read_text().splitlines()[0]
            pages = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
            target = next(page for page in pages if page["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.kill()


@pytest.fixture(scope="module")
async def issuer(database_url: str) -> AsyncIterator[str]:
    """Auth alone, served on a port of its own, with one user; its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth_platform, "ISSUER", url)
        async with auth_platform.auth_platform(database_url) as platform:
            await platform.service.ensure_client(
                "dflare-cli", "Dflare command line", ["http://127.0.0.1/callback"]
            )
            home = await platform.service.create_organization(SYSTEM, "acme")
            new = NewUser("ada", organization_id=home.id, password=PASSWORD)
            await platform.service.create_user(SYSTEM, new)
            # On the test's own loop, where the service's connections were made.
            config = uvicorn.Config(platform.app, port=port, log_config=None, lifespan="off")
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            yield url
            server.should_exit = True
            await serving


async def test_a_person_logs_in_by_the_browser_with_the_keyboard_alone(
    issuer: str, browser: Browser, tmp_path: Path
) -> None:
    cli = Cli(tmp_path / "home", token="")
    cli.environment |= {"BROWSER": "true", "DFLARE_CLI_PROJECT": None}

    def log_in() -> tuple[int, str]:
        with cli.process("login", "--url", issuer, "--browser") as process:
            assert process.stderr is not None
            process.stderr.readline()
            browser.open(process.stderr.readline().strip())
            until(lambda: browser.ask(AWAITS_A_NAME))
            browser.log_in("ada@acme", "not the password")
            until(lambda: browser.ask(REFUSED))
            until(lambda: browser.ask(AWAITS_A_NAME))
            browser.log_in("ada@acme", PASSWORD)
            until(lambda: "close this page" in str(browser.ask("document.body.innerText")))
            said = process.stderr.read()
            return process.wait(DEADLINE_S), said

    code, said = await asyncio.to_thread(log_in)
    assert code == 0, said
    assert f"Logged in at {issuer} as ada@acme" in said


async def test_a_device_is_connected_by_enter_and_not_refused(
    issuer: str, browser: Browser
) -> None:
    async with httpx.AsyncClient(base_url=issuer, trust_env=False) as client:
        form = {"client_id": "dflare-cli", "scope": "openid"}
        started = (await client.post("/oauth/device", data=form)).json()

    def connect_it() -> str:
        browser.open(started["verification_uri_complete"])
        browser.ask("document.querySelector('[name=username]').focus()")
        browser.log_in("ada@acme", PASSWORD)
        until(lambda: "Log" not in str(browser.ask("document.title")))
        until(lambda: browser.ask("document.querySelector('form') === null"))
        return str(browser.ask("document.querySelector('h1').innerText"))

    assert await asyncio.to_thread(connect_it) == "Connected"
