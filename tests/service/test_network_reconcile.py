"""Desired state reaches the fabrics, and the fabrics stay there."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from dflare import kit
from dflare.kit.migrations import upgrade_all
from dflare.kit.telemetry import configure_spans
from dflare.kit.trace_tables import span
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


async def test_steps_that_are_repeated_change_nothing(site: NetworkSite) -> None:
    before = await site.rows("SELECT port_id, version FROM network.port_desired ORDER BY 1")
    await site.done("network.attach@1", "clu_a", ["n0", "n1"], generation=2)
    await site.done("network.await@1", "clu_a", ["n0", "n1"], generation=2)
    after = await site.rows("SELECT port_id, version FROM network.port_desired ORDER BY 1")
    assert after == before


async def test_a_network_has_its_own_identifiers_and_explicit_route_targets(
    site: NetworkSite,
) -> None:
    networks = await site.rows("SELECT * FROM network.network ORDER BY cluster_id")
    for name in ("vlan", "vni", "l3_vni", "pkey", "subnet", "vrf"):
        assert len({network[name] for network in networks}) == len(networks), name
    assert not {n["vni"] for n in networks} & {n["l3_vni"] for n in networks}
    overlay = (await site.sim.log(kind="overlay_changed", subject="leaf0"))[-1]
    assert overlay["l3_vnis"] == {n["vrf"]: n["l3_vni"] for n in networks}
    assert overlay["vnis"] == {str(n["vlan"]): n["vni"] for n in networks}


async def test_verify_makes_one_more_read_back(site: NetworkSite) -> None:
    before = await site.rows("SELECT id, read_at FROM network.device ORDER BY id")
    await site.done("network.verify@1", "clu_a", ["n0", "n1"])
    after = await site.rows("SELECT id, read_at FROM network.device ORDER BY id")
    assert all(new["read_at"] > old["read_at"] for old, new in zip(before, after, strict=True))


async def test_a_write_that_the_switch_drops_is_found_and_repeated(site: NetworkSite) -> None:
    await site.sim.fault("nvue_drops_write", "leaf0/swp5", count=2)
    await site.hold("clu_c", ["n4"])
    await site.done("network.attach@1", "clu_c", ["n4"])
    await site.until(lambda: _port_up(site, "swp5"))
    dropped = await site.sim.log(kind="port_write_dropped", subject="leaf0/swp5")
    assert len(dropped) == 2


async def test_the_trace_of_an_order_reaches_the_calls_to_its_devices(
    site: NetworkSite, database_url: str
) -> None:
    await upgrade_all(database_url, {"trace": Path(kit.__path__[0]) / "trace_migrations"})
    spans = configure_spans("test")
    await site.order("clu_t", ["n5"])
    await spans.flush(site.database)
    async with site.database.transaction("trace") as session:
        query = select(span.c.name).where(span.c.operation_id == "op_clu_t")
        names = set(await session.scalars(query))
    assert {
        "step network.attach@1",
        "reconcile leaf0",
        "nvue PATCH /nvue_v1/",
        "reconcile ufm",
        "ufm POST /ufmRest/resources/pkeys",
        "step network.await@1",
    } <= names


async def test_a_factory_reset_switch_is_made_safe_again_without_being_told(
    site: NetworkSite,
) -> None:
    answer = await site.sim.control.post("/switches/leaf0/reset", json={"to": "factory"})
    assert answer.is_success
    assert {"n0", "n1", "n2", "n3", "n4", "n5"} in await site.ethernet_groups()

    async def repaired() -> bool:
        rows = await site.rows("SELECT repaired FROM network.device WHERE name = 'leaf0'")
        return rows[0]["repaired"] == 6

    await site.until(repaired)
    assert await site.ethernet_groups() == [{"n0", "n1"}, {"n2", "n3"}]
    rows = await site.rows("SELECT health, reason FROM network.device WHERE name = 'leaf0'")
    assert rows == [
        {"health": "unsafe", "reason": "VXLAN or EVPN is off: the day-zero configuration is gone"}
    ]


async def _port_up(site: NetworkSite, port: str) -> bool:
    rows = await site.rows(
        "SELECT o.seen FROM network.port_observed o JOIN network.port p ON p.id = o.port_id"
        " WHERE p.address = :port",
        port=port,
    )
    return rows[0]["seen"].startswith("up")
