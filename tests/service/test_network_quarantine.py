"""Nodes in quarantine: shut out at once, and cleaned in a network of their own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dflare.services.baremetal.contract import NodeState, NodeStateChanged
from dflare.services.network.projections import AllocationProjection
from dflare.services.orchestrator.contract import AllocationState
from network_site import SITE, NetworkSite, entry, network_site
from simulator import data_center

CLEANING = {
    "ordering_service": "baremetal",
    "organization_id": None,
    "project_id": None,
}


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NetworkSite]:
    folder: Path = tmp_path_factory.mktemp("network")
    async with network_site(database_url, folder, data_center(nodes=8, gpus=2)) as site:
        yield site


async def _becomes(site: NetworkSite, node: str, state: NodeState) -> None:
    """Deliver ``node.state_changed``."""
    facts = NodeStateChanged(node_id=node, site_id=SITE, name=node, state=state, reason="a test")
    async with site.database.transaction("network") as session:
        told = [entry("node.state_changed", node, 1, facts)]
        await AllocationProjection(site.clock).apply(session, told)


async def _networks(site: NetworkSite, cluster: str) -> list[str]:
    rows = await site.rows("SELECT state FROM network.network WHERE cluster_id = :c", c=cluster)
    return [row["state"] for row in rows]


async def test_a_node_in_quarantine_is_shut_out_of_its_tenants_network(site: NetworkSite) -> None:
    await site.order("clu_a", ["n0", "n1", "n2"])
    await _becomes(site, "n0", NodeState.ACTIVE)
    assert await site.ethernet_groups() == [{"n0", "n1", "n2"}]
    await _becomes(site, "n0", NodeState.QUARANTINE)
    await site.settled()
    assert await site.ethernet_groups() == [{"n1", "n2"}]
    assert await site.infiniband_groups() == [{"n1", "n2"}]


async def test_the_order_that_has_a_node_in_quarantine_does_not_open_it_again(
    site: NetworkSite,
) -> None:
    report = await site.step("network.attach@1", "clu_a", ["n0"], generation=2)
    assert set(report.failed) == {"n0"}
    await site.hold("clu_b", ["n3"])
    await _becomes(site, "n3", NodeState.QUARANTINE)
    report = await site.step("network.attach@1", "clu_b", ["n3"])
    assert set(report.failed) == {"n3"}, "not even one that had not opened it before"
    await site.settled()
    assert await site.ethernet_groups() == [{"n1", "n2"}]


async def test_the_network_of_the_last_node_drains_with_it(site: NetworkSite) -> None:
    await site.order("clu_c", ["n4"])
    await _becomes(site, "n4", NodeState.QUARANTINE)

    async def released() -> bool:
        return await _networks(site, "clu_c") == ["released"]

    await site.until(released)


async def test_a_later_order_has_a_node_that_came_out_of_quarantine(site: NetworkSite) -> None:
    await site.release(["n4"])
    await site.tell(["n4"], AllocationState.ENDED)
    await site.order("clu_d", ["n4", "n5"])
    assert {"n4", "n5"} in await site.ethernet_groups()
    await site.give_back("clu_d", ["n4", "n5"])
    await site.tell(["n4", "n5"], AllocationState.ENDED)


async def test_a_node_that_is_cleaned_has_a_network_that_nobody_else_is_in(
    site: NetworkSite,
) -> None:
    clean = {"operation_id": "op_clean", **CLEANING}
    await site.done("network.close@1", "n4", ["n4"], **clean)
    await site.done("network.seclude@1", "n4", ["n4"], **clean)
    await site.done("network.await@1", "n4", ["n4"], **clean)
    ports = await site.rows(
        "SELECT DISTINCT n.cluster_id, n.organization_id, n.project_id, o.matches"
        " FROM network.port_desired d JOIN network.network n ON n.id = d.network_id"
        " JOIN network.port_observed o ON o.port_id = d.port_id WHERE d.node_id = 'n4'"
    )
    nobodys = {"organization_id": None, "project_id": None}
    assert ports == [{"cluster_id": "n4", "matches": True, **nobodys}]
    members = await site.rows(
        "SELECT DISTINCT d.node_id FROM network.port_desired d"
        " JOIN network.network n ON n.id = d.network_id WHERE n.cluster_id = 'n4'"
    )
    assert members == [{"node_id": "n4"}]
    assert not any("n4" in group for group in await site.ethernet_groups())
    assert not any("n4" in group for group in await site.infiniband_groups())


async def test_what_was_cleaned_is_seen_isolated_and_its_cleaning_opens_nothing_more(
    site: NetworkSite,
) -> None:
    clean = {"operation_id": "op_clean", "index": 5, **CLEANING}
    await site.done("network.close@1", "n4", ["n4"], **clean)
    seen = await site.rows(
        "SELECT bool_and(o.matches AND d.network_id IS NULL) AS closed FROM network.port_desired d"
        " JOIN network.port_observed o ON o.port_id = d.port_id"
        " AND o.compared_version = d.version WHERE d.node_id = 'n4'"
    )
    assert seen == [{"closed": True}]
    late = await site.step("network.seclude@1", "n4", ["n4"], batch="late", **clean)
    assert not late.done

    async def released() -> bool:
        return await _networks(site, "n4") == ["released"]

    await site.until(released)
    again = {**clean, "generation": 2}
    await site.done("network.seclude@1", "n4", ["n4"], **again)
    await site.done("network.close@1", "n4", ["n4"], **again)


async def test_a_node_of_an_order_is_not_secluded(site: NetworkSite) -> None:
    await site.order("clu_e", ["n6", "n7"])
    clean = {"operation_id": "op_clean", **CLEANING}
    for node, ordered in (("n6", "n6"), ("n7", "n6")):
        report = await site.step("network.seclude@1", ordered, [node], batch=node, **clean)
        assert not report.done, node
    assert {"n6", "n7"} in await site.ethernet_groups()
