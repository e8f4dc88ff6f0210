"""Identifiers are handed out once, drained, rested and come back."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from dflare.kit.errors import ConflictError
from dflare.services.network.domain import NetworkState, PoolKind, check_network_transition
from dflare.services.network.pools import capacity, lowest_free, ranges_of, subnet_text
from network_site import POOLS, SITE, NetworkSite, network_site
from simulator import data_center

SMALL = POOLS.model_copy(update={"vlan": ((100, 100), (205, 206)), "cooldown_s": 36_000})


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NetworkSite]:
    folder = tmp_path_factory.mktemp("pools")
    document = data_center(nodes=5, gpus=1, network="127.83")
    async with network_site(database_url, folder, document, pools=SMALL) as site:
        await site.settled()
        yield site


async def test_batches_of_one_order_get_one_network(site: NetworkSite) -> None:
    await site.hold("clu_a", ["n0", "n1"])
    await asyncio.gather(
        site.done("network.attach@1", "clu_a", ["n0"], batch="0"),
        site.done("network.attach@1", "clu_a", ["n1"], batch="1"),
    )
    rows = await site.rows("SELECT kind, value, state FROM network.pool_value ORDER BY 1, 2")
    assert [(row["kind"], row["state"]) for row in rows] == [
        ("pkey", "allocated"),
        ("subnet", "allocated"),
        ("vlan", "allocated"),
        ("vni", "allocated"),
        ("vni", "allocated"),
    ]
    await site.done("network.await@1", "clu_a", ["n0", "n1"])


async def test_an_order_beyond_the_pool_is_refused_with_the_reason_and_leaves_nothing(
    site: NetworkSite,
) -> None:
    await site.order("clu_b", ["n2"])
    await site.order("clu_c", ["n3"])
    before = await site.rows("SELECT * FROM network.pool_value ORDER BY site_id, kind, value")
    await site.hold("clu_d", ["n4"])
    report = await site.step("network.attach@1", "clu_d", ["n4"])
    assert "all 3 vlan identifiers" in report.failed["n4"]
    assert report.shared == ("n4",)
    after = await site.rows("SELECT * FROM network.pool_value ORDER BY site_id, kind, value")
    assert after == before
    assert await site.rows("SELECT id FROM network.network WHERE cluster_id = 'clu_d'") == []


async def test_a_network_keeps_its_identifiers_while_it_has_members(site: NetworkSite) -> None:
    await site.give_back("clu_a", ["n0"])
    rows = await site.rows("SELECT state FROM network.network WHERE cluster_id = 'clu_a'")
    assert rows == [{"state": "active"}]
    assert await site.ethernet_groups() == []
    report = await site.step("network.await@1", "clu_a", ["n1"], generation=2)
    assert report.done == ("n1",)


async def test_identifiers_rest_before_they_are_free_again(site: NetworkSite) -> None:
    await site.give_back("clu_a", ["n1"], generation=3)
    assert await _states(site, "clu_a") == {"cooldown"}
    site.clock.ahead += timedelta(seconds=36_000 / site.tools.speed - 5)
    await site.supervisor.sweep()
    assert await _states(site, "clu_a") == {"cooldown"}
    site.clock.ahead += timedelta(seconds=6)
    await site.supervisor.sweep()
    assert await _states(site, "clu_a") == set()
    assert (
        await site.rows(
            "SELECT * FROM network.network_device d WHERE NOT EXISTS"
            " (SELECT 1 FROM network.port_desired p"
            " WHERE p.network_id = d.network_id)"
        )
        == []
    )


async def test_the_same_cluster_gets_identifiers_anew_after_its_release(
    site: NetworkSite,
) -> None:
    await site.hold("clu_a", ["n0"])
    await site.done("network.attach@1", "clu_a", ["n0"], generation=4)
    await site.done("network.await@1", "clu_a", ["n0"], generation=4)
    assert await _states(site, "clu_a") == {"allocated"}


async def test_the_database_refuses_one_identifier_for_two_networks(site: NetworkSite) -> None:
    with pytest.raises(IntegrityError):
        await site.rows(
            "INSERT INTO network.pool_value (site_id, kind, value, state, network_id, since)"
            " SELECT site_id, kind, value, state, 'net_other', now() FROM network.pool_value"
            " LIMIT 1 RETURNING value"
        )


async def test_close_takes_a_node_out_of_whatever_holds_it(site: NetworkSite) -> None:
    await site.done("network.close@1", "clu_any", ["n0"])
    rows = await site.rows("SELECT network_id FROM network.port_desired WHERE node_id = 'n0'")
    assert {row["network_id"] for row in rows} == {None}
    await site.supervisor.sweep()
    assert await _states(site, "clu_a") == {"cooldown"}


async def test_changes_of_a_network_are_events_in_the_order_of_its_versions(
    site: NetworkSite,
) -> None:
    rows = await site.rows(
        "SELECT data, resource_version FROM network.event e JOIN network.network n"
        " ON n.id = e.resource_id WHERE n.cluster_id = 'clu_a' AND type = 'network.changed'"
        " ORDER BY ordinal"
    )
    assert [row["data"]["state"] for row in rows] == [
        "active",
        "draining",
        "released",
        "active",
        "draining",
        "released",
    ]
    assert [row["resource_version"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_network_cannot_skip_draining() -> None:
    with pytest.raises(ConflictError):
        check_network_transition(NetworkState.ACTIVE, NetworkState.RELEASED)
    with pytest.raises(ConflictError):
        check_network_transition(NetworkState.DRAINING, NetworkState.ACTIVE)


_RANGES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=3).map(
    lambda pairs: [(first + 100 * i, first + 100 * i + n) for i, (first, n) in enumerate(pairs)]
)


@given(ranges=_RANGES)
def test_a_pool_gives_every_value_of_its_ranges_exactly_once(
    ranges: list[tuple[int, int]],
) -> None:
    taken: set[int] = set()
    while (value := lowest_free(ranges, 1, taken)) is not None:
        assert value not in taken
        assert any(first <= value <= last for first, last in ranges)
        taken.add(value)
    assert len(taken) == capacity(ranges, 1)


def test_prefixes_are_cut_into_subnets_that_do_not_overlap() -> None:
    ranges, step = ranges_of(POOLS, PoolKind.SUBNET)
    assert capacity(ranges, step) == 16
    first = lowest_free(ranges, step, set())
    assert first is not None
    assert subnet_text(first, 24) == "10.64.0.0/24"
    second = lowest_free(ranges, step, {first})
    assert second is not None
    assert subnet_text(second, 24) == "10.64.1.0/24"


async def _states(site: NetworkSite, cluster: str) -> set[str]:
    rows = await site.rows(
        "SELECT v.state FROM network.pool_value v JOIN network.network n ON n.id = v.network_id"
        " WHERE n.cluster_id = :cluster AND v.site_id = :site",
        cluster=cluster,
        site=SITE,
    )
    return {row["state"] for row in rows}
