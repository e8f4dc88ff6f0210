"""Devices that fail, sites that are frozen, processes that share devices, and their API."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Header

from dflare.drivers.fabric.rest import DeviceRest
from dflare.kit.errors import ForbiddenError, NotFoundError
from dflare.kit.problem import install
from dflare.services.auth import policy
from dflare.services.auth.contract import (
    Principal,
    ProjectRef,
    Resource,
    Role,
    RoleBinding,
    Scope,
)
from dflare.services.network.api import router
from dflare.services.network.service import NetworkService
from dflare.services.network.supervisor import Supervisor
from network_site import QUICK, SITE, NetworkSite, network_site, tools_of
from simulator import data_center

CALLERS = {
    "operator": Principal("usr_op", "user", "olga", (RoleBinding(Role.OPERATOR),)),
    "member": Principal(
        "usr_m", "user", "mia", (RoleBinding(Role.MEMBER, "org_test", "prj_test"),)
    ),
    "stranger": Principal(
        "usr_s", "user", "sam", (RoleBinding(Role.MEMBER, "org_other", "prj_other"),)
    ),
}


class PolicyAuthorizer:
    """Decides by the shipped policies, for callers that the test knows."""

    async def authenticate(self, token: str) -> Principal:
        return CALLERS[token]

    def scope(self, principal: Principal) -> Scope:
        if any(binding.role is Role.OPERATOR for binding in principal.bindings):
            return Scope(everything=True)
        return Scope(project_ids=frozenset(b.project_id or "" for b in principal.bindings))

    def project(self, scope: Scope, reference: str) -> ProjectRef:
        if not scope.covers(None, reference):
            raise NotFoundError(f"there is no project {reference}")
        return ProjectRef(reference, "test", "org_test", "test")

    async def check(self, principal: Principal, action: str, resource: Resource) -> None:
        if policy.decide(principal, action, [resource])[0]:
            return
        if policy.decide(principal, f"{resource.kind}:read", [resource])[0]:
            raise ForbiddenError("not you")
        raise NotFoundError("there is no such thing")

    async def readable(self, principal: Principal, action: str, resources: Any) -> list[bool]:
        return policy.decide(principal, action, resources)


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NetworkSite]:
    folder = tmp_path_factory.mktemp("devices")
    document = data_center(nodes=4, gpus=1, network="127.84")
    async with network_site(database_url, folder, document) as site:
        await site.settled()
        yield site


@pytest.fixture(scope="module")
async def api(site: NetworkSite) -> AsyncIterator[httpx.AsyncClient]:
    authorizer = PolicyAuthorizer()

    async def principal(authorization: str = Header()) -> Principal:
        return await authorizer.authenticate(authorization)

    app = FastAPI()
    install(app)
    service = NetworkService(site.database, site.clock, authorizer)
    app.include_router(router(service, authorizer, principal), prefix="/v1")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test/v1"
    ) as client:
        yield client


async def test_a_switch_that_does_not_answer_is_waited_for_and_shown(
    site: NetworkSite, api: httpx.AsyncClient
) -> None:
    await site.sim.fault("nvue_unreachable", "leaf0")
    await site.hold("clu_a", ["n0", "n1"])
    await site.done("network.attach@1", "clu_a", ["n0", "n1"])

    async def shown() -> bool:
        devices = await _devices(api)
        return devices["leaf0"]["health"] == "unreachable" and devices["leaf0"]["waiting"] == 2

    await site.until(shown)
    (await site.sim.control.delete("/faults")).raise_for_status()
    await site.done("network.await@1", "clu_a", ["n0", "n1"])
    assert (await _devices(api))["leaf0"]["health"] == "healthy"
    events = await site.rows(
        "SELECT data FROM network.event WHERE type = 'device.changed'"
        " AND resource_id LIKE '%leaf0' ORDER BY ordinal"
    )
    healths = [event["data"]["health"] for event in events]
    assert healths[-2:] == ["unreachable", "healthy"]


async def test_writes_that_reached_nobody_keep_nobody_waiting(site: NetworkSite) -> None:
    rows = await site.rows(
        "SELECT id FROM network.intent WHERE closed_at IS NULL AND device_id LIKE '%leaf0'"
    )
    assert rows == []


async def test_a_frozen_site_is_not_written_to_and_says_what_waits(
    site: NetworkSite, api: httpx.AsyncClient
) -> None:
    answer = await api.post(
        f"/sites/{SITE}/freeze", json={"reason": "cabling"}, headers=_as("operator")
    )
    assert answer.json()["frozen"]
    await site.hold("clu_b", ["n2", "n3"])
    await site.done("network.attach@1", "clu_b", ["n2", "n3"])
    await site.done("network.detach@1", "clu_a", ["n0"])
    await _read_back(site)
    frozen = (await api.get(f"/sites/{SITE}/freeze", headers=_as("operator"))).json()
    assert (frozen["frozen_by"], frozen["reason"]) == ("olga", "cabling")
    assert {w["device_id"]: w["ports"] for w in frozen["waiting"]} == {
        f"{SITE}/leaf0": 3,
        f"{SITE}/ufm": 3,
    }
    assert await site.ethernet_groups() == [{"n0", "n1"}]
    released = (await api.post("/sites/test/unfreeze", headers=_as("operator"))).json()
    assert released["waiting_ports"] == 6
    await site.done("network.await@1", "clu_b", ["n2", "n3"])
    await site.done("network.await_drained@1", "clu_a", ["n0"])
    assert await site.ethernet_groups() == [{"n2", "n3"}]


async def test_freezing_is_audited_and_an_event(site: NetworkSite) -> None:
    audit = await site.rows("SELECT principal, action FROM network.audit ORDER BY at")
    assert audit == [
        {"principal": "usr_op", "action": "site:freeze"},
        {"principal": "usr_op", "action": "site:unfreeze"},
    ]
    events = await site.rows("SELECT data FROM network.event WHERE type = 'site.frozen'")
    assert [event["data"]["frozen"] for event in events] == [True, False]


async def test_a_second_process_reconciles_nothing_until_the_first_is_gone(
    site: NetworkSite,
) -> None:
    rest = DeviceRest(ca_file=str(site.sim.ca_file))
    tools = tools_of(site.database, rest, site.clock, QUICK, "worker-2", site.tools.speed)
    second = asyncio.create_task(Supervisor(tools).run())
    await _read_back(site)
    assert await _holders(site) == {"worker-1"}
    await site.rows(
        "UPDATE network.device_lease SET holder = 'dead', held_until = now() RETURNING device_id"
    )

    async def taken() -> bool:
        return "dead" not in await _holders(site)

    await site.until(taken)
    await _read_back(site)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await rest.close()

    async def back() -> bool:
        return await _holders(site) == {"worker-1"}

    await site.until(back)


async def test_pools_are_shown_by_kind_and_state(site: NetworkSite, api: httpx.AsyncClient) -> None:
    answer = await api.get(f"/sites/{SITE}/pools", headers=_as("operator"))
    pools = {pool["kind"]: pool for pool in answer.json()["pools"]}
    assert pools["vlan"] == {
        "kind": "vlan",
        "total": 11,
        "free": 9,
        "allocated": 2,
        "draining": 0,
        "cooldown": 0,
    }
    assert pools["vni"]["allocated"] == 4
    assert pools["subnet"]["total"] == 16


async def test_a_tenant_sees_its_own_networks_alone(api: httpx.AsyncClient) -> None:
    mine = (await api.get("/networks", headers=_as("member"))).json()["items"]
    assert [network["cluster_id"] for network in mine] == ["clu_a", "clu_b"]
    assert (await api.get("/networks", headers=_as("stranger"))).json()["items"] == []
    one = f"/networks/{mine[0]['id']}"
    shown = await api.get(one, headers=_as("member"))
    assert shown.json() == mine[0]
    assert shown.headers["ETag"] == f'"{mine[0]["version"]}"'
    assert (await api.get(one, headers=_as("stranger"))).status_code == 404
    by_project = await api.get("/projects/prj_test/networks", headers=_as("member"))
    assert by_project.json()["items"] == mine
    hidden = await api.get("/projects/prj_test/networks", headers=_as("stranger"))
    assert hidden.status_code == 404


async def test_networks_come_in_pages(api: httpx.AsyncClient) -> None:
    first = (await api.get("/networks", params={"limit": 1}, headers=_as("member"))).json()
    assert len(first["items"]) == 1
    rest = {"limit": 1, "cursor": first["next_cursor"]}
    second = (await api.get("/networks", params=rest, headers=_as("member"))).json()
    assert second["next_cursor"] is None
    assert second["items"][0]["id"] > first["items"][0]["id"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "devices"),
        ("GET", "pools"),
        ("GET", "freeze"),
        ("POST", "freeze"),
        ("POST", "unfreeze"),
    ],
)
async def test_devices_and_pools_are_the_operators_alone(
    api: httpx.AsyncClient, method: str, path: str
) -> None:
    body = {"reason": "mine"} if path == "freeze" else None
    for caller in ("member", "stranger"):
        answer = await api.request(method, f"/sites/{SITE}/{path}", json=body, headers=_as(caller))
        assert answer.status_code == 404, answer.text
    missing = await api.request(method, f"/sites/none/{path}", json=body, headers=_as("operator"))
    assert missing.status_code == 404


async def _devices(api: httpx.AsyncClient) -> dict[str, Any]:
    answer = await api.get(f"/sites/{SITE}/devices", headers=_as("operator"))
    return {device["name"]: device for device in answer.json()["items"]}


async def _read_back(site: NetworkSite) -> None:
    """Wait until every device was read back once more, without asking for it."""
    before = {
        r["id"]: r["read_at"] for r in await site.rows("SELECT id, read_at FROM network.device")
    }

    async def newer() -> bool:
        rows = await site.rows("SELECT id, read_at FROM network.device")
        return all(row["read_at"] > before[row["id"]] for row in rows)

    await site.until(newer)


async def _holders(site: NetworkSite) -> set[str]:
    return {r["holder"] for r in await site.rows("SELECT holder FROM network.device_lease")}


def _as(caller: str) -> dict[str, str]:
    return {"Authorization": caller}
