"""`dflare cluster scale|replace-node|extend|protect|drain`: what is asked of the API."""

import json
from typing import Any

import pytest
from api_stub import operation
from fastapi.responses import JSONResponse

from dflare.cli.cluster_life import seconds_of
from dflare.cli.errors import UsageError

CLUSTERS = "/projects/prj_1/clusters"
BY_ID = f"{CLUSTERS}/clu_1"
POOL = {"id": "pool_1", "name": "gpu", "node_type": "h100-8", "count": 16}
CLUSTER = {
    "id": "clu_1",
    "name": "train",
    "kind": "bare",
    "organization_id": "org_1",
    "project_id": "prj_1",
    "site_id": "site_1",
    "image": "base",
    "state": "ready",
    "reason": "",
    "since": "2026-01-01T00:00:00Z",
    "deadline": None,
    "pools": [POOL],
    "nodes": [
        {
            "node_id": "node_1",
            "name": "n1",
            "node_type": "h100-8",
            "pool": "gpu",
            "slot": 0,
            "allocation": "confirmed",
            "drained_by": "usr_7",
            "drain_reason": "fan",
        }
    ],
    "ssh_keys": [],
    "user_data": None,
    "operation_id": "op_2",
    "placement": "",
    "expires_at": "2026-01-02T00:00:00Z",
    "protected": True,
    "conditions": [
        {
            "type": "NodesHealthy",
            "status": "false",
            "reason": "NodesUnwell",
            "message": "n1 is failed",
            "since": "2026-01-01T00:00:00Z",
        }
    ],
    "created_by": "usr_1",
    "created_at": "2026-01-01T00:00:00Z",
    "version": 3,
}


@pytest.fixture
def train(stub: Any) -> Any:
    stub.answer("GET", f"{CLUSTERS}/train", JSONResponse(CLUSTER, headers={"ETag": '"clu_1-3"'}))
    return stub


def sent(stub: Any, method: str, path: str) -> tuple[dict[str, str], Any]:
    ((_, headers, body),) = stub.asked(method, path)
    return headers, json.loads(body) if body else None


def test_a_growth_is_an_order_on_what_was_looked_at(train: Any, cli: Any) -> None:
    train.answer("PATCH", f"{BY_ID}/pools/pool_1", operation("pending", kind="grow_cluster"))
    answer = cli("cluster", "scale", "train", "--count", "64")
    assert answer.stdout.strip() == "op_1"
    headers, body = sent(train, "PATCH", f"{BY_ID}/pools/pool_1")
    assert body == {"count": 64, "drain": "wait", "nodes": []}
    assert headers["if-match"] == '"clu_1-3"'
    assert headers["idempotency-key"]


def test_a_shrink_says_what_is_erased_and_asks(train: Any, cli: Any) -> None:
    path = f"{BY_ID}/pools/pool_1"
    train.answer("PATCH", path, operation("pending", kind="shrink_cluster"))
    refused = cli("cluster", "scale", "train", "--pool", "gpu", "--count", "12", text="n\n")
    assert refused.exit_code != 0
    assert "4 of the 16" in refused.output
    assert train.asked("PATCH", path) == []
    arguments = ("--node", "n1", "--drain", "refuse", "--yes")
    assert cli("cluster", "scale", "train", *arguments).stdout.strip() == "op_1"
    assert sent(train, "PATCH", path)[1] == {"drain": "refuse", "nodes": ["n1"]}


def test_a_scale_without_a_number_or_of_no_pool_is_refused_before_it_is_asked_for(
    train: Any, cli: Any
) -> None:
    assert cli("cluster", "scale", "train").exit_code == 2
    other = cli("cluster", "scale", "train", "--pool", "cpu", "--count", "3")
    assert other.exit_code == 2
    assert "gpu" in other.stderr


def test_a_replacement_that_is_waited_for_is_done_when_the_old_node_is_released(
    train: Any, cli: Any
) -> None:
    path = f"{BY_ID}/nodes/n1/replace"
    train.answer("POST", path, operation("succeeded", kind="replace_node"))
    train.answer("GET", BY_ID, CLUSTER)
    release = operation("succeeded", kind="release_replaced_node", id="op_2")
    train.answer("GET", "/operations/op_2", release)
    answer = cli("cluster", "replace-node", "train", "n1", "--yes", "--wait")
    assert answer.exit_code == 0, answer.output
    assert train.asked("GET", "/operations/op_2")
    assert "replaced" in answer.stderr


def test_an_end_is_moved_or_taken_away(train: Any, cli: Any) -> None:
    train.answer("PATCH", f"{CLUSTERS}/train", CLUSTER)
    assert "2026-01-02" in cli("cluster", "extend", "train", "--ttl", "8h").stderr
    cli("cluster", "extend", "train", "--ttl", "never")
    bodies = [json.loads(body) for _, _, body in train.asked("PATCH", f"{CLUSTERS}/train")]
    assert bodies == [{"ttl_s": 28_800}, {"ttl_s": None}]


def test_protection_is_given_and_taken(train: Any, cli: Any) -> None:
    train.answer("PATCH", f"{CLUSTERS}/train", CLUSTER)
    for verb in ("protect", "unprotect"):
        assert cli("cluster", verb, "train").exit_code == 0
    bodies = [json.loads(body) for _, _, body in train.asked("PATCH", f"{CLUSTERS}/train")]
    assert bodies == [{"protected": True}, {"protected": False}]


def test_a_drain_says_why_and_can_be_ended(train: Any, cli: Any) -> None:
    for verb in ("drain", "undrain"):
        train.answer("POST", f"{CLUSTERS}/train/nodes/n1/{verb}", CLUSTER)
    assert cli("cluster", "drain", "train", "n1", "--reason", "fan").exit_code == 0
    assert cli("cluster", "undrain", "train", "n1").exit_code == 0
    assert sent(train, "POST", f"{CLUSTERS}/train/nodes/n1/drain")[1] == {"reason": "fan"}


def test_a_cluster_is_shown_with_its_end_its_conditions_and_whose_its_drains_are(
    train: Any, cli: Any
) -> None:
    shown = cli("cluster", "show", "train").stdout
    for words in ("2026-01-02 00:00:00Z", "NodesHealthy", "n1 is failed", "usr_7"):
        assert words in shown


def test_a_time_to_live_and_protection_come_with_an_order(stub: Any, cli: Any) -> None:
    stub.answer("POST", CLUSTERS, operation("pending"))
    cli("cluster", "create", "a", "-n", "1", "-t", "h100-8", "--ttl", "1d12h", "--protect")
    body = sent(stub, "POST", CLUSTERS)[1]
    assert (body["ttl_s"], body["protected"]) == (129_600, True)


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("1h30m", 5400), ("2d", 172_800)])
def test_durations_are_written_in_units(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 h", "h8", "8h!", "-8h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        seconds_of(text)
