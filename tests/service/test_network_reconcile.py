"""Desired state reaches the fabrics, and the fabrics stay there."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from network_site import NetworkSite, network_site
from simulator import data_center


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NetworkSite]:
    folder: Path = tmp_path_factory.mktemp("network")
    async with network_site(database_url, folder, data_center(nodes=6, gpus=2)) as site:
        yield site


async def test_every_declared_port_is_closed_without_an_order(site: NetworkSite) -> None:
    await site.settled()
    assert await site.reachability() == {"ethernet": [], "infiniband": []}
    moved = {e["subject"] for e in await site.sim.log(kind="port_moved")}
    assert {f"leaf0/swp{n}" for n in range(1, 7)} <= moved


async def test_an_order_joins_its_nodes_and_nobody_else(site: NetworkSite) -> None:
    await site.order("clu_a", ["n0", "n1"])
    await site.order("clu_b", ["n2", "n3"])
    assert await site.ethernet_groups() == [{"n0", "n1"}, {"n2", "n3"}]
    assert await site.infiniband_groups() == [{"n0", "n1"}, {"n2", "n3"}]
