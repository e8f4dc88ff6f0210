"""`dflare volume`: what is asked of the API and what is shown of its answers."""

import json
from typing import Any

from api_stub import operation
from fastapi.responses import JSONResponse

VOLUMES = "/projects/prj_1/volumes"
ACCESS = {"cluster_id": "clu_1", "cluster": "train", "mode": "rw", "observed": "ro"}
VOLUME = {
    "id": "vol_1",
    "name": "data",
    "organization_id": "org_1",
    "project_id": "prj_1",
    "site_id": "site_1",
    "size_gib": 100,
    "wanted_gib": 100,
    "state": "ready",
    "reason": "",
    "trouble": "",
    "since": "2026-01-01T00:00:00Z",
    "deadline": None,
    "quota": "advisory",
    "used_bytes": 3 * 2**29,
    "used_complete": True,
    "over_quota": False,
    "scanned_at": "2026-01-01T00:00:00Z",
    "no_snapshots": "",
    "access": [ACCESS],
    "operation_id": "op_1",
    "created_by": "usr_1",
    "created_at": "2026-01-01T00:00:00Z",
    "version": 3,
}


def sent(stub: Any, method: str, path: str) -> Any:
    """The body of the only request to a route."""
    ((_, _, body),) = stub.asked(method, path)
    return json.loads(body) if body else None


def test_an_order_names_the_size_in_gib_and_prints_its_operation(stub: Any, cli: Any) -> None:
    stub.answer("POST", VOLUMES, operation("pending", kind="create_volume"))
    result = cli("volume", "create", "data", "--size", "100", "--site", "demo")
    assert (result.exit_code, result.stdout.strip()) == (0, "op_1")
    assert sent(stub, "POST", VOLUMES) == {"name": "data", "size_gib": 100, "site": "demo"}
    ((_, headers, _),) = stub.asked("POST", VOLUMES)
    assert headers["idempotency-key"]


def test_a_size_is_asked_for_and_is_at_least_one_gib(stub: Any, cli: Any) -> None:
    assert cli("volume", "create", "data").exit_code == 2
    assert cli("volume", "create", "data", "--size", "0").exit_code == 2
    assert stub.requests == []


def test_a_list_shows_size_use_how_the_size_is_held_and_who_has_it(stub: Any, cli: Any) -> None:
    stub.answer("GET", VOLUMES, {"items": [VOLUME], "next_cursor": None})
    shown = cli("volume", "list").stdout
    for text in ("data", "ready", "100 GiB", "1.5 GiB", "advisory", "train rw"):
        assert text in shown
    assert json.loads(cli("volume", "list", "-o", "json").stdout) == [VOLUME]


def test_one_that_holds_too_much_says_what_to_do(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{VOLUMES}/data", {**VOLUME, "over_quota": True, "trouble": "slow"})
    result = cli("volume", "show", "data")
    assert result.exit_code == 0
    assert "slow" in result.stdout
    assert "train" in result.stdout
    assert "more than its size" in result.stderr


def test_a_resize_is_an_order(stub: Any, cli: Any) -> None:
    stub.answer("PATCH", f"{VOLUMES}/data", operation("pending", kind="resize_volume"))
    assert cli("volume", "resize", "data", "--size", "200").stdout.strip() == "op_1"
    assert sent(stub, "PATCH", f"{VOLUMES}/data") == {"size_gib": 200}


def test_a_cluster_gets_a_volume_for_writing_unless_it_may_only_read(stub: Any, cli: Any) -> None:
    path = f"{VOLUMES}/data/access/train"
    stub.answer("PUT", path, VOLUME)
    assert "train" in cli("volume", "attach", "data", "train").stdout
    assert sent(stub, "PUT", path) == {"mode": "rw"}
    cli("volume", "attach", "data", "train", "--read-only")
    assert json.loads(stub.asked("PUT", path)[1][2]) == {"mode": "ro"}
    stub.answer("DELETE", path, {**VOLUME, "access": []})
    assert cli("volume", "detach", "data", "train").exit_code == 0


def test_a_release_says_what_is_lost_asks_and_names_what_was_looked_at(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{VOLUMES}/data", JSONResponse(VOLUME, headers={"ETag": '"vol_1-3"'}))
    stub.answer("DELETE", f"{VOLUMES}/vol_1", operation("pending", kind="delete_volume"))
    assert cli("volume", "delete", "data", text="n\n").exit_code != 0
    assert stub.asked("DELETE", f"{VOLUMES}/vol_1") == []
    assert cli("volume", "delete", "data", "--yes").stdout.strip() == "op_1"
    ((_, headers, _),) = stub.asked("DELETE", f"{VOLUMES}/vol_1")
    assert headers["if-match"] == '"vol_1-3"'


def test_without_a_project_a_volume_is_found_where_its_name_is_the_only_one(
    stub: Any, cli: Any
) -> None:
    cli.environment["DFLARE_CLI_PROJECT"] = None
    stub.answer("GET", "/volumes", {"items": [VOLUME], "next_cursor": None})
    stub.answer("GET", f"{VOLUMES}/vol_1", VOLUME)
    assert cli("volume", "show", "data").exit_code == 0
    stub.answer("GET", "/volumes", {"items": [VOLUME, VOLUME], "next_cursor": None})
    assert "more than one volume" in cli("volume", "show", "data").stderr


def test_a_dry_run_shows_the_price_and_the_room_and_orders_nothing(stub: Any, cli: Any) -> None:
    quote = {
        "dry_run": True,
        "name": "data",
        "size_gib": 100,
        "site_id": "site_1",
        "site": "demo",
        "price_per_hour": "0.0500",
        "currency": "EUR",
        "limit_gib": 1000,
        "used_gib": 300,
        "quota": "hard",
    }
    stub.answer("POST", VOLUMES, quote)
    stub.answer("PATCH", f"{VOLUMES}/data", quote)
    for command in (("create", "data"), ("resize", "data")):
        result = cli("volume", *command, "--size", "100", "--dry-run")
        assert result.exit_code == 0
        for text in ("demo", "100 GiB", "0.0500", "EUR", "300 GiB", "1000 GiB"):
            assert text in result.stdout
    assert [query for _, _, query, _, _ in stub.requests] == [{"dry_run": "true"}] * 2


def test_snapshots_are_taken_listed_and_dropped(stub: Any, cli: Any) -> None:
    kept = {"id": "snp_1", "name": "first", "state": "ready", "path": ".snapshots/snp_1"}
    snapshot = {**kept, "taken_at": "2026-01-01T00:00:00Z"}
    one = f"{VOLUMES}/data/snapshots/first"
    stub.answer("PUT", one, snapshot)
    stub.answer("GET", f"{VOLUMES}/data/snapshots", {"items": [snapshot], "next_cursor": None})
    stub.answer("DELETE", one, {**snapshot, "state": "deleting"})
    assert ".snapshots/snp_1" in cli("volume", "snapshot", "create", "data", "first").stdout
    assert "ready" in cli("volume", "snapshot", "list", "data").stdout
    assert cli("volume", "snapshot", "delete", "data", "first").exit_code == 2
    assert stub.asked("DELETE", one) == []
    assert "deleting" in cli("volume", "snapshot", "delete", "data", "first", "--yes").stdout
