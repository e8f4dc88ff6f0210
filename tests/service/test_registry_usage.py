"""Promises of the ledger of what repositories hold."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import permutations

import pytest

from dflare.kit.feed import FeedEntry
from dflare.services.auth.contract import ProjectRef
from dflare.services.metering.activities import RegistryProjection
from dflare.services.metering.tables import RegistryEntry
from dflare.services.registry.contract import RegistryUsage
from metering_world import PROJECT, Meter, event, metering_world
from tenancy import BLUE, MEMBER, NOW, RED, STRANGER


@pytest.fixture
async def meter(postgres_url: str) -> AsyncIterator[Meter]:
    async with metering_world(postgres_url) as world:
        yield world


def held(
    version: int,
    start: datetime,
    end: datetime | None = None,
    *,
    interval: str = "rui_1",
    project: ProjectRef = RED,
) -> FeedEntry:
    facts = RegistryUsage(
        interval_id=interval,
        version=version,
        organization_id=project.organization_id,
        project_id=project.id,
        stored_bytes=2**40,
        usage_from=start,
        usage_to=end,
    )
    return event("registry.usage", facts.model_dump(mode="json"), version)


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_the_newest_version_of_an_interval_stays_in_whatever_order_they_come(
    meter: Meter, order: tuple[int, ...]
) -> None:
    end = NOW + timedelta(hours=1)
    told = [held(1, NOW), held(2, NOW, end), held(2, NOW, end)]
    for number in order:
        await meter.fold(RegistryProjection(), told[number])
    (row,) = await meter.rows(RegistryEntry)
    assert (row.version, row.stored_bytes, row.usage_to) == (2, 2**40, end)


async def test_a_month_lists_what_was_held_in_it_page_by_page_and_nothing_of_others(
    meter: Meter,
) -> None:
    entries = [held(1, NOW + timedelta(hours=n), interval=f"rui_{n}") for n in range(3)]
    entries.append(held(1, NOW, interval="rui_b", project=BLUE))
    entries.append(held(1, NOW - timedelta(days=60), NOW - timedelta(days=59), interval="rui_old"))
    await meter.fold(RegistryProjection(), *entries)
    first = await meter.get("/usage/registry", month="2026-11", limit=2)
    assert [one["interval_id"] for one in first["items"]] == ["rui_0", "rui_1"]
    cursor = first["next_cursor"]
    rest = await meter.get("/usage/registry", month="2026-11", limit=2, cursor=cursor)
    assert [one["interval_id"] for one in rest["items"]] == ["rui_2"]
    assert rest["items"][0]["stored_bytes"] == 2**40
    assert (await meter.get("/usage/registry", month="2026-10"))["items"] == []
    path = f"{PROJECT}/usage/registry"
    refused = await meter.clients[STRANGER.subject].get(path, params={"month": "2026-11"})
    assert refused.status_code == 404
    bad = await meter.clients[MEMBER.subject].get(path, params={"month": "november"})
    assert bad.status_code == 422
