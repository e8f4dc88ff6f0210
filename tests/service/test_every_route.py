"""The gateway as it is served: every route with every kind of caller, and two tenants who never
hear of each other."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from sqlalchemy import insert, text
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from callers import CALLERS, INSIDE, OUTSIDE, UNCALLED, routes_of, walk_routes
from dflare.apps.migrate import locations
from dflare.kit import trace_tables
from dflare.kit.pagination import encode_cursor
from gateway_routes import gateway_expectations
from stores import drop_database
from tenancy import migrated_database
from tenanted_gateway import NODE_TYPE, Tenant, TenantedGateway, tenanted_gateway

OF_HOME = ("stranger", "viewer", "member", "project_admin", "organization_admin")
OF_RIVAL = ("other_admin",)


@pytest.fixture(scope="module")
async def gateway(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TenantedGateway]:
    schemas = [name for name in locations() if name != "feed"]
    url = await migrated_database(postgres_url, *schemas)
    async with tenanted_gateway(url, tmp_path_factory.mktemp("gateway")) as found:
        yield found
    drop_database(url)


def foreign_words(gateway: TenantedGateway, caller: str, answer: httpx.Response) -> Iterator[str]:
    """Words of another tenant in an answer that the caller did not say itself."""
    strangers: list[Tenant] = []
    if caller in OF_HOME or caller in OUTSIDE:
        strangers.append(gateway.rival)
    if caller in OF_RIVAL or caller in OUTSIDE:
        strangers.append(gateway.home)
    request = answer.request
    said = f"{request.url} {request.content.decode()}"
    heard = answer.text + str(answer.headers)
    for tenant in strangers:
        for word in sorted(tenant.marks):
            if word in heard and word not in said:
                yield f"tells {word} of {tenant.project.organization_name}"


@pytest.mark.timeout(900)
@pytest.mark.requirement("SEC04")
async def test_every_route_of_the_gateway_answers_every_kind_of_caller_as_the_table_says(
    gateway: TenantedGateway,
) -> None:
    def listen(caller: str, answer: httpx.Response) -> Iterable[str]:
        return foreign_words(gateway, caller, answer)

    table = gateway_expectations(gateway)
    faults = await walk_routes(gateway.app, gateway.client, gateway.callers, table, listen)
    assert faults == []


async def test_a_route_of_the_gateway_that_nobody_listed_fails_the_walk(
    gateway: TenantedGateway,
) -> None:
    faults = await walk_routes(gateway.app, gateway.client, gateway.callers, {})
    assert faults == [f"{route}: no entry" for route in routes_of(gateway.app)]


async def test_the_walk_would_hear_a_word_of_another_tenant(gateway: TenantedGateway) -> None:
    path = f"/v1/projects/{gateway.home.project.id}/clusters/{gateway.home.cluster}"
    answer = await gateway.ask("member", "GET", path)
    assert list(foreign_words(gateway, "member", answer)) == []
    heard = list(foreign_words(gateway, "other_admin", answer))
    assert any("cluster-of-home" in fault for fault in heard)


def _paths_of(gateway: TenantedGateway, tenant: Tenant) -> Mapping[str, str]:
    callers = gateway.callers
    is_home = tenant is gateway.home
    return {
        "project": tenant.project.id,
        "cluster": tenant.cluster,
        "pool": "default",
        "ssh_key": tenant.ssh_key,
        "user_data": tenant.user_data,
        "operation": tenant.operation,
        "network": tenant.network,
        "node": next(iter(tenant.nodes)),
        "organization": tenant.project.organization_id,
        "user": callers.users["member" if is_home else "other_admin"].id,
        "month": "2026-11",
        "node_type": NODE_TYPE,
    }


async def test_whatever_another_tenant_has_does_not_exist_under_any_verb(
    gateway: TenantedGateway,
) -> None:
    bodies = {route: one.body for route, one in gateway_expectations(gateway).items()}
    faults: list[str] = []
    for route, body in bodies.items():
        if "{" not in route or route.startswith(UNCALLED):
            continue
        for callers, tenant in ((OF_HOME, gateway.rival), (OF_RIVAL, gateway.home)):
            path = route.partition(" ")[2].replace(":path}", "}")
            values = _paths_of(gateway, tenant)
            for name, value in values.items():
                path = path.replace(f"{{{name}}}", value)
            if "{" in path:
                continue
            for caller in callers:
                answer = await gateway.ask(
                    caller,
                    route.partition(" ")[0],
                    path,
                    json=body() if callable(body) else body,
                    params={"month": "2026-11"},
                    headers={"If-Match": '"999"'},
                )
                if answer.status_code != 404:
                    faults.append(f"{route} as {caller}: {answer.status_code} {answer.text[:200]}")
                faults += foreign_words(gateway, caller, answer)
    assert faults == []


async def test_who_may_not_change_a_thing_is_not_told_its_version(
    gateway: TenantedGateway,
) -> None:
    faults: list[str] = []
    for route, expected in gateway_expectations(gateway).items():
        method, path = route.split(" ", 1)
        if method not in {"PATCH", "DELETE"}:
            continue
        values = await expected.path() if callable(expected.path) else expected.path
        for name, value in values.items():
            path = path.replace(f"{{{name}:path}}", value).replace(f"{{{name}}}", value)
        for caller in CALLERS:
            wanted = 401 if caller in OUTSIDE else expected.answers.get(caller, 404)
            if wanted < 400:
                continue
            answer = await gateway.ask(
                caller, method, path, json=expected.body, headers={"If-Match": '"999"'}
            )
            if answer.status_code != wanted or "etag" in answer.headers:
                faults.append(f"{route} as {caller}: {answer.status_code}, not {wanted}")
    assert faults == []


async def _pages(gateway: TenantedGateway, caller: str, path: str) -> AsyncIterator[httpx.Response]:
    cursor: str | None = None
    while True:
        params = {"limit": "500", **({"cursor": cursor} if cursor else {})}
        answer = await gateway.ask(caller, "GET", path, params=params)
        assert answer.status_code == 200, answer.text
        yield answer
        body = answer.json()
        if body["next_cursor"] in (None, cursor) or not body["items"]:
            return
        cursor = body["next_cursor"]


@pytest.mark.parametrize(
    "path", ["events", "operations", "nodes", "clusters", "allocations", "networks", "audit"]
)
async def test_no_page_of_any_list_tells_of_another_tenant(
    gateway: TenantedGateway, path: str
) -> None:
    await gateway.relay()
    faults: list[str] = []
    for caller in (*OF_HOME, *OF_RIVAL):
        async for page in _pages(gateway, caller, f"/v1/{path}"):
            faults += foreign_words(gateway, caller, page)
    assert faults == []


async def test_a_refused_order_counts_what_others_hold_and_names_nobody(
    gateway: TenantedGateway,
) -> None:
    path = f"/v1/projects/{gateway.home.project.id}/clusters"
    order = {"name": "too-many", "pools": [{"node_type": NODE_TYPE, "count": 30}]}
    answer = await gateway.ask("member", "POST", path, json=order)
    assert answer.status_code == 409
    assert answer.json()["not_free"]["held by other orders"] >= len(gateway.rival.nodes)
    assert list(foreign_words(gateway, "member", answer)) == []


async def test_no_event_carries_a_secret_not_even_a_sealed_one(gateway: TenantedGateway) -> None:
    async with gateway.database.transaction("clusters") as session:
        query = "SELECT data->>'user_data_sealed' FROM clusters.event WHERE type = :type"
        sealed = (await session.execute(text(query), {"type": "cluster.declared"})).scalars().all()
    sealed = [one for one in sealed if one]
    assert len(sealed) == 2
    told = ""
    for caller in ("viewer", "auditor", "operator"):
        async for page in _pages(gateway, caller, "/v1/events"):
            told += page.text
    assert "cluster.declared" in told
    assert "site.declared" in told
    assert not any(one in told for one in sealed)
    assert '"secret"' not in told
    for account in gateway.document.credentials.values():
        assert account.password is not None
        assert account.password.get_secret_value() not in told


async def test_a_trace_tells_a_tenant_nothing_of_orders_that_shared_a_pass(
    gateway: TenantedGateway,
) -> None:
    home, rival = gateway.home.operation, gateway.rival.operation
    shared = {"ports": 9, "orders": 2}
    call = {"device": "leaf0"}
    bmc = {"bmc": "10.9.8.7:443"}
    rows = [
        ("1", None, home, "reconcile leaf0", shared),
        ("2", "1", home, "ufm GET /ufmRest/resources/pkeys/0x77", call),
        ("3", None, home, "reconcile leaf1", {"together_with": rival}),
        ("4", None, home, "reconcile leaf2", {"ports": 3, "orders": 1}),
        ("5", "4", home, "nvue GET /nvue_v1", call),
        ("6", None, home, "redfish GET /redfish/v1", bmc),
    ]
    async with gateway.database.transaction("trace") as session:
        for span_id, parent, operation, name, attributes in rows:
            values = {
                "span_id": span_id,
                "trace_id": "1",
                "parent_id": parent,
                "operation_id": operation,
                "process": "site-worker",
                "name": name,
                "started_at": gateway.platform.process.clock.now(),
                "ended_at": gateway.platform.process.clock.now(),
                "error": None,
                "attributes": attributes,
            }
            await session.execute(insert(trace_tables.span).values(values))
    path = f"/v1/operations/{home}/trace"
    told = await gateway.ask("member", "GET", path)
    assert list(foreign_words(gateway, "member", told)) == []
    names = [span["name"] for span in told.json()["spans"] if span["process"] == "site-worker"]
    assert sorted(names) == sorted(name for _, parent, _, name, _ in rows if parent is None)
    assert "0x77" not in told.text
    assert "10.9.8.7" not in told.text
    assert "nvue GET /nvue_v1" in told.text, "calls for this tenant alone are told"
    whole = (await gateway.ask("operator", "GET", path)).text
    assert all(word in whole for word in ("0x77", "10.9.8.7", rival))


async def test_how_a_nodes_bmc_is_reached_is_told_to_the_platforms_people_alone(
    gateway: TenantedGateway,
) -> None:
    path = f"/v1/nodes/{next(iter(gateway.home.nodes))}"
    told = (await gateway.ask("organization_admin", "GET", path)).json()["facts"]
    assert told["ethernet"]
    assert "bmc" not in told
    for caller in ("operator", "auditor"):
        assert (await gateway.ask(caller, "GET", path)).json()["facts"]["bmc"]["address"]


@asynccontextmanager
async def served(gateway: TenantedGateway) -> AsyncIterator[str]:
    """The gateway at a port of its own; the address of its events."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        gateway.app,
        log_config=None,
        lifespan="off",
        ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve([listener]))
    yield f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/events"
    server.should_exit = True
    await running


