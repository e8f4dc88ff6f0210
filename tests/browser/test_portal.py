"""The portal in a real browser, before the whole platform."""

import re
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

import portal_browser
from portal_browser import AXE, Person, chromium, person_at
from running_platform import PlatformHandle, Tenant, ok, running_platform
from site_files import PlatformWish

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(portal_browser.missing()), reason=portal_browser.missing() or "-"),
]

NODES, QUOTA, TYPE = 16, 8, "h100-8"
AWAY_MS = 60_000


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[PlatformHandle]:
    async with running_platform(PlatformWish(nodes=NODES)) as handle:
        await handle.apply_site()
        yield handle


@pytest.fixture(scope="module")
async def tenant(platform: PlatformHandle) -> Tenant:
    return await platform.tenant("red", {TYPE: QUOTA})


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


@pytest.fixture
async def person(browser: Browser, platform: PlatformHandle) -> AsyncIterator[Person]:
    async with person_at(browser, platform.url) as one:
        yield one


async def as_operator(person: Person, platform: PlatformHandle, path: str = "/") -> Page:
    password = (platform.layout.secrets / "operator-password").read_text().strip()
    await person.log_in("operator", password, path)
    return person.page


async def as_tenant(person: Person, tenant: Tenant, path: str = "/") -> Page:
    name = tenant.name
    await person.log_in(f"{name}-user@{name}", f"a long password of {name}", path)
    return person.page


async def fill_order(page: Page, name: str, nodes: int) -> None:
    await page.get_by_label("Name", exact=True).fill(name)
    await page.get_by_role("textbox", name="Nodes").fill(str(nodes))
    await page.get_by_text("key", exact=True).click()


async def price_of(platform: PlatformHandle, nodes: int) -> Decimal:
    types = ok(await platform.operator.get("/v1/node-types"))["items"]
    hourly = next(one["price_per_node_hour"] for one in types if one["name"] == TYPE)
    return Decimal(hourly) * nodes


async def test_a_login_leads_back_to_the_page_that_was_asked_for(
    person: Person, tenant: Tenant
) -> None:
    page = await as_tenant(person, tenant, "/clusters")
    await expect(page.get_by_role("heading", name="No clusters yet")).to_be_visible()
    await expect(page.get_by_role("button", name="red-user")).to_be_visible()
    await page.reload()
    await expect(page.get_by_role("heading", name="No clusters yet")).to_be_visible()
    assert person.complaints == []


async def test_a_cancelled_login_says_so_and_can_be_tried_again(person: Person) -> None:
    page = person.page
    await page.goto(person.url)
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_text("The login was cancelled.")).to_be_visible()
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_label("User name")).to_be_visible()


async def test_whoever_logs_out_is_out_in_every_tab(person: Person, tenant: Tenant) -> None:
    page = await as_tenant(person, tenant, "/clusters")
    other = await page.context.new_page()
    await other.goto(f"{person.url}/clusters")
    await expect(other.get_by_role("heading", name="No clusters yet")).to_be_visible()
    await page.get_by_role("button", name="red-user").click()
    await page.get_by_role("menuitem", name="Log out").click()
    await expect(page.get_by_role("heading", name="You are logged out")).to_be_visible()
    await expect(other.get_by_role("heading", name="Your login has ended")).to_be_visible()


async def test_the_map_shows_every_node_and_is_walked_by_keyboard(
    person: Person, platform: PlatformHandle
) -> None:
    page = await as_operator(person, platform, "/sites")
    map_ = page.get_by_role("application")
    await expect(map_).to_have_attribute("data-cells", str(NODES))
    await expect(page.locator(".number[data-kind=free]")).to_have_text(str(NODES))
    await map_.focus()
    await page.keyboard.press("End")
    last = max(node["name"] for node in await platform.nodes())
    await expect(page.locator(".map-tip")).to_have_attribute("data-node", last)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("complementary", name=f"Node {last}")).to_be_visible()
    await map_.hover(position={"x": 10, "y": 30})
    await expect(page.locator(".map-tip")).to_be_visible()
    assert person.complaints == []


async def test_the_map_draws_each_node_in_the_colour_of_its_state(
    person: Person, platform: PlatformHandle
) -> None:
    page = await as_operator(person, platform, "/sites")
    await expect(page.get_by_role("application")).to_have_attribute("data-cells", str(NODES))
    node = (await platform.nodes())[0]["id"]
    before = await _colours(page)
    ok(await platform.operator.post(f"/v1/nodes/{node}/cordon", json={"reason": "a test"}))
    await expect(page.locator(".number[data-kind=off]")).to_have_text("1")
    during = await _colours(page)
    ok(await platform.operator.post(f"/v1/nodes/{node}/uncordon"))
    await expect(page.locator(".number[data-kind=off]")).to_have_text("0")
    assert before != during


async def _colours(page: Page) -> Any:
    """What the canvas shows, as text."""
    await page.evaluate("new Promise(requestAnimationFrame)")
    return await page.evaluate("document.querySelector('.map canvas').toDataURL()")


