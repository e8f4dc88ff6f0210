"""Time in quarantine is never billed, though the tenant has the node until its release."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from dflare.apps.migrate import locations
from dflare.kit.ids import new_id
from stores import drop_database
from tenancy import migrated_database
from tenanted_gateway import TenantedGateway, tenanted_gateway


@pytest.fixture(scope="module")
async def gateway(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TenantedGateway]:
    schemas = [name for name in locations() if name != "feed"]
    url = await migrated_database(postgres_url, *schemas)
    async with tenanted_gateway(url, tmp_path_factory.mktemp("gateway")) as found:
        yield found
    drop_database(url)


async def _usage(gateway: TenantedGateway) -> dict[str, dict[str, Any]]:
    month = f"{gateway.platform.process.clock.now():%Y-%m}"
    path = f"/v1/projects/{gateway.home.project.id}/usage"
    answer = await gateway.ask("member", "GET", path, params={"month": month})
    return {item["node_id"]: item for item in answer.json()["items"]}


async def test_usage_ends_with_quarantine_and_a_later_release_does_not_add_to_it(
    gateway: TenantedGateway,
) -> None:
    taken, *others = gateway.home.nodes
    running = await _usage(gateway)
    assert [item["usage_to"] for item in running.values()] == [None] * 3
    answer = await gateway.ask(
        "operator", "POST", f"/v1/nodes/{taken}/quarantine", json={"reason": "a test"}
    )
    since = datetime.fromisoformat(answer.json()["since"])
    await gateway.relay()
    usage = await _usage(gateway)
    assert datetime.fromisoformat(usage[taken]["usage_to"]) == since
    assert [usage[node]["usage_to"] for node in others] == [None, None]

    later = gateway.platform.process.clock.now() + timedelta(hours=1)
    release = {"operation_id": new_id("op"), "params": {"requested_at": later.isoformat()}}
    await gateway.run(gateway.home, "orchestrator.release@1", **release)
    usage = await _usage(gateway)
    assert datetime.fromisoformat(usage[taken]["usage_to"]) == since
    for node in others:
        assert datetime.fromisoformat(usage[node]["usage_to"]) == later
