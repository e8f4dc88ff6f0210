"""Users, roles and projects on the command line, and what a tenant sees of a site."""

import json
from typing import Any

from fastapi.responses import JSONResponse


def pages(*items: Any) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


def test_a_tenant_is_shown_what_a_site_offers_where_its_document_is_the_operators(
    stub: Any, cli: Any
) -> None:
    kind = {"name": "h100-8", "price_per_node_hour": "20.00", "currency": "EUR"}
    offer = {
        "id": "site_1",
        "name": "north",
        "region": "eu",
        "description": None,
        "node_types": [kind],
        "nodes": None,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "version": 1,
    }
    stub.answer("GET", "/sites", pages(offer))
    shown = cli("site", "show", "north")
    assert shown.exit_code == 0
    assert "h100-8 (20.00 EUR an hour)" in shown.stdout
    assert cli("site", "show", "south").exit_code == 4


def test_who_has_no_role_is_told_so(stub: Any, cli: Any) -> None:
    me = {"name": "ada@acme", "subject": "usr_1", "kind": "user", "bindings": []}
    stub.answer("GET", "/whoami", me)
    assert "none; somebody gives you one" in cli("whoami").stdout


def test_images_are_listed_by_site_in_the_sites_own_order(stub: Any, cli: Any) -> None:
    image = {"site_id": "site_1", "name": "base", "builtin": True, "sha256": None}
    stub.answer("GET", "/sites", pages({"id": "site_1", "name": "north"}))
    stub.answer("GET", "/images", pages(image, {**image, "name": "a-cuda", "builtin": False}))
    lines = cli("site", "images").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["base", "north"], ["a-cuda", "north"]]


def test_a_user_is_shown_with_the_name_to_log_in_with(stub: Any, cli: Any) -> None:
    ada = {
        "id": "usr_1",
        "name": "ada",
        "organization_id": "org_1",
        "email": "",
        "display_name": "Ada",
        "disabled": False,
        "created_at": "2026-01-01T00:00:00Z",
    }
    stub.answer("GET", "/organizations", pages({"id": "org_1", "name": "acme"}))
    stub.answer("POST", "/users", JSONResponse(ada, 201))
    stub.answer("GET", "/users", pages(ada, {**ada, "name": "op", "organization_id": None}))
    made = cli(
        *("user", "create", "ada", "--organization", "acme", "--password-stdin"), text="secret\n"
    )
    assert (made.exit_code, made.stderr) == (0, "Logs in as ada@acme.\n")
    listed = json.loads(cli("user", "list", "-o", "json").stdout)
    assert [user["login"] for user in listed] == ["ada@acme", "op"]


def test_a_user_is_disabled_enabled_given_a_password_and_deleted(stub: Any, cli: Any) -> None:
    path = "/users/ada@acme"
    stub.answer("GET", path, JSONResponse({"id": "usr_1"}, headers={"ETag": '"3"'}))
    stub.answer("PATCH", path, {})
    stub.answer("PUT", f"{path}/password", JSONResponse({}))
    stub.answer("DELETE", "/users/usr_1", JSONResponse({}))
    assert cli("user", "disable", "ada@acme").exit_code == 0
    assert cli("user", "enable", "ada@acme").exit_code == 0
    asked = [json.loads(body) for _, _, body in stub.asked("PATCH", path)]
    assert asked == [{"disabled": True}, {"disabled": False}]
    assert cli("user", "password", "ada@acme", "--password-stdin", text="pw\n").exit_code == 0
    assert json.loads(stub.asked("PUT", f"{path}/password")[0][2]) == {"password": "pw"}
    assert cli("user", "delete", "ada@acme").exit_code == 2
    assert cli("user", "delete", "ada@acme", "--yes").exit_code == 0
    ((_, headers, _),) = stub.asked("DELETE", "/users/usr_1")
    assert headers["if-match"] == '"3"'


def test_a_project_is_chosen_by_organization_and_name(stub: Any, fresh_cli: Any) -> None:
    stub.answer("GET", "/whoami", {"name": "ada"})
    stub.answer(
        "GET", "/organizations", pages({"id": "o1", "name": "x"}, {"id": "o2", "name": "y"})
    )
    projects = [
        {"id": "p1", "name": "lab", "organization_id": "o1"},
        {"id": "p2", "name": "lab", "organization_id": "o2"},
    ]
    stub.answer("GET", "/projects", pages(*projects))
    stub.answer("GET", "/projects/p2/ssh-keys", pages())
    fresh_cli("login", "--url", stub.url, "--token-stdin", text="good\n")
    ambiguous = fresh_cli("project", "use", "lab")
    assert ambiguous.exit_code == 2
    assert "x/lab, y/lab" in ambiguous.stderr
    assert fresh_cli("project", "use", "y/lab").exit_code == 0
    assert fresh_cli("ssh-key", "list", DFLARE_CLI_PROJECT=None).exit_code == 0
