"""Promises about site documents at the command line."""

import json
from pathlib import Path
from typing import Any

import yaml
from api_stub import step
from fastapi.responses import JSONResponse

FLEET = "sn,cpu_milli,memory_mib,gpu,model\na-1,64000,262144,8,G2\na-2,64000,262144,8,G2\n"


def imported(cli: Any, tmp_path: Path) -> Path:
    fleet = tmp_path / "fleet.csv"
    fleet.write_text(FLEET)
    target = tmp_path / "site.yaml"
    result = cli("site", "import", str(fleet), "-o", str(target), "--name", "lab")
    assert result.exit_code == 0, result.output
    return target


def test_a_fleet_list_becomes_a_site_that_is_valid_and_private(cli: Any, tmp_path: Path) -> None:
    target = imported(cli, tmp_path)
    assert target.stat().st_mode & 0o077 == 0
    result = cli("site", "validate", str(target))
    assert result.exit_code == 0
    assert result.stdout.startswith("lab: 2 nodes of 1 types with 16 GPUs in 1 racks")


def test_the_simulators_file_is_written_beside_it_on_demand(cli: Any, tmp_path: Path) -> None:
    fleet, sim = tmp_path / "fleet.csv", tmp_path / "sim.yaml"
    fleet.write_text(FLEET)
    site = tmp_path / "site.yaml"
    options = ("--simulator-file", str(sim), "--hardware-time", "zero", "--bmc-port", "9443")
    assert cli("site", "import", str(fleet), "-o", str(site), *options).exit_code == 0
    assert yaml.safe_load(sim.read_text())["bmc_port"] == 9443


def test_a_wrong_list_names_line_and_column_and_writes_nothing(cli: Any, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.csv"
    fleet.write_text(FLEET + "a-2,x,262144,8,G2\n")
    target = tmp_path / "site.yaml"
    result = cli("site", "import", str(fleet), "-o", str(target))
    assert result.exit_code == 1
    assert "fleet.csv:4:" in result.stderr
    assert "cpu_milli" in result.stderr
    assert not target.exists()


def test_a_broken_document_names_line_and_key_and_is_not_sent(
    stub: Any, cli: Any, tmp_path: Path
) -> None:
    target = imported(cli, tmp_path)
    text = target.read_text().replace("vendor: dell", "vendor: del")
    target.write_text(text)
    line = text.splitlines().index(next(row for row in text.splitlines() if "vendor: del" in row))
    result = cli("site", "apply", str(target))
    assert result.exit_code == 1
    assert f"site.yaml:{line + 1}:" in result.stderr
    assert "did you mean dell?" in result.stderr
    assert stub.requests == []


def test_a_missing_file_is_one_message(cli: Any, tmp_path: Path) -> None:
    result = cli("site", "validate", str(tmp_path / "none.yaml"))
    assert result.exit_code == 1
    assert "No such file" in result.stderr


def test_apply_sends_the_whole_document_with_its_passwords(
    stub: Any, cli: Any, tmp_path: Path
) -> None:
    target = imported(cli, tmp_path)
    document = yaml.safe_load(target.read_text())
    (tmp_path / "pw").write_text("from a file\n")
    document["credentials"]["bmc"] = {"username": "root", "password_file": "pw"}
    target.write_text(json.dumps(document))
    accepted = {"id": "op_1", "kind": "enrol_nodes", "state": "pending", "steps": [step("x.y@1")]}
    stub.answer("PUT", "/sites/lab", JSONResponse({"operation": accepted}, 202))
    result = cli("site", "apply", str(target))
    assert result.exit_code == 0, result.output
    assert result.stdout == "op_1\n"
    sent = json.loads(stub.asked("PUT", "/sites/lab")[0][2])
    assert sent["credentials"]["bmc"] == {"username": "root", "password": "from a file"}
    assert "*" not in sent["credentials"]["nvue"]["password"]
    assert len(sent["nodes"]) == 2


def test_a_password_that_cannot_be_found_stops_the_apply(
    stub: Any, cli: Any, tmp_path: Path
) -> None:
    target = imported(cli, tmp_path)
    document = yaml.safe_load(target.read_text())
    document["credentials"]["bmc"] = {"username": "root", "password_env": "NOT_SET_ANYWHERE"}
    target.write_text(json.dumps(document))
    result = cli("site", "apply", str(target))
    assert result.exit_code == 1
    assert "NOT_SET_ANYWHERE is not set" in result.stderr
    assert stub.requests == []


def test_a_dry_run_shows_the_difference_and_changes_nothing(
    stub: Any, cli: Any, tmp_path: Path
) -> None:
    target = imported(cli, tmp_path)
    change = {
        "kind": "node_type",
        "name": "g2-8",
        "fields": [{"path": "price_per_node_hour", "old": "9.60", "new": "8.00"}],
    }
    nodes = [{"kind": "node", "name": f"n{index}"} for index in range(30)]
    removed = [{"kind": "rack", "name": "rack-9"}]
    stub.answer(
        *("PUT", "/sites/lab"),
        {"added": nodes, "changed": [change], "removed": removed, "operation": None},
    )
    result = cli("site", "apply", str(target), "--dry-run")
    assert result.exit_code == 0
    assert stub.asked("PUT", "/sites/lab")[0][0] == {"dry_run": "true"}
    assert result.stdout.splitlines() == [
        "+ 30 of node: n0 … n29",
        "~ node_type g2-8",
        "    price_per_node_hour: 9.60 -> 8.00",
        "- rack rack-9",
    ]


def test_a_freeze_says_what_waits(stub: Any, cli: Any) -> None:
    stub.answer(
        "POST",
        "/sites/lab/freeze",
        {"frozen": True, "waiting_ports": 2, "waiting": [{"device_id": "dev_1", "ports": 2}]},
    )
    result = cli("site", "freeze", "lab", "--reason", "fire drill", "--yes")
    assert result.exit_code == 0
    assert "2 ports wait" in result.stdout
    assert "dev_1" in result.stdout