async def _heard(gateway: TenantedGateway, url: str, caller: str) -> str | int:
    """Everything that a subscriber is told from the beginning on, or the code that closed it."""
    headers = gateway.callers.headers(caller)
    told: list[str] = []
    address = f"{url}?cursor={encode_cursor('0')}"
    async with asyncio.timeout(60), connect(address, additional_headers=headers) as connection:
        try:
            while True:
                message = str(await connection.recv())
                told.append(message)
                if json.loads(message)["type"] == "heartbeat":
                    return "\n".join(told)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0


async def test_the_websocket_refuses_who_is_unknown_and_tells_tenants_of_themselves_alone(
    gateway: TenantedGateway,
) -> None:
    await gateway.relay()
    async with served(gateway) as url:
        heard = {caller: await _heard(gateway, url, caller) for caller in CALLERS}
    assert {caller: heard[caller] for caller in OUTSIDE} == dict.fromkeys(OUTSIDE, 4401)
    home, rival = gateway.home.marks, gateway.rival.marks
    for caller in INSIDE:
        told = str(heard[caller])
        if caller not in OF_RIVAL and caller not in {"auditor", "operator"}:
            assert not {word for word in rival if word in told}, caller
        if caller in OF_RIVAL:
            assert not {word for word in home if word in told}, caller
    for caller in ("viewer", "organization_admin", "auditor", "operator"):
        assert gateway.home.cluster in str(heard[caller]), caller
    assert gateway.rival.cluster in str(heard["other_admin"])
    assert gateway.home.cluster not in str(heard["stranger"])
