"""`dflare node top`, `dflare cluster top`, `dflare alert list`: what is asked and what is shown."""

import json
from typing import Any

from api_stub import problem
from fastapi import Request
from fastapi.responses import JSONResponse

PROJECT = "/projects/prj_1/metrics/api/v1/query"
ALL = "/metrics/api/v1/query"
ALERT = {
    "id": "alert_1",
    "rule": "dead_gpu",
    "state": "raised",
    "severity": "critical",
    "summary": "GPU 5 of n7 does not answer",
    "site_id": "site_1",
    "organization_id": "org_1",
    "project_id": "prj_1",
    "cluster_id": "clu_1",
    "subject_kind": "node",
    "subject_id": "node_7",
    "subject_name": "n7",
    "part": "GPU 5",
    "raised_at": "2026-01-01T00:00:00Z",
    "resolved_at": None,
}
VALUES = {
    "hw_gpu_count": ("8", "7"),
    "hw_gpu_utilization_ratio": ("0.93", "0.5"),
    "hw_gpu_memory_usage_bytes": (str(600 << 30), str(100 << 30)),
    "hw_temperature_celsius": ("71.4", "80"),
    "hw_power_watts": ("6100", "4100"),
    "system_cpu_time_seconds_total": ("0.25", "0.75"),
    "system_memory_usage_bytes": (str(300 << 30), str(100 << 30)),
    "hw_network_io_bytes_total": ("1e9", "0"),
    "hw_network_up": (None, "1"),
}


def measured(request: Request) -> JSONResponse:
    """The answer to one of the program's queries: of two nodes."""
    query = request.query_params["query"]
    values = next(found for name, found in VALUES.items() if name in query)
    result = [
        {
            "metric": {"site": "s", "node": f"n{number}", "cluster": "train"},
            "value": [1_700_000_000, value],
        }
        for number, value in enumerate(values)
        if value is not None
    ]
    return JSONResponse({"status": "success", "data": {"resultType": "vector", "result": result}})


def test_a_project_sees_what_its_nodes_do(stub: Any, cli: Any) -> None:
    stub.answer("GET", PROJECT, measured)
    shown = cli("node", "top").stdout
    for text in ("n0", "train", "93 %", "600.0 GiB", "71 °C", "6100 W", "25 %", "953.7 MiB/s"):
        assert text in shown
    rows = json.loads(cli("node", "top", "-o", "json").stdout)
    assert [row["node"] for row in rows] == ["n0", "n1"]
    assert [row["gpus"] for row in rows] == [8.0, 7.0]
    assert [row["links_down"] for row in rows] == [0.0, 1.0]
    assert stub.asked("GET", ALL) == []


def test_operators_ask_for_everybodys_nodes(stub: Any, cli: Any) -> None:
    stub.answer("GET", ALL, measured)
    assert "n1" in cli("node", "top", "--all").stdout
    assert stub.asked("GET", PROJECT) == []


def test_a_clusters_nodes_are_shown_with_what_they_are_together(stub: Any, cli: Any) -> None:
    found = {"id": "clu_1", "name": "train", "project_id": "prj_1"}
    stub.answer("GET", "/projects/prj_1/clusters/clu_1", found)
    stub.answer("GET", PROJECT, measured)
    shown = cli("cluster", "top", "clu_1").stdout
    last = shown.strip().splitlines()[-1]
    for text in ("total", "2 nodes", "15", "72 %", "700.0 GiB", "80 °C", "10.2 kW", "50 %"):
        assert text in last
    queries = [query["query"] for query, _, _ in stub.asked("GET", PROJECT)]
    assert queries
    assert all('cluster="train"' in query for query in queries)


def test_where_nothing_was_measured_it_says_so(stub: Any, cli: Any) -> None:
    stub.answer("GET", PROJECT, {"status": "success", "data": {"result": []}})
    result = cli("node", "top")
    assert result.exit_code == 0
    assert "Nothing was measured" in result.stderr


def test_without_a_store_it_says_what_to_install(stub: Any, cli: Any) -> None:
    stub.answer("GET", PROJECT, problem(503, "nothing is kept", "Install victoria-metrics."))
    result = cli("node", "top")
    assert result.exit_code != 0
    assert "Install victoria-metrics." in result.stderr


def test_alerts_are_listed_of_a_project_or_of_all(stub: Any, cli: Any) -> None:
    stub.answer("GET", "/projects/prj_1/alerts", {"items": [ALERT], "next_cursor": None})
    stub.answer("GET", "/alerts", {"items": [], "next_cursor": None})
    shown = cli("alert", "list").stdout
    for text in ("critical", "dead_gpu", "GPU 5 of n7 does not answer", "n7"):
        assert text in shown
    assert json.loads(cli("alert", "list", "-o", "json").stdout) == [ALERT]
    assert "There is no alert." in cli("alert", "list", "--all").stderr
    cli("alert", "list", "--resolved")
    assert stub.asked("GET", "/projects/prj_1/alerts")[-1][0]["resolved"] == "true"
