"""A write that lands late, or that nobody knows the fate of, never joins two tenants."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from dflare.drivers.fabric.rest import DeviceRest
from dflare.services.network import repository
from dflare.services.network.domain import NodeEpoch
from dflare.services.network.reconciler import DeviceReconciler, Tools
from dflare.services.orchestrator.contract import AllocationState
from network_site import NetworkSite, held, network_site, tools_of
from simulator import data_center
from stores import drop_database, fresh_database

SOON_S = 2.5
"""Enough for a step to look several times; a step returns 1 s before its deadline."""


@pytest.fixture
async def site(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NetworkSite]:
    url = fresh_database(postgres_url)
    document = data_center(nodes=3, gpus=1, network="127.79", speed=1)
    async with network_site(url, tmp_path_factory.mktemp("late"), document) as site:
        await site.settled()
        yield site
    drop_database(url)


@pytest.fixture
async def still(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NetworkSite]:
    """A site whose devices nobody reconciles but the test."""
    url = fresh_database(postgres_url)
    document = data_center(nodes=2, gpus=1, network="127.80")
    folder = tmp_path_factory.mktemp("still")
    async with network_site(url, folder, document, reconcile=False) as site:
        yield site
    drop_database(url)


async def test_a_job_that_lands_after_the_release_does_not_leak(site: NetworkSite) -> None:
    late = await _late_attach(site)
    await site.release(["n0"])
    await site.done("network.detach@1", "clu_a", ["n0"])
    deadline = {"deadline_at": site.clock.now() + _seconds(SOON_S)}
    report = await site.step("network.await_drained@1", "clu_a", ["n0"], **deadline)
    assert report.pending == ("n0",)
    assert await _pkey_states(site) == ["draining"]
    await _speed_up(site)
    await site.done("network.await_drained@1", "clu_a", ["n0"])
    assert [e["job"] for e in await site.sim.log(kind="pkey_changed") if e["job"] == late]
    assert await _pkey_states(site) == ["cooldown"]
    await _second_tenant(site)
    assert await _mixed_partitions(site) == []


async def test_without_the_check_of_intents_the_same_job_leaks(
    site: NetworkSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_kept(*_: object) -> dict[str, str]:
        return {}

    async def not_kept(*_: object) -> bool:
        return False

    monkeypatch.setattr(repository, "nodes_kept_by_intents", none_kept)
    monkeypatch.setattr(repository, "network_kept_by_intents", not_kept)
    late = await _late_attach(site)
    await site.release(["n0"])
    await site.done("network.detach@1", "clu_a", ["n0"])
    await site.done("network.await_drained@1", "clu_a", ["n0"])
    await _second_tenant(site)
    await _speed_up(site)

    async def landed() -> bool:
        return any(e["job"] == late for e in await site.sim.log(kind="pkey_changed"))

    await site.until(landed)
    assert await _mixed_partitions(site) == [{"n0", "n1", "n2"}]


async def test_a_late_job_is_taken_back_once_it_has_landed(site: NetworkSite) -> None:
    await _late_attach(site)
    await site.release(["n0"])
    await site.done("network.detach@1", "clu_a", ["n0"])
    await _speed_up(site)
    await site.done("network.await_drained@1", "clu_a", ["n0"])
    members = [e for e in await site.sim.log(kind="pkey_changed") if e["subject"] != "0x7fff"]
    assert [bool(e["added"]) for e in members] == [True, False]
    assert not members[-1]["exists"]


async def test_a_process_that_dies_before_its_write_keeps_the_node_draining_until_the_deadline(
    still: NetworkSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _one_pass(still, "leaf0", "ufm")
    await still.hold("clu_a", ["n0"])
    await still.done("network.attach@1", "clu_a", ["n0"])
    dying = await held(still, still.tools, "ufm")

    async def killed(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(DeviceReconciler, "_send", killed)
        with pytest.raises(asyncio.CancelledError):
            await dying.reconcile()
    await still.release(["n0"])
    await still.done("network.detach@1", "clu_a", ["n0"])
    await _one_pass(still, "leaf0", "ufm", holder="worker-2")
    soon = {"deadline_at": still.clock.now() + _seconds(SOON_S)}
    report = await still.step("network.await_drained@1", "clu_a", ["n0"], **soon)
    assert report.pending == ("n0",)
    still.clock.ahead += _seconds(still.tools.lands_within_s + 60)
    report = await still.step(
        "network.await_drained@1", "clu_a", ["n0"], deadline_at=still.clock.now() + _seconds(SOON_S)
    )
    assert report.pending == ("n0",), "passing the deadline is not enough: nobody has read back"
    await _one_pass(still, "leaf0", "ufm", holder="worker-2")
    await still.done("network.await_drained@1", "clu_a", ["n0"])
    outcomes = await still.rows("SELECT outcome FROM network.intent WHERE kind = 'open'")
    assert outcomes == [{"outcome": "expired"}]


async def test_an_older_epoch_cannot_set_desired_state(still: NetworkSite) -> None:
    await still.hold("clu_a", ["n0"])
    await still.done("network.attach@1", "clu_a", ["n0"])
    old = NodeEpoch("n0", "clu_a", still.allocations["n0"][1], AllocationState.CONFIRMED, 1)
    await still.release(["n0"])
    await still.done("network.detach@1", "clu_a", ["n0"])
    await still.hold("clu_b", ["n0"])
    await still.done("network.attach@1", "clu_b", ["n0"])
    before = await still.rows("SELECT * FROM network.port_desired ORDER BY port_id")
    async with still.database.transaction("network") as session:
        network = await repository.lock_network(session, "clu_a")
        assert network is not None
        now = still.clock.now()
        assert await repository.open_ports(session, network, [old], "op_old", now) == set()
    assert await still.rows("SELECT * FROM network.port_desired ORDER BY port_id") == before


async def test_an_allocation_that_was_withdrawn_cannot_be_attached_again(
    still: NetworkSite,
) -> None:
    await _one_pass(still, "leaf0", "ufm")
    await still.hold("clu_a", ["n0", "n1"])
    await still.done("network.attach@1", "clu_a", ["n0", "n1"])
    await still.done("network.detach@1", "clu_a", ["n0"])
    report = await still.step("network.attach@1", "clu_a", ["n0"], generation=2)
    assert "were closed for this order" in report.failed["n0"]


async def test_an_older_epoch_opens_no_intent(still: NetworkSite) -> None:
    await _one_pass(still, "leaf0", "ufm")
    await still.hold("clu_a", ["n0"])
    await still.done("network.attach@1", "clu_a", ["n0"])
    await still.release(["n0"])
    await _one_pass(still, "leaf0", "ufm")
    assert await still.rows("SELECT id FROM network.intent WHERE kind = 'open'") == []
    assert await still.reachability() == {"ethernet": [], "infiniband": []}


async def test_an_epoch_that_rises_behind_the_intent_stops_the_write(
    still: NetworkSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _one_pass(still, "leaf0", "ufm")
    await still.hold("clu_a", ["n0"])
    await still.done("network.attach@1", "clu_a", ["n0"])
    prepare: Any = DeviceReconciler._prepare

    async def then_released(self: DeviceReconciler) -> Any:
        prepared = await prepare(self)
        await still.release(["n0"])
        return prepared

    written = len(await still.sim.log(kind="pkey_changed"))
    with monkeypatch.context() as patch:
        patch.setattr(DeviceReconciler, "_prepare", then_released)
        assert await (await held(still, still.tools, "ufm")).reconcile() == 0
    assert len(await still.sim.log(kind="pkey_changed")) == written
    outcomes = await still.rows("SELECT outcome FROM network.intent WHERE kind = 'open'")
    assert outcomes == [{"outcome": "not sent"}]


async def _late_attach(site: NetworkSite) -> str:
    """Attach n0 for clu_a by a job that is late; returns the job's id."""
    await site.sim.fault("ufm_job_late", count=1, params={"seconds": 600})
    await site.hold("clu_a", ["n0"])
    await site.done("network.attach@1", "clu_a", ["n0"])

    async def accepted() -> bool:
        return bool(await site.sim.log(kind="ufm_job_late"))

    await site.until(accepted)
    return (await site.sim.log(kind="ufm_job_late"))[0]["job"]


