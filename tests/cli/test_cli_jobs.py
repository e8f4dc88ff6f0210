"""`dflare cluster submit|jobs|logs`, `dflare audit usage` and the bill of volumes and jobs: what is
asked of the API and what is shown of its answers."""

import json
from pathlib import Path
from typing import Any

from api_stub import problem

CLUSTER = "/projects/prj_1/clusters/ml"
JOB = {
    "id": "job_1",
    "cluster_id": "clu_1",
    "name": "train",
    "state": "ended",
    "reason": "",
    "since": "2026-01-01T00:00:00Z",
    "scheduler_id": "7",
    "scheduler_state": "COMPLETED",
    "account": "vision",
    "member": "usr_1",
    "submitted_by": "ada",
    "direct": False,
    "runs": 1,
    "nodes": 16,
    "gpus": 128,
    "gpu_seconds": "460800",
    "exit_code": 0,
    "created_at": "2026-01-01T00:00:00Z",
    "started_at": "2026-01-01T00:00:00Z",
    "ended_at": "2026-01-01T01:00:00Z",
    "output_bytes": 6,
    "version": 4,
}
AUDIT = {
    "id": "audit_1",
    "day": None,
    "usage_since": "2026-01-01T00:00:00Z",
    "requested_by": "usr_1",
    "requested_at": "2026-01-02T00:00:00Z",
    "state": "found",
    "reason": "",
    "since": "2026-01-02T00:00:00Z",
    "deadline": None,
    "allocations": 12,
    "entries": 11,
    "findings": 1,
    "version": 3,
}
FINDING = {
    "number": 1,
    "kind": "missing",
    "allocation_id": "alloc_9",
    "node_id": "node_9",
    "organization_id": "org_1",
    "project_id": "prj_1",
    "detail": {},
}


def sent(stub: Any, path: str) -> Any:
    """The body of the only POST to a route."""
    ((_, _, body),) = stub.asked("POST", path)
    return json.loads(body)


def script_file(folder: Path) -> Path:
    path = folder / "train big.sh"
    path.write_text("#!/bin/sh\nsrun hostname\n")
    return path


def part(text: str, end: int, state: str) -> dict[str, Any]:
    return {"offset": 0, "next_offset": end, "text": text, "state": state}


def test_a_submission_sends_script_options_and_environment(
    stub: Any, cli: Any, tmp_path: Path
) -> None:
    stub.answer("POST", f"{CLUSTER}/jobs", {**JOB, "state": "pending", "exit_code": None})
    script = script_file(tmp_path)
    result = cli(
        *("cluster", "submit", "ml", str(script), "--env", "EPOCHS=3"),
        *("--", "--nodes=16", "--gres=gpu:8"),
    )
    assert result.exit_code == 0, result.output
    assert sent(stub, f"{CLUSTER}/jobs") == {
        "script": "#!/bin/sh\nsrun hostname\n",
        "options": ["--nodes=16", "--gres=gpu:8"],
        "environment": {"EPOCHS": "3"},
        "name": "train-big",
    }
    ((_, headers, _),) = stub.asked("POST", f"{CLUSTER}/jobs")
    assert headers["idempotency-key"]
    assert "job_1" in result.stdout


def test_waiting_prints_what_the_job_writes_and_how_it_ended(
    stub: Any, cli: Any, tmp_path: Path
) -> None:
    stub.answer("POST", f"{CLUSTER}/jobs", {**JOB, "state": "pending"})
    stub.answer("GET", f"{CLUSTER}/jobs/job_1", {**JOB, "state": "running"}, JOB)
    output = f"{CLUSTER}/jobs/job_1/output"
    stub.answer("GET", output, part("one\n", 4, "open"), part("", 4, "open"), part("two\n", 8, ""))
    result = cli("cluster", "submit", "ml", str(script_file(tmp_path)), "--wait")
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert "128 GPUs, 128.000 GPU-hours" in result.stderr


def test_a_job_that_failed_or_was_refused_is_an_exit_code(
    stub: Any, cli: Any, tmp_path: Path
) -> None:
    script = str(script_file(tmp_path))
    stub.answer("POST", f"{CLUSTER}/jobs", JOB)
    stub.answer("GET", f"{CLUSTER}/jobs/job_1/output", part("", 0, "complete"))
    for change, code, word in (
        ({"scheduler_state": "FAILED", "exit_code": 3}, 1, "exit code 3"),
        ({"state": "refused", "reason": "too many nodes"}, 4, "too many nodes"),
    ):
        stub.answer("GET", f"{CLUSTER}/jobs/job_1", {**JOB, **change})
        result = cli("cluster", "submit", "ml", script, "--wait")
        assert (result.exit_code, word in result.stderr) == (code, True), result.stderr


def test_a_file_that_is_no_script_is_not_sent(stub: Any, cli: Any, tmp_path: Path) -> None:
    plain = tmp_path / "notes.txt"
    plain.write_text("srun hostname\n")
    assert cli("cluster", "submit", "ml", str(plain)).exit_code == 2
    assert cli("cluster", "submit", "ml", str(tmp_path / "absent")).exit_code == 2
    assert cli("cluster", "submit", "ml", str(script_file(tmp_path)), "-e", "X").exit_code == 2
    assert stub.asked("POST", f"{CLUSTER}/jobs") == []


