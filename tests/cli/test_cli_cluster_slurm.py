"""`dflare cluster create --kind slurm` with volumes, and how such a cluster is shown."""

import json
from typing import Any

import pytest

CLUSTERS = "/projects/prj_1/clusters"
ACCEPTED = {"id": "op_1", "state": "pending", "kind": "create_cluster", "steps": []}
CREATE = ("cluster", "create", "ml", "--type", "h100-8", "--count", "16")


def test_an_order_of_kind_slurm_names_its_volumes_and_their_places(stub: Any, cli: Any) -> None:
    stub.answer("POST", CLUSTERS, ACCEPTED)
    volumes = ("--volume", "data:/mnt/data", "--volume", "sets:/mnt/sets:ro")
    assert cli(*CREATE, "--kind", "slurm", *volumes).stdout.strip() == "op_1"
    ((_, _, sent),) = stub.asked("POST", CLUSTERS)
    body = json.loads(sent)
    assert body["kind"] == "slurm"
    assert body["pools"] == [{"name": "default", "node_type": "h100-8", "count": 16}]
    assert body["volumes"] == [
        {"volume": "data", "mount": "/mnt/data", "read_only": False},
        {"volume": "sets", "mount": "/mnt/sets", "read_only": True},
    ]


@pytest.mark.parametrize("text", ["data", "data:mnt", ":/mnt/data", "data:/mnt/data:rx"])
def test_a_volume_without_a_place_is_refused_before_it_is_asked_for(
    stub: Any, cli: Any, text: str
) -> None:
    answer = cli(*CREATE, "--kind", "slurm", "--volume", text)
    assert answer.exit_code == 2
    assert "NAME:/mnt/data" in answer.stderr
    assert stub.asked("POST", CLUSTERS) == []


def test_a_slurm_cluster_is_shown_with_the_way_to_use_it(stub: Any, cli: Any) -> None:
    shown = {
        "id": "clu_1",
        "name": "ml",
        "kind": "slurm",
        "pools": [{"id": "pool_1", "name": "gpu", "node_type": "h100-8", "count": 16}],
        "nodes": [],
        "volumes": [{"volume": "vol_1", "mount": "/mnt/data", "read_only": True}],
        "scheduler": {
            "state": "ready",
            "reason": "",
            "partitions": ["gpu"],
            "account": "vision",
        },
    }
    stub.answer("GET", f"{CLUSTERS}/ml", shown)
    answer = cli("cluster", "show", "ml")
    assert answer.exit_code == 0, answer.output
    assert "vol_1 at /mnt/data (ro)" in answer.stdout
    assert "dflare cluster submit ml job.sh -- --partition=gpu" in answer.stdout
    assert "vision" in answer.stdout
