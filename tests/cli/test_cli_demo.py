"""What the demonstration shows and what it calls a proof, without a platform."""

import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dflare.cli.demo_map import site_map
from dflare.cli.demo_proofs import (
    Bracket,
    Reach,
    bill,
    isolation_problems,
    job_bill_problems,
    job_problems,
    last_boot,
    reach,
    traces,
)
from dflare.cli.demo_stage import Cast, Stage, plain, shortened

OWN, NEXT = frozenset({"a", "b"}), frozenset({"c"})
AT = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def node(name: str, state: str = "available", project: str | None = None, rack: str = "r1") -> Any:
    """A server's document."""
    return {"name": name, "state": state, "project_id": project, "rack": rack}


def drawn(nodes: list[Any], tenants: dict[str, str]) -> str:
    """The map as text."""
    file = io.StringIO()
    Console(file=file, width=100).print(site_map(nodes, tenants))
    return file.getvalue()


def test_the_map_shows_whose_each_server_is_without_colours() -> None:
    nodes = [
        node("n-1", "active", "prj_red"),
        node("n-2", "active", "prj_blue"),
        node("n-3", "active", "prj_else"),
        node("n-4", "failed"),
        node("n-5", "provisioning"),
        node("n-6", rack="r2"),
    ]
    text = drawn(nodes, {"prj_red": "of red", "prj_blue": "of blue"})
    assert "r1 ●◆○x~   r2 ·" in text
    for words in ("1 of red", "1 of blue", "1 of other tenants", "1 set aside", "1 free"):
        assert words in text


def test_a_site_of_many_racks_is_cut_and_says_so() -> None:
    text = drawn([node(f"n-{n:03}", rack=f"rack-{n:03}") for n in range(60)], {})
    assert "rack-047" in text
    assert "rack-048" not in text
    assert "and 12 more racks" in text


def test_reach_counts_own_pairs_and_those_that_lead_away() -> None:
    truth = {
        "ethernet": [["a", "b", "c"], ["d"]],
        "infiniband": [{"pkey": "0x10", "full": ["a"], "limited": ["b", "d"]}],
    }
    assert reach(truth, "ethernet", OWN, NEXT) == Reach("ethernet", 1, 1, 2, 0)
    # Limited members reach full ones only: b does not reach d.
    assert reach(truth, "infiniband", OWN, NEXT) == Reach("infiniband", 1, 1, 0, 1)


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (Reach("ethernet", 1, 1, 0, 0), True, []),
        (Reach("infiniband", 0, 1, 0, 0), False, []),
        (Reach("ethernet", 0, 1, 0, 0), True, ["only 0 of 1"]),
        (Reach("infiniband", 1, 1, 2, 3), True, ["2 pairs lead to the neighbour and 3 elsewhere"]),
    ],
)
def test_isolation_fails_by_a_missing_pair_as_by_one_too_many(
    found: Reach, expected: bool, words: list[str]
) -> None:
    problems = isolation_problems(found, expected=expected)
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


def boot(subject: str, seconds: float, key: str = "key") -> dict[str, Any]:
    """An entry of the simulator's log."""
    at = (AT + timedelta(seconds=seconds)).isoformat()
    return {"subject": subject, "system": "tenant", "ssh_keys": [key], "at_wall": at}


def test_the_last_boot_is_that_of_the_tenants_own_system_on_its_own_nodes() -> None:
    entries = [boot("a", 1), boot("b", 2), boot("b", 9, "another"), boot("c", 8)]
    assert last_boot(entries, OWN, "key") == AT + timedelta(seconds=2)
    assert last_boot(entries[1:], OWN, "key") is None


def billed(amount: str, seconds: float) -> Any:
    """The bill of two nodes that the ledger has for ``seconds`` each."""
    until = AT + timedelta(seconds=seconds)
    usage = {"usage_from": AT.isoformat(), "usage_to": until.isoformat()}
    invoice = {"month": "2026-11", "as_of": until.isoformat(), "lines": [{"amount": amount}]}
    return bill(
        [invoice],
        {"2026-11": [usage, usage]},
        Decimal(360),
        handed_over=Bracket(AT - timedelta(seconds=1), AT + timedelta(seconds=1)),
        asked=Bracket(AT + timedelta(seconds=10), AT + timedelta(seconds=11)),
        nodes=2,
    )


def test_a_bill_must_be_what_ledger_and_price_give_and_what_the_log_allows() -> None:
    good = billed("2.00", 10)
    assert (good.exact, good.least, good.most) == (Decimal(2), Decimal("1.80"), Decimal("2.40"))
    assert good.problems() == []
    assert "ledger and price give 2.00" in billed("2.01", 10).problems()[0]
    assert "the log allows 1.80 to 2.40" in billed("3.00", 15).problems()[0]
    assert "nothing was billed" in billed("0.00", 0).problems()[-1]