def test_jobs_are_listed_whoever_submitted_them(stub: Any, cli: Any) -> None:
    direct = {**JOB, "id": "job_2", "scheduler_id": "8", "submitted_by": "", "direct": True}
    stub.answer("GET", f"{CLUSTER}/jobs", {"items": [direct, JOB], "next_cursor": None})
    shown = cli("cluster", "jobs", "ml").stdout
    for text in ("7", "8", "train", "COMPLETED", "128.000", "ada", "(on the cluster)"):
        assert text in shown


def test_logs_print_everything_and_say_where_more_is(stub: Any, cli: Any) -> None:
    output = f"{CLUSTER}/jobs/7/output"
    stub.answer("GET", output, part("a\n", 2, "open"), part("b\n", 4, "truncated"))
    result = cli("cluster", "logs", "ml", "7")
    assert (result.exit_code, result.stdout) == (0, "a\nb\n")
    assert "more than the 4 bytes" in result.stderr


def test_logs_of_a_job_submitted_on_the_cluster_say_where_they_are(stub: Any, cli: Any) -> None:
    refused = problem(409, "job 8 was submitted on the cluster itself", "Read its output there.")
    stub.answer("GET", f"{CLUSTER}/jobs/8/output", refused)
    result = cli("cluster", "logs", "ml", "8")
    assert (result.exit_code, "Read its output there" in result.stderr) == (1, True)


def test_an_audit_of_usage_waits_for_what_it_finds_and_says_so(stub: Any, cli: Any) -> None:
    asked = {**AUDIT, "state": "requested", "findings": 0}
    stub.answer("POST", "/audits/usage:run", asked)
    stub.answer("GET", "/audits/usage/audit_1", AUDIT)
    result = cli("audit", "usage", "run", "--since", "2026-01-01", "--wait")
    assert sent(stub, "/audits/usage:run") == {"usage_since": "2026-01-01T00:00:00Z"}
    assert (result.exit_code, "dflare audit usage show audit_1" in result.stderr) == (1, True)
    assert cli("audit", "usage", "run").exit_code == 0


def test_audits_and_findings_are_shown(stub: Any, cli: Any) -> None:
    stub.answer("GET", "/audits/usage", {"items": [AUDIT], "next_cursor": None})
    assert "(asked for)" in cli("audit", "usage", "list").stdout
    stub.answer("GET", "/audits/usage/audit_1", AUDIT)
    findings = {"items": [FINDING], "next_cursor": None}
    stub.answer("GET", "/audits/usage/audit_1/findings", findings)
    shown = cli("audit", "usage", "show", "audit_1").stdout
    assert all(text in shown for text in ("missing", "alloc_9", "node_9"))
    same = json.loads(cli("audit", "usage", "show", "audit_1", "-o", "json").stdout)
    assert same == {**AUDIT, "found": [FINDING]}


def test_the_invoice_has_volumes_jobs_and_what_is_to_be_noted(stub: Any, cli: Any) -> None:
    answer = {
        "project_id": "prj_1",
        "project": "lab",
        "month": "2026-01",
        "state": "draft",
        "as_of": "2026-01-31T00:00:00Z",
        "lines": [],
        "volumes": [
            {
                "volume_id": "vol_1",
                "site_id": "s",
                "price_per_gib_hour": "0.001",
                "currency": "EUR",
                "gib_seconds": "3600000",
                "amount": "1.00",
            }
        ],
        "jobs": [
            {
                "cluster_id": "clu_1",
                "account": "vision",
                "member": "usr_1",
                "runs": 2,
                "gpu_seconds": "5400.5",
            }
        ],
        "totals": {"EUR": "1.00"},
        "notes": ["Site s declares no price for volumes: they are billed at 0."],
    }
    stub.answer("GET", "/projects/prj_1/invoices/2026-01", answer)
    shown = cli("invoice", "show", "--month", "2026-01").stdout
    for text in ("vol_1", "1000.000", "0.001", "vision", "1.500", "billed at 0", "Total 1.00 EUR"):
        assert text in shown


def test_what_jobs_and_volumes_had_is_listed(stub: Any, cli: Any) -> None:
    run = {
        **{name: JOB[name] for name in ("cluster_id", "scheduler_id", "name", "account", "member")},
        "job_id": "job_1",
        "run": 1,
        "nodes": 1,
        "gpu_milli": 460,
        "usage_to": None,
        "usage_from": "2026-01-01T00:00:00Z",
    }
    stub.answer("GET", "/projects/prj_1/usage/jobs", {"items": [run], "next_cursor": None})
    shown = cli("usage", "jobs", "--month", "2026-01").stdout
    assert all(text in shown for text in ("0.46", "still runs", "vision"))
    interval = {
        "interval_id": "vint_1",
        "volume_id": "vol_1",
        "site_id": "s",
        "size_gib": 100,
        "usage_from": "2026-01-01T00:00:00Z",
        "usage_to": None,
    }
    stub.answer("GET", "/projects/prj_1/usage/volumes", {"items": [interval], "next_cursor": None})
    assert "vol_1" in cli("usage", "volumes", "--month", "2026-01").stdout
