"""Promises about calls, answers, errors and exit codes."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.responses import JSONResponse

from dflare.cli.output import age_cell, duration

CLUSTER = {
    "id": "clu_1",
    "name": "a",
    "kind": "bare",
    "project_id": "prj_1",
    "site_id": "site_1",
    "image": "default",
    "state": "ready",
    "reason": "",
    "since": "2026-01-01T00:00:00Z",
    "pools": [{"id": "p", "name": "default", "node_type": "h100-8", "count": 16}],
    "nodes": [
        {
            "node_id": "node_1",
            "name": "node-0001",
            "node_type": "h100-8",
            "pool": "default",
            "allocation": "confirmed",
        }
    ],
    "ssh_keys": ["key"],
    "user_data": None,
    "operation_id": "op_1",
    "placement": "one rack",
    "created_by": "usr_1",
    "created_at": "2026-01-01T00:00:00Z",
}
ACCEPTED = {"id": "op_1", "state": "pending", "kind": "create_cluster", "steps": []}
CLUSTERS = "/projects/prj_1/clusters"


def pages(*items: Any) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


def refusal(status: int, **members: Any) -> JSONResponse:
    return JSONResponse({"status": status, **members}, status)


# --- errors and exit codes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, 3), (403, 4), (404, 4), (409, 1), (422, 1), (500, 1), (503, 5)],
)
def test_a_problem_is_two_lines_on_stderr_and_an_exit_code(
    stub: Any, cli: Any, status: int, code: int
) -> None:
    answer = refusal(status, detail="16 are wanted, 3 are free", next_step="Order 3.")
    stub.answer("POST", CLUSTERS, answer)
    result = cli("cluster", "create", "a", "-n", "16", "-t", "h100-8")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "error: 16 are wanted, 3 are free\nnext: Order 3.\n"


def test_an_answer_that_is_not_json_is_one_message(stub: Any, cli: Any) -> None:
    from fastapi.responses import HTMLResponse

    stub.answer("GET", "/sites", HTMLResponse("<h1>Welcome to the proxy</h1>"))
    result = cli("site", "list")
    assert result.exit_code == 1
    assert "answered 200 and no JSON" in result.stderr


def test_wrong_usage_is_exit_code_2(cli: Any) -> None:
    assert cli("cluster", "create").exit_code == 2
    assert cli("no-such-noun").exit_code == 2
    result = cli("cluster", "create", "a")
    assert result.exit_code == 2
    assert "names no nodes" in result.stderr
    assert cli("cluster", "create", "a", "--nodes", "3").exit_code == 2
    assert cli("cluster", "create", "a", "--pool", "x").exit_code == 2


def test_an_api_that_does_not_answer_here_says_to_start_it(cli: Any) -> None:
    result = cli("site", "list", DFLARE_CLI_URL="http://127.0.0.1:9")
    assert result.exit_code == 5
    assert "does not answer" in result.stderr
    assert "no local platform runs" in result.stderr
    assert "next: Start it by `dflare up`." in result.stderr


def test_without_a_project_the_error_names_those_there_are(stub: Any, cli: Any) -> None:
    stub.answer("GET", "/organizations", pages({"id": "org_1", "name": "acme"}))
    project = {"id": "prj_1", "name": "lab", "organization_id": "org_1"}
    stub.answer("GET", "/projects", pages(project, {**project, "id": "prj_2", "name": "fab"}))
    result = cli("ssh-key", "list", DFLARE_CLI_PROJECT=None)
    assert result.exit_code == 2
    assert "acme/lab, acme/fab" in result.stderr


def test_who_sees_one_project_need_not_choose_it(stub: Any, cli: Any) -> None:
    stub.answer("GET", "/organizations", pages())
    project = {"id": "prj_1", "name": "lab", "organization_id": "org_1"}
    stub.answer("GET", "/projects", pages(project))
    stub.answer("GET", "/projects/prj_1/ssh-keys", pages())
    assert cli("ssh-key", "list", DFLARE_CLI_PROJECT=None).exit_code == 0


def test_a_project_is_found_under_an_organization_that_is_not_visible(stub: Any, cli: Any) -> None:
    stub.answer("GET", "/organizations", pages())
    project = {"id": "prj_1", "name": "lab", "organization_id": "org_1"}
    stub.answer("GET", "/projects", pages(project))
    stub.answer("GET", "/projects/acme/lab", project)
    stub.answer("GET", "/projects/prj_1/ssh-keys", pages())
    assert cli("ssh-key", "list", "--project", "acme/lab").exit_code == 0


# --- orders and repeats ----------------------------------------------------------------------


def test_an_order_is_repeated_with_one_key_where_the_connection_breaks(
    stub: Any, cli: Any, flaky: Any
) -> None:
    stub.answer("POST", CLUSTERS, JSONResponse(ACCEPTED, 202))
    proxy = flaky(3)
    result = cli(*("cluster", "create", "a", "-n", "2", "-t", "h100-8"), DFLARE_CLI_URL=proxy.url)
    assert result.exit_code == 0, result.output
    assert result.stdout == "op_1\n"
    keys = {
        line
        for request in proxy.seen
        for line in request.lower().split(b"\r\n")
        if line.startswith(b"idempotency-key:")
    }
    assert len(proxy.seen) == 4
    assert len(keys) == 1


def test_an_order_is_given_up_after_three_repeats(cli: Any, flaky: Any) -> None:
    proxy = flaky(10)
    result = cli("cluster", "create", "a", "-n1", "-tx", DFLARE_CLI_URL=proxy.url)
    assert result.exit_code == 5
    assert len(proxy.seen) == 4


def test_a_post_without_a_key_at_the_server_is_not_sent_twice(cli: Any, flaky: Any) -> None:
    proxy = flaky(10)
    result = cli("organization", "create", "acme", DFLARE_CLI_URL=proxy.url)
    assert result.exit_code == 5
    assert len(proxy.seen) == 1


def test_an_order_is_repeated_where_a_store_was_away(stub: Any, cli: Any) -> None:
    stub.answer("POST", CLUSTERS, refusal(503, detail="away"), JSONResponse(ACCEPTED, 202))
    assert cli("cluster", "create", "a", "-n", "2", "-t", "h100-8").exit_code == 0
    keys = [headers["idempotency-key"] for _, headers, _ in stub.asked("POST", CLUSTERS)]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_what_came_too_often_is_repeated_when_it_may_be(stub: Any, cli: Any) -> None:
    stub.answer("GET", CLUSTERS, refusal(429, detail="often"), JSONResponse({"items": []}))
    assert cli("cluster", "list").exit_code == 0
    assert len(stub.asked("GET", CLUSTERS)) == 2
    stub.answer("POST", "/organizations", refusal(429, detail="often"), refusal(422))
    cli("organization", "create", "acme")
    assert len(stub.asked("POST", "/organizations")) == 2


def test_two_orders_have_two_keys(stub: Any, cli: Any) -> None:
    stub.answer("POST", CLUSTERS, JSONResponse(ACCEPTED, 202))
    for _ in range(2):
        cli("cluster", "create", "a", "-n", "2", "-t", "h100-8")
    keys = {headers["idempotency-key"] for _, headers, _ in stub.asked("POST", CLUSTERS)}
    assert len(keys) == 2


def test_the_body_of_an_order_says_what_was_asked_for(stub: Any, cli: Any) -> None:
    stub.answer("POST", CLUSTERS, JSONResponse(ACCEPTED, 202))
    cli(
        *("cluster", "create", "a", "--pool", "gpu=h100-8:4", "--pool", "cpu=cpu:1"),
        *("--ssh-key", "k1", "--ssh-key", "k2", "--user-data", "ud", "--site", "lab"),
    )
    assert json.loads(stub.asked("POST", CLUSTERS)[0][2]) == {
        "name": "a",
        "site": "lab",
        "image": "default",
        "pools": [
            {"name": "gpu", "node_type": "h100-8", "count": 4},
            {"name": "cpu", "node_type": "cpu", "count": 1},
        ],
        "ssh_keys": ["k1", "k2"],
        "user_data": "ud",
    }


def test_a_dry_run_shows_price_and_placement_and_orders_nothing(stub: Any, cli: Any) -> None:
    quote = {
        "dry_run": True,
        "nodes": ["node-0001", "node-0002"],
        "placement": "one rack",
        "price_per_hour": "40.00",
        "currency": "EUR",
    }
    stub.answer("POST", CLUSTERS, quote)
    result = cli("cluster", "create", "a", "-n", "2", "-t", "h100-8", "--dry-run")
    assert result.exit_code == 0
    assert "40.00 EUR an hour" in result.stdout
    assert "one rack" in result.stdout
    assert stub.asked("POST", CLUSTERS)[0][0] == {"dry_run": "true"}


def test_deleting_asks_and_without_a_terminal_wants_yes(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{CLUSTERS}/a", CLUSTER)
    stub.answer("DELETE", f"{CLUSTERS}/clu_1", JSONResponse(ACCEPTED, 202))
    result = cli("cluster", "delete", "a")
    assert result.exit_code == 2
    assert "next: Add --yes." in result.stderr
    assert stub.asked("DELETE", f"{CLUSTERS}/clu_1") == []
    assert cli("cluster", "delete", "a", "--yes").exit_code == 0


def test_what_is_deleted_is_what_was_looked_at(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{CLUSTERS}/a", JSONResponse(CLUSTER, headers={"ETag": '"clu_1-7"'}))
    changed = refusal(412, detail="the resource is at version 8", next_step="Read it again.")
    stub.answer("DELETE", f"{CLUSTERS}/clu_1", changed)
    result = cli("cluster", "delete", "a", "--yes")
    assert (result.exit_code, "next: Read it again." in result.stderr) == (1, True)
    ((_, headers, _),) = stub.asked("DELETE", f"{CLUSTERS}/clu_1")
    assert headers["if-match"] == '"clu_1-7"'


def test_a_cluster_is_found_by_id_without_a_project(stub: Any, cli: Any) -> None:
    stub.answer("GET", "/clusters", pages(CLUSTER))
    stub.answer("GET", f"{CLUSTERS}/clu_1", CLUSTER)
    assert cli("cluster", "show", "clu_1", DFLARE_CLI_PROJECT=None).exit_code == 0
    missing = cli("cluster", "show", "clu_2", DFLARE_CLI_PROJECT=None)
    assert missing.exit_code == 4


def test_names_cannot_lead_to_another_path(stub: Any, cli: Any) -> None:
    cli("node", "show", "../sites/x?y=1")
    assert [path for _, path, *_ in stub.requests] == ["/nodes/../sites/x?y=1"]


# --- output ----------------------------------------------------------------------------------


def test_lists_follow_every_page(stub: Any, cli: Any) -> None:
    first = {"items": [{**CLUSTER, "name": "a"}], "next_cursor": "c2"}
    stub.answer("GET", CLUSTERS, first, pages({**CLUSTER, "name": "b"}))
    listed = json.loads(cli("cluster", "list", "-o", "json").stdout)
    assert [item["name"] for item in listed] == ["a", "b"]
    assert stub.asked("GET", CLUSTERS)[1][0]["cursor"] == "c2"


def test_a_table_without_a_terminal_is_aligned_and_plain(stub: Any, cli: Any) -> None:
    stub.answer("GET", CLUSTERS, pages(CLUSTER, {**CLUSTER, "name": "longer", "state": "failed"}))
    head, first, second = cli("cluster", "list").stdout.splitlines()
    assert head.split()[:3] == ["NAME", "STATE", "NODES"]
    assert "16 x h100-8" in first
    assert first.index("ready") == second.index("failed") == head.index("STATE")
    assert "\x1b" not in head + first + second
    assert head == head.rstrip()


def test_json_and_yaml_hold_the_whole_answer(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{CLUSTERS}/a", CLUSTER)
    assert json.loads(cli("cluster", "show", "a", "-o", "json").stdout) == CLUSTER
    assert yaml.safe_load(cli("cluster", "show", "a", "-o", "yaml").stdout) == CLUSTER


def test_an_empty_list_is_said_on_stderr_and_is_an_empty_array_in_json(stub: Any, cli: Any) -> None:
    stub.answer("GET", CLUSTERS, pages())
    result = cli("cluster", "list")
    assert (result.stdout, result.stderr) == ("", "There is no cluster.\n")
    assert json.loads(cli("cluster", "list", "-o", "json").stdout) == []


def test_show_prints_the_nodes_below(stub: Any, cli: Any) -> None:
    stub.answer("GET", f"{CLUSTERS}/a", CLUSTER)
    assert "node-0001" in cli("cluster", "show", "a").stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (45, "45s"),
        (119, "119s"),
        (125, "2m5s"),
        (600, "10m"),
        (7200, "120m"),
        (4 * 3600 + 60, "4h1m"),
        (30 * 3600, "30h"),
        (5 * 86400, "5d"),
    ],
)
def test_ages_read_like_kubectls(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_age_counts_from_now_in_any_zone() -> None:
    assert age_cell((datetime.now(UTC) - timedelta(days=3)).isoformat()) == "3d"
    assert age_cell(None) == "-"


def test_the_invoice_has_lines_and_totals(stub: Any, cli: Any) -> None:
    line = {
        "cluster_id": "clu_1",
        "site_id": "s",
        "node_type": "h100-8",
        "price_per_node_hour": "20.00",
        "currency": "EUR",
        "node_seconds": "7200",
        "gpu_seconds": "57600",
        "amount": "40.00",
    }
    answer = {
        "project_id": "prj_1",
        "project": "lab",
        "month": "2026-01",
        "state": "draft",
        "as_of": "2026-01-31T00:00:00Z",
        "lines": [line],
        "totals": {"EUR": "40.00"},
    }
    stub.answer("GET", "/projects/prj_1/invoices/2026-01", answer)
    text = cli("invoice", "show", "--month", "2026-01").stdout
    assert "2.000" in text
    assert "Total 40.00 EUR" in text
    same = json.loads(cli("invoice", "show", "-m", "2026-01", "-o", "json").stdout)
    assert same == answer


def test_a_private_key_is_never_sent(stub: Any, cli: Any, tmp_path: Path) -> None:
    key = tmp_path / "id_ed25519"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    result = cli("ssh-key", "add", "k", str(key))
    assert result.exit_code == 2
    assert "private key" in result.stderr
    assert stub.requests == []


def test_a_token_is_printed_alone_so_that_it_can_be_piped(stub: Any, cli: Any) -> None:
    issued = {"id": "tok_1", "secret": "dfl_x", "expires_at": "2026-02-01T00:00:00Z"}
    stub.answer("POST", "/tokens", issued)
    assert cli("token", "create", "ci").stdout == "dfl_x\n"