async def test_the_price_is_shown_before_the_order_and_is_the_apis(
    person: Person, tenant: Tenant, platform: PlatformHandle
) -> None:
    page = await as_tenant(person, tenant, "/order")
    await fill_order(page, "priced", 4)
    price = str(await price_of(platform, 4))
    await expect(page.locator(".price")).to_have_attribute("data-price", re.compile(price))
    await expect(page.get_by_role("button", name=re.compile("Order 4 nodes for"))).to_be_enabled()
    assert ok(await tenant.http.get("/v1/clusters"))["items"] == [], "a price orders nothing"
    assert person.complaints == []


async def test_a_refusal_is_told_before_the_order_with_what_to_do(
    person: Person, tenant: Tenant
) -> None:
    page = await as_tenant(person, tenant, "/order")
    await fill_order(page, "too-large", QUOTA + 1)
    refusal = page.locator(".refusal[data-slug=quota]")
    await expect(refusal).to_contain_text("Quota exceeded")
    await expect(refusal.locator(".next-step")).not_to_be_empty()
    await expect(page.get_by_role("button", name="Order", exact=True)).to_be_disabled()


async def test_an_order_is_followed_live_until_the_cluster_is_ready_and_released(
    person: Person, tenant: Tenant
) -> None:
    page = await as_tenant(person, tenant, "/order")
    await fill_order(page, "live", 4)
    await page.get_by_role("button", name=re.compile("Order 4 nodes for")).click()
    await page.wait_for_url("**/clusters/*/live")
    await page.evaluate("window.neverLoadedAgain = true")
    saga = page.get_by_role("region", name="Progress")
    await expect(saga.locator("[data-step='baremetal.provision@1']")).to_be_visible()
    await expect(saga).to_have_attribute("data-state", "succeeded", timeout=AWAY_MS)
    await expect(saga.locator(".step:not([data-state=done])")).to_have_count(0)
    await expect(page.locator("h1 .pill")).to_have_text(re.compile("ready"))
    await expect(page.get_by_role("region", name="Nodes").locator("tbody tr")).to_have_count(4)
    await page.get_by_role("button", name="Release…").click()
    await page.get_by_label("Type live to go on").fill("live")
    await page.get_by_role("button", name="Release cluster").click()
    await expect(saga.get_by_role("heading", name="Release cluster")).to_be_visible()
    await expect(page.locator("h1 .pill")).to_have_text(re.compile("deleted"), timeout=AWAY_MS)
    assert await page.evaluate("window.neverLoadedAgain")
    assert person.complaints == []


async def test_a_gateway_that_dies_and_returns_costs_the_page_nothing(
    person: Person, tenant: Tenant, platform: PlatformHandle
) -> None:
    page = await as_tenant(person, tenant, "/order")
    await fill_order(page, "survivor", 2)
    order = page.get_by_role("button", name=re.compile("Order 2 nodes for"))
    await expect(order).to_be_enabled()
    await page.evaluate("window.neverLoadedAgain = true")
    with platform.supervisor_paused():
        killed = platform.kill("gateway")
        await expect(page.get_by_text("The platform does not answer").first).to_be_visible()
        await order.click()
        await expect(page.get_by_text("The order is sent again")).to_be_visible()
        await expect(page.get_by_label("Name", exact=True)).to_have_value("survivor")
    await platform.until_healthy(other_than=killed)
    await page.wait_for_url("**/clusters/*/survivor", timeout=AWAY_MS)
    saga = page.get_by_role("region", name="Progress")
    await expect(saga).to_have_attribute("data-state", "succeeded", timeout=AWAY_MS)
    await expect(page.locator("h1 .pill")).to_have_text(re.compile("ready"))
    assert await page.evaluate("window.neverLoadedAgain")
    found = ok(await tenant.http.get("/v1/clusters"))["items"]
    assert [one["name"] for one in found] == ["survivor"], "it was ordered once"
    await platform.wait(await platform.release(tenant, "survivor"))


async def test_what_was_typed_survives_the_end_of_the_login(person: Person, tenant: Tenant) -> None:
    page = await as_tenant(person, tenant, "/order")
    await fill_order(page, "typed-before", 3)
    await expect(page.locator(".price")).to_be_visible()
    await page.evaluate("localStorage.removeItem('dflare.refresh')")
    await page.reload()
    await page.get_by_label("User name").fill("red-user@red")
    await page.get_by_label("Password").fill("a long password of red")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_label("Name", exact=True)).to_have_value("typed-before")


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; make portal does that")
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_wrong_with_any_page(
    browser: Browser, platform: PlatformHandle, tenant: Tenant, scheme: str
) -> None:
    operation = await platform.order(tenant, f"axe-{scheme}", TYPE, 2)
    await platform.wait(operation)
    cluster = f"/clusters/{tenant.project_id}/axe-{scheme}"
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    async with person_at(browser, platform.url, **options) as person:
        page = await as_operator(person, platform, "/sites")
        found: dict[str, list[str]] = {}
        for path, stands in (
            ("/sites", ".map canvas"),
            ("/clusters", "tbody tr"),
            (cluster, ".step"),
            ("/order", ".price, .refusal, .quote .soft"),
            ("/clusters/none/none", "h1"),
        ):
            await page.goto(person.url + path)
            await page.locator(stands).first.wait_for()
            found[path] = await person.violations()
    await platform.wait(await platform.release(tenant, f"axe-{scheme}"))
    assert {path: faults for path, faults in found.items() if faults} == {}