async def _second_tenant(site: NetworkSite) -> None:
    """Let the first tenant's identifiers cool down and give them to another."""
    site.clock.ahead += _seconds(60)
    await site.supervisor.sweep()
    assert await _pkey_states(site) == []
    await site.order("clu_b", ["n1", "n2"])
    rows = await site.rows("SELECT DISTINCT pkey FROM network.network WHERE pkey IS NOT NULL")
    assert len(rows) == 1, "the second tenant got the identifiers of the first"


async def _pkey_states(site: NetworkSite) -> list[str]:
    rows = await site.rows("SELECT state FROM network.pool_value WHERE kind = 'pkey'")
    return [row["state"] for row in rows]


async def _mixed_partitions(site: NetworkSite) -> list[set[str]]:
    """Every set of hosts of both tenants that ever shared a partition, from the truth log."""
    tenant = {"n0": "clu_a", "n1": "clu_b", "n2": "clu_b"}
    hosts = {port.guid: node.name for node in site.sim.config.nodes for port in node.infiniband}
    members: defaultdict[str, set[str]] = defaultdict(set)
    mixed: list[set[str]] = []
    for event in await site.sim.log(kind="pkey_changed"):
        if event["subject"] == "0x7fff":
            continue
        present = members[event["subject"]]
        present |= set(event["added"])
        present -= set(event["removed"])
        together = {hosts[guid] for guid in present}
        if len({tenant[host] for host in together}) > 1 and together not in mixed:
            mixed.append(together)
    return mixed


async def _one_pass(site: NetworkSite, *devices: str, holder: str = "worker-1") -> None:
    """Look, write, look again: as a process of that name would after it started."""
    rest = DeviceRest(ca_file=str(site.sim.ca_file))
    tools: Tools = tools_of(
        site.database, rest, site.clock, site.tools.settings, holder, site.tools.speed
    )
    for device in devices:
        await (await held(site, tools, device)).reconcile()
    await rest.close()


async def _speed_up(site: NetworkSite) -> None:
    (await site.sim.control.post("/clock", json={"speed": 600})).raise_for_status()


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
