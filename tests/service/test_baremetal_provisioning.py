"""A node's way from the pool to its tenant and back, judged by the simulator's ground truth."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from baremetal_site import KEYS, BaremetalSite, baremetal_site
from dflare.services.baremetal.contract import NodeState


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[BaremetalSite]:
    folder: Path = tmp_path_factory.mktemp("provisioning")
    async with baremetal_site(database_url, folder, nodes=6) as found:
        report = await found.enrol()
        assert not report.failed
        assert not report.pending
        yield found


async def test_enrolled_nodes_are_available_and_off(site: BaremetalSite) -> None:
    node = await site.node("node-0006")
    assert node.state == NodeState.AVAILABLE
    assert node.inventory["serial"] == node.serial
    assert len(node.inventory["guids"]) == 8
    assert (await site.sim.truth("node-0006"))["power"] == "Off"


async def test_an_order_ends_with_the_tenants_system_and_its_key_on_disk(
    site: BaremetalSite,
) -> None:
    order = await site.order(["node-0001", "node-0002"])
    report = await site.provision(order)
    assert sorted(report.done) == sorted(order.node_ids), report
    for name in ("node-0001", "node-0002"):
        truth = await site.sim.truth(name)
        assert truth["system"] == "tenant"
        assert truth["ssh_keys_running"] == list(KEYS)
        assert truth["ssh_keys_on_disk"] == list(KEYS)
        assert truth["virtual_media"] == {}
        assert truth["bios"]["SysProfile"] == "PerfOptimized"
        assert (await site.node(name)).state == NodeState.ACTIVE


async def test_a_release_leaves_nothing_on_disks_and_in_memory(site: BaremetalSite) -> None:
    order = await site.order(["node-0003"])
    await site.provision(order)
    secret = await site.sim.control.post("/hosts/node-0003/secret", json={"text": "very secret"})
    assert secret.status_code == 201
    release = await site.release_order(order)
    for name in ("power_off", "erase", "free"):
        report = await site.run(f"baremetal.{name}@1", release)
        assert report.done == release.node_ids, report
    found = await site.sim.control.get("/truth/find", params={"text": "very secret"})
    assert found.json()["places"] == []
    truth = await site.sim.truth("node-0003")
    assert truth["power"] == "Off"
    assert all(disk["blank"] for disk in truth["disks"])
    assert truth["tpm_owned"] is False
    assert truth["bios"] == {}
    node = await site.node("node-0003")
    assert (node.state, node.dirty, node.acting_operation_id) == (NodeState.AVAILABLE, False, None)