@pytest.mark.parametrize(
    ("change", "lines", "words"),
    [
        ({}, ["gpu-0 has GPUs 0,1", "gpu-1 has GPUs 0,1"], []),
        (
            {"exit_code": 1, "reason": "NonZeroExitCode"},
            ["gpu-0 has GPUs 0,1"] * 2,
            ["exit code 1"],
        ),
        ({}, ["gpu-0 has GPUs 0,1"], ["1 servers printed, with 2 GPUs"]),
        ({}, ["gpu-0 has GPUs 0,0", "gpu-1 has GPUs 0,1"], ["2 servers printed, with 3 GPUs"]),
        ({}, ["srun: error"], ["it printed: srun: error"]),
        ({"gpus": 2}, ["gpu-0 has GPUs 0,1", "gpu-1 has GPUs 0,1"], ["accounting says 2 servers"]),
    ],
)
def test_a_job_must_have_printed_from_every_server_with_every_gpu(
    change: dict[str, Any], lines: list[str], words: list[str]
) -> None:
    job = {"state": "ended", "exit_code": 0, "reason": "", "nodes": 2, "gpus": 4, **change}
    problems = job_problems(job, lines, nodes=2, gpus=2)
    assert bool(problems) == bool(words)
    assert all(any(word in problem for problem in problems) for word in words)


def test_what_invoices_tell_of_a_job_must_be_what_accounting_says() -> None:
    invoices: list[Any] = [{"jobs": [{"gpu_seconds": "100"}]}, {"jobs": [{"gpu_seconds": "28"}]}]
    assert job_bill_problems(invoices, {"gpu_seconds": "128"}) == []
    assert "128 GPU-seconds" in job_bill_problems(invoices, {"gpu_seconds": "256"})[0]


def test_everything_that_a_release_leaves_behind_is_named() -> None:
    clean: dict[str, Any] = {
        "disks": [{"blank": True}],
        "ssh_keys_on_disk": [],
        "ssh_keys_running": [],
        "power": "Off",
        "virtual_media": {},
    }
    dirty = {
        "disks": [{"blank": False}],
        "ssh_keys_on_disk": ["key"],
        "ssh_keys_running": [],
        "power": "On",
        "virtual_media": {"Cd": "image"},
    }
    nowhere: dict[str, Any] = {"ethernet": [], "infiniband": []}
    assert traces({"a": clean}, frozenset({"a"}), [], nowhere) == []
    found = traces(
        {"a": dirty},
        frozenset({"a"}),
        [{"host": "a", "place": "disk nvme0n1"}],
        {"ethernet": [["a", "z"]], "infiniband": []},
    )
    said = "\n".join(found)
    for words in ("data is on disk", "not blank", "SSH key", "power is On", "medium", "reaches 1"):
        assert words in said


def test_a_recording_is_asciicast_version_2() -> None:
    file = io.StringIO()
    cast = Cast(file, 100, 40, "title")
    cast.output("one\ntwo\r\n")
    header, event = (json.loads(line) for line in file.getvalue().splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 100, 40)
    assert event[0] >= 0
    assert event[1:] == ["o", "one\r\ntwo\r\n"]


def test_a_stage_records_and_draws_what_it_shows(tmp_path: Path, capsys: Any) -> None:
    cast, picture = tmp_path / "a.cast", tmp_path / "a.svg"
    with Stage(fast=True, record=cast, picture=picture) as stage:
        stage.act("The site")
        stage.proof("it stands")
        stage.proof("it floats", ["it sank"])
    shown = capsys.readouterr().out
    events = [json.loads(line) for line in cast.read_text().splitlines()[1:]]
    assert "".join(event[2] for event in events) == shown.replace("\n", "\r\n")
    assert "it stands" in shown
    assert stage.failed == ["it floats: it sank"]
    svg = picture.read_text()
    assert "stands" in svg
    assert "@font-face" not in svg


def test_pauses_are_for_people_who_look(tmp_path: Path) -> None:
    slept: list[float] = []
    for fast in (True, False):
        with Stage(fast=fast, record=tmp_path / "a.cast", sleep=slept.append) as stage:
            stage.pause(3)
    with Stage(sleep=slept.append) as unseen:
        unseen.pause(5)
    assert slept == [3]


def test_a_recording_that_cannot_be_written_is_said_at_once(fresh_cli: Any, tmp_path: Path) -> None:
    from dflare.cli.errors import CliError

    with pytest.raises(CliError, match="cannot be written"):
        Stage(record=tmp_path / "no" / "a.cast")
    assert fresh_cli("demo").exit_code == 2


def test_a_demonstration_without_a_platform_says_how_to_start_one(fresh_cli: Any) -> None:
    result = fresh_cli("demo", "--fast")
    assert result.exit_code == 2
    assert "no platform runs in" in result.stderr
    assert "next: Start one by `dflare up`" in result.stderr


def test_messages_of_steps_fit_in_a_line() -> None:
    step = {"message": "x" * 200, "name": "a@1"}
    document = {"steps": [step], "state": "succeeded", "reason": "y" * 200}
    short = shortened(document)
    assert (len(short["steps"][0]["message"]), short["reason"]) == (44, "")
    assert shortened({**document, "state": "failed"})["reason"] == "y" * 200
    long = f"replaced: baremetal.provision@1 failed for 1 of 16: it is {'a1' * 32}, not {'b2' * 32}"
    assert plain(long) == "replaced 1 of 16: it is a1a1a1a1…, not b2b2b2b2…"
