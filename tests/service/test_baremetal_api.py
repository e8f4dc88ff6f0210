"""Sites and nodes through the API: declaring, refusing, ordering, and who sees what."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Header
from pydantic import SecretStr

from baremetal_site import BaremetalSite, Order, baremetal_site
from dflare.kit import problem
from dflare.kit.ids import new_id
from dflare.services.auth.contract import Principal, Resource, Role, RoleBinding, Scope
from dflare.services.auth.policy import decide
from dflare.services.baremetal.api import router
from dflare.services.baremetal.contract import NodeDeclared, NodeState, SiteDeclared
from dflare.site.document import Credential, SiteDocument
from dflare.site.render import render_site


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[BaremetalSite]:
    folder = tmp_path_factory.mktemp("api")
    async with baremetal_site(database_url, folder, nodes=6) as found:
        yield found


@pytest.fixture(scope="module")
async def api(site: BaremetalSite) -> AsyncIterator[httpx.AsyncClient]:
    """The routes; the header ``X-Caller`` says who calls."""

    async def principal(x_caller: str = Header(default="usr_operator")) -> Principal:
        return Principal(x_caller, "user", x_caller)

    site.authorizer.scopes["usr_tenant"] = Scope(project_ids=frozenset({"prj_a"}))
    site.authorizer.scopes["usr_other"] = Scope(project_ids=frozenset({"prj_b"}))
    app = FastAPI()
    problem.install(app)
    app.include_router(router(site.service, site.authorizer, principal), prefix="/v1")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def _put(api: httpx.AsyncClient, document: SiteDocument, **options: Any) -> httpx.Response:
    return await api.put("/v1/sites/demo", content=render_site(document), **options)


async def test_a_dry_run_says_what_would_be_added_and_changes_nothing(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    answer = await _put(api, site.document, params={"dry_run": "true"})
    assert answer.status_code == 200
    assert answer.json()["counts"]["node"] == [6, 0, 0]
    assert (await api.get("/v1/sites")).json()["items"] == []


async def test_a_malformed_document_is_refused_with_lines_and_keys(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    text = render_site(site.document).replace("node-0002", "node-0001", 1)
    answer = await api.put("/v1/sites/demo", content=text)
    assert answer.status_code == 422
    body = answer.json()
    assert body["type"].endswith("/site-invalid")
    assert body["next_step"]
    assert any(error["path"].startswith("nodes") and error["line"] > 0 for error in body["errors"])


async def test_declaring_a_site_orders_the_enrolment_of_its_nodes(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    key = {"Idempotency-Key": "declare"}
    answer = await _put(api, site.document, headers=key)
    assert answer.status_code == 202, answer.text
    operation = answer.json()["operation"]
    assert answer.headers["location"] == f"/v1/operations/{operation['id']}"
    assert (operation["kind"], operation["targets"]) == ("enrol_nodes", 6)
    repeated = await _put(api, site.document, headers=key)
    assert repeated.json()["operation"]["id"] == operation["id"]

    (declared,) = [SiteDeclared.model_validate(e) for e in await site.events("site.declared")]
    assert declared.pools.subnet_length
    assert declared.images == tuple(image.name for image in site.document.images) == ("base",)
    assert len(declared.switches) == len(site.document.fabrics.ethernet.switches)
    nodes = [NodeDeclared.model_validate(event) for event in await site.events("node.declared")]
    assert sorted(node.name for node in nodes) == [node.name for node in site.document.nodes]
    assert all(len(node.infiniband) == 8 for node in nodes)


async def test_a_document_made_from_an_older_version_is_refused(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    absent = render_site(site.document.model_copy(update={"name": "elsewhere"}))
    new = await api.put("/v1/sites/elsewhere", content=absent, headers={"If-Match": "*"})
    assert (new.status_code, "Leave If-Match out" in new.json()["next_step"]) == (412, True)
    assert (await api.get("/v1/sites/elsewhere")).status_code == 404
    await _put(api, site.document)
    old = {"If-Match": (await api.get("/v1/sites/demo")).headers["etag"]}
    changed = site.document.model_copy(update={"description": "changed by another operator"})
    assert (await _put(api, changed, headers=old)).status_code == 200
    mine = site.document.model_copy(update={"description": "changed by me"})
    for more in ({}, {"dry_run": "true"}):
        refused = await _put(api, mine, headers=old, params=more)
        assert (refused.status_code, bool(refused.json()["next_step"])) == (412, True)
    shown = await api.get("/v1/sites/demo")
    assert shown.json()["description"] == "changed by another operator"
    again = await _put(api, site.document, headers={"If-Match": shown.headers["etag"]})
    assert again.status_code == 200


async def test_passwords_are_sealed_in_the_store_and_masked_in_answers(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    shown = await api.get("/v1/sites/demo")
    events = str(await site.events("site.declared"))
    for credential in site.document.credentials.values():
        assert credential.password is not None
        assert credential.password.get_secret_value() not in shown.text + events


async def test_declaring_the_same_again_changes_nothing(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    await _put(api, site.document)
    before = len(await site.events("node.declared"))
    answer = await _put(api, site.document)
    assert answer.status_code == 200
    assert answer.json()["operation"] is None
    assert answer.json()["counts"] == {}
    assert len(await site.events("node.declared")) == before


async def test_a_mismatch_is_named_and_the_other_nodes_are_enrolled(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    nodes = list(site.document.nodes)
    port = nodes[4].infiniband[0].model_copy(update={"guid": "00000000deadbeef"})
    nodes[4] = nodes[4].model_copy(
        update={"serial": "WRONG", "infiniband": (port, *nodes[4].infiniband[1:])}
    )
    document = site.document.model_copy(update={"nodes": tuple(nodes)})
    await site.apply(document)
    report = await site.enrol()
    assert len(report.done) == 5
    node = await site.node("node-0005")
    assert node.state == NodeState.FAILED
    assert "declared is WRONG" in node.reason
    assert "00000000deadbeef is declared and not there" in node.reason
    await site.apply(site.document)
    assert (await site.node("node-0005")).state == NodeState.DECLARED
    await site.enrol(["node-0005"])
    assert (await site.node("node-0005")).state == NodeState.AVAILABLE


async def test_nodes_in_use_are_named_when_the_document_leaves_them_out(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    order = await site.order(["node-0001"])
    await site.provision(order)
    await site.unclaim(order)
    left = site.document.model_copy(update={"nodes": site.document.nodes[1:5]})
    answer = await _put(api, left)
    assert answer.status_code == 409
    assert answer.json()["nodes"] == ["node-0001 (active)"]
    assert (await site.node("node-0006")).retired_at is None

    shrunk = site.document.model_copy(update={"nodes": site.document.nodes[:5]})
    answer = await _put(api, shrunk)
    assert answer.status_code == 200, answer.text
    assert (await site.node("node-0006")).retired_at is not None
    (gone,) = [e for e in await site.events("node.declared") if e["retired"]]
    assert gone["name"] == "node-0006"
    listed = (await api.get("/v1/nodes")).json()["items"]
    assert "node-0006" not in [node["name"] for node in listed]


async def test_a_changed_password_is_a_change_of_the_site_alone(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    current = site.document.model_copy(update={"nodes": site.document.nodes[:5]})
    accounts = {
        **current.credentials,
        "nvue": Credential(username="u", password=SecretStr("p" * 9)),
    }
    answer = await _put(api, current.model_copy(update={"credentials": accounts}))
    assert answer.status_code == 200
    (changed,) = answer.json()["changed"]
    assert (changed["kind"], changed["name"]) == ("credential", "nvue")
    assert all(field["new"] != "p" * 9 for field in changed["fields"])
    assert answer.json()["operation"] is None


async def test_a_tenant_sees_the_nodes_it_holds_and_no_other(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    mine = (await api.get("/v1/nodes", headers={"X-Caller": "usr_tenant"})).json()["items"]
    assert [node["name"] for node in mine] == ["node-0001"]
    other = await api.get("/v1/nodes", headers={"X-Caller": "usr_other"})
    assert other.json()["items"] == []
    hidden = await api.get("/v1/nodes/node-0002", headers={"X-Caller": "usr_tenant"})
    assert hidden.status_code == 404


async def test_lists_come_in_pages(api: httpx.AsyncClient) -> None:
    first = (await api.get("/v1/nodes", params={"limit": 3})).json()
    assert [node["name"] for node in first["items"]] == ["node-0001", "node-0002", "node-0003"]
    rest = await api.get("/v1/nodes", params={"limit": 3, "cursor": first["next_cursor"]})
    assert [node["name"] for node in rest.json()["items"]] == ["node-0004", "node-0005"]
    assert rest.json()["next_cursor"] is None


async def test_an_order_on_a_node_is_an_operation_and_a_repeat_is_the_same(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    headers = {"X-Caller": "usr_tenant", "Idempotency-Key": "once"}
    answer = await api.post("/v1/nodes/node-0001/reboot", headers=headers)
    assert answer.status_code == 202, answer.text
    document = answer.json()
    assert document["project_id"] == "prj_a"
    assert [step["name"] for step in document["steps"]] == [
        "orchestrator.claim@1",
        "baremetal.reboot@1",
        "orchestrator.unclaim@1",
    ]
    again = await api.post("/v1/nodes/node-0001/reboot", headers=headers)
    assert again.json()["id"] == document["id"]


async def test_orders_are_refused_where_the_node_is_not_fit_for_them(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    answer = await api.post("/v1/nodes/node-0002/reboot")
    assert (answer.status_code, answer.json()["type"].rsplit("/")[-1]) == (409, "node-state")
    claim = Order(new_id("op"), "", site.nodes(["node-0001"]), "baremetal")
    await site.claim(claim)
    busy = await api.post("/v1/nodes/node-0001/reboot")
    assert (busy.status_code, busy.json()["operation_id"]) == (409, claim.operation_id)
    await site.unclaim(claim)


async def test_a_cordoned_node_takes_no_new_order(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    answer = await api.post("/v1/nodes/node-0003/cordon", json={"reason": "fans"})
    assert answer.json()["cordoned"] is True
    assert (await site.events("node.state_changed"))[-1]["cordoned"] is True
    order = await site.order(["node-0003"])
    report = await site.run("baremetal.prepare@1", order)
    assert report.failed == {order.node_ids[0]: "the node is cordoned (fans)"}
    await site.unclaim(order)
    answer = await api.post("/v1/nodes/node-0003/uncordon")
    assert answer.json()["cordoned"] is False


async def test_only_cleaning_leads_out_of_quarantine(
    api: httpx.AsyncClient, site: BaremetalSite
) -> None:
    answer = await api.post("/v1/nodes/node-0004/quarantine", json={"reason": "smells"})
    assert (answer.json()["state"], answer.json()["reason"]) == ("quarantine", "smells")
    operation_id = answer.json()["operation_id"]
    (operation,) = [e for e in await site.events("operation.changed") if e["id"] == operation_id]
    assert [step["name"] for step in operation["steps"]] == [
        "network.close@1",
        "baremetal.quarantine@1",
    ]
    quarantine = Order(
        operation_id, site.nodes(["node-0004"])[0], site.nodes(["node-0004"]), "baremetal"
    )
    report = await site.run("baremetal.quarantine@1", quarantine, params={"reason": "smells"})
    assert report.done == quarantine.node_ids
    refused = await api.post("/v1/nodes/node-0004/enrol")
    assert refused.status_code == 409
    cleaning = await api.post("/v1/nodes/node-0004/release-quarantine")
    assert cleaning.json()["kind"] == "clean_node"


async def test_a_tenant_sees_what_a_site_offers_and_not_how_full_or_broken_it_is(
    api: httpx.AsyncClient, site: BaremetalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _put(api, site.document)
    roles = {
        "usr_operator": RoleBinding(Role.OPERATOR),
        "usr_auditor": RoleBinding(Role.AUDITOR),
        "usr_tenant": RoleBinding(Role.PROJECT_ADMIN, "org_a", "prj_a"),
    }

    async def by_policy(
        principal: Principal, action: str, resources: Sequence[Resource]
    ) -> list[bool]:
        bound = Principal(principal.subject, "user", "", bindings=(roles[principal.subject],))
        return decide(bound, action, resources)

    monkeypatch.setattr(site.authorizer, "readable", by_policy)
    seen = {
        caller: (await api.get("/v1/sites", headers={"X-Caller": caller})).json()["items"][0]
        for caller in roles
    }
    for one in seen.values():
        assert (one["name"], one["region"]) == ("demo", site.document.region)
        (kind,) = one["node_types"]
        assert (kind["name"], kind["gpus"]) == ("h100-8", 8)
        assert (kind["price_per_node_hour"], kind["currency"]) == ("20.00", "EUR")
    assert (seen["usr_tenant"]["nodes"], seen["usr_tenant"]["description"]) == (None, None)
    for caller in ("usr_operator", "usr_auditor"):
        assert sum(seen[caller]["nodes"].values()) == 6
        assert seen[caller]["description"] == site.document.description


async def test_what_can_be_ordered_is_listed(api: httpx.AsyncClient) -> None:
    images = (await api.get("/v1/images")).json()["items"]
    assert [image["name"] for image in images] == ["base"]
    (kind,) = (await api.get("/v1/node-types")).json()["items"]
    assert (kind["name"], kind["gpus"], kind["price_per_node_hour"]) == ("h100-8", 8, "20.00")
