"""`dflare apply`: what is read, what differs, what is done, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from api_stub import operation, problem

from dflare.cli.cluster_spec import parse_specs
from dflare.site.problems import SiteErrors

BASE = "/projects/prj_1"
CLUSTERS = f"{BASE}/clusters"
SPEC = """\
kind: Cluster
name: train
site: demo
scheduler: none
pools:
  - name: gpu
    node_type: h100-8
    count: 16
ssh_keys: [laptop]
"""


def live(count: int = 16, **more: Any) -> dict[str, Any]:
    """The cluster as the API has it."""
    pool = {"id": "pool_1", "name": "gpu", "node_type": "h100-8", "count": count}
    return {
        "id": "clu_1",
        "name": "train",
        "kind": "bare",
        "state": "ready",
        "site_id": "site_1",
        "image": "ubuntu",
        "pools": [pool],
        "ssh_keys": ["key_1"],
        "user_data": None,
        "expires_at": None,
        "protected": False,
        "operation_id": "op_1",
        "etag": '"7"',
        **more,
    }


def page(*items: dict[str, Any]) -> dict[str, Any]:
    """A list that ends with its first page."""
    return {"items": list(items), "next_cursor": None}


@pytest.fixture
def file(tmp_path: Path, stub: Any) -> Path:
    """The document in a file, and names that the API knows."""
    stub.answer("GET", "/sites", page({"id": "site_1", "name": "demo"}))
    stub.answer("GET", f"{BASE}/ssh-keys", page({"id": "key_1", "name": "laptop"}))
    for kind in ("user-data", "volumes"):
        stub.answer("GET", f"{BASE}/{kind}", page())
    path = tmp_path / "cluster.yaml"
    path.write_text(SPEC)
    return path


def orders(stub: Any) -> list[tuple[str, str, Any]]:
    """What was asked for that changes something."""
    return [
        (method, path, json.loads(body))
        for method, path, query, _, body in stub.requests
        if method != "GET" and query.get("dry_run") != "true"
    ]


def test_a_cluster_that_does_not_exist_is_ordered(stub: Any, cli: Any, file: Path) -> None:
    stub.answer("POST", CLUSTERS, operation("pending"))
    result = cli("apply", "-f", str(file))
    assert (result.exit_code, result.stdout) == (0, "cluster/train created\n")
    assert "dflare operation watch op_1" in result.stderr
    ((method, path, body),) = orders(stub)
    assert (method, path) == ("POST", CLUSTERS)
    pool = {"name": "gpu", "node_type": "h100-8", "count": 16}
    assert body == {
        "name": "train",
        "kind": "bare",
        "site": "demo",
        "pools": [pool],
        "ssh_keys": ["laptop"],
    }


def test_wishes_go_with_the_order_and_say_nothing_of_a_cluster_that_exists(
    stub: Any, cli: Any, file: Path
) -> None:
    wishes = "placement: {shape: spread, exclude: [node-1]}\nwait_for_capacity: true\n"
    file.write_text(SPEC + wishes)
    stub.answer("POST", CLUSTERS, operation("pending"))
    assert cli("apply", "-f", str(file)).exit_code == 0
    ((_, _, body),) = orders(stub)
    assert body["placement"] == {"shape": "spread", "exclude": ["node-1"]}
    assert body["wait_for_capacity"] is True
    stub.answer("GET", f"{CLUSTERS}/train", live())
    assert cli("apply", "-f", str(file)).stdout == "cluster/train unchanged\n"


def test_volumes_are_compared_by_name_whatever_the_api_calls_them(
    stub: Any, cli: Any, file: Path
) -> None:
    stub.answer("GET", f"{BASE}/volumes", page({"id": "vol_1", "name": "data"}))
    mount = {"volume": "vol_1", "mount": "/mnt/data", "read_only": False}
    stub.answer("GET", f"{CLUSTERS}/train", live(volumes=[mount]))
    file.write_text(SPEC + "volumes: [{volume: data, mount: /mnt/data}]\n")
    assert cli("apply", "-f", str(file)).stdout == "cluster/train unchanged\n"
    file.write_text(SPEC + "volumes: [{volume: data, mount: /mnt/data, read_only: true}]\n")
    assert "volumes: " in cli("apply", "-f", str(file)).stderr


def test_applying_again_changes_nothing(stub: Any, cli: Any, file: Path) -> None:
    stub.answer("GET", f"{CLUSTERS}/train", live())
    result = cli("apply", "-f", str(file), "--wait")
    assert (result.exit_code, result.stdout) == (0, "cluster/train unchanged\n")
    assert orders(stub) == []


def test_another_count_scales_the_pool_as_it_was_seen(stub: Any, cli: Any, file: Path) -> None:
    stub.answer("GET", f"{CLUSTERS}/train", live(4))
    stub.answer("PATCH", f"{CLUSTERS}/clu_1/pools/pool_1", operation("succeeded"))
    result = cli("apply", "-f", str(file), "--wait", "--drain", "refuse")
    assert (result.exit_code, result.stdout) == (
        0,
        "cluster/train pool gpu scaled from 4 to 16\n",
    )
    assert orders(stub) == [
        ("PATCH", f"{CLUSTERS}/clu_1/pools/pool_1", {"count": 16, "drain": "refuse"})
    ]
    assert stub.requests[-1][3]["if-match"] == '"7"'


def test_nodes_leave_only_after_a_yes(stub: Any, cli: Any, file: Path) -> None:
    stub.answer("GET", f"{CLUSTERS}/train", live(20))
    refused = cli("apply", "-f", str(file))
    assert refused.exit_code == 2
    assert "Release 4 nodes and erase their disks?" in refused.stderr
    assert orders(stub) == []
    stub.answer("PATCH", f"{CLUSTERS}/clu_1/pools/pool_1", operation("pending"))
    assert cli("apply", "-f", str(file), "--yes").exit_code == 0
    assert len(orders(stub)) == 1


def test_protection_and_an_end_are_set_where_there_is_none(stub: Any, cli: Any, file: Path) -> None:
    file.write_text(SPEC + "protected: true\nttl: 1d12h\n")
    stub.answer("GET", f"{CLUSTERS}/train", live())
    stub.answer("PATCH", f"{CLUSTERS}/clu_1", live())
    result = cli("apply", "-f", str(file))
    assert result.stdout == "cluster/train configured\n"
    assert orders(stub) == [("PATCH", f"{CLUSTERS}/clu_1", {"protected": True, "ttl_s": 129_600})]
    ending = live(expires_at="2026-01-01T00:00:00Z", protected=True)
    stub.answer("GET", f"{CLUSTERS}/train", ending)
    assert cli("apply", "-f", str(file)).stdout == "cluster/train unchanged\n"


def test_a_dry_run_shows_the_difference_and_changes_nothing(
    stub: Any, cli: Any, file: Path
) -> None:
    stub.answer("GET", f"{CLUSTERS}/train", live(4))
    result = cli("apply", "-f", str(file), "--dry-run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "-  count: 4" in lines
    assert "+  count: 16" in lines
    assert "Nothing was changed." in result.stderr
    assert orders(stub) == []


def test_a_dry_run_of_an_order_says_what_it_would_get_and_cost(
    stub: Any, cli: Any, file: Path
) -> None:
    quote = {
        "nodes": ["node-1", "node-2"],
        "placement": "in one rack",
        "price_per_hour": "40.00",
        "currency": "EUR",
    }
    stub.answer("POST", CLUSTERS, quote)
    result = cli("apply", "-f", str(file), "--dry-run")
    assert "+name: train" in result.stdout
    assert "# 2 nodes now, 40.00 EUR an hour; in one rack" in result.stdout
    assert orders(stub) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("h100-8", "mi300x-8"), "pool gpu: nodes of type h100-8 cannot become mi300x-8"),
        (("name: gpu", "name: more"), "pool more cannot be added"),
        (("[laptop]", "[desk]"), "ssh_keys: laptop cannot become desk"),
        (("scheduler: none", "scheduler: slurm"), "scheduler: none cannot become slurm"),
        (("site: demo", "site: north"), "site: demo cannot become north"),
        (("ssh_keys", "user_data: base\nssh_keys"), "user_data: nothing cannot become base"),
    ],
)
def test_what_cannot_be_changed_is_refused_before_anything_is_done(
    stub: Any, cli: Any, file: Path, change: tuple[str, str], words: str
) -> None:
    stub.answer("GET", f"{CLUSTERS}/train", live(4))
    stub.answer("POST", CLUSTERS, operation("pending"))
    file.write_text(f"{SPEC.replace('train', 'other')}---\n{SPEC.replace(*change)}")
    result = cli("apply", "-f", str(file))
    assert result.exit_code == 1
    assert words in result.stderr
    assert "What can be changed: the count of a pool" in result.stderr
    assert orders(stub) == []


def test_a_cluster_in_the_middle_of_something_is_left_to_it(
    stub: Any, cli: Any, file: Path
) -> None:
    stub.answer("GET", f"{CLUSTERS}/train", live(4, state="resizing"))
    result = cli("apply", "-f", str(file))
    assert result.exit_code == 1
    assert "cluster train is resizing" in result.stderr
    assert "dflare operation watch op_1" in result.stderr


def test_several_documents_are_applied_and_told_one_by_one(stub: Any, cli: Any, file: Path) -> None:
    file.write_text(f"# two\n---\n{SPEC}---\n{SPEC.replace('train', 'other')}---\n# the end\n")
    stub.answer("GET", f"{CLUSTERS}/train", live())
    stub.answer("POST", CLUSTERS, operation("pending"))
    result = cli("apply", "-f", str(file), "-o", "json")
    answer = json.loads(result.stdout)
    assert [(one["name"], one["action"]) for one in answer] == [
        ("train", "unchanged"),
        ("other", "created"),
    ]
    assert answer[1]["operations"][0]["id"] == "op_1"


def test_standard_input_and_a_refusal_of_the_api_pass_through(
    stub: Any, cli: Any, file: Path
) -> None:
    del file
    stub.answer("POST", CLUSTERS, problem(409, "too few nodes are free", "Order fewer."))
    result = cli("apply", "-f", "-", text=SPEC)
    assert (result.exit_code, result.stderr) == (
        1,
        "error: too few nodes are free\nnext: Order fewer.\n",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SPEC.replace("count", "cuont"), "8:5: pools[0].cuont: unknown key cuont (did you mean"),
        (SPEC.replace("    count: 16\n", ""), "6:5: pools[0].count: the key count is missing"),
        (SPEC.replace("16", "lots"), "8:12: pools[0].count: must be a whole number, not lots"),
        (SPEC.replace("16", "0"), "8:12: pools[0].count: 0: input should be greater"),
        (SPEC.replace("Cluster", "Cluser"), "1:7: kind: Cluser is not 'Cluster' (did you mean"),
        (SPEC.replace("none", "slrum"), "4:12: scheduler: slrum is not 'none' or 'slurm' (did"),
        (SPEC.replace("train", "Train"), "2:7: name: Train is not a valid value (use 1 to 63"),
        (SPEC + "ttl: soon\n", "10:6: ttl: soon is not a valid value (write it as 8h"),
        (SPEC + "volumes: [{volume: a, mount: data}]\n", "10:30: volumes[0].mount: data is not"),
        (f"---\n{SPEC}---\n{SPEC}", "12:1: name: cluster train stands in line 2 too"),
        (f"{SPEC}---\n{SPEC.replace('16', 'x')}", "18:12: pools[0].count: must be a whole"),
        (SPEC + "pools: []\n", "the key stands twice, first in line 5"),
        (SPEC.replace("ssh_keys", "  - {name: gpu, node_type: a, count: 1}\nssh_keys"), "rename"),
        ("kind: [\n", "YAML syntax"),
        ("# nothing\n", "1:1: there is no document"),
        ("just text\n", "1:1: document: must be a group of keys, not just text"),
    ],
)
def test_every_problem_of_a_file_is_named_with_line_and_key(text: str, words: str) -> None:
    with pytest.raises(SiteErrors) as caught:
        parse_specs(text.encode(), "cluster.yaml")
    assert f"cluster.yaml:{words}" in str(caught.value) or words in str(caught.value)


def test_a_file_that_is_refused_sends_nothing(stub: Any, cli: Any, file: Path) -> None:
    file.write_text(SPEC.replace("16", "lots") + "nmae: x\n")
    result = cli("apply", "-f", str(file))
    assert result.exit_code == 1
    assert "cluster.yaml has 2 problems" in result.stderr
    assert stub.requests == []
    missing = cli("apply", "-f", str(file.parent / "no.yaml"))
    assert (missing.exit_code, "No such file" in missing.stderr) == (1, True)
