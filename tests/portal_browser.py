"""A person before the portal: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PORTAL = Path(__file__).parents[1] / "portal"
AXE = PORTAL / "node_modules" / "axe-core" / "axe.min.js"
SIZE = {"width": 1440, "height": 900}
TIMEOUT_MS = 30_000


def missing() -> str:
    """Why the portal cannot be looked at here; empty where it can."""
    if CHROMIUM is None:
        return "chromium is not installed"
    if not (PORTAL / "dist" / "index.html").is_file():
        return "the portal is not built; make portal does that"
    return ""


@dataclass
class Person:
    """A page of a browser of its own. ``complaints`` are what the browser found wrong with it."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list[str])

    async def log_in(self, name: str, password: str, path: str = "/") -> None:
        """Open the portal at ``path`` and log in by the issuer's form."""
        await self.page.goto(self.url + path)
        await self.page.get_by_label("User name").fill(name)
        await self.page.get_by_label("Password").fill(password)
        await self.page.get_by_role("button", name="Log in").click()
        # The page's own policy keeps tests, too, from evaluating text in it.
        await self.page.wait_for_url(lambda url: "/oauth/" not in url and "/login/" not in url)

    async def violations(self) -> list[str]:
        """What axe finds on the page as it stands, by rule and element."""
        await self.page.evaluate(AXE.read_text())
        found: Any = await self.page.evaluate("axe.run()")
        return [
            f"{one['id']}: {node['html'][:200]} ({node['failureSummary']})"
            for one in found["violations"]
            for node in one["nodes"]
        ]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The browser, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def person_at(browser: Browser, url: str, **options: Any) -> AsyncIterator[Person]:
    """A person with an empty profile before ``url``."""
    context = await browser.new_context(**{"viewport": SIZE, **options})
    context.set_default_timeout(TIMEOUT_MS)
    try:
        person = Person(await context.new_page(), url)
        person.page.on("pageerror", lambda error: person.complaints.append(str(error)))
        person.page.on(
            "console",
            lambda said: person.complaints.append(said.text) if said.type == "error" else None,
        )
        yield person
    finally:
        await context.close()
