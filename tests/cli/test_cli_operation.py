"""`dflare operation`: what people do with orders under way."""

import json
from typing import Any

import pytest
import yaml
from api_stub import operation, step
from fastapi.responses import JSONResponse

PATH = "/operations/op_1"


def test_a_list_shows_how_many_steps_are_done_and_asks_for_what_is_wanted(
    stub: Any, cli: Any
) -> None:
    steps = [step("clusters.begin@1", "done"), step("baremetal.start@1", "running")]
    listed = {"items": [operation("running", steps=steps)], "next_cursor": None}
    stub.answer("GET", "/operations", listed)
    result = cli("operation", "list", "--state", "running", "--kind", "create_cluster")
    assert result.exit_code == 0
    assert "1/2" in result.stdout
    query = stub.asked("GET", "/operations")[0][0]
    assert (query["state"], query["kind"]) == ("running", "create_cluster")
    whole = yaml.safe_load(cli("operation", "list", "-o", "yaml").stdout)
    assert whole == listed["items"]


def test_an_operation_is_shown_as_a_tree_and_as_data(stub: Any, cli: Any) -> None:
    document = operation("running", steps=[step("baremetal.erase@1", "running", done=3)])
    stub.answer("GET", PATH, document)
    shown = cli("operation", "show", "op_1").stdout
    assert "baremetal.erase" in shown
    assert "3/16" in shown
    assert json.loads(cli("operation", "show", "op_1", "-o", "json").stdout) == document


def test_cancelling_says_that_it_began_or_that_it_is_done(stub: Any, cli: Any) -> None:
    stub.answer("POST", f"{PATH}/cancel", operation("running", cancel_requested=True))
    begun = cli("operation", "cancel", "op_1")
    assert (begun.exit_code, begun.stderr) == (0, "create_cluster op_1 is being cancelled.\n")
    stub.answer("POST", f"{PATH}/cancel", operation("cancelled", reason="cancelled"))
    done = cli("operation", "cancel", "op_1", "--wait")
    assert done.exit_code == 0
    assert done.stderr.splitlines()[-1] == "create_cluster op_1 is cancelled."
    assert "cancelled: cancelled" not in done.stderr
    keys = [headers["idempotency-key"] for _, headers, _ in stub.asked("POST", f"{PATH}/cancel")]
    assert len(set(keys)) == 2


def test_an_operation_that_was_faster_than_its_cancelling_is_not_called_cancelled(
    stub: Any, cli: Any
) -> None:
    stub.answer("POST", f"{PATH}/cancel", operation("succeeded"))
    result = cli("operation", "cancel", "op_1", "--wait", "-o", "json")
    assert result.exit_code == 1
    assert "was not cancelled: it is succeeded" in result.stderr
    assert json.loads(result.stdout)["state"] == "succeeded"


@pytest.mark.parametrize("verb", ["retry", "resume"])
def test_retry_and_resume_say_how_to_watch_or_wait_for_the_end(
    stub: Any, cli: Any, verb: str
) -> None:
    stub.answer("POST", f"{PATH}/{verb}", JSONResponse(operation("pending", attempt=2), 202))
    result = cli("operation", verb, "op_1")
    assert (result.exit_code, result.stdout) == (0, "op_1\n")
    assert "dflare operation watch op_1" in result.stderr
    stub.answer("POST", f"{PATH}/{verb}", JSONResponse(operation("succeeded", attempt=2), 202))
    waited = cli("operation", verb, "op_1", "--wait")
    assert (waited.exit_code, "create_cluster succeeded." in waited.stderr) == (0, True)
    stub.answer(
        "POST",
        f"{PATH}/{verb}",
        JSONResponse({"detail": "it is running", "next_step": "Wait."}, 409),
    )
    refused = cli("operation", verb, "op_1")
    assert (refused.exit_code, refused.stderr) == (1, "error: it is running\nnext: Wait.\n")


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("failed", "no node left", "dflare operation retry op_1"),
        ("needs_operator", "leaf-1 does not answer", "dflare operation resume op_1"),
        (
            "needs_operator",
            "no lock; remove the cause, then go on with `dflare operation retry op_1`",
            "runs `dflare operation retry op_1`",
        ),
        ("cancelled", "cancelled", "taken back"),
    ],
)
def test_watching_what_did_not_succeed_ends_with_what_to_do(
    stub: Any, cli: Any, state: str, reason: str, words: str
) -> None:
    stub.answer("GET", PATH, operation(state, reason=reason))
    result = cli("operation", "watch", "op_1")
    assert result.exit_code == 1
    assert words in result.stderr.splitlines()[-1]
    assert (f": {reason}" in result.stderr) == (reason != state)


def test_a_trace_is_a_story_or_data(stub: Any, cli: Any) -> None:
    span = {
        "name": "clusters.create",
        "process": "gateway",
        "started_at": "2026-01-01T00:00:00Z",
        "duration_ms": 120.0,
        "error": None,
        "attributes": {},
        "children": [],
    }
    stub.answer("GET", f"{PATH}/trace", {"operation_id": "op_1", "spans": [span]})
    told = cli("operation", "trace", "op_1")
    assert told.exit_code == 0
    assert "clusters.create" in told.stdout
    data = json.loads(cli("operation", "trace", "op_1", "-o", "json").stdout)
    assert data["spans"] == [span]
