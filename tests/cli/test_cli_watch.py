"""Promises about watching: live steps, resume by cursor, and what Ctrl-C does."""

import io
import json
import signal
from datetime import UTC, datetime
from typing import Any

import pytest
from api_stub import operation, step, store, until
from fastapi.responses import JSONResponse
from rich.console import Console

from dflare.cli.client import Api
from dflare.cli.config import ConfigFile, resolve
from dflare.cli.errors import ApiProblem, NotLoggedInError
from dflare.cli.stream import EventStream
from dflare.cli.trace import trace_lines
from dflare.cli.watch import changed_lines, operation_tree, versions

OPERATION = "/operations/op_1"


@pytest.fixture
def api(stub: Any, cli: Any) -> Any:
    environment = {key: value for key, value in cli.environment.items() if value is not None}
    file = ConfigFile.of(environment)
    with Api(file, resolve(file, environment, None)) as opened:
        yield opened


def rendered(document: dict[str, Any], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(operation_tree(document, datetime(2026, 1, 1, 0, 1, 5, tzinfo=UTC)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- the tree --------------------------------------------------------------------------------


def test_the_tree_shows_each_step_with_progress_time_and_failures() -> None:
    steps = [
        step("clusters.begin@1", "done", 1, 1),
        step("baremetal.provision@1", "running", 12, failed=1, message="node-0007: no POST"),
        step("orchestrator.hand_over@1"),
    ]
    head, begin, provision, hand_over = rendered(operation(steps=steps)).rstrip().splitlines()
    assert "create_cluster clu_1" in head
    assert "65s" in head
    assert "├─ ✔ clusters.begin" in begin
    assert "2.5s" in begin
    assert "● baremetal.provision" in provision
    assert "12/16, 1 failed" in provision
    assert "65s" in provision
    assert "node-0007: no POST" in provision
    assert "━" in provision
    assert "└─ ○ orchestrator.hand_over" in hand_over


def test_the_tree_says_why_an_operation_failed() -> None:
    text = rendered(operation("failed", reason="capacity_lost", steps=[step("a.b@1", "failed")]))
    assert "✘ create_cluster" in text
    assert "capacity_lost" in text


def test_plain_lines_come_once_for_a_change() -> None:
    shown: dict[str, Any] = {}
    document = operation(steps=[step("a.b@1", "running", 3), step("c.d@1")])
    assert [line.split()[:3] for line in changed_lines(document, shown)] == [
        ["a.b", "running", "3/16"],
        ["create_cluster", "op_1", "is"],
    ]
    assert list(changed_lines(document, shown)) == []


# --- following an operation ------------------------------------------------------------------


def test_watching_ends_with_success_and_prints_steps_on_stderr_only(stub: Any, cli: Any) -> None:
    stub.answer("GET", OPERATION, operation(version=1))
    with cli.process("operation", "watch", "op_1") as process:
        until(stub.connected.is_set)
        stub.emit(operation(version=2, steps=[step("a.b@1", "running", 3)]))
        stub.emit(operation("succeeded", version=3, steps=[step("a.b@1", "done", 16)]))
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert "a.b" in err
    assert "is succeeded" in err
    assert stub.connections[0]["operation"] == "op_1"


def test_a_failed_operation_is_exit_code_1_with_its_reason(stub: Any, cli: Any) -> None:
    stub.answer("GET", OPERATION, operation("failed", reason="no nodes left"))
    result = cli("operation", "watch", "op_1", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["state"] == "failed"
    assert "error: create_cluster failed: no nodes left" in result.stderr
    assert "dflare operation retry op_1" in result.stderr


def test_wait_follows_an_order_that_lists_do_not_know_yet(stub: Any, cli: Any) -> None:
    accepted = operation("pending", version=1)
    stub.answer("POST", "/projects/prj_1/clusters", JSONResponse(accepted, 202))
    stub.emit(operation("running", version=2))
    stub.emit(operation("succeeded", version=3))
    stub.close_codes = [4410]
    done = JSONResponse({"status": 404, "detail": "unknown"}, 404)
    stub.answer("GET", OPERATION, done, operation("succeeded", version=3))
    result = cli("cluster", "create", "a", "-n", "1", "-t", "t", "--wait", "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["state"] == "succeeded"
    assert "Cluster a is ready" in result.stderr


def test_ctrl_c_leaves_the_operation_running_and_says_how_to_go_on(stub: Any, cli: Any) -> None:
    stub.answer("GET", OPERATION, operation(version=1))
    with cli.process("operation", "watch", "op_1") as process:
        until(stub.connected.is_set)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "dflare operation watch op_1" in err
    assert [method for method, *_ in stub.requests] == ["GET"] * len(stub.requests)


def test_an_older_version_never_replaces_a_newer_one(stub: Any, api: Any) -> None:
    stub.answer("GET", OPERATION, operation(version=5))
    seen: list[int] = []
    for item in versions(api, "op_1"):
        if item is not None:
            seen.append(item["version"])
        if seen == [5] and not stub.events:
            stub.emit(operation("pending", version=2))
            stub.emit(operation("succeeded", version=6))
    assert seen == [5, 6]


def test_an_unknown_operation_is_refused_at_once(stub: Any, api: Any) -> None:
    with pytest.raises(ApiProblem, match="there is no /operations/op_1"):
        list(versions(api, "op_1"))


# --- the stream ------------------------------------------------------------------------------


def collect(events: EventStream, count: int) -> list[Any]:
    found: list[Any] = []
    for message in events.messages():
        if message is not None and message["type"] != "hello":
            found.append(message["data"]["version"])
            if len(found) == count:
                break
    return found


def test_a_lost_connection_goes_on_from_its_cursor_without_gap_or_repeat(
    stub: Any, api: Any
) -> None:
    for version in range(1, 7):
        stub.emit(operation(version=version))
    stub.drop_after = [2, 3]
    events = EventStream(api, cursor="0", sleep=lambda _: None)
    assert collect(events, 6) == [1, 2, 3, 4, 5, 6]
    assert [query["cursor"] for query in stub.connections] == ["0", "2", "5"]


def test_a_cursor_below_retention_starts_from_now_and_says_so(stub: Any, api: Any) -> None:
    stub.emit(operation(version=1))
    stub.close_codes = [4410]
    told: list[str] = []
    events = EventStream(api, cursor="0", sleep=lambda _: None, notice=told.append)
    first = next(message for message in events.messages() if message is not None)
    assert first["type"] == "hello"
    assert "cursor" not in stub.connections[1]
    assert any("missed" in text for text in told)


def test_an_expired_token_is_renewed_while_watching(stub: Any, tmp_path: Any) -> None:
    stub.refresh_tokens.add("r1")
    file = store(tmp_path / "c.json", url=stub.url, access_token="old", refresh_token="r1")
    stub.emit(operation(version=1))
    with Api(file, resolve(file, {}, None)) as renewing:
        assert collect(EventStream(renewing, cursor="0", sleep=lambda _: None), 1) == [1]
    assert stub.refreshed == 1


def test_a_login_that_cannot_be_renewed_ends_the_watching(stub: Any, api: Any) -> None:
    stub.close_codes = [4401]
    with pytest.raises(NotLoggedInError):
        list(EventStream(api, sleep=lambda _: None).messages())


def test_where_websockets_cannot_pass_events_are_polled(stub: Any, api: Any) -> None:
    stub.websocket = False
    for version in range(1, 4):
        stub.emit(operation(version=version))
    events = EventStream(api, cursor="1", sleep=lambda _: None)
    assert collect(events, 2) == [2, 3]
    assert events.cursor == "3"


def test_events_follow_prints_a_document_a_line(stub: Any, cli: Any) -> None:
    with cli.process("events", "--follow", "-o", "json") as process:
        until(stub.connected.is_set)
        stub.emit(operation(version=1))
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert json.loads(line)["type"] == "operation.changed"
    assert process.returncode == 130
    assert "--after 1" in err


def test_kept_events_are_printed_behind_a_cursor(stub: Any, cli: Any) -> None:
    for version in range(1, 4):
        stub.emit(operation(version=version))
    result = cli("events", "--after", "1")
    assert len(result.stdout.splitlines()) == 2
    assert "dflare events --after 3" in result.stderr


def test_a_watched_list_is_shown_again_after_an_event(stub: Any, cli: Any) -> None:
    page = {"items": [operation(version=1)], "next_cursor": None}
    ended = {"items": [operation("succeeded", version=2)], "next_cursor": None}
    stub.answer("GET", "/operations", page, ended)
    with cli.process("operation", "list", "--watch", "-o", "json") as process:
        until(stub.connected.is_set)
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        stub.emit(operation("succeeded", version=2))
        second = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert (first[0]["state"], second[0]["state"]) == ("running", "succeeded")


# --- the story -------------------------------------------------------------------------------


def span(name: str, start: float, end: float, *children: Any, **more: Any) -> dict[str, Any]:
    return {
        "span_id": f"{name}{start}",
        "name": name,
        "process": "worker",
        "started_at": f"2026-01-01T00:00:{start:09.6f}+00:00",
        "duration_ms": (end - start) * 1000,
        "error": None,
        "attributes": {},
        "children": list(children),
        **more,
    }


def test_the_trace_is_indented_from_the_api_to_the_device() -> None:
    call = span("redfish GET", 2, 2.25, error="timed out", attributes={"bmc": "10.0.0.1"})
    story = {"spans": [span("api", 0, 4, span("step", 1, 3, call))]}
    lines = [line.plain for line in trace_lines(story)]
    assert [line[21:].partition("  [")[0] for line in lines] == [
        "api",
        "  step",
        "    redfish GET  bmc=10.0.0.1",
    ]
    assert "timed out" in lines[2]
    assert "250.0ms" in lines[2]


def test_many_spans_alike_are_summed_up() -> None:
    calls = [span("redfish GET", second, second + 1) for second in range(1, 9)]
    lines = [line.plain for line in trace_lines({"spans": [span("api", 0, 9, *calls)]})]
    assert len(lines) == 2
    assert "x8, median 1.00s" in lines[1]
